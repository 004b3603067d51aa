"""Erasure: what a deletion removed, and the objects that are deleted after it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import cast

from serve_app.errors import DatabaseUnavailable, ObjectStoreUnavailable, Overloaded
from serve_app.identity.people import Erased
from serve_app.services.writing import Once
from serve_app.storage import objects_outbox
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectInfo, ObjectStore

logger = logging.getLogger("ray.serve")

_BATCH = 500
_AT_ONCE = 1000
"""Objects that a request waits for; more are left to housekeeping."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Counts of what was removed. `remaining_rows`: rows of it that a second look after the deletion still found; 0.
    `objects_pending`: pictures and crops that are unreachable already, and deleted as soon as
    the object store answers; counted anew after the deletion. What lies in a collection beside them counts as one."""

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
                await self._delete(receipt.object_keys, most=_AT_ONCE)
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
                total += await self._delete(keys)
            except ObjectStoreUnavailable:
                # Down, or unwilling to part with one of them? `check` raises in the first case.
                await self._objects.check()
                total += await self._delete_each(keys)

    async def _delete(self, keys: Sequence[str], most: int | None = None) -> int:
        """Keys, and what lies below those that are prefixes, at most `most` objects below each; returns how many. Nothing
        while a backup runs."""
        async with self._database.connection() as connection:
            if await objects_outbox.backup_runs(connection):
                return 0
        named = [key for key in keys if not _is_prefix(key)]
        await self._objects.delete_many(named)
        async with self._database.connection() as connection:
            await objects_outbox.done(connection, named)
        total = len(named)
        for prefix in filter(_is_prefix, keys):
            # A backup that begins now has no row of the collection: nothing of it is needed.
            count, empty = await self._empty(prefix, most)
            total += count
            async with self._database.connection() as connection:
                if empty:
                    await objects_outbox.done(connection, [prefix])
                elif most is None:
                    logger.warning("objects below %s are still listed after they were deleted", prefix)
                    await objects_outbox.postpone(connection, [prefix])
        return total

    async def _empty(self, prefix: str, most: int | None) -> tuple[int, bool]:
        """Deletes what lies below `prefix`, at most `most` objects: how many, and whether a further look found nothing."""
        total = 0
        deleted: set[str] = set()
        while page := await self._page(prefix):
            if deleted.issuperset(page) or (most is not None and total + len(page) > most):
                return total, False
            await self._objects.delete_many(page)
            total += len(page)
            deleted = set(page)
        return total, True

    async def _page(self, prefix: str) -> list[str]:
        keys: list[str] = []
        # Every store's listing is a generator; one that is left early is closed here, not some time later.
        async with aclosing(cast("AsyncGenerator[ObjectInfo, None]", self._objects.list(prefix))) as listing:
            async for info in listing:
                keys.append(info.key)
                if len(keys) >= _BATCH:
                    break
        return keys

    async def _delete_each(self, keys: Sequence[str]) -> int:
        """One by one; those the store will not delete go to the end of the queue, for an hour."""
        refused = set()
        total = 0
        for key in keys:
            async for one in self._named_by(key):
                if await self._deleted(one):
                    total += 1
                else:
                    refused.add(key)
            if _is_prefix(key) and await self._page(key):
                refused.add(key)
        async with self._database.connection() as connection:
            await objects_outbox.postpone(connection, [*refused])
            await objects_outbox.done(connection, [key for key in keys if key not in refused])
        return total

    async def _named_by(self, key: str) -> AsyncIterator[str]:
        if not _is_prefix(key):
            yield key
            return
        async for info in self._objects.list(key):
            yield info.key

    async def _deleted(self, key: str) -> bool:
        try:
            await self._objects.delete(key)
        except ObjectStoreUnavailable as error:
            logger.warning("object %s cannot be deleted: %s", key, error.detail)
            return False
        return True


def _is_prefix(key: str) -> bool:
    return key.endswith("/")
