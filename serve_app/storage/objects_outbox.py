"""Objects that no row names any more, kept until the object store has deleted them."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.storage.database import Connection
from serve_app.storage.objects import box_version, thumbnail_face, thumbnail_image

BACKUP_LOCK = 0x6B6C6261636B7570
"""Advisory lock: held while a backup runs, so that no object vanishes between its rows and its bytes."""


async def add(tx: Connection, object_keys: Sequence[str]) -> None:
    await tx.execute(
        "INSERT INTO object_deletions (object_key) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", list(object_keys)
    )


async def add_prefix(tx: Connection, prefix: str) -> None:
    """All that lies below `prefix`, which ends in a slash: also what no row ever named, thumbnails and what was broken off."""
    # Just after the keys of the same transaction: what they name need not be listed any more.
    await tx.execute(
        "INSERT INTO object_deletions (object_key, not_before) VALUES ($1, now() + interval '1 microsecond')"
        " ON CONFLICT DO NOTHING",
        prefix,
    )


async def waiting(connection: Connection, limit: int) -> list[str]:
    """Keys and prefixes to delete now, the oldest first; none while a backup runs.

    No row is locked: deleting an object twice does no harm, and no transaction is open while the object store is asked. What
    is listed before a backup begins may be deleted during it, as its rows were gone before.
    """
    if await backup_runs(connection):
        return []
    rows = await connection.fetch(
        "SELECT object_key FROM object_deletions WHERE not_before <= now() ORDER BY not_before LIMIT $1", limit
    )
    return [row["object_key"] for row in rows]


async def backup_runs(connection: Connection) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (classid::bigint << 32) | objid::bigint = $1)",
            BACKUP_LOCK,
        )
    )


async def postpone(connection: Connection, object_keys: Sequence[str]) -> None:
    await connection.execute(
        "UPDATE object_deletions SET not_before = now() + interval '1 hour' WHERE object_key = ANY($1::text[])",
        list(object_keys),
    )


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
    """Those of `object_keys` that a row names, that are thumbnails of a picture there is or of a face where it is now, or that
    wait here for their deletion, by name or with all their collection's."""
    thumbnails = {key: image_id for key in object_keys if (image_id := thumbnail_image(key)) is not None}
    rows = await connection.fetch(
        "SELECT object_key AS key FROM images WHERE object_key = ANY($1::text[])"
        " UNION ALL SELECT crop_key FROM faces WHERE crop_key = ANY($1::text[])"
        " UNION ALL SELECT object_key FROM object_deletions WHERE object_key = ANY($1::text[])",
        list(object_keys),
    )
    known = {row["key"] for row in rows}
    rows = await connection.fetch(
        "SELECT object_key FROM object_deletions WHERE object_key = ANY($1::text[])",
        [*{_collection_of(key) for key in object_keys}],
    )
    prefixes = {row["object_key"] for row in rows}
    known |= {key for key in object_keys if _collection_of(key) in prefixes}
    if thumbnails:
        rows = await connection.fetch("SELECT id FROM images WHERE id = ANY($1::uuid[])", [*set(thumbnails.values())])
        present = {row["id"] for row in rows}
        known |= {key for key, image_id in thumbnails.items() if image_id in present}
    return known | await _thumbnails_of_faces(connection, object_keys)


async def _thumbnails_of_faces(connection: Connection, object_keys: Sequence[str]) -> set[str]:
    shown = {key: found for key in object_keys if (found := thumbnail_face(key)) is not None}
    if not shown:
        return set()
    rows = await connection.fetch(
        "SELECT id, bbox FROM faces WHERE id = ANY($1::uuid[]) AND bbox IS NOT NULL",
        [*{face_id for face_id, _ in shown.values()}],
    )
    present = {(row["id"], box_version(row["bbox"])) for row in rows}
    return {key for key, found in shown.items() if found in present}


def _collection_of(key: str) -> str:
    """The prefix of its collection: see `objects.collection_prefix`."""
    return "/".join(key.split("/", 2)[:2]) + "/"
