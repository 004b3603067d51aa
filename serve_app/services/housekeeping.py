"""What is done beside the requests: objects of deletions, expired idempotency keys and journal entries, indexes of grown
collections, words of photos that an upgrade found there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from serve_app.errors import CapacityError, ConfigurationError, PartUnavailable
from serve_app.services.erasure import Eraser
from serve_app.services.jobs import tidy_jobs
from serve_app.storage import collections, idempotency, journal, maintenance, photo_words
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectStore

logger = logging.getLogger("ray.serve")

_INTERVAL_S = 20.0
_PAUSE_AFTER_FAILURE_S = 600.0
_READING_S = 10.0
"""Of words, at a time: so many more photos can be found by text."""


class Housekeeping:
    """A task of each ingress replica; what must not be done twice at once is under a lock of the database."""

    def __init__(
        self, database: Database, eraser: Eraser, objects: ObjectStore, journal_kept_for: timedelta, jobs_kept_days: int
    ) -> None:
        self._database = database
        self._eraser = eraser
        self._objects = objects
        self._journal_kept_for = journal_kept_for
        self._jobs_kept_days = jobs_kept_days
        self._prepared = False
        self._failures: dict[int, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._prepare_objects()
        # Apart: an index takes minutes to build, and deletions do not wait for it.
        self._tasks = [asyncio.create_task(self._repeat(work)) for work in self._works()]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    async def once(self) -> None:
        """Raises PartUnavailable, CapacityError."""
        for work in self._works():
            await work()

    def _works(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return (self._sweep, self._maintain, self._read_words, self._tidy_jobs)

    async def _tidy_jobs(self) -> None:
        await tidy_jobs(self._database, self._jobs_kept_days)

    async def _sweep(self) -> None:
        if not self._prepared:
            await self._prepare_objects()
        await self._eraser.sweep()

    async def _read_words(self) -> None:
        # A few hundred photos a transaction: nobody waits for long who wants to change one of them.
        until = time.monotonic() + _READING_S
        while await self._database.run(photo_words.read_some) and time.monotonic() < until:
            pass

    async def _maintain(self) -> None:
        async with self._database.dedicated() as connection, maintenance.only_one(connection) as mine:
            if not mine:
                return
            await idempotency.purge(connection)
            await journal.purge(connection, self._journal_kept_for)
            for collection in await collections.all_collections(connection):
                if self._failures.get(collection.key, 0) > time.monotonic():
                    continue
                try:
                    mode = await maintenance.choose_search_mode(connection, collection)
                except maintenance.MaintenanceFailed as error:
                    # The others do not wait for it, and it is not tried at full cost every time.
                    logger.error("collection %s: %s", collection.id, error)
                    self._failures[collection.key] = time.monotonic() + _PAUSE_AFTER_FAILURE_S
                    continue
                if mode != collection.search_mode:
                    logger.info("collection %s is now searched by %s", collection.id, mode)

    async def _prepare_objects(self) -> None:
        """Makes the bucket. The object store may come up after us; until then what needs it is a 503."""
        try:
            await self._objects.prepare()
            self._prepared = True
        except ConfigurationError as error:
            logger.warning("object store: %s", error)

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            try:
                await work()
            except (PartUnavailable, CapacityError) as error:
                logger.warning("housekeeping is put off: %s", error.detail)
            except Exception:
                # The loop must outlive what nobody foresaw; without it, deletions would wait for a restart.
                logger.exception("housekeeping failed")
