"""Is this the same person? The questions that the library has for people."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import ServicesDep, admitted, answer, bounded
from serve_app.api.face_schemas import library_face_answer
from serve_app.api.library_answers import person_answer
from serve_app.api.library_schemas import QuestionAnswer, QuestionPage
from serve_app.api.openapi import problems
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import DeadlineExceeded, InvalidCursor
from serve_app.services.review_queue import Place, Question
from serve_app.storage.review_queue import Kind

router = APIRouter(tags=["library persons"])

_LISTING = "review"


@router.get(
    "/review",
    response_model=QuestionPage,
    summary="Ask whether these are the same",
    # Each page compares hundreds of faces with everybody.
    dependencies=[Depends(admitted)],
    responses=problems(*READ_ERRORS, InvalidCursor, DeadlineExceeded),
)
async def list_questions(
    request: Request,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=200, description="So many groups, or faces, are looked at.")] = 200,
    cursor: str | None = None,
) -> Response:
    """Groups without a name first, then faces that nobody has, each with the person it may be: in a page the most similar
    first. There is not one of each that is looked at, so a page may be short, or empty, and not the last. Answer with the
    decisions on persons and faces; a question that was answered does not come again."""
    key = services.secrets.cursors
    place = None
    if cursor is not None:
        kind, _, last = decode_cursor(key, _LISTING, cursor).partition(" ")
        place = Place(Kind(kind), UUID(last))

    async def work() -> Response:
        found, then = await services.gallery.review_queue.page(place, limit)
        return answer(
            QuestionPage(
                items=[_question(one) for one in found],
                next_cursor=None if then is None else encode_cursor(key, _LISTING, f"{then.kind} {then.after}"),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


def _question(one: Question) -> QuestionAnswer:
    return QuestionAnswer(
        group=None if one.group is None else person_answer(one.group),
        face=None if one.face is None else library_face_answer(one.face),
        person=person_answer(one.person),
        face_id=one.face_id,
        similarity=one.similarity,
        decision=one.decision,
    )
