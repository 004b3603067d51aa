"""The only place where deployments are wired together."""

# Annotations are evaluated here: Serve reads the builder's to validate `args` of serve_config.yaml.

from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from ray.serve import Application, Deployment

from config.settings import SECRET_SETTINGS, Settings
from deployments.analysis import Analysis
from deployments.detection import Detection
from deployments.embedding import Embedding
from deployments.indexing import Indexing
from deployments.models.attribute_packs import OFF, AnalysisLocation, ResolvedAnalysis, resolve_analysis
from deployments.models.deepface_models import DeepFaceEngine
from deployments.models.packs import Pack, PackLocation, pack_names, resolve
from deployments.models.semantic_packs import SemanticLocation, SemanticPack, resolve_semantic
from deployments.models.session import Device
from deployments.semantic import Semantic
from serve_app.attributes import Attribute
from serve_app.faces import OperatingPoint
from serve_app.imaging.images import ImageLimits
from serve_app.ingress import Ingress
from serve_app.services.models import FileInfo, ModelInfo

# YAML reads a bare off as false.
_ModelName = Annotated[str, BeforeValidator(lambda value: OFF if value is False else value)]


class AppArgs(BaseModel):
    """`args` of the application in serve_config.yaml. Replicas, queues and batches are set per deployment there."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_pack: str | None = Field(None, description="Overrides MODEL_PACK.")
    device: Device = Field(Device.CPU, description="cpu or cuda; without the device the start fails.")
    attribute_models: dict[Attribute, _ModelName] | None = Field(None, description="Overrides ATTRIBUTE_MODELS.")
    semantic_model: str | None = Field(None, description="Overrides SEMANTIC_MODEL.")
    max_in_flight: int = Field(
        40, ge=1, le=10_000, description="Requests that need a model, an ingress replica; one more is a 503 at once."
    )
    intra_op_threads: int = Field(1, ge=1, le=64, description="ONNX Runtime threads within one forward pass.")


def build_app(args: AppArgs) -> Application:
    """The application for `args` and the environment. Raises ConfigurationError before anything is deployed."""
    settings = Settings()
    location = pack_location(settings, args)
    where, pack = analysis_location(settings, args), resolve(location)
    attributes = resolve_analysis(where, pack)
    model = model_info(pack, attributes, settings, args.device)
    semantic = resolve_semantic(semantic_location(settings, args))
    model = replace(model, semantic=semantic.described() if isinstance(semantic, SemanticPack) else semantic)
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    detection = _bind(Detection, location, limits, settings.face_det_thresh, args.intra_op_threads)
    embedding = _bind(Embedding, location, args.intra_op_threads)
    analysis = _bind(Analysis, where, attributes.assignment, args.intra_op_threads)
    encoder = None
    if isinstance(semantic, SemanticPack):
        encoder = _bind(Semantic, semantic_location(settings, args), semantic.embedding_model, args.intra_op_threads)
    public = settings.model_copy(update=dict.fromkeys(SECRET_SETTINGS))
    indexing = _bind(Indexing, public, model, detection, embedding, analysis, encoder)
    return _bind(Ingress, public, model, args.max_in_flight, detection, embedding, analysis, encoder, indexing)


def _bind(deployment: object, *args: object) -> Application:
    """`deployment.bind`: Serve's decorator makes classes into Deployments behind the type checker's back."""
    assert isinstance(deployment, Deployment)
    return deployment.bind(*args)


def __getattr__(name: str) -> Application:
    """`app`, for `serve build`, which takes no builder functions. Made on demand: importing decides nothing."""
    if name == "app":
        return build_app(AppArgs())
    raise AttributeError(name)


def pack_location(settings: Settings, args: AppArgs) -> PackLocation:
    return PackLocation(
        name=args.model_pack or settings.model_pack,
        model_root=settings.model_root,
        cache_dir=settings.data_dir / "models",
        download=settings.model_download,
        device=args.device,
    )


def analysis_location(settings: Settings, args: AppArgs) -> AnalysisLocation:
    overrides = settings.attribute_models if args.attribute_models is None else args.attribute_models
    return AnalysisLocation(
        pack=pack_location(settings, args),
        deepface_home=settings.deepface_home,
        deepface_engine=DeepFaceEngine(settings.deepface_engine),
        overrides={Attribute(name): model for name, model in overrides.items()},
    )


def semantic_location(settings: Settings, args: AppArgs) -> SemanticLocation:
    name = settings.semantic_model if args.semantic_model is None else args.semantic_model
    return SemanticLocation(name, settings.model_root, args.device)


def model_info(pack: Pack, attributes: ResolvedAnalysis, settings: Settings, device: Device) -> ModelInfo:
    spec = pack.spec
    return ModelInfo(
        pack=pack.name,
        title=spec.title,
        licence=spec.licence,
        commercial_use=spec.commercial_use,
        embedding_model=spec.recognizer.embedding_model,
        dim=spec.recognizer.dim,
        device=device.value,
        detector=FileInfo(spec.detector.family, spec.detector.file, pack.detector_sha256, spec.detector.preprocessing),
        recognizer=FileInfo(
            spec.recognizer.family, spec.recognizer.file, pack.recognizer_sha256, spec.recognizer.preprocessing
        ),
        detection_threshold=(spec.detector.threshold if settings.face_det_thresh is None else settings.face_det_thresh),
        point=_operating_point(pack, settings),
        lfw_accuracy=pack.lfw_accuracy,
        available_packs=tuple(pack_names()),
        attribute_models=attributes.described(),
        missing_attributes={attribute: lost.reason for attribute, lost in attributes.missing.items()},
    )


def _operating_point(pack: Pack, settings: Settings) -> OperatingPoint | None:
    """The measured point, unless MATCH_THRESHOLD moves it: then its error rates are unknown."""
    if settings.match_threshold is None:
        return pack.point
    gap = pack.point.threshold - pack.point.suggest_threshold if pack.point else 0.0
    return OperatingPoint(
        pack.spec.recognizer.embedding_model,
        "MATCH_THRESHOLD, set by the operator",
        settings.match_threshold,
        settings.match_threshold - gap,
        far=None,
        frr=None,
    )
