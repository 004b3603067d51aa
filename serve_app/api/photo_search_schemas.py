"""The shapes of searches for photos, in requests and answers."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field, model_validator

from serve_app.api.person_fields import Moment
from serve_app.api.photo_schemas import MAX_TAGS_WANTED, Folder, PhotoAnswer, PhotoPage, Tags
from serve_app.api.schemas import Answer, RequestModel, Upload, bounded_list, json_text
from serve_app.text.photo_matches import How

MAX_NAMED = 20
"""Persons of one list of a search."""
MAX_TEXT = 10_000
"""Characters that are looked at; what may be searched for is shorter (text_queries)."""

Reference = Annotated[str, Field(min_length=1, max_length=200)]
References = Annotated[tuple[Reference, ...], Field(fail_fast=True), BeforeValidator(bounded_list(MAX_NAMED))]


class PersonsFields(RequestModel):
    """Ids of persons, or names: a name means everybody who has all its words in theirs."""

    all: References = Field((), description="Each of them must be in a photo.")
    any: References = Field((), description="One of them at least.")
    none: References = Field((), description="None of them.")


class PhotoSearchFields(RequestModel):
    """At least one of them. All that is given must hold."""

    text: str | None = Field(None, max_length=MAX_TEXT, description="As in `GET /search/photos`.")
    persons: Annotated[PersonsFields, BeforeValidator(json_text)] = Field(default_factory=PersonsFields)
    taken_from: Moment | None = Field(None, description="Only photos taken at or after this.")
    taken_to: Moment | None = Field(None, description="Only photos taken before this.")
    tags: Annotated[Tags, Field(max_length=MAX_TAGS_WANTED)] = Field((), description="All of them.")
    folder: Folder | None = None
    subfolders: bool = Field(False, description="Those below `folder`, too.")
    file: Upload | None = Field(None, description="A selfie: its largest face is looked for. It is not kept.")
    image: str | None = Field(None, description="The same as base64 or data URI.")
    face_id: UUID | None = Field(None, description="A face of the library in its place.")
    semantic: bool = Field(True, description="false looks at words only, not at what photos show.")
    limit: int = Field(100, ge=1, le=500)

    @model_validator(mode="after")
    def _something(self) -> PhotoSearchFields:
        faces = [name for name in ("file", "image", "face_id") if getattr(self, name) is not None]
        if len(faces) > 1:
            raise ValueError(f"send one face: {' and '.join(faces)} came")
        asked = (self.text, self.taken_from, self.taken_to, self.folder)
        persons = self.persons.all or self.persons.any or self.persons.none
        if not (faces or persons or self.tags or any(one is not None for one in asked)):
            raise ValueError("there is nothing to look for")
        return self


class MatchAnswer(Answer):
    """`how`: `exact`, as the `beginning` of a word, by its `sound`, or a `typo`."""

    term: str = Field(description="As it was typed.", examples=["steffani"])
    field: str = Field(description="Of the photo; `person` or `date`.", examples=["tag"])
    text: str = Field(description="What stands there; a long text is cut.", examples=["Stefanie"])
    how: How
    person_id: UUID | None = None


class HitAnswer(Answer):
    photo: PhotoAnswer
    score: float = Field(description="Falls along the list; comparable within one answer only.")
    text_score: float | None = Field(description="How well the words fit, 0 to 1; null where it was not found by them.")
    semantic_rank: int | None = Field(description="Its place, from 1, among the photos that show what the text says.")
    similarity: float | None = Field(
        description="Cosine of the selfie and the face most like it: of who it is, else of who it may be, or of nobody."
    )
    face_id: UUID | None = Field(description="That face.")
    decision: Literal["match", "ambiguous", "unknown"] | None = Field(description="On these two faces alone.")
    complete: bool = Field(description="It has everything that was asked for.")
    matches: list[MatchAnswer] = Field(description="Why it was found.")


class NamedPersonAnswer(Answer):
    id: UUID
    name: str = Field(examples=["Anna Müller"])


class UnderstoodAnswer(Answer):
    """What the text was taken for."""

    terms: list[str] = Field(examples=[["anna", "august 2024"]])
    ignored: list[str] = Field(description="Words that nothing in the library has.")
    persons: list[NamedPersonAnswer] = Field(description="Who may be meant; the first hundred.")
    taken_from: date | None = Field(description="The first day that a date in the text means.", examples=["2024-08-01"])
    taken_to: date | None = Field(description="The day after the last.", examples=["2024-09-01"])


class PhotoHits(Answer):
    items: list[HitAnswer]
    complete: bool = Field(description="false: no photo has everything; these have most.")
    understood: UnderstoodAnswer
    semantic: Literal["used", "unavailable", "off"] = Field(
        description="Whether a model looked at what photos show; `off`: it was not asked, or there was no word for it."
    )
    unread_photos: int = Field(
        description="Photos that cannot be found by text yet, after an upgrade; at most 10000 are counted."
    )


class PhotoHitPage(PhotoHits):
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class SelfiePerson(Answer):
    id: UUID
    name: str
    similarity: float = Field(description="Cosine, of its most similar face.")
    face_id: UUID = Field(description="That face: the exemplar by which it was recognised.")


class SelfieAnswer(Answer):
    """`match`: photos of that person. `ambiguous`: photos with a face of one of the nearest persons, or of nobody, that is
    like it. `unknown`: photos with such a face of nobody."""

    decision: Literal["match", "ambiguous", "unknown"] | None
    best: SelfiePerson | None
    second: SelfiePerson | None
    margin: float | None
    threshold: float | None
    suggest_threshold: float | None
    face_count: int | None = Field(description="Faces in the picture; null for a face of the library.")


class PhotoSearchAnswer(PhotoHits):
    selfie: SelfieAnswer | None


class PersonPhotoPage(PhotoPage):
    persons: list[NamedPersonAnswer] = Field(description="Who is meant.")
