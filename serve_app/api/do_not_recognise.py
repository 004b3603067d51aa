"""Who must not be recognised."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import ServicesDep, answer
from serve_app.api.openapi import problems
from serve_app.api.person_answers import PersonAnswer
from serve_app.api.persons import person_answer
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import InvalidCursor
from serve_app.services.do_not_recognise import DoNotRecognise

router = APIRouter(prefix="/collections/{collection_id}/do-not-recognise", tags=["persons"])
_write = [Depends(idempotency_header)]


class NotRecognisedPage(BaseModel):
    person_ids: list[UUID]
    next_cursor: str | None


@router.get(
    "", response_model=NotRecognisedPage, summary="Who must not be recognised", responses=problems(*READ_ERRORS, InvalidCursor)
)
async def list_not_recognised(
    collection_id: str, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100, cursor: str | None = None
) -> Response:
    """Ids of persons of the collection, in order."""
    key, listing = services.secrets.cursors, f"do not recognise {collection_id}"
    after = None if cursor is None else UUID(decode_cursor(key, listing, cursor))
    found = await DoNotRecognise(services.gallery.database).page(collection_id, after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        NotRecognisedPage(person_ids=items, next_cursor=encode_cursor(key, listing, str(items[-1])) if more else None)
    )


@router.put(
    "/{person_id}",
    response_model=PersonAnswer,
    summary="Never recognise a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def put_on_list(collection_id: str, person_id: UUID, request: Request, services: ServicesDep) -> Response:
    """From now on nobody is told that a face is theirs: searches answer `unknown` for it, verifying says `unknown`, indexing
    gives them no more faces, and their face is not enrolled for anybody else. Their faces stay for that, until erased."""
    return await _put(collection_id, person_id, True, request, services)


@router.delete(
    "/{person_id}",
    response_model=PersonAnswer,
    summary="Recognise a person again",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def take_off_list(collection_id: str, person_id: UUID, request: Request, services: ServicesDep) -> Response:
    """Erasing a person takes them off the list as well: nothing is known of them any more."""
    return await _put(collection_id, person_id, False, request, services)


async def _put(collection_id: str, person_id: UUID, listed: bool, request: Request, services: ServicesDep) -> Response:
    write = once(request, services, None, person_answer, 200)
    service = DoNotRecognise(services.gallery.database)
    return answer(person_answer(await service.put(collection_id, person_id, listed, write)))
