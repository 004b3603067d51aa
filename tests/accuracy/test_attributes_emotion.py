"""The emotion model on real faces: equal to an independent conversion, and as often right as docs/accuracy.md says."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config.settings import Settings
from deployments.models.attribute_labels import class_of
from deployments.models.attribute_packs import AnalysisLocation, Missing, attribute_model_specs, find_model
from deployments.models.loading import load_attribute_models, load_detector
from deployments.models.packs import Pack, PackLocation
from deployments.models.pulling import pull_model
from deployments.models.session import Device, create_session
from serve_app.attributes import Attribute
from serve_app.errors import ConfigurationError
from serve_app.faces import ChipArray, ChipSpec, FloatArray, Frame
from serve_app.imaging.chips import cut_chips
from serve_app.imaging.images import ImageLimits, decode
from tests import data

NAME = "faceapi_emotion"
LIMITS = ImageLimits(20 << 20, 50_000_000)
CHIP = ChipSpec(Frame.ARCFACE, 112)

# npm alone may take 300 s before the tests are skipped.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> AnalysisLocation:
    """Of the files under MODEL_ROOT, or where npm can fetch them, or skip."""
    pack = PackLocation("opencv", Settings().model_root, model_cache)
    here = AnalysisLocation(pack, Path("/nonexistent"))
    if not isinstance(find_model(NAME, here), Missing):
        return here
    there = replace(here, pack=replace(pack, model_root=tmp_path_factory.mktemp("root")))
    try:
        pull_model(NAME, there)
    except ConfigurationError as error:
        pytest.skip(f"the emotion model is not here (MODEL_ROOT): {error}")
    return there


@pytest.fixture(scope="module")
def predictions(location: AnalysisLocation, labelled: tuple[ChipArray, list[str]]) -> FloatArray:
    (model,) = load_attribute_models(location, {NAME: (Attribute.EMOTION,)}, 2)
    return model.predictor.predict(labelled[0])[Attribute.EMOTION]


@pytest.fixture(scope="module")
def labelled(opencv_pack: Pack) -> tuple[ChipArray, list[str]]:
    """The largest face of each photo whose emotion is played or posed, and its label; about as many of each class."""
    path = data.require(data.PHOTOS / "manifest.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["emotion"] and row["kind"] == "emotion"]
    classes = set(attribute_model_specs()[NAME].classes)
    detector = load_detector(opencv_pack, Device.CPU, 2)
    chips, labels = [], []
    for row in rows:
        label = class_of(Attribute.EMOTION, row["emotion"])
        if label not in classes:
            continue
        pixels = decode(data.require(data.PHOTOS.parent / row["file"]).read_bytes(), LIMITS).pixels
        (faces,) = detector.detect([pixels], [0.6])
        if len(faces):
            largest = int(np.prod(faces.bboxes[:, 2:] - faces.bboxes[:, :2], axis=1).argmax())
            one = slice(largest, largest + 1)
            chips.append(cut_chips(pixels, faces.landmarks[one], faces.bboxes[one], CHIP))
            labels.append(label)
    return np.concatenate(chips), labels


def test_the_converted_graph_equals_a_reference(predictions: FloatArray, labelled: tuple[ChipArray, list[str]]) -> None:
    reference = create_session(str(data.require(data.REFERENCE / "expression_faceapi.onnx")), Device.CPU, 2)
    pixels = np.ascontiguousarray(labelled[0].transpose(0, 3, 1, 2), dtype=np.float32)
    expected = reference.run(None, {reference.get_inputs()[0].name: pixels})[0]
    worst = float(np.abs(predictions - expected).max())
    print(f"{len(pixels)} faces, largest difference of a probability: {worst:.2e}")
    assert worst < 1e-5


def test_it_is_right_as_often_as_measured(predictions: FloatArray, labelled: tuple[ChipArray, list[str]]) -> None:
    spec = attribute_model_specs()[NAME]
    right = np.array([spec.classes[index] for index in predictions.argmax(axis=1)]) == np.array(labelled[1])
    answered = predictions.max(axis=1) >= spec.abstain_below
    print(
        f"{len(right)} faces: {right.mean():.3f} right; {answered.mean():.2f} answered, {right[answered].mean():.3f} of them"
    )
    assert len(right) >= 50
    assert right.mean() >= 0.6
    assert answered.mean() >= 0.75 and right[answered].mean() >= 0.65
