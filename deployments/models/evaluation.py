"""How often a pack errs at 1:1 verification, on pairs of photos."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deployments.models.engine import DetectionEngine, DetectionRequest, EmbeddingEngine
from deployments.models.loading import load_detector, load_recognizer
from deployments.models.packs import Pack
from deployments.models.session import Device
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import DetectionOptions, FloatArray, OperatingPoint
from serve_app.imaging.images import ImageLimits

PHOTO_LIMITS = ImageLimits(60 << 20, 178_000_000)
"""As large as any picture the service can be set to take: what is evaluated is the operator's own."""


@dataclass(frozen=True, slots=True)
class Pair:
    a: Path
    b: Path
    same: bool


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """similarities: of the pairs with a face in both photos, in order; same: (N,) whether they show one person.

    `unreadable`: photos without a usable face; pairs with one of them count as errors of nobody and are left out.
    """

    similarities: FloatArray
    same: npt.NDArray[np.bool_]
    photos: int
    unreadable: int

    def far(self, threshold: float) -> float:
        """False accept rate: share of different-person pairs at or above `threshold`."""
        return float((self.similarities[~self.same] >= threshold).mean())

    def frr(self, threshold: float) -> float:
        """False reject rate: share of same-person pairs below `threshold`."""
        return float((self.similarities[self.same] < threshold).mean())

    def accuracy(self, threshold: float) -> float:
        return float(((self.similarities >= threshold) == self.same).mean())

    def threshold_at_far(self, far: float) -> float:
        """The lowest threshold whose false accept rate is at most `far`."""
        impostors = np.sort(self.similarities[~self.same])[::-1]
        allowed = int(far * len(impostors))
        return float(np.nextafter(impostors[min(allowed, len(impostors) - 1)], np.float32(2)))


def read_pairs(path: Path) -> list[Pair]:
    """Pairs from a CSV with the columns file_a, file_b and same (1 or 0); or every pair of the photos in one with the
    columns file and identity. Paths are relative to the CSV's folder or the one above.

    Raises ConfigurationError when it is neither.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        if rows and "identity" in rows[0]:
            known = [(row["file"], row["identity"]) for row in rows if row["identity"]]
            listed = [(a, b, x == y) for (a, x), (b, y) in itertools.combinations(sorted(known), 2)]
        else:
            listed = [(row["file_a"], row["file_b"], row["same"] == "1") for row in rows]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} has neither file_a, file_b and same nor file and identity as columns.") from error
    root = photos_root(path, listed[0][0] if listed else "")
    return [Pair(root / a, root / b, same) for a, b, same in listed]


def photos_root(csv_path: Path, first: str) -> Path:
    """What the paths in a CSV are relative to: its folder, or the one above where its `first` photo is not there."""
    return csv_path.parent if first and (csv_path.parent / first).exists() else csv_path.parent.parent


def verify_pairs(pack: Pack, pairs: Iterable[Pair], progress: Callable[[int, int], None]) -> VerificationReport:
    """Embeds the largest face of each photo once and compares the pairs. `progress(done, total)` after each photo."""
    listed = list(pairs)
    photos = sorted({path for pair in listed for path in (pair.a, pair.b)})
    engine = DetectionEngine(load_detector(pack, Device.CPU, 2), PHOTO_LIMITS, pack.spec.detector.threshold)
    recognizer = EmbeddingEngine(load_recognizer(pack, Device.CPU, 2))
    embeddings: dict[Path, FloatArray] = {}
    for done, path in enumerate(photos, 1):
        found = engine.run([DetectionRequest(read_photo(path), DetectionOptions(crops=1))])[0]
        if not isinstance(found, ImageError) and len(found):
            embeddings[path] = recognizer.run([found.crops])[0][0]
        progress(done, len(photos))
    usable = [pair for pair in listed if pair.a in embeddings and pair.b in embeddings]
    return VerificationReport(
        np.array([np.dot(embeddings[pair.a], embeddings[pair.b]) for pair in usable], dtype=np.float32),
        np.array([pair.same for pair in usable], dtype=np.bool_),
        len(photos),
        len(photos) - len(embeddings),
    )


def read_photo(path: Path) -> bytes:
    """Raises ConfigurationError when it is not there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error


def describe(report: VerificationReport, point: OperatingPoint | None) -> list[str]:
    """Lines for a person."""
    lines = [
        f"{len(report.same)} pairs ({int(report.same.sum())} of one person) of {report.photos} photos, "
        f"{report.unreadable} without a usable face"
    ]
    if point is not None:
        for name, threshold in (("threshold", point.threshold), ("suggest_threshold", point.suggest_threshold)):
            lines.append(
                f"at {name} {threshold:.2f}: accuracy {report.accuracy(threshold):.4f}, "
                f"FAR {report.far(threshold):.5f}, FRR {report.frr(threshold):.4f}"
            )
    for far in (1e-2, 1e-3, 1e-4):
        if far * float((~report.same).sum()) >= 1:
            threshold = report.threshold_at_far(far)
            lines.append(f"at FAR {far:g}: threshold {threshold:.3f}, TAR {1 - report.frr(threshold):.4f}")
    return lines
