"""Answers to writes, kept under the client's Idempotency-Key in the transaction of the write itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from serve_app.errors import IdempotencyKeyReused, NotFound
from serve_app.storage.database import Connection

KEPT_FOR = timedelta(hours=24)
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class WriteKey:
    """`key` and `fingerprint`: SHA-256 of who asks with which key, and of what is asked; `collection_id`: of which."""

    key: bytes
    fingerprint: bytes
    collection_id: str | None


class Replayed(Exception):
    """Not an error: this write was done before, and this was its answer."""

    def __init__(self, status: int, response: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.response = response


async def look_up(connection: Connection, write: WriteKey) -> None:
    """Raises Replayed when the write was done, IdempotencyKeyReused when the key was another request's."""
    row = await connection.fetchrow(
        "SELECT fingerprint, status, response FROM idempotency_keys WHERE key = $1 AND created_at > now() - $2::interval",
        write.key,
        KEPT_FOR,
    )
    if row is None:
        return
    if bytes(row["fingerprint"]) != write.fingerprint:
        raise IdempotencyKeyReused("This Idempotency-Key was sent with another request before.")
    if row["response"] is not None:
        raise Replayed(row["status"], bytes(row["response"]))
    if row["status"] is not None:
        raise NotFound("What this Idempotency-Key was used for has been erased since.")


async def claim(tx: Connection, write: WriteKey) -> None:
    """At the beginning of the write's transaction. Waits for another one with the same key; raises what `look_up` does."""
    await tx.execute("DELETE FROM idempotency_keys WHERE key = $1 AND created_at <= now() - $2::interval", write.key, KEPT_FOR)
    status = await tx.execute(
        "INSERT INTO idempotency_keys (key, fingerprint, collection_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        write.key,
        write.fingerprint,
        write.collection_id,
    )
    if status.endswith(" 0"):
        await look_up(tx, write)


async def keep(tx: Connection, write: WriteKey, status: int, response: bytes) -> None:
    """At its end."""
    subjects = {UUID(found.decode()) for found in _UUID.findall(response)}
    await tx.execute(
        "UPDATE idempotency_keys SET status = $2, response = $3, subjects = $4 WHERE key = $1",
        write.key,
        status,
        response,
        sorted(subjects),
    )


async def erase_subjects(tx: Connection, ids: Sequence[UUID]) -> None:
    """Forgets the answers that name one of `ids`; their keys stay used."""
    await tx.execute("UPDATE idempotency_keys SET response = NULL, subjects = '{}' WHERE subjects && $1::uuid[]", list(ids))


async def erase_collection(tx: Connection, collection_id: str) -> None:
    await tx.execute(
        "UPDATE idempotency_keys SET response = NULL, subjects = '{}' WHERE collection_id = $1 AND response IS NOT NULL",
        collection_id,
    )


async def purge(connection: Connection) -> int:
    status = await connection.execute("DELETE FROM idempotency_keys WHERE created_at < now() - $1::interval", KEPT_FOR)
    return int(status.rpartition(" ")[2])
