"""Who is whose face, and who said so: what users decide of persons and faces, as changes to values. Pure.

An action gets the `Facts` it is about and changes them. What it changed is the difference between before and after: that is
written to the database, and kept in the journal, from which it can be undone (`undoing.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.identity.facts import WAITING, FaceState, Facts, Maker, PersonState, pair


class Action(StrEnum):
    CREATE_PERSON = "create_person"
    RENAME_PERSON = "rename_person"
    CHANGE_PERSON = "change_person"
    HIDE_PERSON = "hide_person"
    UNHIDE_PERSON = "unhide_person"
    DELETE_PERSON = "delete_person"
    MERGE_PERSONS = "merge_persons"
    SPLIT_PERSON = "split_person"
    DISTINGUISH_PERSONS = "distinguish_persons"
    ASSIGN_FACES = "assign_faces"
    UNASSIGN_FACES = "unassign_faces"
    REJECT_FACE = "reject_face"
    HIDE_FACES = "hide_faces"
    UNHIDE_FACES = "unhide_faces"
    UNDO = "undo"


class Why(StrEnum):
    """Codes of `faces.unassigned` that stand for a user's decision; the machine's have others."""

    UNASSIGNED = "unassigned_by_user"
    DELETED = "person_deleted"
    HIDDEN = "hidden"


def assign(facts: Facts, face_ids: Sequence[UUID], person_id: UUID) -> None:
    """What was said before, that they are not this person or no faces, is taken back. Raises NotFound."""
    facts.person(person_id)
    for face_id in face_ids:
        facts.face(face_id)
        facts.faces[face_id] = FaceState(person_id)
        facts.rejections.discard((face_id, person_id))


def unassign(facts: Facts, face_ids: Sequence[UUID], *, release: bool) -> None:
    """Nobody's, and the machine leaves it so; with `release` it may decide anew. Raises NotFound."""
    state = WAITING if release else FaceState(None, unassigned=reason(Why.UNASSIGNED))
    for face_id in face_ids:
        facts.face(face_id)
        facts.faces[face_id] = state


def reject(facts: Facts, face_id: UUID, person_id: UUID) -> None:
    """Not this person. If it was, the machine looks for another. Raises NotFound."""
    facts.person(person_id)
    if facts.face(face_id).person_id == person_id:
        facts.faces[face_id] = WAITING
    facts.rejections.add((face_id, person_id))


def hide(facts: Facts, face_ids: Sequence[UUID]) -> None:
    """No face, or nobody's business. Why the machine gave it to nobody is kept beside. Raises NotFound."""
    for face_id in face_ids:
        state = facts.face(face_id)
        if not state.hidden:
            was = state.unassigned if state.decided_by == Maker.MACHINE else None
            facts.faces[face_id] = FaceState(None, hidden=True, unassigned=reason(Why.HIDDEN, was))


def unhide(facts: Facts, face_ids: Sequence[UUID]) -> None:
    """The machine looks at them anew, unless they were not good enough before. Raises NotFound."""
    for face_id in face_ids:
        state = facts.face(face_id)
        if state.hidden:
            was = json.loads(state.unassigned or "{}").get("was")
            facts.faces[face_id] = WAITING if was is None else replace(WAITING, unassigned=json.dumps(was, sort_keys=True))


def split(facts: Facts, person_id: UUID, face_ids: Sequence[UUID], new_id: UUID, new: PersonState) -> None:
    """Those faces become another person, whom the machine never makes one with the first again. Raises NotFound."""
    facts.person(person_id)
    for face_id in face_ids:
        if facts.face(face_id).person_id != person_id:
            raise NotFound(
                f"The face {face_id} is not one of the person {person_id}.", face_id=str(face_id), person_id=str(person_id)
            )
    facts.persons[new_id] = new
    assign(facts, face_ids, new_id)
    facts.distinctions.add(pair(person_id, new_id))


def delete(facts: Facts, person_id: UUID) -> None:
    """Its faces, all of them in `facts`, become nobody's and stay so. Raises NotFound."""
    facts.person(person_id)
    for face_id in facts.faces_of([person_id]):
        facts.faces[face_id] = FaceState(None, unassigned=reason(Why.DELETED))
    facts.remove_person(person_id)


def distinguish(facts: Facts, first: UUID, second: UUID) -> None:
    """They are not the same. Raises NotFound."""
    facts.person(first)
    facts.person(second)
    facts.distinctions.add(pair(first, second))


def merge(facts: Facts, target: UUID, sources: Sequence[UUID]) -> None:
    """All faces of both, which `facts` must have, are the target's by the user's word. What was said of the sources is
    said of the target; what was said between them is taken back. What the target has not told, name, external id or
    metadata, it takes from the first source that has. Raises NotFound."""
    one = facts.person(target)
    states = [facts.person(source) for source in sources]
    together = {target, *sources}
    faces = facts.faces_of(together)
    # Said of all these faces by name: that one of them is not one of these persons is no longer so.
    rejections = {(face, target if person in together else person) for face, person in facts.rejections}
    rejections -= {(face, target) for face in faces}
    distinctions = {
        pair(*(target if person in together else person for person in both))
        for both in facts.distinctions
        if not together.issuperset(both)
    }
    for face_id in faces:
        facts.faces[face_id] = FaceState(target)
    for source in sources:
        facts.remove_person(source)
    facts.rejections, facts.distinctions = rejections, distinctions
    facts.persons[target] = replace(
        one,
        name=one.name or next((state.name for state in states if state.name), ""),
        external_id=one.external_id or next((state.external_id for state in states if state.external_id), None),
        metadata=one.metadata or next((state.metadata for state in states if state.metadata), {}),
    )


def reason(why: Why, was: str | None = None) -> str:
    """`was`: the reason before."""
    kept = {} if was is None else {"was": json.loads(was)}
    return json.dumps({"code": why.value, **kept}, sort_keys=True)
