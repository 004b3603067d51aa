"""Collections, persons and faces as values: what storage returns and services work with. Pure."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from serve_app.errors import JsonValue
from serve_app.faces import FloatArray

Metadata = Mapping[str, JsonValue]

_NS_OF_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class EmbeddingContract:
    """What makes embeddings comparable: the model, its dimension, and how pictures become crops for it."""

    model: str
    dim: int
    preprocessing: str


@dataclass(frozen=True, slots=True)
class Collection:
    """`key` and `model_key` name the tables; `id` is what clients say. `search_mode` and
    `ef_search`: see storage/search.py."""

    key: int
    id: str
    name: str
    metadata: Metadata
    model_key: int
    contract: EmbeddingContract
    search_mode: str
    ef_search: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class CollectionSize:
    persons: int
    faces: int
    images: int


@dataclass(frozen=True, slots=True)
class Person:
    id: UUID
    external_id: str | None
    name: str
    metadata: Metadata
    face_count: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StoredFace:
    """A face of a collection. What came as an external vector has neither picture nor box nor crop."""

    id: UUID
    person_id: UUID | None
    image_id: UUID | None
    image_key: str | None
    crop_key: str | None
    bbox: list[float] | None
    landmarks: list[list[float]] | None
    detection_score: float | None
    quality: Mapping[str, JsonValue] | None
    taken_at: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewImage:
    """A picture to keep; `object_key` is where its bytes lie already."""

    id: UUID
    sha256: bytes
    object_key: str
    size_bytes: int
    format: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class NewFace:
    """`embedding`: (D,) float32, unit norm. `image`: None for an external vector."""

    id: UUID
    embedding: FloatArray
    taken_at: datetime | None = None
    image: NewImage | None = None
    crop_key: str | None = None
    bbox: list[float] | None = None
    landmarks: list[float] | None = None
    detection_score: float | None = None
    quality: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A person and the one of its faces that is most like the probe. `withheld`: one who must not be recognised, and so must
    not be told of."""

    person_id: UUID
    external_id: str | None
    name: str
    metadata: Metadata
    face_id: UUID
    similarity: float
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """Who may be found. `taken_from` <= a face's date < `taken_to`; `metadata` must be contained in a person's. `hidden`:
    hidden persons, too."""

    person_ids: tuple[UUID, ...] | None = None
    exclude_person_ids: tuple[UUID, ...] = ()
    metadata: Metadata | None = None
    taken_from: datetime | None = None
    taken_to: datetime | None = None
    hidden: bool = True

    @property
    def by_date(self) -> bool:
        return self.taken_from is not None or self.taken_to is not None

    @property
    def empty(self) -> bool:
        chosen = self.person_ids is not None or self.exclude_person_ids or self.metadata
        return not chosen and not self.by_date and self.hidden


@dataclass(frozen=True, slots=True)
class Erased:
    """What a deletion removed. `object_keys`: originals, crops and thumbnails that no row leads to any more."""

    persons: int = 0
    faces: int = 0
    embeddings: int = 0
    templates: int = 0
    images: int = 0
    crops: int = 0
    object_keys: tuple[str, ...] = field(default=(), repr=False)
    photos: int = 0

    def __add__(self, other: Erased) -> Erased:
        return Erased(
            self.persons + other.persons,
            self.faces + other.faces,
            self.embeddings + other.embeddings,
            self.templates + other.templates,
            self.images + other.images,
            self.crops + other.crops,
            self.object_keys + other.object_keys,
            self.photos + other.photos,
        )


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562, section 5.7), sorted by the time it was made at: the 12 bits after the millisecond are
    its fraction (section 6.2, method 3), so that of two made one after the other in a process the later is the greater."""
    milliseconds, nanoseconds = divmod(time.time_ns(), _NS_OF_MS)
    fraction = (nanoseconds << 12) // _NS_OF_MS
    random = int.from_bytes(os.urandom(8), "big") >> 2
    return UUID(int=milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0x2 << 62 | random)
