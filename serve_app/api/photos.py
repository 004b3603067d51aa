"""The photo library: listing, tags, erasure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from serve_app.api.collections import receipt_answer
from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import ServicesDep, answer, read_request
from serve_app.api.face_schemas import PhotoDetailAnswer, library_face_answer
from serve_app.api.openapi import json_body, problems
from serve_app.api.person_answers import ReceiptAnswer
from serve_app.api.photo_filters import WantedPhotos
from serve_app.api.photo_schemas import (
    PhotoAnswer,
    PhotoPage,
    PhotoTagsAnswer,
    PlaceAnswer,
    TagAnswer,
    TagChangeFields,
    TagPage,
)
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import DeadlineExceeded, InvalidCursor
from serve_app.photos import Photo, PhotoSort, PictureTexts
from serve_app.services.photos import PhotoQuery
from serve_app.storage.photo_pages import Order, Position

router = APIRouter(tags=["photos"])
_write = [Depends(idempotency_header)]


@router.get(
    "/photos",
    response_model=PhotoPage,
    summary="List photos",
    responses=problems(*READ_ERRORS, InvalidCursor, DeadlineExceeded),
)
async def list_photos(
    services: ServicesDep,
    wanted: WantedPhotos,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: str | None = None,
    sort: PhotoSort = PhotoSort.TAKEN,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """Newest first unless asked otherwise. All filters must hold. A cursor stays good while photos come and go."""
    key, listing = services.secrets.cursors, f"photos {wanted} {sort} {order}"
    after = None if cursor is None else position_of(decode_cursor(key, listing, cursor))
    query = PhotoQuery(wanted, Order(sort, order == "desc"), after, limit + 1)
    found = await services.gallery.photos.page(query)
    items, more = found[:limit], len(found) > limit
    return answer(
        PhotoPage(
            items=[photo_answer(one) for one in items],
            next_cursor=encode_cursor(key, listing, position_text(items[-1], sort)) if more else None,
        )
    )


def position_text(photo: Photo, sort: PhotoSort) -> str:
    moment = photo.taken_at if sort is PhotoSort.TAKEN else photo.created_at
    return f"{moment.isoformat()} {photo.id}"


def position_of(text: str) -> Position:
    moment, _, photo_id = text.partition(" ")
    return Position(datetime.fromisoformat(moment), UUID(photo_id))


@router.get("/photos/{photo_id}", response_model=PhotoDetailAnswer, summary="A photo", responses=problems(*READ_ERRORS))
async def get_photo(photo_id: UUID, services: ServicesDep) -> Response:
    """What is known of it, and the faces in it."""
    photo, faces = await services.gallery.library_faces.of_photo(photo_id)
    shown = [library_face_answer(one) for one in faces]
    return answer(PhotoDetailAnswer(**photo_answer(photo).model_dump(), faces=shown))


@router.delete(
    "/photos/{photo_id}",
    response_model=ReceiptAnswer,
    summary="Erase a photo",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def delete_photo(photo_id: UUID, request: Request, services: ServicesDep) -> Response:
    """With its picture, its thumbnails and every face in it, those of persons who were enrolled with this very picture too.
    The receipt says what was removed."""
    library = services.gallery.photos
    write = once(request, services, None, receipt_answer, 200, library.collection_id)
    return answer(receipt_answer(await library.delete(photo_id, write)))


@router.get(
    "/photos/{photo_id}/tags", response_model=PhotoTagsAnswer, summary="The tags of a photo", responses=problems(*READ_ERRORS)
)
async def get_tags(photo_id: UUID, services: ServicesDep) -> Response:
    """In alphabetical order."""
    return answer(tags_answer(await services.gallery.photos.get(photo_id)))


@router.post(
    "/photos/{photo_id}/tags",
    response_model=PhotoTagsAnswer,
    summary="Tag a photo",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
    openapi_extra=json_body(TagChangeFields, {"add": ["holiday"], "remove": ["inbox"]}),
)
async def change_tags(photo_id: UUID, request: Request, services: ServicesDep) -> Response:
    """`add` and `remove`, or `tags` to replace all. The answer has the tags it has then."""
    fields = await read_request(request, services, TagChangeFields)
    library = services.gallery.photos
    write = once(request, services, fields, tags_answer, 200, library.collection_id)
    if fields.tags is None:
        photo = await library.change_tags(photo_id, fields.add, fields.remove, write)
    else:
        photo = await library.replace_tags(photo_id, fields.tags, write)
    return answer(tags_answer(photo))


@router.get("/tags", response_model=TagPage, summary="List tags", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_tags(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=1000)] = 1000, cursor: str | None = None
) -> Response:
    """Every tag that a photo has, in alphabetical order, with the number of its photos."""
    key = services.secrets.cursors
    after = None if cursor is None else decode_cursor(key, "tags", cursor)
    found = await services.gallery.photos.tags(after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        TagPage(
            items=[TagAnswer(tag=one.tag, photo_count=one.photos) for one in items],
            next_cursor=encode_cursor(key, "tags", items[-1].tag) if more else None,
        )
    )


def tags_answer(photo: Photo) -> PhotoTagsAnswer:
    return PhotoTagsAnswer(photo_id=photo.id, tags=list(photo.tags))


def _place(texts: PictureTexts) -> PlaceAnswer | None:
    parts = texts.sublocation, texts.city, texts.state, texts.country
    if not any(parts):
        return None
    return PlaceAnswer(sublocation=parts[0], city=parts[1], state=parts[2], country=parts[3])


def photo_answer(photo: Photo) -> PhotoAnswer:
    info = photo.info
    return PhotoAnswer(
        id=photo.id,
        file_name=photo.file_name,
        folder=photo.folder,
        sha256=photo.sha256.hex(),
        size_bytes=photo.size_bytes,
        format=info.format,
        width_px=info.width_px,
        height_px=info.height_px,
        taken_at=photo.taken_at,
        taken_local=info.taken_local,
        taken_offset_min=info.taken_offset_min,
        camera=info.camera,
        lens=info.lens,
        latitude=info.latitude,
        longitude=info.longitude,
        altitude_m=info.altitude_m,
        title=info.texts.title,
        caption=info.texts.caption,
        keywords=list(info.texts.keywords),
        place=_place(info.texts),
        tags=list(photo.tags),
        face_count=photo.face_count,
        created_at=photo.created_at,
        updated_at=photo.updated_at,
    )
