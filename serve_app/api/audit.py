"""The audit log."""

from __future__ import annotations

import json
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, ServicesDep, answer
from serve_app.api.key_schemas import AuditLineAnswer, AuditPage, Moment
from serve_app.api.openapi import problems
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import InvalidCursor
from serve_app.services.audit_log import AuditLog
from serve_app.storage.audit import AuditFilter, Written

router = APIRouter(tags=["audit"])

_Word = Annotated[str | None, Query(max_length=64, pattern=r"^[\x21-\x7e]+$")]


@router.get("/audit", response_model=AuditPage, summary="Who did what", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_audit(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
    key_id: _Word = None,
    action: _Word = None,
    collection_id: _Word = None,
    since: Annotated[Moment | None, Query(description="At or after it.")] = None,
    until: Annotated[Moment | None, Query(description="Before it.")] = None,
) -> Response:
    """Searches, and changes of what is known of persons; the newest first. Whom a search was for, and whom it found, is not
    told: only how many. A key that is limited to collections sees what was about these."""
    wanted = AuditFilter(key_id, action, collection_id, since, until, caller.collections)
    signed = services.secrets.cursors
    listing = f"audit {json.dumps([key_id, action, collection_id, str(since), str(until)])}"
    after = None if cursor is None else UUID(decode_cursor(signed, listing, cursor))
    # On a connection of requests: a long search of the log must not be what nobody's key can be looked up for.
    found = await AuditLog(services.gallery.database).page(wanted, after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        AuditPage(
            items=[_line(one) for one in items],
            next_cursor=encode_cursor(signed, listing, str(items[-1].id)) if more else None,
        )
    )


def _line(written: Written) -> AuditLineAnswer:
    line = written.line
    return AuditLineAnswer(
        id=written.id,
        at=written.at,
        key_id=line.key_id,
        key_name=line.key_name,
        action=line.action,
        collection_id=line.collection_id,
        status=line.status,
        results=line.results,
        requests=line.requests,
    )
