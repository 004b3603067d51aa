"""The library's persons, faces and journal, as answers."""

from __future__ import annotations

import json
from itertools import islice
from uuid import UUID

from serve_app.api.face_schemas import library_face_answer
from serve_app.api.library_schemas import (
    FaceChangeAnswer,
    FaceDecisionAnswer,
    FacesDecisionAnswer,
    JournalDetailAnswer,
    JournalEntryAnswer,
    KeptAnswer,
    LibraryPersonAnswer,
    PersonChangeAnswer,
    PersonDecisionAnswer,
    SayingAnswer,
    SuggestedPersonAnswer,
    UndoneAnswer,
)
from serve_app.identity.facts import FaceState
from serve_app.identity.library_faces import LibraryFace
from serve_app.services.deciding import Decided
from serve_app.services.journal import Undone
from serve_app.services.library_people import SuggestedPerson
from serve_app.storage.journal import MAX_LISTED, Entry
from serve_app.storage.library_persons import LibraryPerson

_KEPT_TOLD = 1000


def person_answer(person: LibraryPerson) -> LibraryPersonAnswer:
    return LibraryPersonAnswer.model_validate(person, from_attributes=True)


def decided_person(decided: Decided[LibraryPerson]) -> PersonDecisionAnswer:
    return PersonDecisionAnswer(**person_answer(decided.result).model_dump(), journal_id=decided.journal_id)


def decided_face(decided: Decided[list[LibraryFace]]) -> FaceDecisionAnswer:
    (face,) = decided.result
    return FaceDecisionAnswer(**library_face_answer(face).model_dump(), journal_id=decided.journal_id)


def decided_faces(decided: Decided[list[LibraryFace]]) -> FacesDecisionAnswer:
    return FacesDecisionAnswer(faces=[library_face_answer(one) for one in decided.result], journal_id=decided.journal_id)


def suggested_person(one: SuggestedPerson) -> SuggestedPersonAnswer:
    return SuggestedPersonAnswer(
        person=person_answer(one.person), face_id=one.face_id, similarity=one.similarity, decision=one.decision
    )


def entry_answer(entry: Entry) -> JournalEntryAnswer:
    return JournalEntryAnswer.model_validate(_values(entry, MAX_LISTED))


def entry_detail(entry: Entry) -> JournalDetailAnswer:
    groups: dict[tuple[FaceState, FaceState], list[UUID]] = {}
    for face_id, both in entry.changes.faces.items():
        groups.setdefault(both, []).append(face_id)
    faces = [
        FaceChangeAnswer(face_ids=face_ids, before=_state(before), after=_state(after))
        for (before, after), face_ids in groups.items()
    ]
    rejections = [
        SayingAnswer(kind="rejection", came=came, face_id=face_id, person_ids=[person_id])
        for (face_id, person_id), came in entry.changes.rejections.items()
    ]
    distinctions = [
        SayingAnswer(kind="distinction", came=came, face_id=None, person_ids=list(both))
        for both, came in entry.changes.distinctions.items()
    ]
    return JournalDetailAnswer.model_validate({**_values(entry), "faces": faces, "sayings": [*rejections, *distinctions]})


def undone_answer(undone: Undone) -> UndoneAnswer:
    return UndoneAnswer(
        journal_id=undone.journal_id,
        undoes=undone.undoes,
        person_ids=list(undone.changes.persons),
        face_count=len(undone.changes.faces),
        kept=[KeptAnswer.model_validate(one, from_attributes=True) for one in undone.kept[:_KEPT_TOLD]],
        kept_count=len(undone.kept),
    )


def _values(entry: Entry, most: int | None = None) -> dict[str, object]:
    return {
        "id": entry.id,
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "person_ids": list(entry.person_ids),
        "face_count": entry.face_count,
        "persons": [
            PersonChangeAnswer(person_id=person_id, before=_dict(before), after=_dict(after))
            for person_id, (before, after) in islice(entry.changes.persons.items(), most)
        ],
        "undoes": entry.undoes,
        "undone_by": entry.undone_by,
    }


def _dict(values: object) -> dict[str, object] | None:
    return dict(values) if isinstance(values, dict) else None


def _state(state: FaceState) -> dict[str, object]:
    return {
        "person_id": state.person_id,
        "decided_by": state.decided_by,
        "hidden": state.hidden,
        "unassigned": None if state.unassigned is None else json.loads(state.unassigned),
    }
