"""How well faces are grouped by person, on photos whose largest face somebody has named; beside other algorithms."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deployments.models.cluster_peers import Peer, Trial
from deployments.models.cluster_scores import ClusterScores, score
from deployments.models.engine import DetectionEngine, DetectionRequest, EmbeddingEngine
from deployments.models.evaluation import PHOTO_LIMITS, photos_root, read_photo
from deployments.models.loading import load_detector, load_recognizer
from deployments.models.packs import Pack
from deployments.models.session import Device
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import DetectionOptions, FloatArray
from serve_app.grouping.clustering import FacesToGroup, GroupingLimits, group_faces

_THREADS = 2
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff")

OURS = "Kinlens"


@dataclass(frozen=True, slots=True)
class NamedPhoto:
    """`person`: whose its largest face is."""

    path: Path
    person: str


@dataclass(frozen=True, slots=True)
class NamedFaces:
    """The largest face of each photo that has one. `embeddings`: (N, D). `persons`: of each. `unreadable`: photos without."""

    embeddings: FloatArray
    persons: tuple[str, ...]
    unreadable: int

    def of(self, wanted: set[str]) -> NamedFaces:
        chosen = [index for index, person in enumerate(self.persons) if person in wanted]
        return NamedFaces(self.embeddings[chosen], tuple(self.persons[index] for index in chosen), 0)


@dataclass(frozen=True, slots=True)
class Result:
    """`parameters`: of an algorithm that was given the best of its grid; of ours, what follows from the pack."""

    algorithm: str
    parameters: str
    scores: ClusterScores


def read_named(path: Path) -> list[NamedPhoto]:
    """The photos of a CSV with the columns file and identity, those without an identity left out; or of a folder with a
    folder for each person. Paths in a CSV are relative to its folder or the one above.

    Raises ConfigurationError when it is neither, or names fewer than two photos.
    """
    found = _in_folders(path) if path.is_dir() else _in_csv(path)
    if len(found) < 2:
        raise ConfigurationError(f"{path} names the persons of fewer than two photos; there is nothing to group.")
    return found


def _in_folders(root: Path) -> list[NamedPhoto]:
    """A person's folder may have folders."""
    return [
        NamedPhoto(path, path.relative_to(root).parts[0])
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and len(path.relative_to(root).parts) > 1 and path.is_file()
    ]


def _in_csv(path: Path) -> list[NamedPhoto]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "identity"} <= set(reader.fieldnames or ()):
                raise ConfigurationError(f"{path} must have the columns file and identity.")
            rows = [row for row in reader if row["file"] and row["identity"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read as a CSV: {error}.") from error
    root = photos_root(path, rows[0]["file"] if rows else "")
    return [NamedPhoto(root / row["file"], row["identity"]) for row in rows]


def embed_named(pack: Pack, photos: Sequence[NamedPhoto], progress: Callable[[int, int], None]) -> NamedFaces:
    """`progress(done, total)` after each photo. Raises ConfigurationError when a photo is not there, or none has a face."""
    detector = DetectionEngine(load_detector(pack, Device.CPU, _THREADS), PHOTO_LIMITS, pack.spec.detector.threshold)
    recognizer = EmbeddingEngine(load_recognizer(pack, Device.CPU, _THREADS))
    embeddings, persons = [], []
    for done, photo in enumerate(photos, 1):
        found = detector.run([DetectionRequest(read_photo(photo.path), DetectionOptions(crops=1))])[0]
        if not isinstance(found, ImageError) and len(found):
            embeddings.append(recognizer.run([found.crops])[0][0])
            persons.append(photo.person)
        progress(done, len(photos))
    if len(embeddings) < 2:
        raise ConfigurationError("Fewer than two of the photos have a face.")
    return NamedFaces(np.stack(embeddings), tuple(persons), len(photos) - len(embeddings))


def limits_of(pack: Pack) -> GroupingLimits:
    """Raises ConfigurationError for a pack without an operating point."""
    if pack.point is None:
        raise ConfigurationError(
            "The pack has no operating point (config/operating_points.toml): nobody measured from where its faces are alike."
        )
    return GroupingLimits.of(pack.point)


def group_ours(embeddings: FloatArray, limits: GroupingLimits) -> Trial:
    """As a library does that knows nothing yet: no picture shows two of the faces, and nobody has decided anything."""
    none = np.full(len(embeddings), -1, dtype=np.int64)
    pairs = np.empty((0, 2), dtype=np.int64)
    grouped = group_faces(FacesToGroup(embeddings, none, none, 0, pairs, pairs), limits)
    return Trial(f"similar {limits.similar:.2f}, lowest {limits.lowest:.2f}", grouped.groups)


def compare(
    faces: NamedFaces, limits: GroupingLimits, peers: Mapping[str, Peer], progress: Callable[[str], None]
) -> list[Result]:
    """Ours, and each peer with the parameters of its grid that have the best BCubed F1 on these very faces; a second time
    where others have a better pairwise F1. `progress(algorithm)` before each."""
    ours = group_ours(faces.embeddings, limits)
    results = [Result(OURS, ours.parameters, score(ours.labels.tolist(), faces.persons))]
    for name, peer in peers.items():
        progress(name)
        scored = [Result(name, one.parameters, score(one.labels.tolist(), faces.persons)) for one in peer(faces.embeddings)]
        best = [max(scored, key=by) for by in (_by_bcubed, _by_pairwise)]
        results += best[: 2 if best[1].scores.pairwise.f1 > best[0].scores.pairwise.f1 else 1]
    return results


def compare_halves(
    faces: NamedFaces, limits: GroupingLimits, peers: Mapping[str, Peer], splits: int, progress: Callable[[str], None]
) -> Iterator[list[Result]]:
    """What `compare` says when nobody has seen the persons it is measured on: for each split, the parameters of the peers are
    chosen on one half of the persons, and all are measured on the other; in both directions."""
    persons = sorted(set(faces.persons))
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(persons))
        halves = [{persons[index] for index in part} for part in np.array_split(order, 2)]
        for seen, unseen in (halves, halves[::-1]):
            progress(f"split {split + 1} of {splits}")
            yield _on_unseen(faces.of(seen), faces.of(unseen), limits, peers)


def _on_unseen(seen: NamedFaces, unseen: NamedFaces, limits: GroupingLimits, peers: Mapping[str, Peer]) -> list[Result]:
    ours = group_ours(unseen.embeddings, limits)
    results = [Result(OURS, ours.parameters, score(ours.labels.tolist(), unseen.persons))]
    for name, peer in peers.items():
        scored = [Result(name, one.parameters, score(one.labels.tolist(), seen.persons)) for one in peer(seen.embeddings)]
        chosen = max(scored, key=_by_bcubed).parameters
        trial = next((one for one in peer(unseen.embeddings) if one.parameters == chosen), None)
        if trial is not None:
            results.append(Result(name, chosen, score(trial.labels.tolist(), unseen.persons)))
    return results


def _by_bcubed(result: Result) -> tuple[float, float]:
    return result.scores.bcubed.f1, result.scores.pairwise.f1


def _by_pairwise(result: Result) -> tuple[float, float]:
    return result.scores.pairwise.f1, result.scores.bcubed.f1
