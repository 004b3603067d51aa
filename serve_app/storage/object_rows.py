"""The rows that name objects: pictures and crops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from serve_app.storage.database import Connection

PAGE = 1000
"""Keys that are held at once."""


async def pages(connection: Connection) -> AsyncIterator[list[str]]:
    """Every key that a row names, in their order. In one transaction of the right kind: those of one moment."""
    after = ""
    while keys := await _page(connection, after):
        yield keys
        after = keys[-1]


async def _page(connection: Connection, after: str) -> list[str]:
    rows = await connection.fetch(
        "(SELECT object_key AS key FROM images WHERE object_key > $1 ORDER BY object_key LIMIT $2) UNION ALL"
        " (SELECT crop_key FROM faces WHERE crop_key > $1 ORDER BY crop_key LIMIT $2) ORDER BY key LIMIT $2",
        after,
        PAGE,
    )
    return [row["key"] for row in rows]


async def still_named(connection: Connection, object_keys: Sequence[str]) -> set[str]:
    """Those of the keys that a row names now."""
    rows = await connection.fetch(
        "SELECT object_key AS key FROM images WHERE object_key = ANY($1::text[])"
        " UNION ALL SELECT crop_key FROM faces WHERE crop_key = ANY($1::text[])",
        list(object_keys),
    )
    return {row["key"] for row in rows}


async def count(connection: Connection) -> int:
    return int(
        await connection.fetchval(
            "SELECT (SELECT count(*) FROM images) + (SELECT count(*) FROM faces WHERE crop_key IS NOT NULL)"
        )
    )
