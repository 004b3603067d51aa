"""Faces of the photo library: list, look at, show."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints

from serve_app.api.accept import thumbnail_format
from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import ServicesDep, answer
from serve_app.api.face_schemas import (
    LibraryFaceAnswer,
    LibraryFacePage,
    PhotoFacesAnswer,
    library_face_answer,
)
from serve_app.api.openapi import problems
from serve_app.api.photo_files import NOT_MODIFIED, THUMBNAIL_ERRORS, thumbnail_response
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import InvalidCursor
from serve_app.identity.library_faces import (
    DecidedBy,
    FaceFilter,
    FacePosition,
    FaceQuery,
    FaceSort,
    FoundBy,
    Hidden,
    position_of,
)

router = APIRouter(tags=["library faces"])

MAX_REASONS = 20
_Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


@router.get(
    "/faces",
    response_model=LibraryFacePage,
    summary="List faces of the library",
    responses=problems(*READ_ERRORS, InvalidCursor),
)
async def list_faces(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: str | None = None,
    sort: FaceSort = FaceSort.FOUND,
    order: Literal["asc", "desc"] = "desc",
    person_id: Annotated[UUID | None, Query(description="Only faces of this person.")] = None,
    photo_id: Annotated[UUID | None, Query(description="Only faces in this photo.")] = None,
    unassigned: Annotated[bool | None, Query(description="Only faces that nobody has; false: that somebody has.")] = None,
    reason: Annotated[
        list[_Code],
        Query(max_length=MAX_REASONS, description="Only faces that nobody has for this reason (`code`); several: any."),
    ] = [],  # noqa: B006
    hidden: Annotated[Hidden, Query(description="Whether hidden faces are left out, included, or the only ones.")] = (
        Hidden.EXCLUDE
    ),
    decided_by: DecidedBy | None = None,
    found_by: FoundBy | None = None,
    min_size_px: Annotated[
        float | None, Query(ge=0, le=1_000_000, allow_inf_nan=False, description="Shorter side of the box.")
    ] = None,
) -> Response:
    """Those found last first unless asked otherwise. All filters must hold. A cursor stays good while faces come and go."""
    wanted = FaceFilter(person_id, photo_id, unassigned, tuple(sorted(set(reason))), hidden, decided_by, found_by, min_size_px)
    key, listing = services.secrets.cursors, f"library faces {sort} {order} {asdict(wanted)}"
    after = None if cursor is None else _position(decode_cursor(key, listing, cursor), sort)
    found = await services.gallery.library_faces.page(FaceQuery(wanted, sort, order == "desc", after, limit + 1))
    items, more = found[:limit], len(found) > limit
    return answer(
        LibraryFacePage(
            items=[library_face_answer(one) for one in items],
            next_cursor=encode_cursor(key, listing, _text(position_of(items[-1], sort))) if more else None,
        )
    )


def _text(position: FacePosition) -> str:
    value = position.value.isoformat() if isinstance(position.value, datetime) else repr(position.value)
    return f"{position.face_id} {value}"


def _position(text: str, sort: FaceSort) -> FacePosition:
    face_id, _, value = text.partition(" ")
    if sort is FaceSort.FOUND:
        return FacePosition(None, UUID(face_id))
    return FacePosition(datetime.fromisoformat(value) if sort is FaceSort.TAKEN else float(value), UUID(face_id))


@router.get(
    "/faces/{face_id}", response_model=LibraryFaceAnswer, summary="A face of the library", responses=problems(*READ_ERRORS)
)
async def get_face(face_id: UUID, services: ServicesDep) -> Response:
    """What is known of it: where it is, whose, who said so, or why nobody has it."""
    return answer(library_face_answer(await services.gallery.library_faces.get(face_id)))


@router.get(
    "/faces/{face_id}/thumbnail",
    response_class=Response,
    summary="A picture of a face",
    responses=problems(*READ_ERRORS, *THUMBNAIL_ERRORS)
    | NOT_MODIFIED
    | {200: {"content": {"image/avif": {}, "image/webp": {}, "image/jpeg": {}}}},
)
async def get_thumbnail(
    face_id: UUID,
    request: Request,
    services: ServicesDep,
    size: Annotated[int, Query(ge=1, le=65_535, description="Pixels of a side.")] = 160,
) -> Response:
    """The face and some of what is around it, a square cut from the photo: upright, in sRGB, without metadata, never enlarged.
    `size` is rounded up to 96, 160, 320 or 640.

    AVIF or WebP for clients whose `Accept` header names them, else JPEG.
    """
    image_format = thumbnail_format(request.headers.get("accept"))
    thumbnail = await services.gallery.library_faces.thumbnail(face_id, size, image_format)
    return await thumbnail_response(thumbnail, request, services)


@router.get(
    "/photos/{photo_id}/faces",
    response_model=PhotoFacesAnswer,
    summary="The faces in a photo",
    responses=problems(*READ_ERRORS),
)
async def list_faces_of_photo(photo_id: UUID, services: ServicesDep) -> Response:
    """With boxes in pixels of the photo as displayed."""
    photo, found = await services.gallery.library_faces.of_photo(photo_id)
    return answer(PhotoFacesAnswer(photo_id=photo.id, faces=[library_face_answer(one) for one in found]))
