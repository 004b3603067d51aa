"""DeepFace's models answer as DeepFace does, on the same crops of real photos; and what is said where they are missing.

Each engine has a process of its own: deepface decides once a process. Weights of DeepFace's names and shapes are enough.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import pytest

from deployments.models.attribute_packs import AnalysisLocation, attribute_model_specs, resolve_analysis
from deployments.models.deepface_models import (
    DeepFaceEngine,
    DeepFaceModel,
    build_client,
    load_deepface,
    weights_folder,
)
from deployments.models.engine import DetectionEngine, DetectionRequest
from deployments.models.loading import load_attribute_models, load_detector
from deployments.models.packs import Pack, PackLocation
from deployments.models.session import Device
from serve_app.attributes import Attribute
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import ALL_FACES, ChipArray, ChipSpec, DetectionOptions, FloatArray, Frame
from serve_app.imaging.images import ImageLimits
from tests import data

ResultT = TypeVar("ResultT")

PHOTOS = ("fr/obama_obama.jpg", "fr/biden_biden.jpg", "deepface/img12.jpg", "deepface/img53.jpg")
CHIP = ChipSpec(Frame.DLIB, 224)
ANSWERED = {
    DeepFaceEngine.ONNX: (Attribute.AGE, Attribute.GENDER, Attribute.EMOTION),
    DeepFaceEngine.TENSORFLOW: (Attribute.EMOTION,),
}
LABELS = {
    Attribute.GENDER: ("Woman", "Man"),
    Attribute.EMOTION: ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
}
"""deepface's names, in the order of ours in config/attributes.toml."""
TOLERANCE = {Attribute.AGE: 1e-3, Attribute.GENDER: 1e-5, Attribute.EMOTION: 1e-5}
"""Years, probabilities."""


class _DeepFace(Protocol):
    def analyze(self, **options: object) -> list[dict[str, object]]: ...


@dataclass(frozen=True, slots=True)
class Findings:
    """Of one engine in one process.

    `ours`, `deepface`: of the same chips; (N, 1) years or (N, C) probabilities. `batches`: the worst difference between
    faces in a batch and alone. `cores`: in use with one thread. `slowest_s`: of CPU, the slowest first batch of 1 to 8 faces
    after a warm start. `compiled`: how often, by then. `files`: what deepface would download for each of our models.
    `unreadable`, `second_engine`: what is said.
    """

    ours: dict[Attribute, FloatArray]
    deepface: dict[Attribute, FloatArray]
    batches: dict[Attribute, float]
    cores: float
    slowest_s: float
    compiled: int
    files: dict[str, str]
    unreadable: str
    second_engine: str


def weights(engine: DeepFaceEngine, attribute: Attribute) -> Path:
    spec = attribute_model_specs()[f"deepface_{attribute}"]
    return weights_folder(data.DEEPFACE_HOME) / f"{spec.file}{engine.suffix}"


def require(engine: DeepFaceEngine, *attributes: Attribute) -> None:
    """Skips where the weights or the extra are not here. KINLENS_REQUIRE_EXTRAS: weights without the extra are a failure."""
    for attribute in attributes:
        data.require(weights(engine, attribute))
    if not engine.installed:
        missing = f"the extra {engine.extra!r} is not installed"
        if os.environ.get("KINLENS_REQUIRE_EXTRAS"):
            pytest.fail(missing)
        pytest.skip(missing)


def in_a_process(call: Callable[..., ResultT], *args: object) -> ResultT:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


@pytest.fixture(scope="module")
def chips(opencv_pack: Pack) -> ChipArray:
    """(N, 224, 224, 3) of every face in a few photos."""
    detection = DetectionEngine(load_detector(opencv_pack, Device.CPU, 1), ImageLimits(1 << 24, 1 << 24), 0.6)
    options = DetectionOptions(chips=(CHIP,), chip_faces=ALL_FACES)
    found: list[ChipArray] = []
    for image in (data.package_image("t1.jpg"), *(data.read(name) for name in PHOTOS)):
        (detections,) = detection.run([DetectionRequest(image, options)])
        assert not isinstance(detections, ImageError)
        found.append(detections.chips[CHIP])
    return np.concatenate(found)


@pytest.fixture(scope="module", params=list(DeepFaceEngine))
def engine(request: pytest.FixtureRequest) -> DeepFaceEngine:
    found = DeepFaceEngine(request.param)
    require(found, *ANSWERED[found])
    return found


@pytest.fixture(scope="module")
def findings(engine: DeepFaceEngine, chips: ChipArray, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return in_a_process(_find, engine, chips, tmp_path_factory.mktemp("deepface"))


def _find(engine: DeepFaceEngine, chips: ChipArray, folder: Path) -> Findings:
    """As a replica loads and asks its models: neither a warning nor the network is tolerated until deepface itself runs."""
    attributes = ANSWERED[engine]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(socket.socket, "connect", _no_network)
        unreadable = _why_unreadable(engine, folder)
        models = {attribute: _load(engine, attribute) for attribute in attributes}
        cores, slowest_s = _cores_and_slowest(models[Attribute.EMOTION])
        compiled = _compiled(models[Attribute.EMOTION])
        batches = {attribute: _worst_of_batches(model, attribute) for attribute, model in models.items()}
        ours = {attribute: model.predict(chips)[attribute] for attribute, model in models.items()}
        second_engine = _why_no_second(engine)
        assert not {"deepface.DeepFace", "deepface.modules.detection"} & set(sys.modules), "its detector is of no use here"
    if Attribute.AGE in ours:
        ours[Attribute.AGE] = ours[Attribute.AGE][:, :1]
    return Findings(
        ours, _reference(attributes, chips), batches, cores, slowest_s, compiled, _downloads(engine), unreadable, second_engine
    )


def _no_network(self: socket.socket, address: object) -> None:
    raise AssertionError(f"the network was asked for: {address}")


def _load(engine: DeepFaceEngine, attribute: Attribute) -> DeepFaceModel:
    model = attribute_model_specs()[f"deepface_{attribute}"].model or ""
    return load_deepface(model, attribute, weights(engine, attribute), engine, data.DEEPFACE_HOME, Device.CPU, 1)


def _why_unreadable(engine: DeepFaceEngine, home: Path) -> str:
    file = weights_folder(home) / weights(engine, Attribute.EMOTION).name
    file.parent.mkdir(parents=True)
    for path in (file, data.DEEPFACE_HOME / file.name):
        with pytest.raises(ConfigurationError, match="is not there"):
            load_deepface("Emotion", Attribute.EMOTION, path, engine, home, Device.CPU, 1)
    file.write_bytes(b"<html>Not found</html>")
    with pytest.raises(ConfigurationError) as raised:
        load_deepface("Emotion", Attribute.EMOTION, file, engine, home, Device.CPU, 1)
    return str(raised.value)


def _why_no_second(engine: DeepFaceEngine) -> str:
    other = next(one for one in DeepFaceEngine if one is not engine)
    if not other.installed:
        return ""
    with pytest.raises(ConfigurationError) as raised:
        build_client("Emotion", other, data.DEEPFACE_HOME, 1)
    return str(raised.value)


def _cores_and_slowest(model: DeepFaceModel) -> tuple[float, float]:
    noise = _noise(32)
    for size in (1, 2):
        model.predict(noise[:size])
    slowest_s = 0.0
    for size in range(1, 9):
        cpu = time.process_time()
        model.predict(noise[:size])
        slowest_s = max(slowest_s, time.process_time() - cpu)
    begun, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < 1:
        model.predict(noise)
    return (time.process_time() - cpu) / (time.perf_counter() - begun), slowest_s


def _compiled(model: DeepFaceModel) -> int:
    """By TensorFlow; 0 with the other engine, which compiles nothing."""
    traced = getattr(model._client.model, "_run", None)
    return 0 if traced is None else int(traced.experimental_get_tracing_count())


def _worst_of_batches(model: DeepFaceModel, attribute: Attribute) -> float:
    noise = _noise(33)
    alone = np.concatenate([model.predict(noise[index : index + 1])[attribute] for index in range(len(noise))])
    assert len(alone) == len(noise) and not np.isnan(alone[:, 0]).any()
    return max(float(np.nanmax(np.abs(model.predict(noise[:size])[attribute] - alone[:size]))) for size in (1, 2, 33))


def _noise(faces: int) -> ChipArray:
    return np.random.default_rng(0).integers(0, 256, (faces, 224, 224, 3), dtype=np.uint8)


def _reference(attributes: tuple[Attribute, ...], chips: ChipArray) -> dict[Attribute, FloatArray]:
    from deepface import DeepFace
    from deepface.modules import modeling

    reference = cast(_DeepFace, DeepFace)
    rows: dict[Attribute, list[list[float]]] = {attribute: [] for attribute in attributes}
    for chip in chips:
        (answer,) = reference.analyze(
            img_path=np.ascontiguousarray(chip[..., ::-1]),
            actions=[attribute.value for attribute in attributes],
            detector_backend="skip",
            align=False,
            enforce_detection=False,
            silent=True,
        )
        for attribute in attributes:
            found = answer[attribute.value]
            if attribute is Attribute.AGE:
                # Whole years; its model has said more.
                years = float(modeling.build_model("facial_attribute", "Age").predict(chip[..., ::-1] / 255))
                assert found == int(years)
                rows[attribute].append([years])
            else:
                rows[attribute].append([cast(dict[str, float], found)[label] / 100 for label in LABELS[attribute]])
    return {attribute: np.asarray(found, dtype=np.float32) for attribute, found in rows.items()}


def _downloads(engine: DeepFaceEngine) -> dict[str, str]:
    from deepface.modules import modeling

    found = {}
    for name, spec in attribute_model_specs().items():
        if spec.family == "deepface":
            client: type = modeling.get_model_class("facial_attribute", spec.model)
            urls: list[str] = vars(sys.modules[client.__module__])["WEIGHTS_URL"]
            (found[name],) = {url.rpartition("/")[2] for url in urls}
    return found


def test_the_same_crop_gets_the_same_answer(findings: Findings, engine: DeepFaceEngine) -> None:
    for attribute, ours in findings.ours.items():
        theirs = findings.deepface[attribute]
        assert ours.shape == theirs.shape and len(ours) >= 8
        assert np.ptp(ours, axis=0).max() > 0.01, "the same for every face: that compares nothing"
        worst = float(np.abs(ours - theirs).max())
        print(f"{engine}, {attribute}: {len(ours)} faces, worst difference {worst:.1e}")
        assert worst <= TOLERANCE[attribute], attribute


def test_a_batch_answers_like_its_faces_alone(findings: Findings) -> None:
    for attribute, worst in findings.batches.items():
        assert worst <= TOLERANCE[attribute], attribute


def test_one_thread_is_one_core_and_no_batch_size_stalls(findings: Findings, engine: DeepFaceEngine) -> None:
    print(f"{engine}: {findings.cores:.2f} cores, slowest first batch {findings.slowest_s * 1e3:.0f} ms")
    assert findings.cores < 1.2 and findings.slowest_s < 1
    # A size that makes TensorFlow compile again costs a tenth of a second on a fast machine.
    assert findings.compiled == (1 if engine is DeepFaceEngine.TENSORFLOW else 0)


def test_one_engine_a_process(findings: Findings, engine: DeepFaceEngine) -> None:
    if not findings.second_engine:
        pytest.skip("the other engine is not installed")
    assert f"deepface runs on {engine.value} in this process" in findings.second_engine


def test_the_files_are_those_that_deepface_would_download(findings: Findings, engine: DeepFaceEngine) -> None:
    assert len(findings.files) == len(Attribute)
    for name, file in findings.files.items():
        assert file == f"{attribute_model_specs()[name].file}{engine.suffix}"


def test_weights_that_cannot_be_read_are_named(findings: Findings, engine: DeepFaceEngine) -> None:
    assert weights(engine, Attribute.EMOTION).name in findings.unreadable


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """DEEPFACE_HOME with the emotion model of the ONNX engine, which nobody may write to."""
    require(DeepFaceEngine.ONNX, Attribute.EMOTION)
    folder = weights_folder(tmp_path)
    folder.mkdir(parents=True)
    shutil.copy(weights(DeepFaceEngine.ONNX, Attribute.EMOTION), folder)
    for path in (folder, folder.parent, tmp_path):
        path.chmod(0o555)
    yield tmp_path
    for path in (tmp_path, folder.parent, folder):
        path.chmod(0o755)


def location(home: Path, cache: Path) -> AnalysisLocation:
    names = {attribute: f"deepface_{attribute}" for attribute in (Attribute.EMOTION, Attribute.RACE)}
    return AnalysisLocation(PackLocation("opencv", Path("/nonexistent"), cache), home, DeepFaceEngine.ONNX, names)


def test_missing_weights_are_named_with_source_and_folder(home: Path, model_cache: Path) -> None:
    found = resolve_analysis(location(home, model_cache))
    assert "deepface_emotion" in [model.name for model in found.models] and set(found.missing) == {Attribute.RACE}
    lost = found.missing[Attribute.RACE]
    assert "race_model_single_batch.onnx" in lost.reason and str(home) not in lost.reason
    assert attribute_model_specs()["deepface_race"].homepage in lost.remedy and str(weights_folder(home)) in lost.remedy


def test_a_replica_loads_what_is_there_and_refuses_what_is_not(home: Path, model_cache: Path, chips: ChipArray) -> None:
    rows, message = in_a_process(_loaded, location(home, model_cache), chips)
    assert len(rows) == len(chips) and rows == pytest.approx([1] * len(chips), abs=1e-5)
    assert "deepface_race" in message and "race_model_single_batch.onnx" in message


EMOTION = {"deepface_emotion": (Attribute.EMOTION,)}


def _loaded(where: AnalysisLocation, chips: ChipArray) -> tuple[list[float], str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        (model,) = load_attribute_models(where, EMOTION, 1)
        rows = model.predictor.predict(chips)[Attribute.EMOTION]
        # `models pull` with everything there: it writes nothing either.
        build_client("Emotion", where.deepface_engine, where.deepface_home, 1)
        with pytest.raises(ConfigurationError) as raised:
            load_attribute_models(where, EMOTION | {"deepface_race": (Attribute.RACE,)}, 1)
    return [float(total) for total in rows.sum(axis=1)], str(raised.value)
