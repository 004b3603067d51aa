"""Jobs: asked for, looked at, cancelled, tried again."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, ServicesDep, answer, read_optional, same_caller
from serve_app.api.job_schemas import (
    IndexFields,
    JobAnswer,
    JobDetailAnswer,
    JobItemPage,
    JobPage,
    NoFields,
    item_answer,
    job_answer,
    job_detail_answer,
)
from serve_app.api.openapi import json_body, problems
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import InvalidCursor, ModelUnavailable
from serve_app.jobs import ItemState, Job, JobFilter, JobKind, JobState

router = APIRouter(tags=["jobs"])
_write = [Depends(idempotency_header)]
_LOOK_S = 2.0
"""Whether the key is still good: a revoked one does not look on."""
_SILENCE_S = 10.0
"""Proxies close a connection over which nothing comes; and what is never written to is never found to be closed."""
_MAX_STREAM_S = 300.0
"""Then a client connects again, perhaps to another replica: none is kept from ending for longer."""


@router.post(
    "/index/faces",
    status_code=202,
    response_model=JobAnswer,
    summary="Find the faces in photos",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
    openapi_extra=json_body(IndexFields, {"filter": {"folder": "Italy/Rome"}, "only_new": False}),
)
async def index_faces(request: Request, services: ServicesDep) -> Response:
    """A job with an item for each photo: all, those of `photo_ids`, or those that fit `filter`. Faces that are found again
    keep their ids, their persons and all that was decided of them."""
    return await _index(request, services, JobKind.FACES)


@router.post(
    "/index/embeddings",
    status_code=202,
    response_model=JobAnswer,
    summary="Make photos searchable by what they show",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, ModelUnavailable),
    openapi_extra=json_body(IndexFields, {}),
)
async def index_embeddings(request: Request, services: ServicesDep) -> Response:
    """A job with an item for each photo, as of `index/faces`: its embedding by the image-text model."""
    return await _index(request, services, JobKind.EMBEDDINGS)


@router.post(
    "/index/faces-cluster",
    status_code=202,
    response_model=JobAnswer,
    summary="Group the faces of the library anew",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def index_cluster(request: Request, services: ServicesDep) -> Response:
    """A job with one item. What users have decided stays."""
    fields = await read_optional(request, services, NoFields)
    jobs = services.gallery.jobs
    write = once(request, services, fields, job_answer, 202, jobs.collection_id)
    return answer(job_answer(await jobs.of_library(JobKind.CLUSTER, write)), 202)


async def _index(request: Request, services: ServicesDep, kind: JobKind) -> Response:
    fields = await read_optional(request, services, IndexFields)
    jobs = services.gallery.jobs
    write = once(request, services, fields, job_answer, 202, jobs.collection_id)
    return answer(job_answer(await jobs.of_photos(kind, fields.choice(), write)), 202)


@router.get("/jobs", response_model=JobPage, summary="List jobs", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_jobs(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: str | None = None,
    state: Annotated[list[JobState], Query(max_length=5, description="Several: any of them.")] = [],  # noqa: B006
    kind: Annotated[list[JobKind], Query(max_length=4, description="Several: any of them.")] = [],  # noqa: B006
    automatic: Annotated[bool | None, Query(description="Only those the service made itself, or only others.")] = None,
) -> Response:
    """Newest first. What ended longer ago than JOBS_RETENTION_DAYS is gone."""
    wanted = JobFilter(tuple(sorted(set(state))), tuple(sorted(set(kind))), automatic)
    key, listing = services.secrets.cursors, f"jobs {json.dumps([wanted.states, wanted.kinds, automatic])}"
    after = None if cursor is None else UUID(decode_cursor(key, listing, cursor))
    found = await services.gallery.jobs.page(wanted, after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        JobPage(
            items=[job_answer(job) for job in items],
            next_cursor=encode_cursor(key, listing, str(items[-1].id)) if more else None,
        )
    )


@router.get("/jobs/{job_id}", response_model=JobDetailAnswer, summary="A job", responses=problems(*READ_ERRORS))
async def get_job(job_id: UUID, services: ServicesDep) -> Response:
    """How far it is, how fast, and what failed last."""
    return answer(job_detail_answer(await services.gallery.jobs.get(job_id)))


@router.get(
    "/jobs/{job_id}/items",
    response_model=JobItemPage,
    summary="The items of a job",
    responses=problems(*READ_ERRORS, InvalidCursor),
)
async def list_items(
    job_id: UUID,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
    state: Annotated[list[ItemState], Query(max_length=6, description="Several: any of them.")] = [],  # noqa: B006
) -> Response:
    """In the order they were added; `state=failed` for those that failed, each with its reason."""
    states = sorted(set(state))
    key, listing = services.secrets.cursors, f"job items {job_id} {json.dumps(states)}"
    after = None if cursor is None else int(decode_cursor(key, listing, cursor))
    found = await services.gallery.jobs.items(job_id, states, after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        JobItemPage(
            items=[item_answer(item) for item in items],
            next_cursor=encode_cursor(key, listing, str(items[-1].id)) if more else None,
        )
    )


@router.post(
    "/jobs/{job_id}/cancel",
    response_model=JobAnswer,
    summary="Cancel a job",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def cancel_job(job_id: UUID, request: Request, services: ServicesDep) -> Response:
    """What is done stays done; of what is in the middle nothing is kept. A job that is over stays as it is."""
    fields = await read_optional(request, services, NoFields)
    jobs = services.gallery.jobs
    write = once(request, services, fields, job_answer, 200, jobs.collection_id)
    return answer(job_answer(await jobs.cancel(job_id, write)))


@router.post(
    "/jobs/{job_id}/retry-failed",
    status_code=202,
    response_model=JobAnswer,
    summary="Do what failed again",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def retry_failed(job_id: UUID, request: Request, services: ServicesDep) -> Response:
    """The job goes on with the items that failed; without any it stays as it is."""
    fields = await read_optional(request, services, NoFields)
    jobs = services.gallery.jobs
    write = once(request, services, fields, job_answer, 202, jobs.collection_id)
    return answer(job_answer(await jobs.retry_failed(job_id, write)), 202)


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    summary="Look on while a job is done",
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **problems(*READ_ERRORS),
    },
)
async def job_events(job_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Server-sent events: `progress` with the job whenever something has changed, at most once a second; `end` with the job
    when it is over, and nothing after it. The stream ends after five minutes all the same: connect again. It ends within
    seconds of the key: revoked, expired, rotated, or limited to other collections."""
    stack = AsyncExitStack()
    # Entered here, so that what is refused is refused with a status.
    changes = await stack.enter_async_context(services.gallery.job_watch.watch(job_id, _LOOK_S))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _EventStream(stack, _events(changes, lambda: same_caller(request, services, caller)), headers=headers)


class _EventStream(StreamingResponse):
    """Leaves what was entered for it, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, entered: AsyncExitStack, events: AsyncIterator[str], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers)
        self._entered = entered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._entered:
            await super().__call__(scope, receive, send)


async def _events(changes: AsyncIterator[Job | None], allowed: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
    said_at = time.monotonic()
    ends_at = said_at + _MAX_STREAM_S
    # A client that lost the connection waits so long.
    yield "retry: 2000\n\n"
    async for job in changes:
        if not await allowed():
            return
        if job is None:
            if time.monotonic() < said_at + _SILENCE_S:
                continue
            yield ": still there\n\n"
        else:
            yield f"event: {'progress' if job.state.open else 'end'}\ndata: {job_answer(job).model_dump_json()}\n\n"
        said_at = time.monotonic()
        if said_at > ends_at:
            return
