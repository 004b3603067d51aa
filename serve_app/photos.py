"""Photos as values: what a file says of itself, what the library keeps of it, how it is listed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


@dataclass(frozen=True, slots=True)
class PictureTexts:
    """What somebody wrote into a picture; None and () where nobody did."""

    title: str | None = None
    caption: str | None = None
    keywords: tuple[str, ...] = ()
    sublocation: str | None = None
    city: str | None = None
    state: str | None = None
    country: str | None = None


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """What the bytes of a picture say. `width_px`, `height_px`: as displayed, EXIF orientation applied.

    `taken_local`: naive, what the camera's clock showed; `taken_offset_min`: its zone, minutes east of UTC. `latitude`,
    `longitude` in degrees (WGS 84), north and east positive; both or neither. None: the file does not say, or says nonsense.
    """

    format: str
    width_px: int
    height_px: int
    orientation: int = 1
    taken_local: datetime | None = None
    taken_offset_min: int | None = None
    camera: str | None = None
    lens: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    altitude_m: float | None = None
    texts: PictureTexts = PictureTexts()


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of the library. `taken_at`: with zone, for sorting; see the schema. `face_count`: faces known so far."""

    id: UUID
    image_id: UUID
    image_key: str
    sha256: bytes
    size_bytes: int
    file_name: str
    folder: str
    info: PictureInfo
    taken_at: datetime
    tags: tuple[str, ...]
    face_count: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewPhoto:
    """`object_key`: where the bytes lie already. `taken_at`: None for the time of upload."""

    id: UUID
    image_id: UUID
    object_key: str
    sha256: bytes
    size_bytes: int
    file_name: str
    folder: str
    info: PictureInfo
    taken_at: datetime | None


class PhotoSort(StrEnum):
    TAKEN = "taken_at"
    ADDED = "created_at"


class PersonsMatch(StrEnum):
    """How the persons of a filter must be in a photo."""

    ANY = "any"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class PhotoFilter:
    """`taken_from` <= date < `taken_to`. `tags`: all of them. `untagged`: without any tag. `groups`: somebody of each must be
    in a photo, beside what `person_ids` and `persons` say; `without`: nobody of these. `subfolders`: those below `folder`,
    too."""

    person_ids: tuple[UUID, ...] = ()
    persons: PersonsMatch = PersonsMatch.ANY
    tags: tuple[str, ...] = ()
    untagged: bool = False
    taken_from: datetime | None = None
    taken_to: datetime | None = None
    folder: str | None = None
    subfolders: bool = False
    groups: tuple[tuple[UUID, ...], ...] = ()
    without: tuple[UUID, ...] = ()


class ThumbnailFormat(StrEnum):
    JPEG = "JPEG"
    WEBP = "WEBP"
    AVIF = "AVIF"


THUMBNAIL_SIDES_PX = (160, 320, 640, 1280, 2048)
"""The sizes thumbnails are kept in: of the longer side. Few, so that what was made for one client serves the next."""

FACE_THUMBNAIL_SIDES_PX = (96, 160, 320, 640)
"""Likewise of squares cut around faces."""
