"""Looking on while a job is done: one look at the database a second, however many look on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from serve_app.errors import RETRY_AFTER_S, CapacityError, NotFound, Overloaded, PartUnavailable
from serve_app.jobs import Job
from serve_app.services.jobs import Jobs

logger = logging.getLogger("ray.serve")

MAX_WATCHERS = 64
"""Of a replica."""
_INTERVAL_S = 1.0


class _Watched:
    """A job that somebody looks at. `job`: the last look; None when it is gone."""

    def __init__(self, job: Job) -> None:
        self.job: Job | None = job
        self.watchers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def tell(self, job: Job | None) -> None:
        self.job = job
        # Whoever waits has the old event; whoever comes waits for the next change.
        event, self.changed = self.changed, asyncio.Event()
        event.set()


class JobWatch:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._watched: dict[UUID, _Watched] = {}
        self._watchers = 0

    async def close(self) -> None:
        for watched in list(self._watched.values()):
            if watched.task is not None:
                watched.task.cancel()
            watched.tell(None)

    @asynccontextmanager
    async def watch(self, job_id: UUID, silence_s: float) -> AsyncIterator[AsyncIterator[Job | None]]:
        """The job as it is, and again whenever it has changed, until it is over or gone. None whenever nothing has happened
        for so long. Raises NotFound, Overloaded, DatabaseUnavailable, before anything."""
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded("Too many clients look at jobs.", retry_after_s=RETRY_AFTER_S)
        self._watchers += 1
        try:
            first = await self._jobs.progress(job_id)
            watched = self._watched.get(job_id)
            if watched is None or watched.job is None or not watched.job.state.open:
                # Of a job that was over and goes on, nobody looks any more.
                watched = self._watched[job_id] = _Watched(first)
            watched.watchers += 1
            if watched.task is None and first.state.open:
                watched.task = asyncio.create_task(self._look(job_id, watched))
            try:
                yield _changes(watched, first, silence_s)
            finally:
                watched.watchers -= 1
                if watched.watchers == 0:
                    # The last one takes it away; nobody else looks.
                    if self._watched.get(job_id) is watched:
                        del self._watched[job_id]
                    if watched.task is not None:
                        watched.task.cancel()
        finally:
            self._watchers -= 1

    async def _look(self, job_id: UUID, watched: _Watched) -> None:
        while watched.job is not None and watched.job.state.open:
            await asyncio.sleep(_INTERVAL_S)
            try:
                job = await self._jobs.progress(job_id)
            except NotFound:
                watched.tell(None)
                return
            except (PartUnavailable, CapacityError) as error:
                logger.warning("jobs are not looked at: %s", error.detail)
                continue
            watched.tell(job)


async def _changes(watched: _Watched, first: Job, silence_s: float) -> AsyncIterator[Job | None]:
    shown, said_at = first, time.monotonic()
    yield shown
    while shown.state.open:
        changed, job = watched.changed, watched.job
        if job is None:
            return
        if job != shown:
            shown, said_at = job, time.monotonic()
            yield shown
            continue
        try:
            await asyncio.wait_for(changed.wait(), max(0.0, said_at + silence_s - time.monotonic()))
        except TimeoutError:
            said_at = time.monotonic()
            yield None
