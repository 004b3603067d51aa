"""What is done beside the requests: objects of deletions, expired idempotency keys, indexes of grown collections."""

from __future__ import annotations

import asyncio
import logging

from serve_app.errors import CapacityError, ConfigurationError, PartUnavailable
from serve_app.services.erasure import Eraser
from serve_app.storage import collections, idempotency, maintenance
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectStore

logger = logging.getLogger("ray.serve")

_INTERVAL_S = 20.0


class Housekeeping:
    """A task of each ingress replica; what must not be done twice at once is under a lock of the database."""

    def __init__(self, database: Database, eraser: Eraser, objects: ObjectStore) -> None:
        self._database = database
        self._eraser = eraser
        self._objects = objects
        self._prepared = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._prepare_objects()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def once(self) -> None:
        """Raises PartUnavailable, CapacityError."""
        await self._eraser.sweep()
        async with self._database.dedicated() as connection, maintenance.only_one(connection) as mine:
            if not mine:
                return
            await idempotency.purge(connection)
            for collection in await collections.all_collections(connection):
                before = collection.search_mode
                after = await maintenance.choose_search_mode(connection, collection)
                if after != before:
                    logger.info("collection %s is now searched by %s", collection.id, after)

    async def _prepare_objects(self) -> None:
        """Makes the bucket. The object store may come up after us; until then what needs it is a 503."""
        try:
            await self._objects.prepare()
            self._prepared = True
        except ConfigurationError as error:
            logger.warning("object store: %s", error)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            if not self._prepared:
                await self._prepare_objects()
            try:
                await self.once()
            except (PartUnavailable, CapacityError) as error:
                logger.warning("housekeeping is put off: %s", error.detail)
            except Exception:
                # The loop must outlive what nobody foresaw; without it, deletions would wait for a restart.
                logger.exception("housekeeping failed")
