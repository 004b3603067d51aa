"""Persons of the photo library: listing, names, merging and splitting."""

from __future__ import annotations

import json
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, ServicesDep, answer, read_request
from serve_app.api.face_schemas import LibraryFacePage, library_face_answer
from serve_app.api.forms import validate
from serve_app.api.library_answers import decided_person, person_answer, suggested_person
from serve_app.api.library_schemas import (
    DistinguishFields,
    LibraryPersonAnswer,
    LibraryPersonChangeFields,
    LibraryPersonFields,
    LibraryPersonPage,
    MergeFields,
    PersonDecisionAnswer,
    PersonDeletedAnswer,
    PersonsDistinctAnswer,
    PersonSuggestionsAnswer,
    SplitFields,
    SuggestedFaceAnswer,
)
from serve_app.api.openapi import json_body, problems
from serve_app.api.person_fields import Name
from serve_app.api.schemas import RequestModel
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import AlreadyExists, InvalidCursor, MustNotBeRecognised
from serve_app.services.deciding import Decided, NewPerson
from serve_app.storage.library_persons import LibraryPerson, PersonPosition, PersonSort, PersonsWanted

router = APIRouter(tags=["library persons"])
_write = [Depends(idempotency_header)]
_EXAMPLE = "01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"
_HIDDEN = {"false": False, "true": True, "all": None}


class _Filter(RequestModel):
    name: Name | None = None


@router.get(
    "/persons", response_model=LibraryPersonPage, summary="List persons", responses=problems(*READ_ERRORS, InvalidCursor)
)
async def list_persons(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: str | None = None,
    sort: PersonSort = PersonSort.FACES,
    name: Annotated[str | None, Query(description="Part of the name, whatever its case.")] = None,
    named: Annotated[bool | None, Query(description="`true`: with a name; `false`: without. Default: both.")] = None,
    hidden: Annotated[
        Literal["false", "true", "all"], Query(description="Only hidden persons, none of them, or all.")
    ] = "false",
) -> Response:
    """With the most faces first, by `name` (those without one last), or the `recent` first. A cursor stays good while persons
    come and go."""
    fields = validate(_Filter, {} if name is None else {"name": name})
    wanted = PersonsWanted(sort, fields.name, named, _HIDDEN[hidden])
    key, listing = services.secrets.cursors, f"library persons {json.dumps([sort, fields.name, named, hidden])}"
    after = None if cursor is None else _position(decode_cursor(key, listing, cursor))
    found = await services.gallery.library_people.page(wanted, after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        LibraryPersonPage(
            items=[person_answer(one) for one in items],
            next_cursor=encode_cursor(key, listing, _text(items[-1], sort)) if more else None,
        )
    )


def _text(person: LibraryPerson, sort: PersonSort) -> str:
    value = {PersonSort.NAME: person.name, PersonSort.FACES: person.face_count, PersonSort.RECENT: None}[sort]
    return json.dumps([value, str(person.id)])


def _position(text: str) -> PersonPosition:
    value, person_id = json.loads(text)
    return PersonPosition(value, UUID(person_id))


@router.post(
    "/persons",
    status_code=201,
    response_model=PersonDecisionAnswer,
    summary="Make a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, AlreadyExists),
    openapi_extra=json_body(LibraryPersonFields, {"name": "Anna"}),
)
async def create_person(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Without faces yet. The library is made if there is none."""
    fields = await read_request(request, services, LibraryPersonFields)
    deciding = services.gallery.deciding
    write = once(request, services, fields, decided_person, 201, deciding.collection_id)
    new = NewPerson(fields.name, fields.metadata, fields.external_id, fields.hidden)
    return answer(decided_person(await deciding.create(new, caller.actor, write)), 201)


@router.get("/persons/{person_id}", response_model=LibraryPersonAnswer, summary="A person", responses=problems(*READ_ERRORS))
async def get_person(person_id: UUID, services: ServicesDep) -> Response:
    """Its photos: `GET /photos?person_id=`."""
    return answer(person_answer(await services.gallery.library_people.get(person_id)))


@router.put(
    "/persons/{person_id}",
    response_model=PersonDecisionAnswer,
    summary="Change a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, AlreadyExists),
    openapi_extra=json_body(LibraryPersonChangeFields, {"name": "Anna Meier"}),
)
async def change_person(person_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Name, metadata, external_id, whether it is hidden, the face that stands for it; what is not given stays."""
    fields = await read_request(request, services, LibraryPersonChangeFields)
    deciding = services.gallery.deciding
    write = once(request, services, fields, decided_person, 200, deciding.collection_id)
    return answer(decided_person(await deciding.change(person_id, fields.values(), caller.actor, write)))


@router.delete(
    "/persons/{person_id}",
    response_model=PersonDeletedAnswer,
    summary="Dissolve a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, MustNotBeRecognised),
)
async def delete_person(person_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Its faces stay in their photos as nobody's, and clustering leaves them so. It can be undone. For good:
    `DELETE /collections/{collection_id}/persons/{person_id}`."""

    def render(decided: Decided[UUID]) -> PersonDeletedAnswer:
        return PersonDeletedAnswer(person_id=decided.result, journal_id=decided.journal_id)

    deciding = services.gallery.deciding
    write = once(request, services, None, render, 200, deciding.collection_id)
    return answer(render(await deciding.delete(person_id, caller.actor, write)))


@router.get(
    "/persons/{person_id}/faces",
    response_model=LibraryFacePage,
    summary="List the faces of a person",
    responses=problems(*READ_ERRORS, InvalidCursor),
)
async def list_faces(
    person_id: UUID,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> Response:
    """In the order they were found."""
    key, listing = services.secrets.cursors, f"library faces {person_id}"
    after = None if cursor is None else UUID(decode_cursor(key, listing, cursor))
    found = await services.gallery.library_people.faces(person_id, after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        LibraryFacePage(
            items=[library_face_answer(one) for one in items],
            next_cursor=encode_cursor(key, listing, str(items[-1].id)) if more else None,
        )
    )


@router.post(
    "/persons/{person_id}/merge",
    response_model=PersonDecisionAnswer,
    summary="Merge persons into one",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, MustNotBeRecognised),
    openapi_extra=json_body(MergeFields, {"source_person_ids": [_EXAMPLE]}),
)
async def merge_persons(person_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """All their faces become those of the person of the address, by the user's word. Name, external_id and metadata it takes
    from the first of them that has any, where it has none itself."""
    fields = await read_request(request, services, MergeFields)
    deciding = services.gallery.deciding
    write = once(request, services, fields, decided_person, 200, deciding.collection_id)
    return answer(decided_person(await deciding.merge(person_id, fields.sources, caller.actor, write)))


@router.post(
    "/persons/{person_id}/split",
    status_code=201,
    response_model=PersonDecisionAnswer,
    summary="Split a person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, MustNotBeRecognised),
    openapi_extra=json_body(SplitFields, {"face_ids": [_EXAMPLE], "name": "Berta"}),
)
async def split_person(person_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """The faces become a new person, which is the answer. Clustering never makes one of the two again."""
    fields = await read_request(request, services, SplitFields)
    deciding = services.gallery.deciding
    write = once(request, services, fields, decided_person, 201, deciding.collection_id)
    new = NewPerson(fields.name)
    return answer(decided_person(await deciding.split(person_id, fields.face_ids, new, caller.actor, write)), 201)


@router.post(
    "/persons/{person_id}/not-same",
    response_model=PersonsDistinctAnswer,
    summary="Say that two persons are not the same",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
    openapi_extra=json_body(DistinguishFields, {"person_id": _EXAMPLE}),
)
async def distinguish_persons(person_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Clustering never merges them, and neither is suggested for the other."""
    fields = await read_request(request, services, DistinguishFields)

    def render(decided: Decided[UUID]) -> PersonsDistinctAnswer:
        return PersonsDistinctAnswer(person_id=decided.result, other_person_id=fields.person_id, journal_id=decided.journal_id)

    deciding = services.gallery.deciding
    write = once(request, services, fields, render, 200, deciding.collection_id)
    return answer(render(await deciding.distinguish(person_id, fields.person_id, caller.actor, write)))


@router.get(
    "/persons/{person_id}/suggestions",
    response_model=PersonSuggestionsAnswer,
    summary="Who and what might be this person",
    responses=problems(*READ_ERRORS),
)
async def suggest_for_person(
    person_id: UUID, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=100, description="Of each kind.")] = 20
) -> Response:
    """Faces of nobody, and persons that may be the same, the most similar first."""
    people = services.gallery.library_people
    faces = await people.suggested_faces(person_id, limit)
    persons = await people.suggested_persons(person_id, limit)
    return answer(
        PersonSuggestionsAnswer(
            faces=[
                SuggestedFaceAnswer(face=library_face_answer(one.face), similarity=one.similarity, decision=one.decision)
                for one in faces
            ],
            persons=[suggested_person(one) for one in persons],
        )
    )
