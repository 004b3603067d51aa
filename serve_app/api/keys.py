"""API keys: who I am, and keys made, rotated and revoked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from serve_app.access import KeyRecord, Scope, Secret
from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, ServicesDep, answer, read_optional, read_request
from serve_app.api.key_schemas import KeyAnswer, KeyFields, KeyPage, MeAnswer, NewKeyAnswer, RotateFields
from serve_app.api.openapi import json_body, problems
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import (
    DatabaseUnavailable,
    InternalError,
    InvalidCursor,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadError,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedMedia,
)
from serve_app.services.api_keys import NewKey

router = APIRouter(tags=["keys"])

_CHANGE_ERRORS = (Unauthorized, PayloadError, PayloadTooLarge, UnsupportedMedia, InvalidRequest, DatabaseUnavailable,
                  Overloaded, InternalError)  # fmt: skip
_NEVER_KEPT = {"Cache-Control": "no-store"}


@router.get(
    "/me",
    response_model=MeAnswer,
    summary="Whose key is this?",
    responses=problems(Unauthorized, DatabaseUnavailable, InternalError),
)
async def me(services: ServicesDep, caller: CallerDep) -> Response:
    """What the key that asks may do. Any key may ask."""
    return answer(
        MeAnswer(
            key_id=caller.id,
            name=caller.name,
            scopes=[one for one in Scope if one in caller.effective_scopes],
            collections=None if caller.collections is None else sorted(caller.collections),
            library=caller.reaches(services.settings.library_collection),
        )
    )


@router.post(
    "/keys",
    status_code=201,
    response_model=NewKeyAnswer,
    summary="Make a key",
    responses=problems(*_CHANGE_ERRORS),
    openapi_extra=json_body(KeyFields, {"name": "Reception", "scopes": ["read"], "collections": ["employees"]}),
)
async def create_key(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """`key` is told this once: only its hash is kept. So an Idempotency-Key changes nothing here."""
    fields = await read_request(request, services, KeyFields)
    if fields.expires_at is not None and fields.expires_at <= datetime.now(UTC):
        raise InvalidRequest(
            "The key would have expired already.", errors=[{"field": "expires_at", "message": "is in the past"}]
        )
    limited = None if fields.collections is None else frozenset(fields.collections)
    new = NewKey(fields.name, frozenset(fields.scopes), limited, fields.expires_at, fields.rate_limit)
    return _told(*await services.access.keys.create(new, caller.actor), status=201)


@router.get("/keys", response_model=KeyPage, summary="List keys", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_keys(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100, cursor: str | None = None
) -> Response:
    """Ordered by id, without their secrets; expired and revoked ones as well. The key of the environment is not among them."""
    signed = services.secrets.cursors
    after = None if cursor is None else decode_cursor(signed, "keys", cursor)
    found = await services.access.keys.page(after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        KeyPage(
            items=[KeyAnswer.model_validate(_values(one)) for one in items],
            next_cursor=encode_cursor(signed, "keys", items[-1].id) if more else None,
        )
    )


@router.get("/keys/{key_id}", response_model=KeyAnswer, summary="A key", responses=problems(*READ_ERRORS))
async def get_key(key_id: str, services: ServicesDep) -> Response:
    """Without its secret."""
    return answer(KeyAnswer.model_validate(_values(await services.access.keys.get(key_id))))


@router.post(
    "/keys/{key_id}/rotate",
    response_model=NewKeyAnswer,
    summary="Give a key another secret",
    responses=problems(*_CHANGE_ERRORS, NotFound),
    openapi_extra=json_body(RotateFields, {"overlap_s": 86400}, required=False),
)
async def rotate_key(key_id: str, request: Request, services: ServicesDep) -> Response:
    """Both are good for `overlap_s`; the one before these two is not any more. Id, name, scopes and collections stay."""
    fields = await read_optional(request, services, RotateFields)
    return _told(*await services.access.keys.rotate(key_id, timedelta(seconds=fields.overlap_s)), status=200)


@router.delete("/keys/{key_id}", response_model=KeyAnswer, summary="Revoke a key", responses=problems(*READ_ERRORS))
async def revoke_key(key_id: str, services: ServicesDep) -> Response:
    """For good. Every ingress replica refuses it within seconds."""
    return answer(KeyAnswer.model_validate(_values(await services.access.keys.revoke(key_id))))


def _told(record: KeyRecord, secret: Secret, *, status: int) -> Response:
    response = answer(NewKeyAnswer(**_values(record), key=secret.token), status)
    response.headers.update(_NEVER_KEPT)
    return response


def _values(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "scopes": [one for one in Scope if one in record.scopes],
        "collections": None if record.collections is None else sorted(record.collections),
        "rate_limit": record.rate_limit,
        "state": record.state(datetime.now(UTC)),
        "created_at": record.created_at,
        "created_by": record.created_by,
        "rotated_at": record.rotated_at,
        "previous_until": record.previous_until,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
        "last_used_at": record.last_used_at,
    }
