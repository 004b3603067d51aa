"""What users decide, as changes to values: every action can be taken back, and nothing is left that contradicts itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import NotFound
from serve_app.identity import decisions
from serve_app.identity.facts import WAITING, Changes, FaceState, Facts, Maker, PersonState, difference, pair
from serve_app.identity.undoing import Kept, KeptFor, undo

FACES = [UUID(int=number) for number in range(1, 9)]
PERSONS = [UUID(int=number) for number in range(100, 105)]
NEW = UUID(int=200)


def person(name: str = "", founded_by: str = Maker.MACHINE, external_id: str | None = None) -> PersonState:
    return PersonState(name, {}, external_id, False, None, founded_by, datetime(2026, 1, 1, tzinfo=UTC))


faces = st.sampled_from(FACES)
persons = st.sampled_from(PERSONS)
states = st.one_of(
    st.just(WAITING),
    st.builds(FaceState, persons, st.sampled_from([Maker.USER.value, Maker.MACHINE.value])),
    st.just(FaceState(None, hidden=True, unassigned=decisions.reason(decisions.Why.HIDDEN))),
)


@st.composite
def worlds(draw: st.DrawFn) -> Facts:
    known = {one: person(draw(st.sampled_from(["", "Anna"])), external_id=f"x{one.int}") for one in PERSONS}
    owned = {one: draw(states) for one in FACES}
    rejections = {(one, who) for one, who in draw(st.sets(st.tuples(faces, persons))) if owned[one].person_id != who}
    apart = {pair(one, two) for one, two in draw(st.sets(st.tuples(persons, persons))) if one != two}
    return Facts(owned, known, rejections, apart)


def act(facts: Facts, action: str, face: UUID, other_face: UUID, who: UUID, other: UUID) -> None:
    match action:
        case "assign":
            decisions.assign(facts, [face, other_face], who)
        case "unassign":
            decisions.unassign(facts, [face], release=who == PERSONS[0])
        case "reject":
            decisions.reject(facts, face, who)
        case "hide":
            decisions.hide(facts, [face, other_face])
        case "unhide":
            decisions.unhide(facts, [face, other_face])
        case "split":
            decisions.split(facts, who, facts.faces_of([who])[:2], NEW, person("New", Maker.USER))
        case "merge":
            decisions.merge(facts, who, [other])
        case "delete":
            decisions.delete(facts, who)
        case "cover":
            if facts.face(face).person_id == who:
                facts.persons[who] = replace(facts.person(who), cover_face_id=face)
        case "not_same":
            decisions.distinguish(facts, who, other)


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["assign", "unassign", "reject", "hide", "unhide", "split", "merge", "delete", "cover", "not_same"]
        ),
        faces, faces, persons, persons,
    ).filter(lambda one: one[3] != one[4]),
    max_size=8,
)  # fmt: skip


def consistent(facts: Facts) -> None:
    for face, state in facts.faces.items():
        assert state.person_id is None or (state.person_id in facts.persons and not state.hidden)
        assert state.person_id is None or (face, state.person_id) not in facts.rejections
    for face, who in facts.rejections:
        assert face in facts.faces and who in facts.persons
    assert all(one in facts.persons and two in facts.persons and one < two for one, two in facts.distinctions)
    for who, known in facts.persons.items():
        assert known.cover_face_id is None or facts.faces[known.cover_face_id].person_id == who
    told = [known.external_id for known in facts.persons.values() if known.external_id]
    assert len(told) == len(set(told))


def run(facts: Facts, wanted: list[tuple[str, UUID, UUID, UUID, UUID]]) -> tuple[Facts, list[Changes]]:
    made = []
    for step in wanted:
        after = facts.copy()
        try:
            act(after, *step)
        except NotFound:
            continue
        after.clear_covers()
        after.drop_empty_groups(facts)
        if changes := difference(facts, after):
            made.append(changes)
        facts = after
        consistent(facts)
    return facts, made


@given(worlds(), steps)
def test_all_taken_back_is_as_before(before: Facts, wanted: list[tuple[str, UUID, UUID, UUID, UUID]]) -> None:
    facts, made = run(before, wanted)
    after, again = facts, []
    for changes in reversed(made):
        undone, kept = undo(changes, facts, ())
        assert kept == []
        again.append(difference(facts, undone))
        facts = undone
    assert (facts.faces, facts.persons, facts.rejections, facts.distinctions) == (
        before.faces, before.persons, before.rejections, before.distinctions,
    )  # fmt: skip
    for changes in reversed(again):
        facts, kept = undo(changes, facts, ())
        assert kept == []
    assert (facts.faces, facts.persons) == (after.faces, after.persons)


@given(worlds(), steps, st.randoms(use_true_random=False))
def test_taken_back_in_any_order_nothing_contradicts_itself(before: Facts, wanted: list[tuple[str, UUID, UUID, UUID, UUID]],
                                                            order: object) -> None:  # fmt: skip
    facts, made = run(before, wanted)
    order.shuffle(made)  # type: ignore[attr-defined]
    for changes in made:
        facts, _ = undo(changes, facts, ())
        consistent(facts)


def test_a_merge_of_nobody_known() -> None:
    facts = Facts(persons={PERSONS[0]: person()})
    with pytest.raises(NotFound):
        decisions.merge(facts, PERSONS[0], [PERSONS[1]])


def test_what_others_took_since_is_told() -> None:
    before = Facts({}, {PERSONS[0]: person("Anna", external_id="x")})
    after = before.copy()
    decisions.delete(after, PERSONS[0])
    undone, kept = undo(difference(before, after), after, {"x"})
    assert kept == [Kept(KeptFor.EXTERNAL_ID_TAKEN, person_id=PERSONS[0], field="external_id")]
    assert undone.persons[PERSONS[0]].external_id is None
