"""Embeddings like those of ArcFace models, as many as wanted, and what an exhaustive search says about them.

What they are made after: the 489 single faces of 306 persons in our test photos, embedded by `w600k_mbf`: two faces of a
person 0.6-0.75 alike with a spread of 0.15 and a tail to below 0.3, two strangers 0.02 with a spread of 0.07.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.faces import FloatArray, l2_normalize

STRANGERS_SPREAD = 0.06
"""Standard deviation of the cosine of two persons. Isotropic vectors of 512 values would have 0.044: embeddings use
some directions more than others."""
_LIKENESS = (9.1, 2.4)
"""Beta distribution of a face's cosine to what its person looks like: 0.79 +- 0.115, so two faces have 0.62 +- 0.13."""
_FACES_PER_PERSON = 0.185
"""Of a geometric distribution, cut at `_MOST_FACES`: 5 on average, 1 for every fifth person."""
_MOST_FACES = 20
_BLOCK = 50_000


@dataclass(frozen=True, slots=True)
class Gallery:
    """`faces`: (N, D) float32 of unit norm, rounded to halves as they are stored, person by person; each person's begin at
    its place of `starts` (P,). `centers`: (P, D), what the persons look like."""

    faces: FloatArray
    starts: npt.NDArray[np.int64]
    person_of: npt.NDArray[np.int64]
    centers: FloatArray

    @property
    def persons(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Probes:
    """New faces. `person`: (N,) whose they are; -1 for somebody who is not in the gallery."""

    faces: FloatArray
    person: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Truth:
    """The best face of each of the nearest persons, by exhaustive search: (Q, K), best first; persons are -1 beyond the
    last that fulfils the filter."""

    persons: npt.NDArray[np.int64]
    faces: npt.NDArray[np.int64]
    similarities: FloatArray


class Population:
    """Persons and their faces, the same for the same seed."""

    def __init__(self, dim: int, seed: int) -> None:
        self._scale = _spectrum(dim)
        self._rng = np.random.default_rng(seed)

    def gallery(self, faces: int) -> Gallery:
        sizes = np.minimum(self._rng.geometric(_FACES_PER_PERSON, faces), _MOST_FACES)
        ends = np.cumsum(sizes)
        persons = int(np.searchsorted(ends, faces)) + 1
        ends = np.minimum(ends[:persons], faces)
        person_of = np.repeat(np.arange(persons), np.diff(ends, prepend=0))
        centers = self._directions(persons)
        embeddings = np.empty((faces, len(self._scale)), dtype=np.float32)
        for start in range(0, faces, _BLOCK):
            stop = start + _BLOCK
            embeddings[start:stop] = self._faces_of(centers[person_of[start:stop]])
        return Gallery(embeddings, np.r_[0, ends[:-1]], person_of, centers)

    def probes(self, gallery: Gallery, known: int, unknown: int) -> Probes:
        persons = self._rng.integers(0, gallery.persons, known)
        looks = np.vstack([gallery.centers[persons], self._directions(unknown)])
        return Probes(self._faces_of(looks), np.r_[persons, np.full(unknown, -1)])

    def _faces_of(self, looks: FloatArray) -> FloatArray:
        """A face of each of the (N, D) looks."""
        likeness = self._rng.beta(*_LIKENESS, (len(looks), 1)).astype(np.float32)
        noise = self._directions(len(looks))
        noise = l2_normalize(noise - np.sum(noise * looks, axis=1, keepdims=True) * looks)
        return as_halves(l2_normalize(likeness * looks + np.sqrt(1 - likeness**2) * noise))

    def _directions(self, count: int) -> FloatArray:
        return l2_normalize(self._rng.standard_normal((count, len(self._scale)), dtype=np.float32) * self._scale)


def as_halves(vectors: FloatArray) -> FloatArray:
    return vectors.astype(np.float16).astype(np.float32)


def _spectrum(dim: int) -> FloatArray:
    """Standard deviation of each direction, falling so that two persons' cosines spread by STRANGERS_SPREAD."""
    rate, step = 1.0, 0.5
    variances = np.ones(dim)
    for _ in range(50):
        variances = np.power(rate, np.arange(dim) * 100 / dim)
        variances /= variances.sum()
        # 1 / sqrt(effective dimension); with few dimensions it is above what is wanted, and nothing can be done.
        rate += step if float(np.sqrt((variances**2).sum())) > STRANGERS_SPREAD else -step
        rate = min(rate, 1.0)
        step /= 2
    return np.sqrt(variances).astype(np.float32)


def similarities(probes: FloatArray, gallery: Gallery) -> Iterator[tuple[int, FloatArray]]:
    """Of blocks of probes with every face: where the block begins, and (B, N)."""
    block = max(1, 100_000_000 // len(gallery.faces))
    for start in range(0, len(probes), block):
        yield start, probes[start : start + block] @ gallery.faces.T


def exhaustive(probes: FloatArray, gallery: Gallery, top_k: int, eligible: list[npt.NDArray[np.bool_]]) -> list[Truth]:
    """One Truth for each mask of faces."""
    found: list[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], FloatArray]]] = [[] for _ in eligible]
    for _, block in similarities(probes, gallery):
        for mask, parts in zip(eligible, found, strict=True):
            masked = block if mask.all() else np.where(mask, block, np.float32(-2))
            parts.append(_best_persons(masked, gallery, min(top_k, gallery.persons)))
    return [Truth(*(np.concatenate(column) for column in zip(*parts, strict=True))) for parts in found]


def _best_persons(
    block: FloatArray, gallery: Gallery, top_k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], FloatArray]:
    best = np.maximum.reduceat(block, gallery.starts, axis=1)
    persons = np.argpartition(-best, top_k - 1, axis=1)[:, :top_k]
    values = np.take_along_axis(best, persons, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    persons, values = np.take_along_axis(persons, order, axis=1), np.take_along_axis(values, order, axis=1)
    ends = np.append(gallery.starts[1:], len(gallery.faces))
    faces = np.empty_like(persons)
    for row, column in np.ndindex(*persons.shape):
        start, end = gallery.starts[persons[row, column]], ends[persons[row, column]]
        faces[row, column] = start + int(np.argmax(block[row, start:end]))
    return np.where(values > -1.5, persons, -1), faces, values
