"""Whose face is whose, by likeness and by what users said: groups of faces that respect persons. Pure.

A group is founded where faces lie dense: each other's nearest, and similar in the mean over all of their pairs. What lies
between is decided by the lead over every other group: a pair of 0.4 in the midst of nothing is one person, a pair of 0.4
among others of 0.38 is a family likeness. docs/accuracy.md, "Clustering", has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from serve_app.errors import InvalidEmbedding
from serve_app.faces import BoolArray, FloatArray, OperatingPoint, l2_normalize
from serve_app.grouping.merging import Barriers, Groups
from serve_app.grouping.neighbours import IntArray

LEAD_WEIGHT = 0.5
"""How much of the similarity that is missing a lead makes up for. From 0.5 to 1.5 the figures are about the same."""
_ABOVE_THRESHOLD = 0.10
"""A verification compares two faces; here every face meets thousands of strangers, and the best of them decides."""
_BELOW_SUGGESTED = 0.05
"""Pairs are looked at from there, to know what a best one leads."""
_BARELY = 1e-3
"""A similarity that is rounded to its limit explains nothing."""


@dataclass(frozen=True, slots=True)
class GroupingLimits:
    """Similarities (cosine). `similar`: from it, each other's nearest are one. `lowest`: below it they never are; between the
    two they must lead. `margin`: by how much one person must lead another."""

    similar: float
    lowest: float
    margin: float = 0.05

    @staticmethod
    def of(point: OperatingPoint) -> GroupingLimits:
        """From the thresholds of 1:1 verification, for every model in the same way."""
        return GroupingLimits(point.threshold + _ABOVE_THRESHOLD, point.suggest_threshold)

    @property
    def floor(self) -> float:
        """What is less similar has no part in anything."""
        return self.lowest - _BELOW_SUGGESTED


@dataclass(frozen=True, slots=True)
class FacesToGroup:
    """N faces, or what stands for several of one person: the sum of their embeddings, with their number in `counts`, (N,) or
    None where each is one. `embeddings`: (N, D) float32. `pictures`: (N,) number of the picture each is in, -1 for none.
    `persons`: (N,) number of the person each certainly is, from 0 to `person_count`, -1 where that is to be found out.
    `rejections`: (R, 2) face and person whose it is not. `present`: (Q, 2) face and person who is in its picture already,
    with a face that is not among these."""

    embeddings: FloatArray
    pictures: IntArray
    persons: IntArray
    person_count: int
    rejections: IntArray
    present: IntArray
    counts: IntArray | None = None


@dataclass(frozen=True, slots=True)
class Alone:
    """Why a face is nobody's. `code`:

    no_neighbour    the nearest face or group has similarity `value`; only from `limit` on it is looked at.
    not_core        the nearest has similarity `value`; with what it leads by, or trails, `limit` would be needed.
    between_persons the nearest person leads the second by `value`; `limit` would be needed.
    same_picture, rejected    the nearest has similarity `value`, `limit` and more, but must not be the one.

    `group`: the number of the nearest group, where the nearest is no single face.
    """

    code: str
    metric: str
    value: float
    limit: float
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Grouping:
    """`groups`: (N,) number of the group of each face, -1 for those alone. `persons`: (G,) number of the person each group is,
    -1 for somebody new. The groups 0 to `person_count` are the persons', in their order; those after are in the order of
    their first faces. `alone`: for each face that is nobody's, why."""

    groups: IntArray
    persons: IntArray
    alone: Mapping[int, Alone]


def group_faces(faces: FacesToGroup, limits: GroupingLimits, check: Callable[[], None] = lambda: None) -> Grouping:
    """Deterministic, whatever the order of the faces. Two faces of one picture become one person only where both are in
    `persons`. `check` is called every second or so, and may raise.

    Memory grows with N, not with its square. Raises InvalidEmbedding for NaN, infinity and zero.
    """
    vectors = _checked(faces.embeddings)
    order = _canonical(vectors, faces.pictures)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    barriers = Barriers(
        place[_pairs_of_pictures(faces.pictures)],
        np.column_stack((place[faces.rejections[:, 0]], faces.rejections[:, 1])),
        np.column_stack((place[faces.present[:, 0]], faces.present[:, 1])),
    )
    size = np.ones(len(vectors), dtype=np.int64) if faces.counts is None else faces.counts
    sums = np.where(size[:, None] > 1, faces.embeddings, vectors)
    grown = Groups(sums[order], size[order], faces.persons[order], faces.person_count, barriers, limits.floor, check)
    _merge(grown, limits)
    return _result(grown, faces, order, limits)


def belonging(embeddings: FloatArray, limits: GroupingLimits) -> BoolArray:
    """Which of a person's (N, D) faces are like the others of it; all of one or two that are alike."""
    vectors = _checked(embeddings)
    rest = vectors.sum(axis=0) - vectors
    lengths = np.sqrt(np.linalg.norm(rest, axis=1) * max(len(vectors) - 1, 1))
    similarity = np.einsum("nd,nd->n", vectors, rest) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return np.asarray((similarity >= limits.lowest) | (len(vectors) == 1))


def _checked(embeddings: FloatArray) -> FloatArray:
    if not np.isfinite(embeddings).all():
        raise InvalidEmbedding("An embedding contains NaN or infinity.")
    vectors = l2_normalize(embeddings)
    if len(vectors) and float(np.linalg.norm(vectors, axis=1).min()) < 0.5:
        raise InvalidEmbedding("An embedding is zero; it points nowhere.")
    return vectors


def _canonical(vectors: FloatArray, pictures: IntArray) -> IntArray:
    """An order that does not depend on the one they came in."""
    keys = [(row.tobytes(), picture) for row, picture in zip(vectors, pictures.tolist(), strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _pairs_of_pictures(pictures: IntArray) -> IntArray:
    """(C, 2) pairs of faces in one picture."""
    order = np.argsort(pictures, kind="stable")
    order = order[pictures[order] >= 0]
    found = [np.empty((0, 2), dtype=np.int64)]
    distance = 1
    while len(order) > distance:
        same = np.flatnonzero(pictures[order[:-distance]] == pictures[order[distance:]])
        if not len(same):
            break
        found.append(np.column_stack((order[same], order[same + distance])))
        distance += 1
    return np.concatenate(found)


def _merge(grown: Groups, limits: GroupingLimits) -> None:
    """First what each person has is brought together, then what is plainly similar, then what leads."""
    while len(pairs := grown.reciprocal(grown.own & (grown.similarity >= limits.similar))):
        grown.merge(pairs)
    looked_again = False
    while True:
        near = _eligible(grown, limits)
        similar = near & (grown.similarity >= limits.similar)
        pairs = grown.reciprocal(similar)
        if len(pairs):
            grown.merge(pairs, grown.joining(similar, pairs))
            continue
        if not looked_again:
            looked_again = True
            if grown.look_again():
                continue
        pairs = grown.reciprocal(near & ~grown.own)
        pairs = pairs[grown.similarity[pairs] + LEAD_WEIGHT * grown.leads(pairs) >= limits.similar]
        if len(pairs):
            grown.merge(pairs)
        elif not grown.look_again():
            return


def _eligible(grown: Groups, limits: GroupingLimits) -> BoolArray:
    """Pairs that may merge now: allowed, near, and not between two persons."""
    ambiguous = grown.ambiguity().lead < limits.margin
    claimed = (ambiguous[grown.a] & (grown.person[grown.b] >= 0)) | (ambiguous[grown.b] & (grown.person[grown.a] >= 0))
    return np.asarray(grown.allowed & ~claimed & (grown.similarity >= limits.lowest))


def _result(grown: Groups, faces: FacesToGroup, order: IntArray, limits: GroupingLimits) -> Grouping:
    of_face = np.empty_like(grown.of_face)
    of_face[order] = grown.of_face
    person = grown.person[of_face]
    groups = np.where(person >= 0, person, -1)
    new = np.flatnonzero((person < 0) & (grown.size[of_face] > 1))
    _, first, number = np.unique(of_face[new], return_index=True, return_inverse=True)
    groups[new] = faces.person_count + np.argsort(np.argsort(first))[number]
    persons = np.concatenate((np.arange(faces.person_count), np.full(len(first), -1, dtype=np.int64)))
    lonely = np.flatnonzero(groups < 0)
    nearest = np.empty_like(grown.nearest)
    nearest[order] = grown.nearest
    numbers = np.full(len(grown), -1, dtype=np.int64)
    numbers[of_face] = groups
    reasons = _Reasons(grown, limits, numbers)
    return Grouping(groups, persons, {int(one): reasons.of(int(of_face[one]), float(nearest[one])) for one in lonely})


class _Reasons:
    """Of groups of one face, after the last merge. `numbers`: of each group in the result, -1 for those of one face."""

    def __init__(self, grown: Groups, limits: GroupingLimits, numbers: IntArray) -> None:
        self._grown, self._limits, self._numbers = grown, limits, numbers
        self._ambiguity = grown.ambiguity()
        self._free = _best_pairs(grown, grown.allowed)
        self._barred = _best_pairs(grown, ~grown.allowed)
        found = np.flatnonzero(self._free >= 0)
        self._leads = np.zeros(len(grown), dtype=np.float32)
        self._leads[found] = grown.leads(self._free[found])

    def of(self, group: int, nearest: float) -> Alone:
        """`nearest`: similarity of the nearest face, barred or not."""
        grown, limits = self._grown, self._limits
        best, kept_off = int(self._free[group]), int(self._barred[group])
        similarity = float(grown.similarity[best]) if best >= 0 else min(nearest, limits.lowest - _BARELY)
        if float(self._ambiguity.lead[group]) < limits.margin and similarity >= limits.lowest:
            lead, person = float(self._ambiguity.lead[group]), int(self._ambiguity.best[group])
            return Alone("between_persons", "margin", lead, limits.margin, person)
        if kept_off >= 0 and (value := float(grown.similarity[kept_off])) >= max(limits.lowest, similarity):
            code = "rejected" if grown.rejected[kept_off] else "same_picture"
            return Alone(code, "similarity", value, limits.lowest, self._other(kept_off, group))
        if best < 0 or similarity < limits.lowest:
            return Alone("no_neighbour", "similarity", similarity, limits.lowest, None)
        needed = max(limits.lowest, limits.similar - LEAD_WEIGHT * float(self._leads[group]))
        return Alone("not_core", "similarity", similarity, max(needed, similarity + _BARELY), self._other(best, group))

    def _other(self, pair: int, group: int) -> int | None:
        grown = self._grown
        number = int(self._numbers[grown.a[pair] if grown.b[pair] == group else grown.b[pair]])
        return number if number >= 0 else None


def _best_pairs(grown: Groups, wanted: BoolArray) -> IntArray:
    """Of each group its most similar one of the wanted pairs, -1 where there is none."""
    pairs = np.flatnonzero(wanted)
    # The best last, so that it stays.
    pairs = pairs[np.lexsort((-grown.b[pairs], -grown.a[pairs], grown.similarity[pairs]))]
    best = np.full(len(grown), -1, dtype=np.int64)
    best[np.column_stack((grown.a[pairs], grown.b[pairs])).ravel()] = np.repeat(pairs, 2)
    return best
