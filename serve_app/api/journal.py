"""The journal: who decided what, and taking it back."""

from __future__ import annotations

import json
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, ServicesDep, answer, read_optional
from serve_app.api.library_answers import entry_answer, entry_detail, undone_answer
from serve_app.api.library_schemas import (
    JournalDetailAnswer,
    JournalPage,
    JournalPersonAnswer,
    NothingFields,
    UndoneAnswer,
)
from serve_app.api.openapi import json_body, problems
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import AlreadyUndone, InvalidCursor, MustNotBeRecognised, NothingToUndo
from serve_app.identity.decisions import Action
from serve_app.services.journal import JournalQuery

router = APIRouter(tags=["journal"])


@router.get("/journal", response_model=JournalPage, summary="List decisions", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_entries(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
    person_id: Annotated[UUID | None, Query(description="Only what is about this person.")] = None,
    face_id: Annotated[UUID | None, Query(description="Only what is about this face.")] = None,
    action: Annotated[Action | None, Query(description="Only this.")] = None,
) -> Response:
    """The newest first, without the faces: an entry may have thousands."""
    key, listing = services.secrets.cursors, f"journal {json.dumps([str(person_id), str(face_id), action])}"
    after = None if cursor is None else UUID(decode_cursor(key, listing, cursor))
    subjects = [one for one in (person_id, face_id) if one is not None]
    found = await services.gallery.journal.page(JournalQuery(after, limit + 1, subjects, action))
    items, more = found[:limit], len(found) > limit
    names = await services.gallery.journal.names(items)
    return answer(
        JournalPage(
            items=[entry_answer(one) for one in items],
            persons=[JournalPersonAnswer(id=person_id, name=name) for person_id, name in names.items()],
            next_cursor=encode_cursor(key, listing, str(items[-1].id)) if more else None,
        )
    )


@router.get(
    "/journal/{journal_id}", response_model=JournalDetailAnswer, summary="A decision", responses=problems(*READ_ERRORS)
)
async def get_entry(journal_id: UUID, services: ServicesDep) -> Response:
    """With every face it changed."""
    return answer(entry_detail(await services.gallery.journal.get(journal_id)))


@router.post(
    "/journal/{journal_id}/undo",
    response_model=UndoneAnswer,
    summary="Undo a decision",
    dependencies=[Depends(idempotency_header)],
    responses=problems(*WRITE_ERRORS, AlreadyUndone, NothingToUndo, MustNotBeRecognised),
    openapi_extra=json_body(NothingFields, {}, required=False),
)
async def undo(journal_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """What it changed is as it was before, where it is still as the decision left it; the rest is `kept`. An undoing is an
    entry of its own: undone, it does the decision again."""
    fields = await read_optional(request, services, NothingFields)
    journal = services.gallery.journal
    write = once(request, services, fields, undone_answer, 200, journal.collection_id)
    return answer(undone_answer(await journal.undo(journal_id, caller.actor, write)))
