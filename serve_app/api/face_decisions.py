"""What users decide of the library's faces: whose they are, whose not, and which are none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeAlias, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from serve_app.api.deps import CallerDep, Services, ServicesDep, answer, read_optional, read_request
from serve_app.api.library_answers import decided_face, decided_faces, suggested_person
from serve_app.api.library_schemas import (
    AssignFields,
    FaceDecisionAnswer,
    FaceIdsOnlyFields,
    FacesAssignFields,
    FacesDecisionAnswer,
    FaceSuggestionsAnswer,
    FacesUnassignFields,
    NothingFields,
    RejectFields,
    UnassignFields,
)
from serve_app.api.openapi import json_body, problems
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import AmbiguousName, KinlensError, MustNotBeRecognised
from serve_app.identity.library_faces import LibraryFace
from serve_app.services.deciding import Decided, Deciding
from serve_app.services.writing import Once

router = APIRouter(tags=["library faces"])
_EXAMPLE = "01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"

_RouteT = TypeVar("_RouteT", bound=Callable[..., object])
_Faces: TypeAlias = Decided[list[LibraryFace]]


def _decision(
    path: str,
    summary: str,
    fields: type[BaseModel],
    example: dict[str, object],
    *errors: type[KinlensError],
    required: bool = True,
) -> Callable[[_RouteT], _RouteT]:
    """A route of the one face in its address, or of those in its body. `required`: the body."""
    return router.post(
        path,
        response_model=FaceDecisionAnswer if "{face_id}" in path else FacesDecisionAnswer,
        summary=summary,
        dependencies=[Depends(idempotency_header)],
        responses=problems(*WRITE_ERRORS, MustNotBeRecognised, *errors),
        openapi_extra=json_body(fields, example, required=required),
    )


async def _decided(
    request: Request,
    services: Services,
    fields: BaseModel,
    decide: Callable[[Deciding, Once[_Faces]], Awaitable[_Faces]],
) -> Response:
    render: Callable[[_Faces], BaseModel] = decided_face if "face_id" in request.path_params else decided_faces
    deciding = services.gallery.deciding
    write = once(request, services, fields, render, 200, deciding.collection_id)
    return answer(render(await decide(deciding, write)))


@_decision(
    "/faces/assign-person",
    "Say whose faces these are",
    FacesAssignFields,
    {"face_ids": [_EXAMPLE], "name": "Anna"},
    AmbiguousName,
)
async def assign_faces(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """All of them or none. By `name`: the one person of exactly this name that is not hidden, or a new one."""
    fields = await read_request(request, services, FacesAssignFields)
    return await _decided(
        request, services, fields, lambda by, write: by.assign(fields.face_ids, fields.person, caller.actor, write)
    )


@_decision("/faces/unassign", "Say that nobody has these faces", FacesUnassignFields, {"face_ids": [_EXAMPLE]})
async def unassign_faces(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Clustering leaves them so, unless `release` lets it decide anew."""
    fields = await read_request(request, services, FacesUnassignFields)
    return await _decided(
        request,
        services,
        fields,
        lambda by, write: by.unassign(fields.face_ids, caller.actor, write, release=fields.release),
    )


@_decision("/faces/hide", "Hide faces", FaceIdsOnlyFields, {"face_ids": [_EXAMPLE]})
async def hide_faces(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """They are none, or nobody's business: nobody has them, they are not grouped and not suggested."""
    fields = await read_request(request, services, FaceIdsOnlyFields)
    return await _decided(request, services, fields, lambda by, write: by.hide(fields.face_ids, caller.actor, write))


@_decision("/faces/unhide", "Show hidden faces again", FaceIdsOnlyFields, {"face_ids": [_EXAMPLE]})
async def unhide_faces(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Clustering looks at them anew. Whose they were before, undoing the hiding brings back."""
    fields = await read_request(request, services, FaceIdsOnlyFields)
    return await _decided(request, services, fields, lambda by, write: by.unhide(fields.face_ids, caller.actor, write))


@_decision("/faces/{face_id}/assign-person", "Say whose face this is", AssignFields, {"person_id": _EXAMPLE}, AmbiguousName)
async def assign_face(face_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Clustering leaves it so. A person may be in a photo twice if a user says so."""
    fields = await read_request(request, services, AssignFields)
    return await _decided(
        request, services, fields, lambda by, write: by.assign([face_id], fields.person, caller.actor, write)
    )


@_decision("/faces/{face_id}/unassign", "Say that nobody has this face", UnassignFields, {}, required=False)
async def unassign_face(face_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Clustering leaves it so, unless `release` lets it decide anew."""
    fields = await read_optional(request, services, UnassignFields)
    return await _decided(
        request, services, fields, lambda by, write: by.unassign([face_id], caller.actor, write, release=fields.release)
    )


@_decision(
    "/faces/{face_id}/reject-person", "Say whose face this is not", RejectFields, {"person_id": _EXAMPLE}, required=False
)
async def reject_person(face_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Clustering never gives it to that person. If it had it, clustering looks for another."""
    fields = await read_optional(request, services, RejectFields)
    return await _decided(
        request, services, fields, lambda by, write: by.reject(face_id, fields.person_id, caller.actor, write)
    )


@_decision("/faces/{face_id}/hide", "Hide a face", NothingFields, {}, required=False)
async def hide_face(face_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """It is none, or nobody's business: nobody has it, it is not grouped and not suggested."""
    fields = await read_optional(request, services, NothingFields)
    return await _decided(request, services, fields, lambda by, write: by.hide([face_id], caller.actor, write))


@_decision("/faces/{face_id}/unhide", "Show a hidden face again", NothingFields, {}, required=False)
async def unhide_face(face_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Clustering looks at it anew."""
    fields = await read_optional(request, services, NothingFields)
    return await _decided(request, services, fields, lambda by, write: by.unhide([face_id], caller.actor, write))


@router.get(
    "/faces/{face_id}/suggestions",
    response_model=FaceSuggestionsAnswer,
    summary="Whose face this might be",
    responses=problems(*READ_ERRORS),
)
async def suggest_for_face(face_id: UUID, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> Response:
    """Persons, the most similar first; not the one that has it, nor those whose it is said not to be."""
    found = await services.gallery.library_people.persons_of_face(face_id, limit)
    return answer(FaceSuggestionsAnswer(persons=[suggested_person(one) for one in found]))
