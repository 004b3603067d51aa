"""Faces of the library as values: what is known of them, how they are listed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from serve_app.errors import JsonValue
from serve_app.grouping.unassigned import Unassigned


@dataclass(frozen=True, slots=True)
class LibraryFace:
    """`photo_id`: None for a face that was enrolled with a picture that is no photo, or as a vector; the latter has no box
    either. `image_key`, `width_px`, `height_px`: of its picture, as displayed. `unassigned`: why nobody has it; None where
    somebody has, or nobody has looked yet."""

    id: UUID
    photo_id: UUID | None
    person_id: UUID | None
    person_name: str | None
    bbox: list[float] | None
    landmarks: list[list[float]] | None
    detection_score: float | None
    quality: Mapping[str, JsonValue] | None
    found_by: str
    decided_by: str
    hidden: bool
    unassigned: Unassigned | None
    taken_at: datetime
    created_at: datetime
    image_key: str | None
    width_px: int | None
    height_px: int | None


class FaceSort(StrEnum):
    """`FOUND`: in the order they were found. `SIZE`: the shorter side of the box."""

    FOUND = "created_at"
    TAKEN = "taken_at"
    SIZE = "size_px"


class Hidden(StrEnum):
    """Which of the hidden faces are listed."""

    EXCLUDE = "exclude"
    ONLY = "only"
    INCLUDE = "include"


class FoundBy(StrEnum):
    ENROLMENT = "enrolment"
    INDEXING = "indexing"


class DecidedBy(StrEnum):
    """Who said whose a face is."""

    USER = "user"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class FaceFilter:
    """What is None is not asked for. `unassigned`: whether nobody has it. `reasons`: codes of why, any of them."""

    person_id: UUID | None = None
    photo_id: UUID | None = None
    unassigned: bool | None = None
    reasons: tuple[str, ...] = ()
    hidden: Hidden = Hidden.EXCLUDE
    decided_by: DecidedBy | None = None
    found_by: FoundBy | None = None
    min_size_px: float | None = None


@dataclass(frozen=True, slots=True)
class FacePosition:
    """Where a page ended: what it is sorted by (nothing for FOUND), and the face."""

    value: datetime | float | None
    face_id: UUID


@dataclass(frozen=True, slots=True)
class FaceQuery:
    """`after`: where the page before ended."""

    filter: FaceFilter
    sort: FaceSort
    descending: bool
    after: FacePosition | None
    limit: int


def position_of(face: LibraryFace, sort: FaceSort) -> FacePosition:
    """Where a page that ends with this face ends."""
    if sort is FaceSort.FOUND:
        return FacePosition(None, face.id)
    return FacePosition(face.taken_at if sort is FaceSort.TAKEN else size_of(face.quality), face.id)


def size_of(quality: Mapping[str, JsonValue] | None) -> float:
    """As faces are sorted by it: 0 where it was not measured."""
    size = (quality or {}).get("size_px")
    return float(size) if isinstance(size, int | float) else 0.0
