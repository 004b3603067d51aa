"""What clustering is going to change: nothing that a user said, nothing twice, and ids stay where the faces stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.faces import FloatArray, l2_normalize
from serve_app.grouping.clustering import GroupingLimits
from serve_app.grouping.group_plans import CODES, GroupedFace, Plan, joined, plan_regrouping, plan_settling
from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.facts import FacePerson

LIMITS = GroupingLimits(0.46, 0.30)


@dataclass(frozen=True)
class Collected:
    faces: list[GroupedFace]
    embeddings: FloatArray
    kept: frozenset[UUID]
    rejections: frozenset[FacePerson]


@st.composite
def collections(draw: st.DrawFn) -> Collected:
    """As a database may have it: users' faces have persons who are kept, of a picture the machine gave nobody two."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, directions = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    centres = random.normal(size=(directions, 16))
    chosen = random.integers(0, directions, count)
    embeddings = l2_normalize(centres[chosen] + draw(st.floats(0.1, 1.2)) * random.normal(size=(count, 16)))
    persons = [UUID(int=1000 + number) for number in range(6)]
    kept = frozenset(persons[: draw(st.integers(0, 4))])
    faces, taken = [], set()
    for number in range(count):
        picture = UUID(int=5000 + int(random.integers(0, count)))
        owner = persons[int(random.integers(0, 6))] if random.random() < 0.6 else None
        fixed = owner in kept and bool(random.random() < 0.3)
        if not fixed and (picture, owner) in taken:
            owner = None
        taken.add((picture, owner))
        reason = Unassigned("no_neighbour", "similarity", 0.1, 0.3) if owner is None and random.random() < 0.5 else None
        faces.append(GroupedFace(UUID(int=number + 1), owner, picture, fixed, reason))
    rejections = frozenset(
        (one.id, person)
        for one in faces
        for person in sorted(kept)
        if not one.fixed and one.person_id != person and random.random() < 0.1
    )
    return Collected(faces, embeddings, kept, rejections)


def done(faces: list[GroupedFace], plan: Plan) -> list[GroupedFace]:
    moves = {move.face_id: move for move in plan.moves}
    assert all(one.person_id == moves[one.id].before for one in faces if one.id in moves)
    return [
        replace(one, person_id=moves[one.id].after, unassigned=moves[one.id].reason) if one.id in moves else one
        for one in faces
    ]


def regroup(one: Collected, faces: list[GroupedFace]) -> Plan:
    return plan_regrouping(faces, one.embeddings, one.kept, one.rejections, LIMITS)


def whole(one: Collected, before: list[GroupedFace], after: list[GroupedFace]) -> None:
    owners: dict[tuple[UUID | None, UUID], list[GroupedFace]] = {}
    for old, new in zip(before, after, strict=True):
        assert not old.fixed or new == old
        assert (new.id, new.person_id) not in one.rejections
        assert new.person_id is None or new.unassigned is None
        if new.person_id is not None:
            owners.setdefault((new.image_id, new.person_id), []).append(new)
    assert all(len(faces) == 1 or sum(not face.fixed for face in faces) == 0 for faces in owners.values())


@settings(max_examples=150, deadline=None)
@given(collections())
def test_grouped_anew_what_users_said_holds_and_a_second_time_changes_nothing(one: Collected) -> None:
    plan = regroup(one, one.faces)
    after = done(one.faces, plan)
    whole(one, one.faces, after)
    assert all(face.person_id is not None or face.unassigned is not None for face in after if not face.fixed)
    assert regroup(one, after) == Plan((), frozenset())


@settings(max_examples=100, deadline=None)
@given(collections())
def test_settling_moves_only_what_nobody_has(one: Collected) -> None:
    plan = plan_settling(one.faces, one.embeddings, one.rejections, (), LIMITS)
    after = done(one.faces, plan)
    assert all(move.before is None for move in plan.moves)
    for old, new in zip(one.faces, after, strict=True):
        assert old.person_id is None or new == old
        # What waited has an answer; what was left alone before keeps its reason or finds somebody.
        assert new.person_id is not None or new.unassigned is not None
        assert old.unassigned is None or new.person_id is not None or new.unassigned == old.unassigned
        assert (new.id, new.person_id) not in one.rejections or new == old
    assert plan_settling(after, one.embeddings, one.rejections, (), LIMITS).founded == frozenset()


def vectors(*directions: int) -> FloatArray:
    random = np.random.default_rng(1)
    return l2_normalize(np.eye(16)[list(directions)] + 0.1 * random.normal(size=(len(directions), 16)))


def face(number: int, person: int | None = None, *, fixed: bool = False, reason: str | None = None) -> GroupedFace:
    return GroupedFace(
        UUID(int=number),
        None if person is None else UUID(int=1000 + person),
        UUID(int=5000 + number),
        fixed,
        None if reason is None else Unassigned(reason),
    )


def test_a_group_that_falls_apart_leaves_its_id_with_most_of_its_faces() -> None:
    faces = [face(number, 1) for number in range(1, 6)]
    plan = plan_regrouping(faces, vectors(0, 0, 1, 1, 1), frozenset(), (), LIMITS)
    assert {move.face_id.int for move in plan.moves} == {1, 2} and len(plan.founded) == 1
    assert {move.after for move in plan.moves} == plan.founded


def test_who_is_in_the_picture_is_not_found_in_it_again() -> None:
    faces = [face(1, 1), face(2)]
    plan = plan_settling(faces, vectors(0, 0), (), {(UUID(int=2), UUID(int=1001))}, LIMITS)
    (move,) = plan.moves
    assert move.after is None and move.reason is not None
    assert (move.reason.code, move.reason.person_id) == ("same_picture", UUID(int=1001))


def test_the_only_face_has_nothing_to_be_compared_with() -> None:
    plan = plan_settling([face(1)], vectors(0), (), (), LIMITS)
    assert plan.moves[0].reason == Unassigned("no_neighbour", "similarity", None, 0.3)
    assert plan_settling([face(1, reason="no_neighbour")], vectors(0), (), (), LIMITS) == Plan((), frozenset())
    assert plan_settling([], joined([], 16), (), (), LIMITS) == Plan((), frozenset())


def test_every_code_has_words() -> None:
    for code in CODES:
        message = Unassigned(code, "similarity", 0.1, 0.3).message
        assert "the limit is" not in message and "0.1" in message
