"""The shapes of jobs, in requests and answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator, Field, model_validator

from serve_app.api.person_fields import Moment
from serve_app.api.photo_schemas import MAX_PERSONS, MAX_TAGS_WANTED, Folder, Tags
from serve_app.api.schemas import Answer, RequestModel, bounded_list
from serve_app.jobs import ItemError, ItemState, Job, JobItem, JobKind, JobState
from serve_app.photos import PersonsMatch, PhotoFilter
from serve_app.services.jobs import Choice, JobDetail

MAX_PHOTO_IDS = 5_000
"""Of one request."""


class JobFilterFields(RequestModel):
    """As the listing of photos filters. All must hold."""

    person_id: Annotated[tuple[UUID, ...], BeforeValidator(bounded_list(MAX_PERSONS))] = ()
    persons: PersonsMatch = PersonsMatch.ANY
    tag: Annotated[Tags, Field(max_length=MAX_TAGS_WANTED)] = ()
    untagged: bool = False
    taken_from: Moment | None = None
    taken_to: Moment | None = None
    folder: Folder | None = None


class IndexFields(RequestModel):
    """Which photos: `photo_ids`, or those that fit `filter`; without either, all."""

    photo_ids: Annotated[tuple[UUID, ...], BeforeValidator(bounded_list(MAX_PHOTO_IDS))] | None = Field(
        None, description=f"At most {MAX_PHOTO_IDS}."
    )
    filter: JobFilterFields | None = None
    only_new: bool = Field(True, description="Leave out what has been done already, with the models that are loaded.")

    @model_validator(mode="after")
    def _one_way(self) -> IndexFields:
        if self.photo_ids is not None and self.filter is not None:
            raise ValueError("give either `photo_ids` or `filter`")
        return self

    def choice(self) -> Choice:
        found = self.filter
        if found is None:
            return Choice(self.photo_ids, None, self.only_new)
        wanted = PhotoFilter(
            person_ids=tuple(sorted(set(found.person_id))),
            persons=found.persons,
            tags=found.tag,
            untagged=found.untagged,
            taken_from=found.taken_from,
            taken_to=found.taken_to,
            folder=found.folder,
        )
        return Choice(None, wanted, self.only_new)


class NoFields(RequestModel):
    """A body that says nothing."""


class JobErrorAnswer(Answer):
    code: str = Field(examples=["invalid_image"])
    detail: str
    details: dict[str, Any]


class JobProgressAnswer(Answer):
    """Items, by what became of them; `remaining` are still to be done."""

    total: int
    done: int
    failed: int
    skipped: int
    cancelled: int
    remaining: int
    rate_per_s: float | None = Field(description="Items a second, of late; null before any has ended.")
    eta_s: float | None = Field(description="Seconds to go at that rate; null where that cannot be said.")


class JobAnswer(Answer):
    """`state`: `done` when nothing is left to do, even if items failed; `failed` when all of them did. `delayed`: why nothing
    is being done just now, where something is waited for."""

    job_id: UUID = Field(examples=["01a2016f-e451-7e79-a29b-b57179f56dd8"])
    collection_id: str = Field(examples=["library"])
    kind: JobKind
    state: JobState
    automatic: bool = Field(description="Made by the service itself, of photos that were uploaded.")
    options: dict[str, Any]
    progress: JobProgressAnswer
    delayed: JobErrorAnswer | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobItemAnswer(Answer):
    """`subject`: a photo's id, a path, or empty; empty as well where the photo was erased. `error`: why it failed, or why it
    is tried again."""

    id: int
    subject: str
    state: ItemState
    attempts: int = Field(description="How often it was begun.")
    error: JobErrorAnswer | None
    started_at: datetime | None
    finished_at: datetime | None


class JobDetailAnswer(JobAnswer):
    last_failures: list[JobItemAnswer] = Field(description="Up to 5 items that failed, the newest first.")


class JobPage(Answer):
    items: list[JobAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class JobItemPage(Answer):
    items: list[JobItemAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


def job_answer(job: Job) -> JobAnswer:
    progress = job.progress
    return JobAnswer(
        job_id=job.id,
        collection_id=job.collection_id,
        kind=job.kind,
        state=job.state,
        automatic=job.automatic,
        options=dict(job.options),
        progress=JobProgressAnswer(
            total=progress.total,
            done=progress.done,
            failed=progress.failed,
            skipped=progress.skipped,
            cancelled=progress.cancelled,
            remaining=progress.remaining,
            rate_per_s=None if progress.rate_per_s is None else round(progress.rate_per_s, 3),
            eta_s=None if progress.eta_s is None else round(progress.eta_s, 1),
        ),
        delayed=error_answer(job.delayed),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def job_detail_answer(detail: JobDetail) -> JobDetailAnswer:
    failures = [item_answer(item) for item in detail.last_failures]
    return JobDetailAnswer(**dict(job_answer(detail.job)), last_failures=failures)


def item_answer(item: JobItem) -> JobItemAnswer:
    return JobItemAnswer(
        id=item.id,
        subject=item.subject,
        state=item.state,
        attempts=item.attempts,
        error=error_answer(item.error),
        started_at=item.started_at,
        finished_at=item.finished_at,
    )


def error_answer(error: ItemError | None) -> JobErrorAnswer | None:
    return None if error is None else JobErrorAnswer(code=error.code, detail=error.detail, details=dict(error.details))
