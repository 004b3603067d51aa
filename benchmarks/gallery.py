"""Galleries of embeddings like those of ArcFace models, and what an exhaustive search in them finds.

Modelled on 489 single faces of 306 persons, real photos embedded by `w600k_mbf`: two faces of a person 0.6 to 0.75 alike with
a spread of 0.15 and a tail to below 0.3, two strangers 0.02 with a spread of 0.07. Here 0.62 with 0.13, and 0 with 0.06.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serve_app.faces import BoolArray, FloatArray, l2_normalize

IntArray: TypeAlias = npt.NDArray[np.int64]

_STRANGERS_SPREAD = 0.06
"""Standard deviation of the cosine of two persons. Isotropic vectors of 512 values would have 0.044: embeddings use some
directions more than others."""
_LIKENESS = (9.1, 2.4)
"""Beta distribution of the cosine of a face and what its person looks like: 0.79 with 0.115."""
_SINGLE_FACES = 0.185
"""Share of persons with one face; of those left as many have just two, and so on, up to `_MOST_FACES`: 5.3 on average."""
_MOST_FACES = 20
_BLOCK = 50_000


@dataclass(frozen=True, slots=True)
class Gallery:
    """`faces`: (N, D) of unit norm, rounded to halves as they are stored, person by person: `person_of` (N,). Each person's
    begin at its place of `starts` (P,). `looks`: (P, D), what each person's faces are scattered around."""

    faces: FloatArray
    person_of: IntArray
    starts: IntArray
    looks: FloatArray

    @property
    def persons(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Probes:
    """New faces (Q, D), and whose they are: (Q,), -1 for somebody who is not in the gallery."""

    faces: FloatArray
    persons: IntArray


@dataclass(frozen=True, slots=True)
class Ranking:
    """The nearest persons of each probe by their best faces, best first: (Q, K). -1 where there are no more."""

    persons: IntArray
    faces: IntArray
    similarities: FloatArray


class Population:
    """Persons and their faces; the same for the same seed."""

    def __init__(self, dim: int, seed: int) -> None:
        self._spread = _spread(dim)
        self._rng = np.random.default_rng(seed)

    def gallery(self, faces: int) -> Gallery:
        sizes = np.minimum(self._rng.geometric(_SINGLE_FACES, faces), _MOST_FACES)
        ends = np.minimum(np.cumsum(sizes), faces)
        ends = ends[: int(np.searchsorted(ends, faces)) + 1]
        person_of = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        looks = self._directions(len(ends))
        embeddings = np.empty((faces, len(self._spread)), dtype=np.float32)
        for start in range(0, faces, _BLOCK):
            block = slice(start, start + _BLOCK)
            embeddings[block] = self._faces(looks[person_of[block]])
        return Gallery(embeddings, person_of, np.append(0, ends[:-1]), looks)

    def probes(self, gallery: Gallery, known: int, unknown: int) -> Probes:
        persons = self._rng.integers(0, gallery.persons, known)
        looks = np.vstack([gallery.looks[persons], self._directions(unknown)])
        return Probes(self._faces(looks), np.append(persons, np.full(unknown, -1)))

    def _faces(self, looks: FloatArray) -> FloatArray:
        likeness = self._rng.beta(*_LIKENESS, (len(looks), 1)).astype(np.float32)
        noise = self._directions(len(looks))
        noise = l2_normalize(noise - np.sum(noise * looks, axis=1, keepdims=True) * looks)
        faces = l2_normalize(likeness * looks + np.sqrt(1 - likeness**2) * noise)
        return faces.astype(np.float16).astype(np.float32)

    def _directions(self, count: int) -> FloatArray:
        return l2_normalize(self._rng.standard_normal((count, len(self._spread)), dtype=np.float32) * self._spread)


def _spread(dim: int) -> FloatArray:
    """Standard deviation in each direction, falling so far that two persons' cosines spread by _STRANGERS_SPREAD. With few
    dimensions they do so anyway, or more."""
    low, high = 0.0, 20.0
    for _ in range(40):
        decay = (low + high) / 2
        variances = np.exp(-decay * np.arange(dim) / dim)
        low, high = (decay, high) if np.linalg.norm(variances) / variances.sum() < _STRANGERS_SPREAD else (low, decay)
    return np.sqrt(variances).astype(np.float32)


def exhaustive(probes: FloatArray, gallery: Gallery, top_k: int, eligible: Sequence[BoolArray | None]) -> list[Ranking]:
    """A Ranking for each mask of faces; None admits all."""
    parts: list[list[Ranking]] = [[] for _ in eligible]
    at_once = max(1, 100_000_000 // len(gallery.faces))
    for start in range(0, len(probes), at_once):
        similarities = probes[start : start + at_once] @ gallery.faces.T
        for mask, found in zip(eligible, parts, strict=True):
            found.append(rank(similarities if mask is None else np.where(mask, similarities, -2), gallery, top_k))
    return [
        Ranking(*(np.concatenate([getattr(part, name) for part in found]) for name in ("persons", "faces", "similarities")))
        for found in parts
    ]


def rank(similarities: FloatArray, gallery: Gallery, top_k: int) -> Ranking:
    """Of (Q, N) similarities; one of -2 counts for nothing."""
    best = np.maximum.reduceat(similarities, gallery.starts, axis=1)
    top_k = min(top_k, gallery.persons)
    persons = np.argpartition(best, -top_k, axis=1)[:, -top_k:]
    order = np.argsort(-np.take_along_axis(best, persons, axis=1), axis=1, kind="stable")
    persons = np.take_along_axis(persons, order, axis=1)
    values = np.take_along_axis(best, persons, axis=1)
    ends = np.append(gallery.starts[1:], len(gallery.faces))
    faces = np.empty_like(persons)
    for row, column in np.ndindex(*persons.shape):
        start = gallery.starts[persons[row, column]]
        faces[row, column] = start + int(np.argmax(similarities[row, start : ends[persons[row, column]]]))
    missing = values < -1.5
    persons[missing] = faces[missing] = -1
    return Ranking(persons, faces, values)
