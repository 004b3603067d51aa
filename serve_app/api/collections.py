"""Collections."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, ServicesDep, answer, read_request
from serve_app.api.openapi import json_body, problems
from serve_app.api.person_answers import CollectionAnswer, CollectionPage, ContractAnswer, ReceiptAnswer, SizedCollectionAnswer
from serve_app.api.person_fields import CollectionChangeFields, CollectionFields
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import AlreadyExists, EmbeddingModelMismatch, Forbidden, InvalidCursor
from serve_app.identity.people import Collection, CollectionSize
from serve_app.services.collections import NewCollection
from serve_app.services.erasure import Receipt

router = APIRouter(prefix="/collections", tags=["collections"])
_write = [Depends(idempotency_header)]


@router.post(
    "",
    status_code=201,
    response_model=CollectionAnswer,
    summary="Make a collection",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, Forbidden, AlreadyExists, EmbeddingModelMismatch),
    openapi_extra=json_body(CollectionFields, {"id": "employees", "name": "Employees"}),
)
async def create_collection(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Pins the embedding model that is loaded: only its embeddings are ever put in or compared."""
    fields = await read_request(request, services, CollectionFields)
    new = NewCollection(fields.id or f"c{secrets.token_hex(8)}", fields.name, fields.metadata, fields.embedding_model)
    if not caller.reaches(new.id):
        raise Forbidden("The API key is limited to other collections.")
    created = await services.gallery.collections.create(new, once(request, services, fields, collection_answer, 201, new.id))
    return answer(collection_answer(created), 201)


@router.get("", response_model=CollectionPage, summary="List collections", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_collections(
    services: ServicesDep, caller: CallerDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100, cursor: str | None = None
) -> Response:
    """Ordered by id; those that the key is for."""
    key = services.secrets.cursors
    after = None if cursor is None else decode_cursor(key, "collections", cursor)
    found = await services.gallery.collections.page(after, limit + 1, caller.collections)
    items, more = found[:limit], len(found) > limit
    return answer(
        CollectionPage(
            items=[collection_answer(one) for one in items],
            next_cursor=encode_cursor(key, "collections", items[-1].id) if more else None,
        )
    )


@router.get("/{collection_id}", response_model=SizedCollectionAnswer, summary="A collection", responses=problems(*READ_ERRORS))
async def get_collection(collection_id: str, services: ServicesDep) -> Response:
    """With how much is in it."""
    return answer(_sized(*await services.gallery.collections.get(collection_id)))


@router.patch(
    "/{collection_id}",
    response_model=CollectionAnswer,
    summary="Change a collection",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
    openapi_extra=json_body(CollectionChangeFields, {"name": "Staff"}),
)
async def change_collection(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """Name and metadata; what is not given stays."""
    fields = await read_request(request, services, CollectionChangeFields)
    changed = await services.gallery.collections.update(
        collection_id, fields.name, fields.metadata, once(request, services, fields, collection_answer, 200)
    )
    return answer(collection_answer(changed))


@router.delete(
    "/{collection_id}",
    response_model=ReceiptAnswer,
    summary="Erase a collection",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def delete_collection(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """With its persons, faces, vectors, pictures and crops. The receipt says what was removed."""
    receipt = await services.gallery.collections.delete(collection_id, once(request, services, None, receipt_answer, 200))
    return answer(receipt_answer(receipt))


def collection_answer(collection: Collection) -> CollectionAnswer:
    return CollectionAnswer.model_validate(_values(collection))


def receipt_answer(receipt: Receipt) -> ReceiptAnswer:
    return ReceiptAnswer.model_validate(receipt, from_attributes=True)


def _sized(collection: Collection, size: CollectionSize) -> SizedCollectionAnswer:
    counts = {"person_count": size.persons, "face_count": size.faces, "image_count": size.images}
    return SizedCollectionAnswer.model_validate(_values(collection) | counts)


def _values(collection: Collection) -> dict[str, object]:
    contract = collection.contract
    return {
        "id": collection.id,
        "name": collection.name,
        "metadata": collection.metadata,
        "embedding": ContractAnswer(model=contract.model, dim=contract.dim, preprocessing=contract.preprocessing),
        "search_mode": collection.search_mode,
        "created_at": collection.created_at,
        "updated_at": collection.updated_at,
    }
