"""Groups of faces that grow by merging: which are the nearest to each other, which may be one, and which lead. Pure.

Agglomeration by reciprocal nearest neighbours: two groups merge when each is the other's best, all such pairs of a round at
once. With a group-average similarity that gives what merging one pair after another would (Murtagh, "A survey of recent
advances in hierarchical clustering algorithms", 1983), in few rounds over a sparse graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from serve_app.faces import BoolArray, FloatArray
from serve_app.grouping.neighbours import IntArray, near_pairs, pairs_of

NEIGHBOURS = 48
"""Of a face or group that are looked at. Groups find each other again when they have grown."""

MUCH = 8
"""Times that a group must be larger for others to join it all at once."""

_Keys: TypeAlias = IntArray
"""Pairs as single numbers, sorted."""


@dataclass(frozen=True, slots=True)
class Barriers:
    """What must not become one. `pictures`: (C, 2) pairs of faces that are in one picture. `rejections`: (R, 2) face and
    person whose it is not. `present`: (Q, 2) face and person who is in its picture already."""

    pictures: IntArray
    rejections: IntArray
    present: IntArray


@dataclass(frozen=True, slots=True)
class Ambiguity:
    """Of each group: by how much the best person leads the second, and these two; -1 where there are no two."""

    lead: FloatArray
    best: IntArray
    second: IntArray


class Groups:
    """Groups of faces, at first one for each. `person`: (G,) whose a group is, -1 for nobody's.

    The similarity of two groups lies between the mean over all pairs of their faces and the cosine of their mean directions:
    the geometric mean of these. The first alone keeps apart what is large and varied, the second brings together what has
    little in common but its noise.
    """

    def __init__(
        self,
        sums: FloatArray,
        size: IntArray,
        person: IntArray,
        persons: int,
        barriers: Barriers,
        floor: float,
        check: Callable[[], None],
    ) -> None:
        """`sums`: (G, D), of `size` unit vectors each. `floor`: similarities below it are not looked at."""
        self._persons, self._barriers, self._floor, self._check = persons, barriers, floor, check
        self.of_face: IntArray = np.arange(len(sums))
        self.person = person.copy()
        self.size: IntArray = size.copy()
        self._sums = sums.copy()
        self._scaled = _scaled(sums, size, sums.copy(), size > 1)
        near = near_pairs(self._scaled, floor, NEIGHBOURS, check)
        self.nearest = near.nearest
        self.a, self.b = near.a, near.b
        self.similarity = self._similarities(self.a, self.b)
        self._bar()

    def __len__(self) -> int:
        return len(self.size)

    def look_again(self) -> bool:
        """Groups of several faces look for neighbours among all; whether there are new ones."""
        grown = np.flatnonzero(self.size > 1)
        if not len(grown):
            return False
        near = pairs_of(self._scaled, grown, self._floor, NEIGHBOURS, self._check)
        keys = np.union1d(self.a * len(self) + self.b, near.a * len(self) + near.b)
        if len(keys) == len(self.a):
            return False
        self.a, self.b = keys // len(self), keys % len(self)
        self.similarity = self._similarities(self.a, self.b)
        self._bar()
        return True

    @property
    def own(self) -> BoolArray:
        """Pairs that are one person's already."""
        person = self.person[self.a]
        return np.asarray((person >= 0) & (person == self.person[self.b]))

    def reciprocal(self, eligible: BoolArray) -> IntArray:
        """The eligible pairs that are the best of both, of equals the first."""
        found = np.flatnonzero(eligible)
        found = found[np.lexsort((self.b[found], self.a[found], -self.similarity[found]))]
        best = np.full(len(self), -1, dtype=np.int64)
        # Backwards, so that what comes first stays.
        best[np.column_stack((self.a[found], self.b[found])).ravel()[::-1]] = np.repeat(found, 2)[::-1]
        return np.asarray(found[(best[self.a[found]] == found) & (best[self.b[found]] == found)])

    def joining(self, eligible: BoolArray, taken: IntArray) -> IntArray:
        """Eligible pairs of a group nobody has with its best, where that is much larger: it hardly changes by them, so that
        they need not join one after another. Of `taken`, which go before, only the larger may get more."""
        found = np.flatnonzero(eligible)
        found = found[np.lexsort((self.b[found], self.a[found], -self.similarity[found]))]
        best = np.full(len(self), -1, dtype=np.int64)
        best[np.column_stack((self.a[found], self.b[found])).ravel()[::-1]] = np.repeat(found, 2)[::-1]
        busy = np.zeros(len(self), dtype=np.bool_)
        busy[self.a[taken]] = busy[self.b[taken]] = True
        a, b = self.a[found], self.b[found]
        small, large = np.where(self.size[a] < self.size[b], a, b), np.where(self.size[a] < self.size[b], b, a)
        joins = (
            (best[small] == found) & (self.size[large] >= MUCH * self.size[small]) & (self.person[small] < 0) & ~busy[small]
        )
        # Whom others join does not join.
        joiner = np.zeros(len(self), dtype=np.bool_)
        joiner[small[joins]] = True
        return np.asarray(found[joins & ~joiner[large]])

    def leads(self, pairs: IntArray) -> FloatArray:
        """By how much each of the pairs is more similar than what else either of the two is similar to; negative where one of
        them has a better. What the other's person has besides does not count, nor what is barred."""
        free = np.flatnonzero(self.allowed & ~self.own)
        a, b, similarity = self.a[free], self.b[free], self.similarity[free]
        both = np.concatenate((similarity, similarity))
        rivals = _two_best(len(self), np.concatenate((a, b)), self._kind[np.concatenate((b, a))], both)
        rival = np.maximum(
            *(
                np.where(rivals.best[one] == self._kind[other], rivals.second_similarity[one], rivals.similarity[one])
                for one, other in ((self.a[pairs], self.b[pairs]), (self.b[pairs], self.a[pairs]))
            )
        )
        return np.asarray(self.similarity[pairs] - np.maximum(rival, self._floor), dtype=np.float32)

    def ambiguity(self) -> Ambiguity:
        """Of nobody's groups, between persons."""
        free = np.flatnonzero(self.allowed & ((self.person[self.a] < 0) != (self.person[self.b] < 0)))
        a, b = self.a[free], self.b[free]
        owned = self.person[a] >= 0
        found = _two_best(len(self), np.where(owned, b, a), self.person[np.where(owned, a, b)], self.similarity[free])
        lead = np.where(found.second >= 0, found.similarity - found.second_similarity, np.inf)
        return Ambiguity(np.asarray(lead, dtype=np.float32), found.best, found.second)

    def merge(self, pairs: IntArray, joining: IntArray | None = None) -> None:
        """Disjoint pairs, each allowed, and those of `joining`. Of those that would bring together what must not be one, only
        the better."""
        order = np.lexsort((self.b[pairs], self.a[pairs], -self.similarity[pairs]))
        pairs = pairs[order]
        larger, smaller = self.a[pairs], self.b[pairs]
        if joining is not None and len(joining):
            joining = joining[np.lexsort((self.b[joining], self.a[joining], -self.similarity[joining]))]
            a, b = self.a[joining], self.b[joining]
            larger = np.concatenate((larger, np.where(self.size[a] < self.size[b], b, a)))
            smaller = np.concatenate((smaller, np.where(self.size[a] < self.size[b], a, b)))
        root = np.arange(len(self))
        root[smaller[: len(pairs)]] = larger[: len(pairs)]
        fitting = self._compatible(root[larger], larger, smaller)
        # Whoever wanted to join the smaller of a pair that does not fit joins it alone.
        apart = np.flatnonzero(~fitting[: len(pairs)])
        root[smaller[apart]] = smaller[apart]
        larger, smaller = root[larger[fitting]], smaller[fitting]
        parent = np.arange(len(self))
        parent[smaller] = larger
        kept, renumbered = np.unique(parent, return_inverse=True)
        np.add.at(self._sums, larger, self._sums[smaller])
        np.add.at(self.size, larger, self.size[smaller])
        np.maximum.at(self.person, larger, self.person[smaller])
        changed = np.zeros(len(self), dtype=np.bool_)
        changed[larger] = True
        self._sums, self.size, self.person, changed = self._sums[kept], self.size[kept], self.person[kept], changed[kept]
        self._scaled = _scaled(self._sums, self.size, self._scaled[kept], changed)
        self.of_face = renumbered[self.of_face]
        self._renumber_pairs(renumbered, changed)
        self._bar()

    def _renumber_pairs(self, renumbered: IntArray, changed: BoolArray) -> None:
        one, other = renumbered[self.a], renumbered[self.b]
        apart = one != other
        keys = (np.minimum(one, other) * len(self) + np.maximum(one, other))[apart]
        keys, first = np.unique(keys, return_index=True)
        self.a, self.b, self.similarity = keys // len(self), keys % len(self), self.similarity[apart][first]
        anew = np.flatnonzero(changed[self.a] | changed[self.b])
        self.similarity[anew] = self._similarities(self.a[anew], self.b[anew])

    def _compatible(self, root: IntArray, larger: IntArray, smaller: IntArray) -> BoolArray:
        """Which of the pairs may become one in the same round: what comes together must not bar each other."""
        rank = np.full(len(self), -1, dtype=np.int64)
        together = np.arange(len(self)) + self._persons
        # Backwards, so that whoever is in several counts as in the first.
        rank[larger[::-1]] = np.arange(len(larger))[::-1]
        rank[smaller] = np.arange(len(smaller))
        person = self.person.copy()
        np.maximum.at(person, root, np.maximum(self.person[smaller], self.person[larger]))
        for one in (larger, smaller):
            together[one] = np.where(person[root] >= 0, person[root], root + self._persons)
        of_kind = np.concatenate((np.arange(self._persons), together))
        rank_of_kind = np.concatenate((np.full(self._persons, -1, dtype=np.int64), rank))
        keys = np.concatenate((self._picture_keys, self._rejected_keys))
        one, other = keys // self._kinds, keys % self._kinds
        clash = of_kind[one] == of_kind[other]
        dropped = np.zeros(len(smaller) + 1, dtype=np.bool_)
        dropped[np.maximum(rank_of_kind[one[clash]], rank_of_kind[other[clash]])] = True
        return ~dropped[: len(smaller)]

    def _similarities(self, a: IntArray, b: IntArray) -> FloatArray:
        found = np.empty(len(a), dtype=np.float32)
        for start in range(0, len(a), 1 << 16):
            part = slice(start, start + (1 << 16))
            found[part] = np.einsum("nd,nd->n", self._scaled[a[part]], self._scaled[b[part]])
        return found

    def _bar(self) -> None:
        """Says of each pair whether the two may be one."""
        self._check()
        self._kinds = self._persons + len(self)
        kind = self._kind = np.where(self.person >= 0, self.person, self._persons + np.arange(len(self)))
        of_face = kind[self.of_face]
        pictures, rejections, present = self._barriers.pictures, self._barriers.rejections, self._barriers.present
        self._picture_keys = self._keys(
            np.concatenate((of_face[pictures[:, 0]], of_face[present[:, 0]])),
            np.concatenate((of_face[pictures[:, 1]], present[:, 1])),
        )
        self._rejected_keys = self._keys(of_face[rejections[:, 0]], rejections[:, 1])
        mine, theirs = self.person[self.a], self.person[self.b]
        keys = np.minimum(kind[self.a], kind[self.b]) * self._kinds + np.maximum(kind[self.a], kind[self.b])
        self.rejected = _among(keys, self._rejected_keys)
        self.together = _among(keys, self._picture_keys)
        two_persons = (mine >= 0) & (theirs >= 0) & (mine != theirs)
        self.allowed = ~(self.rejected | self.together | two_persons)

    def _keys(self, one: IntArray, other: IntArray) -> _Keys:
        apart = one != other
        return np.unique((np.minimum(one, other) * self._kinds + np.maximum(one, other))[apart])


@dataclass(frozen=True, slots=True)
class _TwoBest:
    """Of each group the two kinds that it is most similar to, -1 where there are none, and how similar."""

    best: IntArray
    similarity: FloatArray
    second: IntArray
    second_similarity: FloatArray


def _two_best(groups: int, group: IntArray, kind: IntArray, similarity: FloatArray) -> _TwoBest:
    best, second = (np.full(groups, -1, dtype=np.int64) for _ in range(2))
    first_similarity, second_similarity = (np.full(groups, -2, dtype=np.float32) for _ in range(2))
    # Backwards, so that what comes first stays.
    order = np.lexsort((kind, -similarity, group))[::-1]
    best[group[order]], first_similarity[group[order]] = kind[order], similarity[order]
    order = order[kind[order] != best[group[order]]]
    second[group[order]], second_similarity[group[order]] = kind[order], similarity[order]
    return _TwoBest(best, first_similarity, second, second_similarity)


def _scaled(sums: FloatArray, size: IntArray, before: FloatArray, changed: BoolArray) -> FloatArray:
    """Vectors whose dot products are the similarities of groups; computed anew where `changed`."""
    own = sums[changed]
    lengths = np.maximum(np.linalg.norm(own, axis=1) * size[changed], np.finfo(np.float32).tiny)
    before[changed] = own / np.sqrt(lengths)[:, None]
    return before


def _among(keys: _Keys, known: _Keys) -> BoolArray:
    if not len(known):
        return np.zeros(len(keys), dtype=np.bool_)
    return np.asarray(known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys)
