"""Faces that come a few at a time, as photos are indexed: how well they find their persons, without a database."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import pytest

from deployments.models.cluster_evaluation import NamedFaces, group_ours, limits_of
from deployments.models.cluster_scores import ClusterScores, score
from deployments.models.packs import Pack
from serve_app.faces import FloatArray, templates_of
from serve_app.grouping.clustering import GroupingLimits
from serve_app.grouping.group_plans import GroupedFace, joined, plan_settling
from serve_app.grouping.person_sums import PersonSums
from serve_app.grouping.unassigned import Unassigned
from serve_app.grouping.unclaimed import Unclaimed
from tests.accuracy.test_clustering import SAME, faces, pack  # noqa: F401  fixtures

LEFT_ALONE = Unassigned("no_neighbour")
PERSONS, BESIDE, LATEST = 4, 24, 32
"""As services/clustering.py has them."""


@dataclass
class Arriving:
    """A library in memory. `sums`: whether persons are sums of their faces, or these faces."""

    embeddings: FloatArray
    limits: GroupingLimits
    sums: bool
    owners: dict[int, UUID] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)

    def come(self, some: list[int]) -> None:
        unclaimed = Unclaimed(self.embeddings.shape[1])
        free = [*(one for one in self.seen if one not in self.owners), *some]
        unclaimed.keep(b"".join(UUID(int=one).bytes for one in free))
        unclaimed.add([UUID(int=one) for one in free], self.embeddings[free])
        near = unclaimed.nearest([UUID(int=one) for one in some], self.embeddings[some], self.limits.floor, BESIDE)
        beside = sorted({*some, *(one.int for one in near)})
        waiting = [GroupedFace(UUID(int=one), None, None, False, None if one in some else LEFT_ALONE) for one in beside]
        theirs = self._near(some)
        persons = list(theirs)
        if self.sums and persons:
            latest = [self.embeddings[theirs[one][-LATEST:]] for one in persons]
            known = PersonSums.of(persons, latest, [self._templates(theirs[one]) for one in persons])
            plan = plan_settling(waiting, self.embeddings[beside], (), (), self.limits, known=known)
        else:
            rows = [(one, place) for one in persons for place in theirs[one][-LATEST:]]
            owned = [GroupedFace(UUID(int=place), one, None, False, None) for one, place in rows]
            vectors = joined([self.embeddings[[*beside, *(place for _, place in rows)]]], self.embeddings.shape[1])
            plan = plan_settling([*waiting, *owned], vectors, (), (), self.limits)
        self.owners |= {move.face_id.int: move.after for move in plan.moves if move.after is not None}
        self.seen += some

    def _near(self, some: list[int]) -> dict[UUID, list[int]]:
        """Faces of the persons with the nearest templates."""
        theirs: dict[UUID, list[int]] = {}
        for place in sorted(self.owners):
            theirs.setdefault(self.owners[place], []).append(place)
        found: set[UUID] = set()
        templates = {person_id: self._templates(places) for person_id, places in theirs.items()}
        for place in some:
            best = {one: float((stands @ self.embeddings[place]).max()) for one, stands in templates.items()}
            found.update(sorted(best, key=lambda one: -best[one])[:PERSONS])
        return {one: theirs[one] for one in sorted(found)}

    def _templates(self, places: list[int]) -> FloatArray:
        return templates_of(self.embeddings[places])[0]

    def scores(self, persons: tuple[str, ...]) -> ClusterScores:
        numbers = {one: number for number, one in enumerate(sorted(set(self.owners.values())))}
        return score([numbers[self.owners[place]] if place in self.owners else -1 for place in range(len(persons))], persons)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("at_a_time", [8, 64])
def test_who_comes_bit_by_bit_is_found_as_if_all_came_at_once(pack: Pack, faces: NamedFaces, at_a_time: int) -> None:
    persons = tuple(SAME.get(one, one) for one in faces.persons)
    limits = limits_of(pack)
    found: dict[bool, list[ClusterScores]] = {True: [], False: []}
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(persons)).tolist()
        for sums in (True, False):
            arriving = Arriving(faces.embeddings, limits, sums)
            for start in range(0, len(order), at_a_time):
                arriving.come(order[start : start + at_a_time])
            found[sums].append(arriving.scores(persons))
    by_sums, by_faces = (float(np.mean([one.bcubed.f1 for one in found[sums]])) for sums in (True, False))
    together = score(group_ours(faces.embeddings, limits).labels.tolist(), persons)
    print(f"{at_a_time} at a time: F1 {by_sums:.4f}, beside each face {by_faces:.4f}, all at once {together.bcubed.f1:.4f};"
          f" purity {min(one.purity for one in found[True]):.4f}")  # fmt: skip
    assert by_sums >= by_faces - 0.001 and by_sums >= together.bcubed.f1 - 0.01
    assert all(one.purity >= 0.985 for one in found[True])
