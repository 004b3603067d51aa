"""The shapes of collections, persons, faces and searches in requests, and what may be stored of them."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from serve_app.api.schemas import (
    AnalyzeFields,
    GivenEmbeddingField,
    ImageFields,
    RequestModel,
    Upload,
    bounded_list,
    json_text,
)
from serve_app.services.pipeline import FaceChoice

MAX_METADATA_BYTES = 16 << 10
MAX_METADATA_DEPTH = 8
MAX_BULK = 1000
MAX_BATCH_ITEMS = 10_000
MAX_ENROL_ITEMS = 100
MAX_TOP_K = 100
MAX_FACES_SEARCHED = 100
MAX_RESULTS = 1000
"""Persons in one answer, over all faces."""


def _clean_text(value: str) -> str:
    """Refuses what Postgres cannot keep or a screen cannot show: NUL, surrogates, control characters."""
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError("control characters and lone surrogates are not allowed")
    return value


def _clean_json(value: JsonValue, depth: int = 0) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise ValueError(f"nested deeper than {MAX_METADATA_DEPTH} levels")
    if isinstance(value, str):
        _storable(value)
    elif isinstance(value, list):
        for entry in value:
            _clean_json(entry, depth + 1)
    elif isinstance(value, dict):
        for key, entry in value.items():
            _storable(key)
            _clean_json(entry, depth + 1)


def _storable(value: str) -> None:
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("NUL and lone surrogates are not allowed")


def _clean_metadata(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    _clean_json(value)
    try:
        encoded = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("NaN and infinity are not JSON") from error
    if len(encoded) > MAX_METADATA_BYTES:
        raise ValueError(f"has {len(encoded)} bytes as JSON; the limit is {MAX_METADATA_BYTES}")
    return value


def _no_number(value: object) -> object:
    """20240101 would pass for a time in 1970."""
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().lstrip("+-").replace(".", "").isdigit()):
        raise ValueError("a time is given as text: 2024-08-01T12:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    """A time without a zone is meant in UTC."""
    try:
        found = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError("the time is out of range") from error
    if not 1 < found.year < 9999:
        raise ValueError("the time is out of range")
    return found


Name = Annotated[str, StringConstraints(max_length=200, strip_whitespace=True), AfterValidator(_clean_text)]
ExternalId = Annotated[
    str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True), AfterValidator(_clean_text)
]
CollectionId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Metadata = Annotated[dict[str, JsonValue], BeforeValidator(json_text), AfterValidator(_clean_metadata)]
Ids = Annotated[list[UUID], Field(max_length=MAX_BULK, fail_fast=True), BeforeValidator(bounded_list(MAX_BULK))]
Moment = Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]


class CollectionFields(RequestModel):
    id: CollectionId | None = Field(None, description="Lower case letters, digits, - and _; made up where it is missing.")
    name: Name = ""
    metadata: Metadata = Field(default_factory=dict)
    embedding_model: str | None = Field(
        None, max_length=128, description="Refuse (409) unless this is the loaded embedding model."
    )


class CollectionChangeFields(RequestModel):
    name: Name | None = None
    metadata: Metadata | None = Field(None, description="Replaces the present one.")


class PersonFields(RequestModel):
    name: Name = ""
    external_id: ExternalId | None = Field(None, description="Your own id of the person; unique in the collection.")
    metadata: Metadata = Field(default_factory=dict, description="Free JSON, up to 16 KiB.")


class PersonChangeFields(RequestModel):
    name: Name | None = None
    external_id: ExternalId | None = None
    metadata: Metadata | None = Field(None, description="Replaces the present one.")


class PersonIdsFields(RequestModel):
    person_ids: Ids = Field(min_length=1)


class FaceIdsFields(RequestModel):
    face_ids: Ids = Field(min_length=1)


class MoveFields(RequestModel):
    person_id: UUID = Field(description="The person the face shall belong to.")


class EnrolFields(RequestModel):
    """Pictures in `files`, `images` or `image_urls`, vectors in `embeddings`; at least one of them."""

    files: list[Upload] = Field(default_factory=list, max_length=MAX_ENROL_ITEMS, description="Encoded pictures.")
    images: Annotated[list[str], Field(fail_fast=True), BeforeValidator(bounded_list(MAX_ENROL_ITEMS))] = Field(
        default_factory=list, description="Pictures as base64 or data URI."
    )
    image_urls: list[str] = Field(
        default_factory=list, max_length=20, description="Where to fetch pictures (ALLOW_IMAGE_URLS)."
    )
    embeddings: Annotated[list[GivenEmbeddingField], BeforeValidator(bounded_list(MAX_ENROL_ITEMS))] = Field(
        default_factory=list, fail_fast=True, description="External vectors; `model` says what made them."
    )
    model: str | None = Field(None, max_length=128, description="Embedding model of `embeddings`; must be the collection's.")
    face: Literal["only", "largest"] = Field(
        "only", description="`only` refuses a picture with several faces; `largest` takes the largest."
    )
    detection_threshold: float | None = Field(None, gt=0, lt=1)
    review: bool = Field(True, description="false enrols what the review would refuse, and lists it under `warnings`.")
    taken_at: Moment | None = Field(None, description="When the pictures were taken; default: now.")

    @field_validator("images", "image_urls", "embeddings", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        return json_text(value)

    @model_validator(mode="after")
    def _something(self) -> EnrolFields:
        count = len(self.files) + len(self.images) + len(self.image_urls) + len(self.embeddings)
        if not 1 <= count <= MAX_ENROL_ITEMS:
            raise ValueError(f"send 1 to {MAX_ENROL_ITEMS} pictures or embeddings, not {count}")
        if self.embeddings and self.model is None:
            raise ValueError("embeddings need `model`: embeddings of different models cannot be compared")
        return self


class FilterFields(RequestModel):
    """Who may be found. Everything given must hold."""

    person_ids: Ids | None = Field(None, description="Only these persons.")
    exclude_person_ids: Ids = Field(default_factory=list)
    metadata: Metadata | None = Field(None, description="Only persons whose metadata contains this.")
    taken_from: Moment | None = Field(None, description="Only faces dated at or after this.")
    taken_to: Moment | None = Field(None, description="Only faces dated before this.")


class ProbeFields(ImageFields, AnalyzeFields):
    """One picture, or an embedding."""

    embedding: GivenEmbeddingField | None = Field(None, description="A vector in place of a picture.")
    model: str | None = Field(None, max_length=128, description="Embedding model the vector comes from.")
    threshold: float | None = Field(None, ge=-1, le=1, description="Cosine.")

    @model_validator(mode="after")
    def _said_model(self) -> Self:
        if self.embedding is not None and self.model is None:
            raise ValueError("an embedding needs `model`: embeddings of different models cannot be compared")
        if self.embedding is not None and self.analyze:
            raise ValueError("`analyze` needs a picture; an embedding does not show what a face looks like")
        return self


class FilteredProbeFields(ProbeFields):
    filter: Annotated[FilterFields, BeforeValidator(json_text)] = Field(default_factory=FilterFields)


class SearchFields(FilteredProbeFields):
    top_k: int = Field(10, ge=1, le=MAX_TOP_K, description="Most persons a face.")
    face: FaceChoice = Field(FaceChoice.ALL, description="Which faces of the picture to search for.")
    max_faces: int | None = Field(
        None,
        ge=1,
        le=MAX_FACES_SEARCHED,
        description=f"The largest so many; top_k x max_faces is at most {MAX_RESULTS}.",
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.max_faces is not None and self.max_faces * self.top_k > MAX_RESULTS:
            raise ValueError(f"top_k x max_faces is at most {MAX_RESULTS}")
        return self

    @property
    def faces_searched(self) -> int:
        return self.max_faces or min(MAX_FACES_SEARCHED, MAX_RESULTS // self.top_k)


class IdentifyFields(FilteredProbeFields):
    face: FaceChoice = Field(FaceChoice.LARGEST, description="Which faces of the picture to identify.")
    margin: float = Field(
        0.05, ge=0, le=2, description="By how much the best person must lead the second; less is `ambiguous`."
    )


class VerifyFields(ProbeFields):
    face: Literal["largest", "only"] = "largest"


class BatchPersonFields(RequestModel):
    """Whose face an item is: `person_id` of a person that exists, or `external_id` of one that may be made."""

    person_id: UUID | None = None
    external_id: ExternalId | None = None
    name: Name | None = None
    metadata: Metadata | None = None
    taken_at: Moment | None = None

    @model_validator(mode="after")
    def _one_person(self) -> BatchPersonFields:
        if (self.person_id is None) == (self.external_id is None):
            raise ValueError("give either person_id or external_id")
        return self


class BatchItemFields(BatchPersonFields):
    image: str | None = Field(None, description="base64 or data URI.")
    embedding: GivenEmbeddingField | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BatchItemFields:
        if (self.image is None) == (self.embedding is None):
            raise ValueError("give either image or embedding")
        return self


_BatchPersons = Annotated[list[BatchPersonFields], BeforeValidator(bounded_list(MAX_BATCH_ITEMS)), BeforeValidator(json_text)]


class EnrolBatchFields(RequestModel):
    """Options of a bulk enrolment by form; `items` says whose the files are, in their order. Without it, the folder in a
    file's name is the person's external_id (`anna/1.jpg`), or all are faces of `person_id`."""

    person_id: UUID | None = Field(None, description="All files are faces of this person.")
    items: _BatchPersons | None = Field(None, description="JSON array, one entry a file; must come before the first file.")
    face: Literal["only", "largest"] = "only"
    detection_threshold: float | None = Field(None, gt=0, lt=1)
    review: bool = True


class EnrolBatchJsonFields(RequestModel):
    items: Annotated[list[BatchItemFields], BeforeValidator(bounded_list(MAX_BATCH_ITEMS))] = Field(
        min_length=1, fail_fast=True
    )
    model: str | None = Field(None, max_length=128, description="Embedding model of the items' embeddings.")
    face: Literal["only", "largest"] = "only"
    detection_threshold: float | None = Field(None, gt=0, lt=1)
    review: bool = True
