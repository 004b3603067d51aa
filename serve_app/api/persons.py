"""Persons of a collection."""

from __future__ import annotations

import json
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from serve_app.api.collections import receipt_answer
from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, ServicesDep, answer, read_request
from serve_app.api.forms import validate
from serve_app.api.openapi import json_body, problems
from serve_app.api.person_answers import PersonAnswer, PersonPage, ReceiptAnswer
from serve_app.api.person_fields import ExternalId, Metadata, Name, PersonChangeFields, PersonFields, PersonIdsFields
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import AlreadyExists, InvalidCursor
from serve_app.identity.people import Person
from serve_app.services.people import PersonQuery
from serve_app.storage.persons import PersonChange

router = APIRouter(prefix="/collections/{collection_id}", tags=["persons"])
_write = [Depends(idempotency_header)]


class _Filters(BaseModel):
    name: Name | None = None
    external_id: ExternalId | None = None
    metadata: Metadata | None = Field(None)


@router.post(
    "/persons",
    status_code=201,
    response_model=PersonAnswer,
    summary="Make a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, AlreadyExists),
    openapi_extra=json_body(PersonFields, {"name": "Anna", "external_id": "e-1042", "metadata": {"team": "research"}}),
)
async def create_person(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """Without faces yet."""
    fields = await read_request(request, services, PersonFields)
    change = PersonChange(fields.name, fields.metadata, fields.external_id)
    person = await services.gallery.people.create(collection_id, change, once(request, services, fields, person_answer, 201))
    return answer(person_answer(person), 201)


@router.get("/persons", response_model=PersonPage, summary="List persons", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_persons(
    collection_id: str,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
    name: Annotated[str | None, Query(description="Part of the name, whatever its case.")] = None,
    external_id: str | None = None,
    metadata: Annotated[str | None, Query(description='JSON that the metadata must contain: `{"team": "x"}`.')] = None,
) -> Response:
    """In the order they were made. A cursor stays good while persons come and go."""
    given = {"name": name, "external_id": external_id, "metadata": metadata}
    filters = validate(_Filters, {key: value for key, value in given.items() if value is not None})
    key, listing = services.secrets.cursors, f"persons {collection_id} {json.dumps(given)}"
    after = None if cursor is None else UUID(decode_cursor(key, listing, cursor))
    query = PersonQuery(after, limit + 1, filters.name, filters.external_id, filters.metadata)
    found = await services.gallery.people.page(collection_id, query)
    items, more = found[:limit], len(found) > limit
    return answer(
        PersonPage(
            items=[person_answer(one) for one in items],
            next_cursor=encode_cursor(key, listing, str(items[-1].id)) if more else None,
        )
    )


@router.get("/persons/{person_id}", response_model=PersonAnswer, summary="A person", responses=problems(*READ_ERRORS))
async def get_person(collection_id: str, person_id: UUID, services: ServicesDep) -> Response:
    """With the number of its faces."""
    return answer(person_answer(await services.gallery.people.get(collection_id, person_id)))


@router.patch(
    "/persons/{person_id}",
    response_model=PersonAnswer,
    summary="Change a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, AlreadyExists),
    openapi_extra=json_body(PersonChangeFields, {"name": "Anna Meier"}),
)
async def change_person(
    collection_id: str, person_id: UUID, request: Request, services: ServicesDep, caller: CallerDep
) -> Response:
    """Name, external_id and metadata; what is not given stays. In the photo library it can be undone: see the journal."""
    fields = await read_request(request, services, PersonChangeFields)
    change = PersonChange(fields.name, fields.metadata, fields.external_id)
    write = once(request, services, fields, person_answer, 200)
    if collection_id == services.settings.library_collection:
        person = await services.gallery.deciding.update(person_id, change, caller.actor, write)
    else:
        person = await services.gallery.people.update(collection_id, person_id, change, write)
    return answer(person_answer(person))


@router.delete(
    "/persons/{person_id}",
    response_model=ReceiptAnswer,
    summary="Erase a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def delete_person(collection_id: str, person_id: UUID, request: Request, services: ServicesDep) -> Response:
    """With all faces, vectors, crops, and the pictures that no other face comes from. The receipt says what was removed."""
    receipt = await services.gallery.people.delete(
        collection_id, [person_id], once(request, services, None, receipt_answer, 200), must_exist=True
    )
    return answer(receipt_answer(receipt))


@router.post(
    "/persons:delete",
    response_model=ReceiptAnswer,
    summary="Erase many persons",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
    openapi_extra=json_body(PersonIdsFields, {"person_ids": ["01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"]}),
)
async def delete_persons(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """All of them or none; one receipt. Persons that are not there count as gone."""
    fields = await read_request(request, services, PersonIdsFields)
    ids = sorted(set(fields.person_ids))
    receipt = await services.gallery.people.delete(
        collection_id, ids, once(request, services, fields, receipt_answer, 200), must_exist=False
    )
    return answer(receipt_answer(receipt))


def person_answer(person: Person) -> PersonAnswer:
    return PersonAnswer.model_validate(person, from_attributes=True)
