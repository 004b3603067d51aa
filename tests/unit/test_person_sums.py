from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from serve_app.faces import FloatArray, l2_normalize, templates_of
from serve_app.grouping.clustering import GroupingLimits
from serve_app.grouping.group_plans import GroupedFace, plan_settling
from serve_app.grouping.person_sums import PersonSums

DIM = 32
LIMITS = GroupingLimits(0.46, 0.30)
ANN, BOB = UUID(int=1001), UUID(int=1002)


def near(random: np.random.Generator, direction: int, count: int, likeness: float = 0.7) -> FloatArray:
    noise = random.normal(size=(count, DIM))
    noise[:, direction] = 0
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return l2_normalize(np.sqrt(likeness) * np.eye(DIM)[direction] + np.sqrt(1 - likeness) * noise)


def test_a_sum_for_each_template() -> None:
    random = np.random.default_rng(1)
    child, man, bob = near(random, 0, 3), near(random, 1, 4), near(random, 2, 2)
    ann = np.concatenate((child, man))[[0, 3, 1, 4, 2, 5, 6]]
    templates, counts = templates_of(ann)
    assert sorted(counts) == [3, 4]
    found = PersonSums.of([ANN, BOB], [ann, bob], [templates, templates_of(bob)[0]])
    assert found.persons == (ANN, ANN, BOB) and found.counts.tolist() == [*counts, 2]
    wanted = [child.sum(axis=0), man.sum(axis=0)] if counts[0] == 3 else [man.sum(axis=0), child.sum(axis=0)]
    np.testing.assert_allclose(found.sums, [*wanted, bob.sum(axis=0)], rtol=1e-5, atol=1e-6)


def test_a_template_of_faces_that_are_not_looked_at_is_no_sum() -> None:
    random = np.random.default_rng(1)
    found = PersonSums.of([ANN], [near(random, 0, 3)], [np.eye(DIM, dtype=np.float32)[[5, 0, 7]]])
    assert found.persons == (ANN,) and found.counts.tolist() == [3]
    assert len(PersonSums.none(DIM).sums) == 0
    with pytest.raises(ValueError, match="without a person"):
        PersonSums.of([], [], [])


@pytest.mark.parametrize("seed", range(20))
def test_settled_beside_sums_as_beside_faces(seed: int) -> None:
    """Of six persons with 1 to 30 faces each, and new ones of theirs, of others, and of nobody."""
    random = np.random.default_rng(seed)
    persons = [UUID(int=1000 + number) for number in range(6)]
    theirs = [near(random, number, int(random.integers(1, 31))) for number in range(6)]
    new = np.concatenate(
        [near(random, number, 2) for number in range(8)] + [near(random, 20 + number, 1) for number in range(4)]
    )
    waiting = [GroupedFace(UUID(int=place + 1), None, UUID(int=5000 + place), False, None) for place in range(len(new))]
    known = [
        GroupedFace(UUID(int=10_000 + 100 * number + place), person, None, False, None)
        for number, person in enumerate(persons)
        for place in range(len(theirs[number]))
    ]
    rejections, present = {(waiting[0].id, persons[0])}, {(waiting[2].id, persons[1])}
    beside = plan_settling([*waiting, *known], np.concatenate((new, *theirs)), rejections, present, LIMITS)
    sums = PersonSums.of(persons, theirs, [templates_of(one)[0] for one in theirs])
    among = plan_settling(waiting, new, rejections, present, LIMITS, known=sums)

    def told(plan: object) -> list[object]:
        moves = {move.face_id: move for move in plan.moves}  # type: ignore[attr-defined]
        after = [moves[one.id].after for one in waiting]
        return [
            (one if one in persons else None if one is None else after.index(one), why.code if why else None)
            for one, why in zip(after, (moves[one.id].reason for one in waiting), strict=True)
        ]

    assert told(among) == told(beside) and len(among.founded) == len(beside.founded) > 1
    # All of the persons' stay.
    assert all(move.face_id in {one.id for one in waiting} for move in among.moves)
