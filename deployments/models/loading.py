"""From verified files to models that run."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from deployments.models import face_api
from deployments.models.attribute_models import (
    AgeDistribution,
    AttributePredictor,
    Classifier,
    GenderAge,
    Network,
    NetworkInput,
    class_years,
)
from deployments.models.attribute_packs import AnalysisLocation, Assignment, ResolvedModel, locate
from deployments.models.deepface_models import load_deepface
from deployments.models.detector import LetterboxDetector
from deployments.models.engine import LoadedAttributeModel
from deployments.models.packs import Pack
from deployments.models.recognizer import SFACE, Normalization, Recognizer
from deployments.models.scrfd import Scrfd, ScrfdContract
from deployments.models.session import (
    Device,
    PlacedSession,
    Runner,
    check_device,
    create_session,
    providers,
    session_options,
)
from deployments.models.winograd import faster_runner
from deployments.models.yunet import YuNet
from serve_app.errors import ConfigurationError


class _ZooModel(Protocol):
    """What insightface's zoo returns, as far as it is used here."""

    taskname: str
    session: PlacedSession
    input_name: str
    output_names: list[str]
    input_mean: float
    input_std: float


class _ZooDetector(_ZooModel, Protocol):
    _feat_stride_fpn: list[int]
    _num_anchors: int
    batched: bool
    use_kps: bool
    static_input_size: tuple[int, int] | None


def load_detector(pack: Pack, device: Device, intra_op_threads: int) -> LetterboxDetector:
    """Raises ConfigurationError when the file is not a detector with five landmarks, or the device is missing."""
    spec = pack.spec.detector
    if spec.family == "yunet":
        session = create_session(str(pack.detector_path), device, intra_op_threads)
        return YuNet(session, spec.input_sides_px, spec.border)
    model = cast(_ZooDetector, _zoo_model(pack.detector_path, "detection", device, intra_op_threads))
    if not model.use_kps:
        raise ConfigurationError(f"{pack.detector_path} finds boxes but no landmarks; faces could not be aligned.")
    contract = ScrfdContract(
        input_name=model.input_name,
        output_names=list(model.output_names),
        mean=model.input_mean,
        std=model.input_std,
        strides=tuple(model._feat_stride_fpn),
        anchors=model._num_anchors,
        batched=model.batched,
        fixed_side_px=model.static_input_size[0] if model.static_input_size else None,
    )
    runner: Runner = model.session
    if device is Device.CPU:
        sides_px = [contract.fixed_side_px] if contract.fixed_side_px else spec.input_sides_px
        runner = faster_runner(pack.detector_path, model.session, sides_px, intra_op_threads)
    return Scrfd(runner, contract, spec.input_sides_px)


def load_recognizer(pack: Pack, device: Device, intra_op_threads: int) -> Recognizer:
    """Raises ConfigurationError when the file is not a recognizer of the dimension the pack states."""
    spec = pack.spec.recognizer
    if spec.family == "sface":
        return Recognizer(create_session(str(pack.recognizer_path), device, intra_op_threads), SFACE, spec.dim)
    model = _zoo_model(pack.recognizer_path, "recognition", device, intra_op_threads)
    dim = model.session.get_outputs()[0].shape[-1]
    if isinstance(dim, int) and dim != spec.dim:
        raise ConfigurationError(f"{pack.recognizer_path} makes {dim} values a face; the pack states {spec.dim}.")
    return Recognizer(model.session, Normalization(model.input_mean, model.input_std), spec.dim)


def load_attribute_models(
    location: AnalysisLocation, assignment: Assignment, intra_op_threads: int
) -> list[LoadedAttributeModel]:
    """Exactly these models, whatever else has come to lie beside them since they were chosen. Raises ConfigurationError when
    one of them is not on this node, or is not what it should be."""
    return [
        LoadedAttributeModel(
            model.name, _load_attribute_model(model, location, intra_op_threads), model.chip, model.attributes
        )
        for model in locate(location, assignment)
    ]


def _load_attribute_model(model: ResolvedModel, location: AnalysisLocation, intra_op_threads: int) -> AttributePredictor:
    spec, path, device = model.spec, model.path, location.pack.device
    if spec.family == "deepface":
        return load_deepface(
            spec.model or "",
            spec.attributes[0],
            path,
            location.deepface_engine,
            location.deepface_home,
            device,
            intra_op_threads,
        )
    if spec.family == "genderage":
        zoo = _zoo_model(path, "genderage", device, intra_op_threads)
        return GenderAge(zoo.session, zoo.input_mean, zoo.input_std)
    assert spec.input is not None
    graph: bytes | str = str(path)
    if spec.family == "face_api":
        assert spec.manifest is not None
        graph = face_api.convert(path.with_name(spec.manifest.file).read_bytes(), path.read_bytes())
    session = create_session(graph, device, intra_op_threads)
    network = Network(session, NetworkInput(spec.input.order, spec.input.mean, spec.input.std), logits=spec.logits)
    if spec.family in ("classifier", "face_api"):
        return Classifier(network, spec.attributes[0])
    classes = session.get_outputs()[0].shape[-1]
    if not isinstance(classes, int):
        raise ConfigurationError(f"{path} does not say how many years its classes are.")
    return AgeDistribution(network, class_years(classes, spec.first_year))


def _zoo_model(path: Path, task: str, device: Device, intra_op_threads: int) -> _ZooModel:
    # Imported here: it brings SciPy and scikit-image, which the default pack does without.
    from insightface.model_zoo import model_zoo

    model: _ZooModel | None = model_zoo.get_model(
        str(path), providers=providers(device), sess_options=session_options(intra_op_threads)
    )
    if model is None or model.taskname != task:
        found = "nothing it knows" if model is None else model.taskname
        raise ConfigurationError(f"{path} should be a {task} model; insightface's model zoo sees {found}.")
    check_device(model.session, device)
    return model
