"""The shapes of photos and tags, in requests and answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from serve_app.api.person_fields import Moment
from serve_app.api.schemas import MOST_IMAGES, Answer, Problem, RequestModel, bounded_list, json_text
from serve_app.text import photo_names
from serve_app.text.photo_names import MAX_TAGS

MAX_PERSONS = 100
"""Of a filter."""
MAX_TAGS_WANTED = 20
_MAX_TEXT = 10_000
"""Of what is looked at character by character."""


def _list_of_tags(value: object) -> object:
    """A form carries a list as a JSON array, or as words between commas."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            return json_text(value)
        return [part for part in value.split(",") if part.strip()]
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value))


Tag = Annotated[str, Field(max_length=_MAX_TEXT), AfterValidator(photo_names.tag)]
Tags = Annotated[
    tuple[Tag, ...],
    Field(fail_fast=True),
    BeforeValidator(bounded_list(MAX_TAGS)),
    BeforeValidator(_list_of_tags),
    AfterValidator(_distinct),
]
Folder = Annotated[str, Field(max_length=_MAX_TEXT), AfterValidator(photo_names.folder)]


class UploadFields(RequestModel):
    """What holds for all files of an upload; in a form before the first of them."""

    folder: Folder = Field("", description="Where they belong: names joined by `/`.", examples=["Italy/Rome"])
    tags: Tags = Field((), description="JSON array, or words between commas.", examples=[["holiday", "2024"]])
    taken_at: Moment | None = Field(None, description="For pictures that do not say when they were taken; default: now.")


class UploadImageFields(RequestModel):
    image: str = Field(description="base64 or data URI.")
    file_name: str | None = Field(None, max_length=_MAX_TEXT)


class UploadJsonFields(UploadFields):
    images: Annotated[
        list[str | UploadImageFields],
        Field(
            min_length=1,
            fail_fast=True,
            description="Pictures as base64 or data URI, or objects with `image` and `file_name`.",
        ),
        BeforeValidator(bounded_list(MOST_IMAGES)),
    ]


class TagChangeFields(RequestModel):
    """Either `tags`, which replaces all, or `add` and `remove`."""

    tags: Tags | None = None
    add: Tags = ()
    remove: Tags = ()

    @model_validator(mode="after")
    def _one_way(self) -> TagChangeFields:
        if (self.tags is None) == (not self.model_fields_set & {"add", "remove"}):
            raise ValueError("give either `tags`, or `add` and `remove`")
        return self


class PhotoFilterFields(RequestModel):
    """What of a listing's query FastAPI does not check by itself."""

    tag: Annotated[Tags, Field(max_length=MAX_TAGS_WANTED)] = ()
    taken_from: Moment | None = None
    taken_to: Moment | None = None
    folder: Folder | None = None


class PlaceAnswer(Answer):
    """As it is written in the file."""

    sublocation: str | None
    city: str | None
    state: str | None
    country: str | None


class PhotoAnswer(Answer):
    id: UUID = Field(examples=["01a2016f-e451-7e79-a29b-b57179f56dd8"])
    file_name: str = Field(examples=["IMG_2041.jpg"])
    folder: str = Field(examples=["Italy/Rome"])
    sha256: str = Field(description="Of the file, hexadecimal.")
    size_bytes: int
    format: str = Field(examples=["JPEG"])
    width_px: int = Field(description="As displayed: EXIF orientation applied.")
    height_px: int
    taken_at: datetime = Field(
        description="For sorting: the camera's clock in its zone, as UTC where it names none; else what the upload said,"
        " else the time of the upload."
    )
    taken_local: datetime | None = Field(
        description="What the camera's clock showed, without a zone; null where the picture has no date.",
        json_schema_extra={"anyOf": [{"type": "string", "examples": ["2024-08-17T14:03:59"]}, {"type": "null"}]},
    )
    taken_offset_min: int | None = Field(description="The camera's zone, minutes east of UTC.", examples=[120])
    camera: str | None
    lens: str | None
    latitude: float | None = Field(description="Degrees, WGS 84, north positive.")
    longitude: float | None = Field(description="Degrees, WGS 84, east positive.")
    altitude_m: float | None
    title: str | None = Field(description="What somebody wrote into the file (XMP, IPTC, EXIF), here and in the next three.")
    caption: str | None
    keywords: list[str]
    place: PlaceAnswer | None
    tags: list[str]
    face_count: int = Field(description="Faces known so far.")
    created_at: datetime
    updated_at: datetime


class PhotoPage(Answer):
    items: list[PhotoAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class UploadItem(Answer):
    """`exists`: the library has this very picture; `photo` is that one, unchanged. `unsupported`: a raw photo, a video, or
    no picture at all. `failed`: `problem` says why; status 500 and above: send it again."""

    index: int = Field(description="Position in the request, from 0.")
    filename: str | None = Field(description="As it came.")
    status: Literal["created", "exists", "unsupported", "failed"]
    photo: PhotoAnswer | None
    problem: Problem | None


class UploadAnswer(Answer):
    """`results` in the order of the request, and how many of each status."""

    results: list[UploadItem]
    created: int
    exists: int
    unsupported: int
    failed: int


class PhotoTagsAnswer(Answer):
    photo_id: UUID
    tags: list[str]


class TagAnswer(Answer):
    tag: str = Field(examples=["holiday"])
    photo_count: int


class MonthAnswer(Answer):
    month: str = Field(description="By the clock of the camera where it is known, else UTC.", examples=["2024-08"])
    photo_count: int


class MonthList(Answer):
    items: list[MonthAnswer]


class TagPage(Answer):
    items: list[TagAnswer]
    next_cursor: str | None
