"""The presigned addresses of the local object store. MinIO serves its own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from serve_app.api.deps import ServicesDep
from serve_app.api.openapi import problems
from serve_app.api.streams import stream_object
from serve_app.errors import DatabaseUnavailable, InvalidRequest, NotFound, ObjectStoreUnavailable
from serve_app.storage.local_objects import LocalObjectStore

router = APIRouter(tags=["objects"])


@router.get(
    "/objects/{key:path}",
    response_class=Response,
    summary="A stored picture by its signed address",
    responses=problems(InvalidRequest, NotFound, DatabaseUnavailable, ObjectStoreUnavailable)
    | {200: {"content": {"image/*": {}}}},
)
async def get_object(
    key: str,
    request: Request,
    services: ServicesDep,
    expires: Annotated[str, Query(max_length=20)] = "",
    signature: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """Needs no key: the signature in the address is one, for this object, until it expires."""
    store = services.gallery.objects
    await services.secrets.ready()
    if not isinstance(store, LocalObjectStore) or not store.verify_signature(key, expires, signature):
        # One answer for a wrong signature, an expired one and a missing object: nothing to learn by trying.
        raise NotFound("There is nothing at this address, or it has expired.")
    return await stream_object(key, request, services)
