"""Erasure: what a deletion removed, and the objects that are deleted after it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from serve_app.errors import DatabaseUnavailable, ObjectStoreUnavailable, Overloaded
from serve_app.people import Erased
from serve_app.services.writing import Once
from serve_app.storage import objects_outbox
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectStore

logger = logging.getLogger("ray.serve")

_BATCH = 500
_AT_ONCE = 1000
"""Objects that a request waits for; more are left to housekeeping."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Counts of what was removed. `remaining_rows`: rows of it that a second look after the deletion still found; 0.
    `objects_pending`: pictures and crops that are unreachable already, and deleted as soon as
    the object store answers; counted anew after the deletion."""

    collections: int
    persons: int
    faces: int
    embeddings: int
    templates: int
    images: int
    crops: int
    photos: int
    remaining_rows: int
    objects_pending: int
    object_keys: tuple[str, ...] = field(default=(), repr=False)

    @staticmethod
    def of(erased: Erased, remaining_rows: int, *, collections: int = 0) -> Receipt:
        return Receipt(
            collections,
            erased.persons,
            erased.faces,
            erased.embeddings,
            erased.templates,
            erased.images,
            erased.crops,
            erased.photos,
            remaining_rows,
            len(erased.object_keys),
            erased.object_keys,
        )


class Eraser:
    """Deletes the objects of the outbox."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self._objects = objects

    async def finish(self, receipt: Receipt, once: Once[Receipt]) -> Receipt:
        """Deletes the receipt's objects and looks again. The deletion is committed: what fails here, or is too much for one
        request, is only put off."""
        if not receipt.object_keys:
            return receipt
        try:
            if len(receipt.object_keys) <= _AT_ONCE:
                await self._delete(receipt.object_keys)
            async with self._database.connection() as connection:
                pending = await objects_outbox.still_pending(connection, receipt.object_keys)
            receipt = replace(receipt, objects_pending=pending)
            await once.amend(self._database, receipt)
        except (ObjectStoreUnavailable, DatabaseUnavailable, Overloaded) as error:
            logger.warning("objects of a deletion remain for later: %s", error.detail)
        return receipt

    async def sweep(self) -> int:
        """Deletes what waits in the outbox; returns how many. Raises ObjectStoreUnavailable, DatabaseUnavailable."""
        total = 0
        while True:
            async with self._database.connection() as connection:
                keys = await objects_outbox.waiting(connection, _BATCH)
            if not keys:
                return total
            try:
                await self._delete(keys)
                total += len(keys)
            except ObjectStoreUnavailable:
                # Down, or unwilling to part with one of them? `check` raises in the first case.
                await self._objects.check()
                total += await self._delete_each(keys)

    async def erase_prefix(self, prefix: str) -> int:
        """Deletes what enrolments that were broken off have left below a deleted collection's prefix; returns how many."""
        keys = [info.key async for info in self._objects.list(prefix)]
        await self._objects.delete_many(keys)
        return len(keys)

    async def _delete(self, keys: Sequence[str]) -> None:
        """Nothing while a backup runs."""
        async with self._database.connection() as connection:
            if await objects_outbox.backup_runs(connection):
                return
        await self._objects.delete_many(keys)
        async with self._database.connection() as connection:
            await objects_outbox.done(connection, keys)

    async def _delete_each(self, keys: Sequence[str]) -> int:
        """One by one; those the store will not delete go to the end of the queue, for an hour."""
        refused = []
        for key in keys:
            try:
                await self._objects.delete(key)
            except ObjectStoreUnavailable as error:
                logger.warning("object %s cannot be deleted: %s", key, error.detail)
                refused.append(key)
        async with self._database.connection() as connection:
            await objects_outbox.postpone(connection, refused)
            await objects_outbox.done(connection, [key for key in keys if key not in set(refused)])
        return len(keys) - len(refused)
