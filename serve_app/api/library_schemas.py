"""The shapes of the library's persons, of decisions on them and on faces, and of the journal."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from serve_app.api.face_schemas import LibraryFaceAnswer
from serve_app.api.person_answers import PersonAnswer
from serve_app.api.person_fields import ExternalId, Ids, Metadata, Name
from serve_app.api.schemas import Answer, RequestModel
from serve_app.identity.decisions import Action

_EXAMPLE_ID = "01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"


def _distinct(value: list[UUID]) -> list[UUID]:
    return list(dict.fromkeys(value))


SomeIds = Annotated[Ids, Field(min_length=1), AfterValidator(_distinct)]
GivenName = Annotated[Name, StringConstraints(min_length=1)]


class LibraryPersonFields(RequestModel):
    name: Name = ""
    external_id: ExternalId | None = Field(None, description="Your own id of the person; unique in the library.")
    metadata: Metadata = Field(default_factory=dict, description="Free JSON, up to 16 KiB.")
    hidden: bool = False


class LibraryPersonChangeFields(RequestModel):
    """What is not given stays; null takes `external_id` away and lets `cover_face_id` be chosen."""

    name: Name | None = None
    external_id: ExternalId | None = None
    metadata: Metadata | None = Field(None, description="Replaces the present one.")
    hidden: bool | None = None
    cover_face_id: UUID | None = Field(None, description="One of the person's faces, to stand for it.")

    def values(self) -> dict[str, object]:
        nullable = ("external_id", "cover_face_id")
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return {name: value for name, value in given.items() if value is not None or name in nullable}


class MergeFields(RequestModel):
    """Who becomes part of the person of the address: one, or many at once."""

    source_person_id: UUID | None = None
    source_person_ids: SomeIds | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.source_person_id is None) == (self.source_person_ids is None):
            raise ValueError("give either source_person_id or source_person_ids")
        return self

    @property
    def sources(self) -> list[UUID]:
        return self.source_person_ids or ([self.source_person_id] if self.source_person_id else [])


class SplitFields(RequestModel):
    face_ids: SomeIds = Field(description="Faces of the person that are somebody else's.")
    name: Name = Field("", description="Of the new person.")


class AssignFields(RequestModel):
    """To `person_id`, or by `name`: to the one person of exactly this name, or to a new one."""

    person_id: UUID | None = None
    name: GivenName | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.person_id is None) == (self.name is None):
            raise ValueError("give either person_id or name")
        return self

    @property
    def person(self) -> UUID | str:
        return self.person_id or self.name or ""


class FacesAssignFields(AssignFields):
    face_ids: SomeIds


class FaceIdsOnlyFields(RequestModel):
    face_ids: SomeIds


class UnassignFields(RequestModel):
    release: bool = Field(False, description="The machine may decide anew; else the faces stay nobody's.")


class FacesUnassignFields(UnassignFields):
    face_ids: SomeIds


class RejectFields(RequestModel):
    person_id: UUID | None = Field(None, description="Who it is not; default: the person the face has.")


class DistinguishFields(RequestModel):
    person_id: UUID = Field(description="Who is somebody else.")


class NothingFields(RequestModel):
    pass


class LibraryPersonAnswer(PersonAnswer):
    hidden: bool
    founded_by: Literal["user", "machine"] = Field(description="Who made the person: a user, or clustering.")
    photo_count: int = Field(description="Photos of the library it is in.")
    cover_face_id: UUID | None = Field(description="The face that stands for it: the chosen one, else a large one.")


class LibraryPersonPage(Answer):
    items: list[LibraryPersonAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class PersonDecisionAnswer(LibraryPersonAnswer):
    journal_id: UUID | None = Field(description="What to undo; null where nothing changed.", examples=[_EXAMPLE_ID])


class PersonDeletedAnswer(Answer):
    person_id: UUID
    journal_id: UUID | None


class PersonsDistinctAnswer(Answer):
    person_id: UUID
    other_person_id: UUID
    journal_id: UUID | None


class FaceDecisionAnswer(LibraryFaceAnswer):
    journal_id: UUID | None = Field(description="What to undo; null where nothing changed.")


class FacesDecisionAnswer(Answer):
    faces: list[LibraryFaceAnswer]
    journal_id: UUID | None


class SuggestedFaceAnswer(Answer):
    face: LibraryFaceAnswer
    similarity: float
    decision: Literal["match", "ambiguous", "unknown"] | None


class SuggestedPersonAnswer(Answer):
    person: LibraryPersonAnswer
    face_id: UUID = Field(description="Its face that is most alike.")
    similarity: float
    decision: Literal["match", "ambiguous", "unknown"] | None


class PersonSuggestionsAnswer(Answer):
    """The most similar first."""

    faces: list[SuggestedFaceAnswer]
    persons: list[SuggestedPersonAnswer]


class FaceSuggestionsAnswer(Answer):
    persons: list[SuggestedPersonAnswer]


class QuestionAnswer(Answer):
    """Is `group`, or `face`, the `person`? One of both is null."""

    group: LibraryPersonAnswer | None = Field(description="A group of faces without a name.")
    face: LibraryFaceAnswer | None = Field(description="A face that nobody has.")
    person: LibraryPersonAnswer
    face_id: UUID = Field(description="The face of the person that is most alike.")
    similarity: float = Field(description="Cosine, to that face.")
    decision: Literal["match", "ambiguous", "unknown"] | None


class QuestionPage(Answer):
    items: list[QuestionAnswer] = Field(description="Also before the last page there may be none.")
    next_cursor: str | None


class PersonChangeAnswer(Answer):
    """`before` null: the person was made; `after` null: it went. Else the fields that changed."""

    person_id: UUID
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class JournalEntryAnswer(Answer):
    id: UUID = Field(examples=[_EXAMPLE_ID])
    at: datetime
    actor: str = Field(description="The name of the key that was used.", examples=["bootstrap"])
    action: Action
    person_ids: list[UUID] = Field(description="Persons it is about.")
    face_count: int
    persons: list[PersonChangeAnswer] = Field(
        description="What it changed of persons; in a listing, of 100 at most, and without metadata where it is about several."
    )
    undoes: UUID | None = Field(description="The entry that this one undid.")
    undone_by: UUID | None = Field(description="The entry that undid this one.")


class JournalPersonAnswer(Answer):
    id: UUID
    name: str = Field(description="As it is now.")


class JournalPage(Answer):
    items: list[JournalEntryAnswer]
    persons: list[JournalPersonAnswer] = Field(
        description="Whom the entries are about, as far as they are there now; of each entry 100 at most."
    )
    next_cursor: str | None


class FaceChangeAnswer(Answer):
    """Faces that were alike before and alike after."""

    face_ids: list[UUID]
    before: dict[str, Any]
    after: dict[str, Any]


class SayingAnswer(Answer):
    """`rejection`: the face is not this person. `distinction`: the two persons are not the same. Whether it came, or went."""

    kind: Literal["rejection", "distinction"]
    came: bool
    face_id: UUID | None
    person_ids: list[UUID]


class JournalDetailAnswer(JournalEntryAnswer):
    faces: list[FaceChangeAnswer]
    sayings: list[SayingAnswer]


class KeptAnswer(Answer):
    """What stays as it is, because it was changed again since."""

    reason: Literal["changed_since", "face_gone", "person_gone", "rejected_since", "external_id_taken", "has_faces"]
    face_id: UUID | None
    person_id: UUID | None
    other_person_id: UUID | None
    field: str | None


class UndoneAnswer(Answer):
    journal_id: UUID = Field(description="The undoing; undo that to do it again.")
    undoes: UUID
    person_ids: list[UUID] = Field(description="Persons that were changed, brought back or taken away.")
    face_count: int = Field(description="Faces that are as they were before.")
    kept: list[KeptAnswer] = Field(description="What was left as it is; the first 1,000.")
    kept_count: int
