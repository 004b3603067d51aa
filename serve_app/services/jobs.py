"""Jobs, for those who ask for them and look at them. They are worked off elsewhere: services/worker.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.jobs import ItemState, Job, JobFilter, JobItem, JobKind
from serve_app.photos import PhotoFilter
from serve_app.services.collections import Collections
from serve_app.services.photos import COLLECTION_NAME
from serve_app.services.writing import Once
from serve_app.storage import collections, jobs, photo_choice, queue
from serve_app.storage.database import Connection, Database

_LAST_FAILURES = 5
_TIDIED_AT_ONCE = 1_000


class Backlog(Protocol):
    """What a kind of job has not been done to yet."""

    def check(self) -> None:
        """Raises ModelUnavailable where such a job cannot be done at all."""
        ...

    async def without(self, tx: Connection, collection: Collection) -> list[UUID]: ...


@dataclass(frozen=True, slots=True)
class NotIndexed:
    """A Backlog: photos whose faces have not been looked for with what is loaded."""

    indexed_with: str

    def check(self) -> None:
        return None

    async def without(self, tx: Connection, collection: Collection) -> list[UUID]:
        return await photo_choice.not_indexed_with(tx, collection, self.indexed_with)


@dataclass(frozen=True, slots=True)
class Choice:
    """The photos a job is about: these, or those that fit, or all. `only_new`: of them, those it was not done to."""

    photo_ids: tuple[UUID, ...] | None = None
    filter: PhotoFilter | None = None
    only_new: bool = True


@dataclass(frozen=True, slots=True)
class JobDetail:
    job: Job
    last_failures: list[JobItem]


class Jobs:
    """Every method raises DatabaseUnavailable and Overloaded, and NotFound for a job that is not there."""

    def __init__(
        self, database: Database, library: Collections, collection_id: str, backlogs: Mapping[JobKind, Backlog]
    ) -> None:
        self._database = database
        self._library = library
        self._backlogs = backlogs
        self.collection_id = collection_id

    async def of_photos(self, kind: JobKind, choice: Choice, once: Once[Job]) -> Job:
        """A job of photos of the library. Raises NotFound for a photo that is not there, ModelUnavailable, Replayed,
        IdempotencyKeyReused."""
        backlog = self._backlogs[kind]
        backlog.check()
        await self._library.ensure(self.collection_id, COLLECTION_NAME)

        async def work(tx: Connection) -> Job:
            collection = await collections.lock(tx, self.collection_id)
            chosen = await _chosen(tx, collection, choice)
            if choice.only_new:
                lacking = set(await backlog.without(tx, collection))
                chosen = [photo_id for photo_id in chosen if photo_id in lacking]
            subjects = [str(photo_id) for photo_id in chosen]
            return await jobs.create(tx, collection, kind, {"only_new": choice.only_new}, subjects)

        return await once.run(self._database, work)

    async def of_library(self, kind: JobKind, once: Once[Job]) -> Job:
        """A job of the library as a whole. Raises Replayed, IdempotencyKeyReused."""
        await self._library.ensure(self.collection_id, COLLECTION_NAME)

        async def work(tx: Connection) -> Job:
            return await jobs.create(tx, await collections.lock(tx, self.collection_id), kind, {}, [""])

        return await once.run(self._database, work)

    async def get(self, job_id: UUID) -> JobDetail:
        async with self._database.connection() as connection:
            job = await jobs.get(connection, job_id)
            return JobDetail(job, await jobs.last_failures(connection, job_id, _LAST_FAILURES))

    async def progress(self, job_id: UUID) -> Job:
        async with self._database.connection() as connection:
            return await jobs.get(connection, job_id)

    async def page(self, wanted: JobFilter, after: UUID | None, limit: int) -> list[Job]:
        async with self._database.connection() as connection:
            return await jobs.page(connection, wanted, after, limit)

    async def items(self, job_id: UUID, states: Sequence[ItemState], after: int | None, limit: int) -> list[JobItem]:
        async with self._database.connection() as connection:
            await jobs.get(connection, job_id)
            return await jobs.items(connection, job_id, states, after, limit)

    async def cancel(self, job_id: UUID, once: Once[Job]) -> Job:
        """What is not done by now is not done any more. A job that is over stays as it is."""
        return await once.run(self._database, lambda tx: jobs.cancel(tx, job_id))

    async def retry_failed(self, job_id: UUID, once: Once[Job]) -> Job:
        """The items that failed are done again. Without any, the job stays as it is."""
        return await once.run(self._database, lambda tx: jobs.retry_failed(tx, job_id))


async def tidy_jobs(database: Database, kept_days: int) -> None:
    """For housekeeping: old jobs go; what is open though all of it has ended is closed; what the queue lost is put back."""
    async with database.connection() as connection:
        await queue.tidy(connection)
        while await jobs.purge(connection, kept_days):
            pass
        still_open = await jobs.open_jobs(connection)
    for job_id in still_open[:_TIDIED_AT_ONCE]:
        await database.run(partial(jobs.settle, job_id=job_id))
    await database.run(jobs.requeue_lost)


async def _chosen(tx: Connection, collection: Collection, choice: Choice) -> list[UUID]:
    if choice.photo_ids is not None:
        return await photo_choice.named(tx, collection, choice.photo_ids)
    if choice.filter is not None:
        return await photo_choice.fitting(tx, collection, choice.filter)
    return await photo_choice.every(tx, collection)
