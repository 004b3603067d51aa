"""Which photos a job is about."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.identity.people import Collection
from serve_app.photos import PhotoFilter
from serve_app.storage.database import Connection
from serve_app.storage.photo_pages import Order, page_query, smallest

_ALL = 2**31 - 1
_TIMEOUT_S = 50.0
_NAMED = 10


async def every(connection: Connection, collection: Collection) -> list[UUID]:
    """In order of upload, nearly: ids are."""
    rows = await connection.fetch("SELECT id FROM photos WHERE collection_key = $1 ORDER BY id", collection.key)
    return [row["id"] for row in rows]


async def fitting(connection: Connection, collection: Collection, wanted: PhotoFilter) -> list[UUID]:
    leading = await smallest(connection, collection, wanted)
    query, values = page_query(collection, wanted, Order(), None, _ALL, leading)
    return sorted(row["id"] for row in await connection.fetch(query, *values, timeout=_TIMEOUT_S))


async def named(connection: Connection, collection: Collection, photo_ids: Sequence[UUID]) -> list[UUID]:
    """Each once. Raises NotFound when one of them is not in the library."""
    wanted = set(photo_ids)
    rows = await connection.fetch(
        "SELECT id FROM photos WHERE collection_key = $1 AND id = ANY($2::uuid[])", collection.key, list(wanted)
    )
    missing = sorted(wanted - {row["id"] for row in rows})
    if missing:
        raise NotFound(
            f"{len(missing)} of the photos are not in the library.",
            photo_ids=[str(photo_id) for photo_id in missing[:_NAMED]],
        )
    return sorted(wanted)


async def not_indexed_with(connection: Connection, collection: Collection, indexed_with: str) -> list[UUID]:
    """Photos whose faces have not been looked for with this; see the schema."""
    rows = await connection.fetch(
        "SELECT id FROM photos WHERE collection_key = $1 AND indexed_with IS DISTINCT FROM $2", collection.key, indexed_with
    )
    return [row["id"] for row in rows]
