"""What the object store has of the library, for clients that know its address there."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.api.deps import ServicesDep
from serve_app.api.openapi import problems
from serve_app.api.streams import content_disposition, stream_object
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import NotFound, ObjectStoreUnavailable
from serve_app.services.stored_files import missing

router = APIRouter(tags=["photos"])


@router.get(
    "/storage/{file_path:path}",
    response_class=Response,
    summary="A stored file of the library",
    responses=problems(*READ_ERRORS, ObjectStoreUnavailable)
    | {304: {"description": "The client has it already (`If-None-Match`)."}}
    | {200: {"content": {"image/*": {}}}},
)
async def get_stored_file(file_path: str, request: Request, services: ServicesDep) -> Response:
    """`file_path`: the key of an original, a crop or a thumbnail; or a photo's `folder/file_name`. Answers range requests.
    Only what a row of the library names: everything else is a 404."""
    found = await services.gallery.stored_files.find(file_path)
    if found.format is None:
        disposition = f'inline; filename="{found.file_name}"'
    else:
        disposition = content_disposition(found.file_name, found.format)
    etag = None if found.sha256 is None else f'"{found.sha256.hex()}"'
    try:
        return await stream_object(found.key, request, services, etag=etag, headers={"Content-Disposition": disposition})
    except NotFound:
        raise missing() from None
