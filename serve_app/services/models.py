"""What is loaded: the pack, its files, licence, thresholds and measured errors."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.faces import OperatingPoint


@dataclass(frozen=True, slots=True)
class FileInfo:
    family: str
    file: str
    sha256: str
    preprocessing: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """`commercial_use` is None where the licence of the files is unknown. `lfw_accuracy`: 10-fold, of the
    whole pack; None where nobody measured."""

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
