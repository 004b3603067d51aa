"""The picture of a photo, and smaller copies of it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from serve_app.api.accept import thumbnail_format
from serve_app.api.deps import Services, ServicesDep, bounded
from serve_app.api.openapi import problems
from serve_app.api.streams import ALWAYS_ASKED, NEVER_A_PAGE, content_disposition, matches, signed_url, stream_object
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InvalidImage,
    ModelUnavailable,
    ObjectStoreUnavailable,
    UnsupportedImage,
)
from serve_app.services.thumbnails import Kept

router = APIRouter(prefix="/photos", tags=["photos"])

NOT_MODIFIED = {304: {"description": "The client has it already (`If-None-Match`)."}}
THUMBNAIL_ERRORS = (InvalidImage, ImageTooLarge, UnsupportedImage, ModelUnavailable, ObjectStoreUnavailable, DeadlineExceeded)


@router.get(
    "/{photo_id}/image",
    response_class=Response,
    summary="The picture of a photo",
    responses=problems(*READ_ERRORS, ObjectStoreUnavailable) | NOT_MODIFIED | {200: {"content": {"image/*": {}}}},
)
async def get_image(
    photo_id: UUID,
    request: Request,
    services: ServicesDep,
    redirect: Annotated[bool, Query(description="Answer with a redirect to the object store.")] = False,
) -> Response:
    """As it was uploaded, byte for byte. Answers range requests; the ETag is the SHA-256 of the file."""
    photo = await services.gallery.photos.get(photo_id)
    if redirect:
        return RedirectResponse(await signed_url(photo.image_key, services) or "", 307)
    disposition = content_disposition(photo.file_name, photo.info.format)
    headers = {"Content-Disposition": disposition}
    return await stream_object(photo.image_key, request, services, etag=f'"{photo.sha256.hex()}"', headers=headers)


@router.get(
    "/{photo_id}/thumbnail",
    response_class=Response,
    summary="A smaller copy of a photo",
    responses=problems(*READ_ERRORS, *THUMBNAIL_ERRORS)
    | NOT_MODIFIED
    | {200: {"content": {"image/avif": {}, "image/webp": {}, "image/jpeg": {}}}},
)
async def get_thumbnail(
    photo_id: UUID,
    request: Request,
    services: ServicesDep,
    size: Annotated[int, Query(ge=1, le=65_535, description="Pixels of the longer side.")] = 320,
) -> Response:
    """Upright, in sRGB, without metadata, never larger than the photo. `size` is rounded up to 160, 320, 640, 1280 or 2048.

    AVIF or WebP for clients whose `Accept` header names them, else JPEG.
    """
    image_format = thumbnail_format(request.headers.get("accept"))
    thumbnail = await services.gallery.thumbnails.find(photo_id, size, image_format)
    return await thumbnail_response(thumbnail, request, services)


async def thumbnail_response(thumbnail: Kept, request: Request, services: Services) -> Response:
    """A thumbnail, made if need be, unless the client has it already."""
    headers = {"ETag": thumbnail.etag, "Cache-Control": ALWAYS_ASKED, "Vary": "Accept", **NEVER_A_PAGE}
    if matches(request.headers.get("if-none-match"), thumbnail.etag):
        return Response(status_code=304, headers=headers)
    data = await bounded(request, services.gallery.thumbnails.get(thumbnail), services.settings.worker_timeout)
    return Response(data, media_type=thumbnail.content_type, headers=headers)
