"""The shapes of collections, persons, faces and searches in answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from serve_app.api.attribute_schemas import UnavailableList
from serve_app.api.schemas import Answer, Face, Image, OperatingPointAnswer, Problem

_EXAMPLE_ID = "01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"


class ContractAnswer(Answer):
    """What every embedding of the collection was made by."""

    model: str = Field(examples=["sface_2021dec"])
    dim: int = Field(examples=[128])
    preprocessing: str


class CollectionAnswer(Answer):
    id: str = Field(examples=["employees"])
    name: str
    metadata: dict[str, Any]
    embedding: ContractAnswer
    search_mode: Literal["exact", "templates"] = Field(description="docs/architecture.md: how it is searched at its size.")
    created_at: datetime
    updated_at: datetime


class SizedCollectionAnswer(CollectionAnswer):
    person_count: int
    face_count: int
    image_count: int


class CollectionPage(Answer):
    items: list[CollectionAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class PersonAnswer(Answer):
    id: UUID = Field(examples=[_EXAMPLE_ID])
    external_id: str | None
    name: str
    metadata: dict[str, Any]
    face_count: int
    created_at: datetime
    updated_at: datetime


class PersonPage(Answer):
    items: list[PersonAnswer]
    next_cursor: str | None


class StoredFaceAnswer(Answer):
    """A face of a collection. Box, score, quality and picture are null for an external vector."""

    id: UUID = Field(examples=[_EXAMPLE_ID])
    person_id: UUID | None
    image_id: UUID | None
    bbox: list[float] | None
    landmarks: list[list[float]] | None
    detection_score: float | None
    quality: dict[str, Any] | None
    taken_at: datetime
    created_at: datetime


class FaceDetailAnswer(StoredFaceAnswer):
    crop_url: str | None = Field(
        description="Signed; works without a key until `urls_expire_at`. A path of this API, or an address of MinIO."
    )
    image_url: str | None
    urls_expire_at: datetime


class FacePage(Answer):
    items: list[StoredFaceAnswer]
    next_cursor: str | None


class EnrolledFaceAnswer(StoredFaceAnswer):
    index: int = Field(description="Which of the pictures or embeddings it comes from, from 0.")
    warnings: list[Problem] = Field(description="What the review would have refused it for.")


class RefusedItemAnswer(Answer):
    index: int
    problem: Problem


class EnrolAnswer(Answer):
    person_id: UUID
    faces: list[EnrolledFaceAnswer]
    refused: list[RefusedItemAnswer]
    model: str = Field(examples=["sface_2021dec"])


class EnrolBatchItem(Answer):
    """`exists`: the person has a face of this very picture. `failed`: not the item's fault; send it again."""

    index: int
    filename: str | None
    status: Literal["enrolled", "exists", "refused", "failed"]
    person_id: UUID | None
    external_id: str | None
    face_id: UUID | None
    warnings: list[Problem] = Field(description="What speaks against an enrolled face.")
    problem: Problem | None


class EnrolBatchAnswer(Answer):
    results: list[EnrolBatchItem]
    enrolled: int
    exists: int
    refused: int
    failed: int


class ReceiptAnswer(Answer):
    """What was erased. `remaining_rows` and `objects_pending` are what a second look found: rows, and stored files that the
    object store has yet to delete (nothing leads to them any more). A whole collection's folder counts as one."""

    collections: int
    persons: int
    faces: int
    embeddings: int
    templates: int
    images: int
    crops: int
    photos: int
    remaining_rows: int
    objects_pending: int


class CandidatePerson(Answer):
    id: UUID
    external_id: str | None
    name: str
    metadata: dict[str, Any]


class CandidateAnswer(Answer):
    person: CandidatePerson
    face_id: UUID = Field(description="The exemplar: the person's face that is most like the probe.")
    similarity: float = Field(description="Cosine of probe and exemplar.", examples=[0.7434])
    decision: Literal["match", "ambiguous", "unknown"] | None


class ProbeResultAnswer(Answer):
    face: Face | None = Field(description="null for a given embedding.")
    candidates: list[CandidateAnswer] = Field(description="Most similar first, each person once.")


class SearchResponse(Answer):
    results: list[ProbeResultAnswer] = Field(description="One a face, the largest first.")
    face_count: int | None = Field(description="Faces found in the picture.")
    threshold: float | None = Field(description="At or above it a candidate's decision is `match`.")
    suggest_threshold: float | None
    image: Image | None
    model: str
    unavailable: UnavailableList


class IdentityAnswer(Answer):
    """`match`: `person` is who it is. `ambiguous`: it may be, or `second`. `unknown`: nobody of the collection."""

    decision: Literal["match", "ambiguous", "unknown"] | None = Field(
        description="null where the model has no operating point and no `threshold` was given."
    )
    person: CandidatePerson | None = Field(description="The most similar person, whatever the decision.")
    face_id: UUID | None
    similarity: float | None
    second: CandidateAnswer | None
    margin: float | None = Field(description="Similarity of the best person less that of the second.")
    face: Face | None


class IdentifyResponse(IdentityAnswer):
    """The fields of the largest face, and all faces under `results`."""

    results: list[IdentityAnswer]
    required_margin: float
    threshold: float | None
    suggest_threshold: float | None
    operating_point: OperatingPointAnswer | None
    face_count: int | None
    image: Image | None
    model: str
    unavailable: UnavailableList


class VerifyPersonAnswer(Answer):
    decision: Literal["match", "ambiguous", "unknown"] | None
    similarity: float | None = Field(description="To the most similar face of the person; null where it has none.")
    face_id: UUID | None
    threshold: float | None
    suggest_threshold: float | None
    operating_point: OperatingPointAnswer | None
    face: Face | None
    model: str
    unavailable: UnavailableList
