"""API keys: their hashes, scopes and limits. The keys themselves are nowhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta

from serve_app.access import KeyRecord, Scope, Secret
from serve_app.errors import NotFound
from serve_app.storage.database import Connection, Row

_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
_COLUMNS = """
    SELECT id, name, scopes, collections, rate_limit, sha256, previous_sha256, previous_until, created_at, created_by,
           rotated_at, expires_at, revoked_at, last_used_at
    FROM api_keys
"""


async def revision(connection: Connection) -> int:
    """Another number after each change that decides about what a key opens."""
    return int(await connection.fetchval("SELECT revision FROM api_keys_revision"))


async def usable(connection: Connection) -> list[KeyRecord]:
    """All that are not revoked; expired ones as well."""
    return [_record(row) for row in await connection.fetch(_COLUMNS + " WHERE revoked_at IS NULL")]


async def collections_of(connection: Connection, ids: frozenset[str]) -> dict[str, int]:
    """The keys of those collections that there are."""
    rows = await connection.fetch("SELECT id, key FROM collections WHERE id = ANY($1::text[])", sorted(ids))
    return {row["id"]: row["key"] for row in rows}


async def create(
    tx: Connection,
    secret: Secret,
    name: str,
    scopes: frozenset[Scope],
    collections: frozenset[str] | None,
    *,
    created_by: str,
    expires_at: datetime | None,
    rate_limit: int | None,
    known: Mapping[str, int],
) -> KeyRecord:
    """`known`: those of `collections` that there were when it was asked for. Raises NotFound when one of them was erased
    meanwhile: the key would open whatever is made under its name."""
    await _changed(tx)
    there = await collections_of(tx, frozenset(known))
    if gone := sorted(one for one, key in known.items() if there.get(one) != key):
        raise NotFound(f"The collection {gone[0]!r} was erased meanwhile.", collection_id=gone[0])
    await tx.execute(
        "INSERT INTO api_keys (id, name, scopes, collections, rate_limit, sha256, created_by, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        secret.id,
        name,
        sorted(scopes),
        None if collections is None else sorted(collections),
        rate_limit,
        secret.sha256,
        created_by,
        expires_at,
    )
    return await get(tx, secret.id)


async def get(connection: Connection, key_id: str) -> KeyRecord:
    """Raises NotFound."""
    _check_id(key_id)
    row = await connection.fetchrow(_COLUMNS + " WHERE id = $1", key_id)
    if row is None:
        raise missing(key_id)
    return _record(row)


async def page(connection: Connection, after: str | None, limit: int) -> list[KeyRecord]:
    """Ordered by id; revoked ones as well."""
    rows = await connection.fetch(_COLUMNS + " WHERE id > $1 ORDER BY id LIMIT $2", after or "", limit)
    return [_record(row) for row in rows]


async def rotate(tx: Connection, secret: Secret, overlap: timedelta) -> KeyRecord:
    """Another secret for the key; the one in use is good for `overlap`.

    Which one is in use, where the overlap of another rotation lasts still, is that before it: what that one made, its
    answer perhaps lost, ends at once. Without an overlap all of them end. Raises NotFound for a key that is not there or was
    revoked."""
    _check_id(secret.id)
    await _changed(tx)
    row = await tx.fetchrow(
        "UPDATE api_keys SET sha256 = $2, rotated_at = now(), previous_until = now() + $3::interval,"
        " previous_sha256 = CASE WHEN previous_until > now() AND $3::interval > '0' THEN previous_sha256 ELSE sha256 END"
        " WHERE id = $1 AND revoked_at IS NULL RETURNING id",
        secret.id,
        secret.sha256,
        overlap,
    )
    if row is None:
        raise missing(secret.id)
    return await get(tx, secret.id)


async def revoke(tx: Connection, key_id: str) -> KeyRecord:
    """For good. A key that was revoked before stays as it is. Raises NotFound."""
    _check_id(key_id)
    await _changed(tx)
    await tx.execute("UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1", key_id)
    return await get(tx, key_id)


async def touch(connection: Connection, used: Mapping[str, datetime]) -> None:
    """`used`: when each key was used last. A key that another replica has just written is left alone."""
    await connection.execute(
        "UPDATE api_keys k SET last_used_at = u.at FROM unnest($1::text[], $2::timestamptz[]) AS u (id, at)"
        " WHERE k.id = u.id AND (k.last_used_at IS NULL OR k.last_used_at < u.at - interval '50 s')",
        list(used),
        list(used.values()),
    )


async def forget_collection(tx: Connection, collection_id: str) -> None:
    """When a collection is erased: keys limited to it do not open one that is made under its name later. Whoever makes a key
    waits from here on, and sees that it is gone."""
    await tx.execute("SELECT FROM api_keys_revision FOR UPDATE")
    if await tx.fetchval("SELECT EXISTS (SELECT FROM api_keys WHERE $1 = ANY(collections))", collection_id):
        await _changed(tx)
        await tx.execute("UPDATE api_keys SET collections = array_remove(collections, $1)", collection_id)


async def server_secret(connection: Connection, name: str, offered: bytes) -> bytes:
    """The secret of that name; `offered` becomes it where there is none."""
    await connection.execute("INSERT INTO server_secrets (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, offered)
    return bytes(await connection.fetchval("SELECT value FROM server_secrets WHERE name = $1", name))


def missing(key_id: str) -> NotFound:
    shown = key_id[:12].encode("ascii", "backslashreplace").decode("ascii")
    return NotFound(f"There is no key {shown!r}, or it is revoked.", key_id=shown)


def _check_id(key_id: str) -> None:
    """What cannot be an id is not there; it may be what Postgres cannot even read."""
    if not _ID.fullmatch(key_id):
        raise missing(key_id)


async def _changed(tx: Connection) -> None:
    await tx.execute("UPDATE api_keys_revision SET revision = revision + 1")


def _record(row: Row) -> KeyRecord:
    collections, previous = row["collections"], row["previous_sha256"]
    return KeyRecord(
        row["id"],
        row["name"],
        frozenset(Scope(one) for one in row["scopes"]),
        None if collections is None else frozenset(collections),
        row["rate_limit"],
        row["created_at"],
        row["created_by"],
        row["rotated_at"],
        row["expires_at"],
        row["revoked_at"],
        row["last_used_at"],
        bytes(row["sha256"]),
        None if previous is None else bytes(previous),
        row["previous_until"],
    )
