"""DeepFace's attribute models as attribute models of ours: its model clients on our chips, never its detector.

The package is an extra, and heavy: it is imported by what loads a model, never with this module.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf

from deployments.models.session import Device, Session, create_session
from serve_app.attributes import Attribute, AttributeOutputs
from serve_app.errors import ConfigurationError
from serve_app.faces import ChipArray, FloatArray


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


class _Tensor(Protocol):
    def numpy(self) -> FloatArray: ...


class _KerasModel(Protocol):
    input_shape: tuple[int | None, ...]

    def __call__(self, batch: FloatArray, *, training: bool) -> _Tensor: ...


class DeepFaceClient(Protocol):
    """A demography client of deepface, as far as it is used here."""

    model_name: str
    model: object

    def predict(self, img: npt.NDArray[np.float32]) -> npt.NDArray[np.floating] | np.floating: ...


def weights_folder(home: Path) -> Path:
    """Where deepface keeps its weights under DEEPFACE_HOME."""
    return home / ".deepface" / "weights"


def build_client(model: str, engine: DeepFaceEngine, home: Path, threads: int, device: Device = Device.CPU) -> DeepFaceClient:
    """deepface's client of "Age", "Gender", "Emotion" or "Race"; downloads weights that are not there.

    Raises ConfigurationError when they cannot be had or read, and OSError when their folder cannot be made.
    """
    constructor = _client_class(model, engine, home, threads, device)
    from deepface.commons import folder_utils

    folder_utils.initialize_folder()
    try:
        return constructor()
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"deepface's {model} model cannot be loaded: {error}") from error


def load_deepface(
    model: str, attribute: Attribute, path: Path, engine: DeepFaceEngine, home: Path, device: Device, threads: int
) -> DeepFaceModel:
    """`path`: the weights, in the folder of `home`. Downloads nothing: raises ConfigurationError when they are not there."""
    if path.parent != weights_folder(home) or not path.is_file():
        raise ConfigurationError(f"deepface's {model} model needs {path.name} in {weights_folder(home)}; it is not there.")
    if engine is DeepFaceEngine.TENSORFLOW:
        client = build_client(model, engine, home, threads, device)
        client.model = _TracedModel(cast(_KerasModel, client.model))
        return DeepFaceModel(client, attribute)
    client_class = _client_class(model, engine, home, threads, device)
    # Without its constructor: that would load the weights into a session that takes every core and spins on them.
    client = client_class.__new__(client_class)
    client.model_name, client.model = model, _session(path, device, threads)
    return DeepFaceModel(client, attribute)


def _client_class(model: str, engine: DeepFaceEngine, home: Path, threads: int, device: Device) -> type[DeepFaceClient]:
    """Raises ConfigurationError: the engine is not installed, or deepface runs on the other one in this process."""
    if not engine.installed:
        raise ConfigurationError(f"deepface on {engine.value} needs the extra {engine.extra!r}, which is not installed.")
    os.environ["DEEPFACE_BACKEND_ENGINE"] = engine.value
    os.environ.setdefault("DEEPFACE_LOG_LEVEL", "30")
    from deepface.commons import backend_utils

    # deepface decides once a process, and would go on with its first choice.
    running = backend_utils.get_backend_engine()
    if running != engine.value:
        raise ConfigurationError(f"deepface runs on {running} in this process; {engine.value} needs one of its own.")
    os.environ["DEEPFACE_HOME"] = str(home)
    if engine is DeepFaceEngine.TENSORFLOW:
        _set_up_tensorflow(device, threads)
    from deepface.modules import modeling

    # Not its build_model(), which shares clients: ours are changed.
    return cast(type[DeepFaceClient], modeling.get_model_class("facial_attribute", model))


def _set_up_tensorflow(device: Device, threads: int) -> None:
    # As deepface does itself where it is imported as a whole: its layers are those of Keras 2.
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device is Device.CUDA and not gpus:
        raise ConfigurationError("device 'cuda' needs a GPU that TensorFlow can use; this installation sees none.")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        # By default TensorFlow takes every GPU, and all memory of each.
        visible = gpus if device is Device.CUDA else []
        tf.config.set_visible_devices(visible, "GPU")
        for gpu in visible:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        raise ConfigurationError(f"TensorFlow runs in this process already, with other settings: {error}") from error


def _session(path: Path, device: Device, threads: int) -> Session:
    try:
        return create_session(str(path), device, threads)
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise ConfigurationError(f"{path} is no model that ONNX Runtime can read: {error}") from error


class _TracedModel:
    """A Keras model as deepface's clients call it, compiled once for batches of every size.

    Keras compiles when the second and the third size come, and one face it interprets. Safe to call from several threads.
    """

    def __init__(self, model: _KerasModel) -> None:
        import tensorflow as tf

        self._run = cast(
            Callable[[FloatArray], _Tensor],
            tf.function(
                lambda batch: model(batch, training=False),
                input_signature=[tf.TensorSpec(model.input_shape, tf.float32)],
                autograph=False,
            ),
        )

    def __call__(self, batch: FloatArray, *, training: bool) -> _Tensor:
        return self._run(batch)

    def predict_on_batch(self, batch: FloatArray) -> FloatArray:
        return self._run(batch).numpy()


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
