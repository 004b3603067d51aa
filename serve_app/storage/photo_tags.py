"""Tags of photos. The photo must be locked by whoever changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.storage.database import Connection


@dataclass(frozen=True, slots=True)
class TagCount:
    tag: str
    photos: int


async def of_photo(connection: Connection, photo_id: UUID) -> tuple[str, ...]:
    """Ordered as the database orders text."""
    rows = await connection.fetch("SELECT tag FROM photo_tags WHERE photo_id = $1 ORDER BY tag", photo_id)
    return tuple(row["tag"] for row in rows)


async def add(tx: Connection, collection: Collection, photo_id: UUID, tags: Sequence[str]) -> None:
    """Those it has already stay."""
    await tx.execute(
        "INSERT INTO photo_tags (photo_id, collection_key, tag) SELECT $1, $2, unnest($3::text[]) ON CONFLICT DO NOTHING",
        photo_id,
        collection.key,
        list(tags),
    )


async def remove(tx: Connection, photo_id: UUID, tags: Sequence[str]) -> None:
    """Those it has not do not matter."""
    await tx.execute("DELETE FROM photo_tags WHERE photo_id = $1 AND tag = ANY($2::text[])", photo_id, list(tags))


async def replace(tx: Connection, collection: Collection, photo_id: UUID, tags: Sequence[str]) -> None:
    await tx.execute("DELETE FROM photo_tags WHERE photo_id = $1 AND NOT tag = ANY($2::text[])", photo_id, list(tags))
    await add(tx, collection, photo_id, tags)


async def counted(connection: Connection, collection: Collection, after: str | None, limit: int) -> list[TagCount]:
    """The tags of the collection that any photo has, and how many have it."""
    rows = await connection.fetch(
        "SELECT tag, count(*) AS photos FROM photo_tags WHERE collection_key = $1 AND tag > $2"
        " GROUP BY tag ORDER BY tag LIMIT $3",
        collection.key,
        after or "",
        limit,
    )
    return [TagCount(row["tag"], row["photos"]) for row in rows]
