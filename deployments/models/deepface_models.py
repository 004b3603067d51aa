"""DeepFace's attribute models as attribute models of ours: its model clients on our chips, never its detector.

Only replicas of the Analysis deployment and `kinlens models pull` import this; the package is an extra.
"""

from __future__ import annotations

import importlib.util
import os
from enum import StrEnum
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from deployments.models.session import Device, create_session
from serve_app.attributes import Attribute, AttributeOutputs
from serve_app.errors import ConfigurationError
from serve_app.faces import ChipArray


class DeepFaceEngine(StrEnum):
    ONNX = "onnx"
    TENSORFLOW = "tensorflow"

    @property
    def suffix(self) -> str:
        """Of the weights' file."""
        return ".onnx" if self is DeepFaceEngine.ONNX else ".h5"

    @property
    def extra(self) -> str:
        """The extra of this package that brings it."""
        return "deepface" if self is DeepFaceEngine.ONNX else "tensorflow"

    @property
    def installed(self) -> bool:
        needed = ("deepface",) if self is DeepFaceEngine.ONNX else ("deepface", "tensorflow", "tf_keras")
        return all(importlib.util.find_spec(name) is not None for name in needed)


class DeepFaceClient(Protocol):
    """A demography client of deepface, as far as it is used here."""

    model: object

    def predict(self, img: npt.NDArray[np.float32]) -> npt.NDArray[np.floating] | np.floating: ...


def weights_folder(home: Path) -> Path:
    """Where deepface keeps its weights under DEEPFACE_HOME."""
    return home / ".deepface" / "weights"


def build_client(model: str, engine: DeepFaceEngine, home: Path, threads: int) -> DeepFaceClient:
    """deepface's client of "Age", "Gender", "Emotion" or "Race"; downloads weights that are not there.

    One engine a process: deepface decides once. Raises ConfigurationError when the weights cannot be had or read.
    """
    os.environ["DEEPFACE_HOME"] = str(home)
    os.environ["DEEPFACE_BACKEND_ENGINE"] = engine.value
    if engine is DeepFaceEngine.TENSORFLOW:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        _limit_tensorflow(threads)
    from deepface.commons import folder_utils
    from deepface.modules import modeling

    folder_utils.initialize_folder()
    try:
        return cast(DeepFaceClient, modeling.build_model("facial_attribute", model))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"deepface's {model} model cannot be loaded: {error}") from error


def _limit_tensorflow(threads: int) -> None:
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        # Too late once TensorFlow runs: the second model of a process.
        return


class DeepFaceModel:
    """One attribute, by a client of deepface."""

    def __init__(self, client: DeepFaceClient, attribute: Attribute) -> None:
        self._client = client
        self._attribute = attribute

    def predict(self, chips: ChipArray) -> AttributeOutputs:
        # What deepface's own analyze() hands over: BGR in [0, 1].
        pixels = chips[..., ::-1].astype(np.float32) / np.float32(255)
        # A batch of one comes back without its first dimension.
        rows = np.asarray(self._client.predict(pixels), dtype=np.float32).reshape(len(chips), -1)
        if self._attribute is Attribute.AGE:
            return {Attribute.AGE: np.concatenate([rows[:, :1], np.full((len(chips), 1), np.nan, np.float32)], axis=1)}
        return {self._attribute: rows / rows.sum(axis=1, keepdims=True)}


def load_deepface(
    model: str, attribute: Attribute, path: Path, engine: DeepFaceEngine, home: Path, device: Device, threads: int
) -> DeepFaceModel:
    """`path`: the weights, which must be there. Raises ConfigurationError."""
    client = build_client(model, engine, home, threads)
    if engine is DeepFaceEngine.ONNX:
        # deepface's own session takes every core and spins on them.
        client.model = create_session(str(path), device, threads)
    return DeepFaceModel(client, attribute)
