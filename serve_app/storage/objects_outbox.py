"""Objects that no row names any more, kept until the object store has deleted them."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.storage.database import Connection

BACKUP_LOCK = 0x6B6C6261636B7570
"""Advisory lock: held while a backup runs, so that no object vanishes between its rows and its bytes."""


async def add(tx: Connection, object_keys: Sequence[str]) -> None:
    await tx.execute(
        "INSERT INTO object_deletions (object_key) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", list(object_keys)
    )


async def claim(tx: Connection, limit: int) -> list[str]:
    """Keys to delete, locked until the transaction ends: two sweepers take different ones. None while a backup runs."""
    if not await tx.fetchval("SELECT pg_try_advisory_xact_lock_shared($1)", BACKUP_LOCK):
        return []
    rows = await tx.fetch("SELECT object_key FROM object_deletions ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED", limit)
    return [row["object_key"] for row in rows]


async def done(tx: Connection, object_keys: Sequence[str]) -> None:
    await tx.execute("DELETE FROM object_deletions WHERE object_key = ANY($1::text[])", list(object_keys))


async def pending(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM object_deletions"))


async def still_pending(connection: Connection, object_keys: Sequence[str]) -> int:
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM object_deletions WHERE object_key = ANY($1::text[])", list(object_keys)
        )
    )


async def known_keys(connection: Connection, object_keys: Sequence[str]) -> set[str]:
    """Those of `object_keys` that a row names, or that wait here for their deletion."""
    rows = await connection.fetch(
        "SELECT object_key AS key FROM images WHERE object_key = ANY($1::text[])"
        " UNION ALL SELECT crop_key FROM faces WHERE crop_key = ANY($1::text[])"
        " UNION ALL SELECT object_key FROM object_deletions WHERE object_key = ANY($1::text[])",
        list(object_keys),
    )
    return {row["key"] for row in rows}
