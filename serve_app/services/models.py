"""What is loaded: the pack, its files, licence, thresholds and measured errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.attributes import Attribute, AttributeModel
from serve_app.faces import OperatingPoint
from serve_app.semantic import NOT_SET, NoSemanticModel, SemanticModel


@dataclass(frozen=True, slots=True)
class FileInfo:
    family: str
    file: str
    sha256: str
    preprocessing: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """`commercial_use` is None where the licence of the files is unknown. `lfw_accuracy`: 10-fold, of the
    whole pack; None where nobody measured. `missing_attributes`: why no model answers them.
    `semantic`: the image-text model."""

    pack: str
    title: str
    licence: str
    commercial_use: bool | None
    embedding_model: str
    dim: int
    device: str
    detector: FileInfo
    recognizer: FileInfo
    detection_threshold: float
    point: OperatingPoint | None
    lfw_accuracy: float | None
    available_packs: tuple[str, ...]
    attribute_models: Mapping[Attribute, AttributeModel]
    missing_attributes: Mapping[Attribute, str]
    semantic: SemanticModel | NoSemanticModel = NOT_SET
