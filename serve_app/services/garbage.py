"""`kinlens gc`: objects that no row names, and rows whose object is not there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from serve_app.storage import object_rows, objects_outbox
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectInfo, ObjectStore

_PREFIX = "collections/"
_OURS = re.compile(r"collections/[0-9]+/(originals|crops|thumbnails|face-thumbnails)/.+")
"""What rows name, or belongs to what they name. Anything else is not judged by rows, and left alone: another version's, or
another program's."""
_BATCH = 1000
_LOOKS = 16
"""Objects asked for at once: as many as the stores have threads."""
_KEPT = 100
"""Keys of each kind that a report names."""


@dataclass(slots=True)
class Garbage:
    """`objects`: that were looked at. `orphans`: that nothing names, older than the time of grace; `orphan_bytes`: their
    size. `young`: that nothing names yet. `unknown`: of no kind this version knows. `deleted`: of the orphans. `rows`: that
    name an object; `dangling`: of these, whose object is missing. The lists name the first hundred."""

    objects: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    young: int = 0
    unknown: int = 0
    deleted: int = 0
    rows: int = 0
    dangling: int = 0
    orphan_keys: list[str] = field(default_factory=list)
    dangling_keys: list[str] = field(default_factory=list)


class GarbageCollector:
    """Holds a thousand keys at a time, however many there are. Every method raises DatabaseUnavailable and
    ObjectStoreUnavailable."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self._objects = objects

    async def find_orphans(self, grace: timedelta, *, delete: bool = False) -> Garbage:
        """Objects that no row and no pending deletion names, `delete`d if so wished.

        An object is put before its row: `grace` must be longer than any request takes, and than the clocks of the
        machines differ.
        """
        found = Garbage()
        before = datetime.now(UTC) - grace
        async for batch in _batches(self._objects.list(_PREFIX)):
            found.objects += len(batch)
            ours = [info for info in batch if _OURS.fullmatch(info.key)]
            found.unknown += len(batch) - len(ours)
            async with self._database.connection() as connection:
                known = await objects_outbox.known_keys(connection, [info.key for info in ours])
            unnamed = [info for info in ours if info.key not in known]
            orphans = [info for info in unnamed if info.modified_at < before]
            found.young += len(unnamed) - len(orphans)
            found.orphans += len(orphans)
            found.orphan_bytes += sum(info.size_bytes for info in orphans)
            found.orphan_keys += [info.key for info in orphans[: _KEPT - len(found.orphan_keys)]]
            if delete and orphans:
                await self._objects.delete_many(info.key for info in orphans)
                found.deleted += len(orphans)
        return found

    async def find_dangling(self, found: Garbage) -> None:
        """Adds the rows whose object is missing. They are only told of: the rest of the face is there, and may be all
        that is left of it."""
        async with self._database.dedicated() as connection:
            async for keys in object_rows.pages(connection):
                found.rows += len(keys)
                absent = await self._absent(keys)
                # Again: a row may have gone together with its object meanwhile.
                missing = sorted(await object_rows.still_named(connection, absent)) if absent else []
                found.dangling += len(missing)
                found.dangling_keys += missing[: _KEPT - len(found.dangling_keys)]

    async def _absent(self, keys: Sequence[str]) -> list[str]:
        places = asyncio.Semaphore(_LOOKS)

        async def there(key: str) -> bool:
            async with places:
                return await self._objects.exists(key)

        return [key for key, exists in zip(keys, await asyncio.gather(*map(there, keys)), strict=True) if not exists]


async def _batches(listing: AsyncIterator[ObjectInfo]) -> AsyncIterator[list[ObjectInfo]]:
    batch: list[ObjectInfo] = []
    async for info in listing:
        batch.append(info)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
