"""Faces as values: what detection returns, and the vector arithmetic on embeddings. Pure; no I/O, no models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidEmbedding
from serve_app.photos import PictureInfo

RGBImage: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""
Crops: TypeAlias = npt.NDArray[np.uint8]
"""(N, 112, 112, 3) uint8, RGB, aligned to the ArcFace template."""
FloatArray: TypeAlias = npt.NDArray[np.float32]

BoolArray: TypeAlias = npt.NDArray[np.bool_]

CROP_SIZE_PX = 112

TEMPLATE_COSINE = 0.6
"""How like its template a face must be. A probe competes with its similarity to the template against strangers, who come up
to 0.3 among 200,000; at 0.6 a face that matches well still gets there by its template. Lower hides odd faces, higher makes
more templates than the 1.0 to 1.3 a person that photos of one age need."""
MAX_TEMPLATES = 32
"""Of one person. A "person" of thousands of strangers' faces would otherwise cost a template, and time, for each."""

ALL_FACES = -1
"""`DetectionOptions.crops` for "a crop of every face"."""


class Frame(StrEnum):
    """How a face lies in a chip."""

    DLIB = "dlib"
    """Upright, with forehead and chin: as dlib's get_face_chip_details cuts at padding 0.2."""
    ARCFACE = "arcface"
    """Upright and tight: the ArcFace template of the embeddings' crops."""
    BOX = "box"
    """1.5 times the box, not turned: as InsightFace's attribute models take it."""


@dataclass(frozen=True, slots=True)
class ChipSpec:
    """A square picture of one face, `size_px` wide."""

    frame: Frame
    size_px: int


ChipArray: TypeAlias = npt.NDArray[np.uint8]
"""(N, S, S, 3) uint8, RGB."""
Chips: TypeAlias = Mapping[ChipSpec, ChipArray]
"""Of the same N faces, in the same order, in every spec."""


@dataclass(frozen=True, slots=True)
class DetectionOptions:
    """What a caller wants from one picture.

    `threshold`: lowest detection_score reported, in (0, 1); None takes the pack's own.
    `max_faces`: keep the largest so many faces; None keeps all.
    `crops`: aligned crops for the largest so many faces; 0 for none, `ALL_FACES` for all that are kept.
    `try_rotations`: when upright finds nobody, look once more at 90, 180 and 270 degrees.
    `qualities`: measure the quality of the largest so many faces, `ALL_FACES` for all.
    `chips`: cut these of the largest `chip_faces` faces, `ALL_FACES` for all.
    `info`: read what the picture says of itself.
    """

    threshold: float | None = None
    max_faces: int | None = None
    crops: int = ALL_FACES
    try_rotations: bool = True
    qualities: int = 0
    chips: tuple[ChipSpec, ...] = ()
    chip_faces: int = ALL_FACES
    info: bool = False


class Occlusion(StrEnum):
    """How much of a face seems to be covered, from the least to the most."""

    NONE = "NONE"
    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"


@dataclass(frozen=True, slots=True)
class FaceQuality:
    """What serve_app.imaging.quality measures of one face; there stands how. Shares are in [0, 1].

    `size_px`: shorter side of the box, in source pixels. `sharpness`: in [0, 1]; a face without detail has 0.
    `yaw_deg`: > 0 looks to the right of the picture. `pitch_deg`: > 0 looks up. `roll_deg`: > 0 is turned clockwise;
    all three in [-180, 180]. `brightness`, `contrast`: mean and standard deviation of luma, 1 is white. `overexposed`,
    `underexposed`: share of pixels that are burnt out or black. `occlusion_score`: in [0, 1]; `occlusion` names its range.
    """

    size_px: float
    sharpness: float
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    brightness: float
    contrast: float
    overexposed: float
    underexposed: float
    occlusion: Occlusion
    occlusion_score: float


@dataclass(frozen=True, slots=True)
class Detections:
    """The faces of one picture, largest first, in pixels of the picture as displayed (EXIF applied).

    bboxes: (N, 4) float32 xyxy. landmarks: (N, 5, 2) float32: left eye, right eye, nose, left and right mouth corner as
    seen in the image. detection_scores: (N,) float32. crops: (C, 112, 112, 3) uint8 of the first C faces.
    rotation_deg: clockwise turn of the picture under which the faces were found; 0 unless upright found nobody.
    qualities: of the first faces, as many as were asked for. chips: likewise, by spec; empty where none were asked for.
    info: None where it was not asked for.
    """

    bboxes: FloatArray
    landmarks: FloatArray
    detection_scores: FloatArray
    crops: Crops
    width_px: int
    height_px: int
    format: str
    rotation_deg: int = 0
    qualities: tuple[FaceQuality, ...] = ()
    chips: Chips = field(default_factory=dict)
    info: PictureInfo | None = None

    def __len__(self) -> int:
        return len(self.bboxes)

    def face(self, index: int) -> DetectedFace:
        """The face at `index` (0 is the largest)."""
        return DetectedFace(self.bboxes[index], self.landmarks[index], float(self.detection_scores[index]))


def face_count(chips: Chips) -> int:
    return len(next(iter(chips.values()), ()))


def merge_chips(parts: Sequence[Chips]) -> Chips:
    """Chips of several pictures, in the same specs, one after another."""
    if len(parts) == 1:
        return parts[0]
    return {spec: np.concatenate([part[spec] for part in parts]) for spec in parts[0]}


@dataclass(frozen=True, slots=True)
class DetectedFace:
    """One face. bbox: (4,) float32 xyxy px. landmarks: (5, 2) float32 px. detection_score in (0, 1]."""

    bbox: FloatArray
    landmarks: FloatArray
    detection_score: float


@dataclass(frozen=True, slots=True)
class EmbeddedFace:
    """A detected face with its embedding, (D,) float32 of unit L2 norm, its (112, 112, 3) crop, and its quality where it
    was asked for."""

    face: DetectedFace
    embedding: FloatArray
    crop: RGBImage
    quality: FaceQuality | None = None


class Decision(StrEnum):
    MATCH = "match"
    AMBIGUOUS = "ambiguous"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where a model's similarities turn into decisions, and how often that errs.

    `threshold`: cosine at or above which two faces are a match. `suggest_threshold`: at or above it, but below
    `threshold`, the answer is "ambiguous". `far` and `frr` were measured on `data_set` at `threshold`; None where an
    operator set the threshold without measuring.
    """

    embedding_model: str
    data_set: str
    threshold: float
    suggest_threshold: float
    far: float | None
    frr: float | None

    def decide(self, similarity: float) -> Decision:
        if similarity >= self.threshold:
            return Decision.MATCH
        if similarity >= self.suggest_threshold:
            return Decision.AMBIGUOUS
        return Decision.UNKNOWN


def blank_crop() -> Crops:
    """(1, 112, 112, 3): a crop of nobody."""
    return np.zeros((1, 112, 112, 3), np.uint8)


def l2_normalize(vectors: npt.NDArray[np.floating]) -> FloatArray:
    """Rows (or one vector) scaled to unit L2 norm, float32. A zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def cosine_similarity(a: FloatArray, b: FloatArray) -> float:
    """Cosine of two unit vectors (D,), clipped to [-1, 1] against rounding."""
    return float(np.clip(np.dot(a, b), -1.0, 1.0))


def parse_embedding(values: Sequence[float], dim: int) -> FloatArray:
    """A client's list of numbers as a unit vector (dim,) float32.

    Raises InvalidEmbedding: wrong length, NaN or infinite, or a norm too small to carry a direction.
    """
    if len(values) != dim:
        raise InvalidEmbedding(
            f"The embedding has {len(values)} values; the loaded model makes {dim}.", expected_dim=dim, dim=len(values)
        )
    # Normalised in float64: finite doubles beyond float32's range still have a direction.
    vector = np.asarray(values, dtype=np.float64)
    if not np.isfinite(vector).all():
        raise InvalidEmbedding("The embedding contains NaN or infinity.")
    largest = float(np.abs(vector).max(initial=0.0))
    if largest < 1e-12:
        raise InvalidEmbedding("The embedding is zero; it points nowhere.")
    vector = vector / largest
    return np.asarray(vector / math.sqrt(float(np.dot(vector, vector))), dtype=np.float32)


def templates_of(embeddings: FloatArray) -> tuple[FloatArray, list[int]]:
    """The few unit vectors (T, D) that stand for a person's (N, D) embeddings, and how many faces each stands for.

    One, the mean direction, where every face is at least `TEMPLATE_COSINE` like it: nearly always. Else leader clustering
    (Hartigan 1975): a face joins the template it is most like, which becomes the mean of its faces, or founds another. A face
    unlike the rest, a child's or a stranger's, so keeps a template of its own; an average would hide it.
    """
    if not len(embeddings):
        return embeddings, []
    mean = l2_normalize(embeddings.sum(axis=0))
    if float((embeddings @ mean).min()) >= TEMPLATE_COSINE:
        return mean[None], [len(embeddings)]
    return _leaders(embeddings)


def mean_templates(embeddings: FloatArray, starts: npt.NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
    """The first half of `templates_of` for many persons at once.

    `embeddings`: (N, D), person by person, each of which begins at its place of `starts` (P,). Returns the (P, D) mean
    directions, and for each person whether one template is enough.
    """
    counts = np.diff(np.append(starts, len(embeddings)))
    means = np.empty((len(starts), embeddings.shape[1]), dtype=np.float32)
    enough = np.empty(len(starts), dtype=np.bool_)
    # All who have as many faces at once: ten times as fast as reduceat over rows.
    for count in np.unique(counts):
        chosen = np.flatnonzero(counts == count)
        theirs = embeddings[starts[chosen, None] + np.arange(count)]
        means[chosen] = l2_normalize(theirs.sum(axis=1))
        enough[chosen] = np.einsum("pnd,pd->pn", theirs, means[chosen]).min(axis=1) >= TEMPLATE_COSINE
    return means, enough


def _leaders(embeddings: FloatArray) -> tuple[FloatArray, list[int]]:
    sums = np.zeros((MAX_TEMPLATES, embeddings.shape[1]), dtype=np.float32)
    means = np.zeros_like(sums)
    counts: list[int] = []
    for embedding in embeddings:
        best, similarity = 0, -1.0
        if counts:
            similarities = means[: len(counts)] @ embedding
            best = int(np.argmax(similarities))
            similarity = float(similarities[best])
        if similarity < TEMPLATE_COSINE and len(counts) < MAX_TEMPLATES:
            best = len(counts)
            counts.append(0)
        sums[best] += embedding
        counts[best] += 1
        means[best] = l2_normalize(sums[best])
    return means[: len(counts)], counts
