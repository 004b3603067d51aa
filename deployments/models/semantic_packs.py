"""Image-text models: which files, where they lie, whether they are the right ones, how pictures and texts are prepared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from deployments.models.packs import ENTRY_CONFIG, read_toml, sha256_of
from deployments.models.session import Device
from serve_app.errors import ConfigurationError
from serve_app.semantic import NOT_SET, NoSemanticModel, SemanticModel

MAX_DIM = 4_000
"""pgvector's limit of an HNSW index over halfvec."""

_VISUAL = ("visual/model.onnx", "onnx/vision_model.onnx", "vision_model.onnx", "visual.onnx")
_TEXTUAL = ("textual/model.onnx", "onnx/text_model.onnx", "text_model.onnx", "textual.onnx")
_TOKENIZER = ("textual/tokenizer.json", "tokenizer.json")
_OPEN_CLIP_CONFIG = ("visual/preprocess_cfg.json", "preprocess_cfg.json")
_TRANSFORMERS_CONFIG = ("preprocessor_config.json",)
_TOKENIZER_CONFIG = ("textual/tokenizer_config.json", "tokenizer_config.json")
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as transformers' configurations have them."""


class _Entry(BaseModel):
    model_config = ENTRY_CONFIG


class ImageInput(_Entry):
    """How a picture becomes the square that the model was trained on: RGB / 255, less `mean`, over `std`."""

    size_px: int = Field(ge=16, le=1024)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


class FileSpec(_Entry):
    file: str
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


class SemanticSpec(_Entry):
    """One model as config/semantic.toml describes it, or as a folder describes itself."""

    title: str
    licence: str
    commercial_use: bool | None
    homepage: str | None = None
    download: str | None = None
    dim: int | None = Field(None, gt=0, le=MAX_DIM)
    context_length: int = Field(77, ge=8, le=1024)
    pad: str | None = None
    image: ImageInput
    visual: FileSpec
    textual: FileSpec
    tokenizer: FileSpec

    @property
    def files(self) -> dict[str, str | None]:
        """Every file the model needs, and its sha256 where one is known."""
        return {one.file: one.sha256 for one in (self.visual, self.textual, self.tokenizer)}


@dataclass(frozen=True, slots=True)
class SemanticLocation:
    """Where to look for a model. Picklable; each replica resolves it on its own node.

    `name`: of config/semantic.toml, a folder below `model_root`, or the path of one; empty where none is wanted.
    """

    name: str
    model_root: Path
    device: Device = Device.CPU


@dataclass(frozen=True, slots=True)
class SemanticPack:
    """A model whose files are there and verified. `sha256`: of each file."""

    name: str
    spec: SemanticSpec
    folder: Path
    sha256: dict[str, str]

    @property
    def embedding_model(self) -> str:
        """The same bytes, prepared in the same way, make the same embeddings, whatever the folder is called."""
        spec = self.spec
        names = [name for one in (spec.visual, spec.textual, spec.tokenizer) for name in _with_weights(one.file)]
        files = [self.sha256[name] for name in names if name in self.sha256]
        made_of = json.dumps([*files, spec.image.model_dump(), spec.context_length, spec.pad], sort_keys=True)
        return f"clip-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"

    def path(self, file: FileSpec) -> Path:
        return self.folder / file.file

    def described(self) -> SemanticModel:
        spec, name = self.spec, Path(self.name).name
        return SemanticModel(name, spec.title, spec.licence, spec.commercial_use, self.embedding_model, dict(self.sha256))


def semantic_specs() -> dict[str, SemanticSpec]:
    return read_toml("semantic.toml", SemanticSpec)


def resolve_semantic(location: SemanticLocation) -> SemanticPack | NoSemanticModel:
    """The model, or why there is none here. Raises ConfigurationError: a name that is neither a model of config/semantic.toml
    nor a folder, and a folder that holds no such model."""
    if not location.name:
        return NOT_SET
    spec, folder = semantic_specs().get(location.name), _find_folder(location)
    if spec is None:
        if folder is None:
            raise ConfigurationError(
                f"SEMANTIC_MODEL={location.name!r} is neither a model of config/semantic.toml ({', '.join(semantic_specs())})"
                f" nor a folder with one; looked in {' and '.join(str(path) for path in _candidates(location))}."
            )
        spec = _describe_folder(folder)
    folder = folder or _candidates(location)[0]
    lacking = [name for name in spec.files if not (folder / name).is_file()]
    if lacking:
        named = " and ".join(lacking)
        return NoSemanticModel(
            f"The image-text model {location.name} needs {named}, which {'are' if len(lacking) > 1 else 'is'} not installed.",
            how_to_get(location, spec, folder),
        )
    actual = {name: sha256_of(folder / name) for name in spec.files}
    for name, expected in spec.files.items():
        if expected is not None and actual[name] != expected:
            return NoSemanticModel(
                f"The image-text model {location.name} needs another {name} than the one installed.",
                f"{folder / name} has the sha256 {actual[name]}, expected {expected}; put the right one there.",
            )
    beside = [weights for name in spec.files for weights in _with_weights(name)[1:] if (folder / weights).is_file()]
    actual |= {name: sha256_of(folder / name) for name in beside}
    return SemanticPack(location.name, spec, folder, actual)


def folder_of(location: SemanticLocation) -> Path:
    """Where the files of a model lie, or are to be put."""
    return _find_folder(location) or _candidates(location)[0]


def how_to_get(location: SemanticLocation, spec: SemanticSpec, folder: Path) -> str:
    """For the operator: a sentence or two."""
    files = " and ".join(spec.files)
    if spec.download is None:
        return f"Put {files} into {folder}."
    return (
        f"Get it with `kinlens models pull {location.name}` where the network allows, or put {files} from {spec.download} into"
        f" {folder}, under these paths. Licence: {spec.licence}."
    )


def _with_weights(name: str) -> tuple[str, ...]:
    """A file, and what large graphs keep their weights in beside it."""
    return name, f"{name}_data", f"{name}.data"


def _candidates(location: SemanticLocation) -> list[Path]:
    return [location.model_root / location.name, location.model_root / "models" / location.name]


def _find_folder(location: SemanticLocation) -> Path | None:
    if Path(location.name).is_absolute():
        return Path(location.name) if Path(location.name).is_dir() else None
    if not location.name or "/" in location.name or location.name.startswith("."):
        return None
    return next((path for path in _candidates(location) if path.is_dir()), None)


def _describe_folder(folder: Path) -> SemanticSpec:
    """Of a folder laid out as open_clip (Immich publishes such) or as transformers (transformers.js reads such)."""
    visual, textual, tokenizer = (_first(folder, names) for names in (_VISUAL, _TEXTUAL, _TOKENIZER))
    if visual is None or textual is None or tokenizer is None:
        raise ConfigurationError(
            f"{folder} holds no image-text model: it needs one of {', '.join(_VISUAL)}, one of {', '.join(_TEXTUAL)}, and"
            f" {' or '.join(_TOKENIZER)}."
        )
    config = _json(folder, ("config.json",)) or {}
    tokens = _json(folder, _TOKENIZER_CONFIG) or {}
    pad = tokens.get("pad_token")
    text = config.get("text_cfg") or config.get("text_config") or {}
    length = text.get("context_length") or text.get("max_position_embeddings") if isinstance(text, dict) else None
    try:
        return SemanticSpec.model_validate(
            {
                "title": f"Folder {folder.name}",
                "licence": "not stated in config/semantic.toml: ask the author of the files",
                "commercial_use": None,
                "context_length": length or 77,
                "pad": pad.get("content") if isinstance(pad, dict) else pad,
                "image": _image_input(folder),
                "visual": {"file": visual},
                "textual": {"file": textual},
                "tokenizer": {"file": tokenizer},
            }
        )
    except (ValidationError, TypeError, KeyError, IndexError) as error:
        raise ConfigurationError(f"{folder} does not say how its model is to be fed: {error}") from error


def _image_input(folder: Path) -> dict[str, object]:
    """Raises TypeError and KeyError for what is no such configuration."""
    found = _json(folder, _OPEN_CLIP_CONFIG)
    if found is not None:
        return {
            "size_px": _side(found["size"]),
            "mean": found["mean"],
            "std": found["std"],
            "resize": found.get("resize_mode", "shortest"),
            "interpolation": found.get("interpolation", "bicubic"),
        }
    found = _json(folder, _TRANSFORMERS_CONFIG)
    if found is None:
        names = " or ".join((*_OPEN_CLIP_CONFIG, *_TRANSFORMERS_CONFIG))
        raise ConfigurationError(f"{folder} does not say how pictures are prepared: it needs {names}.")
    cut, resample = bool(found.get("do_center_crop")), found.get("resample", 3)
    return {
        "size_px": _side(found["crop_size"] if cut else found["size"]),
        "mean": found["image_mean"],
        "std": found["image_std"],
        "resize": "shortest" if cut else "squash",
        "interpolation": _RESAMPLING.get(resample) if isinstance(resample, int) else None,
    }


def _side(size: object) -> object:
    """224, [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    sides = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    if len(set(sides)) != 1:
        raise TypeError(f"the picture it wants is no square: {size}")
    return sides[0]


def _first(folder: Path, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if (folder / name).is_file()), None)


def _json(folder: Path, names: tuple[str, ...]) -> dict[str, object] | None:
    name = _first(folder, names)
    if name is None:
        return None
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{folder / name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{folder / name} is not a configuration: its top level must be an object.")
    return found
