"""Items of jobs, as their workers have to do with them: who may say what of one.

A worker claims an item before it begins. Whatever it says afterwards holds only as long as the claim does: an item whose
worker was thought dead has another claim, a cancelled one has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from serve_app.errors import JsonValue
from serve_app.identity.people import Collection
from serve_app.jobs import ItemError, ItemState, ItemWithdrawn, JobKind, Options
from serve_app.storage.database import Connection

MAX_DEATHS = 3
"""Workers that may die over an item. From the first one on it is worked on alone, so that no other is blamed for it."""
PATIENCE = 4
"""How often an item waits in vain for a part of the service that is there for others meanwhile: it may be what takes it down.
More than once, because a part that goes or comes back is there for some and not for others."""
MAX_WAITS = 10
"""How often it waits where nothing else is being done, and nobody knows whether it or the part is to blame: three minutes."""
SHARDS = 8
"""Counters of a job: see the schema."""
_ERASED = "erased"


@dataclass(frozen=True, slots=True)
class OpenItem:
    """`suspect`: a worker died over it."""

    id: int
    job_id: UUID
    kind: JobKind
    collection_id: str
    subject: str
    options: Options
    suspect: bool


async def open_chunk(tx: Connection, chunk: int) -> list[OpenItem]:
    """What is left of it, for the worker that has it from now on; patient items first, suspects last. Items that are running
    have lost their worker."""
    job_id = await tx.fetchval(
        "SELECT job_id FROM job_items WHERE chunk = $1 AND state IN ('pending', 'running') LIMIT 1", chunk
    )
    if job_id is None:
        return []
    await tx.execute(
        "UPDATE jobs SET state = 'running', started_at = coalesce(started_at, now()) WHERE id = $1 AND state = 'queued'",
        job_id,
    )
    abandoned = await tx.fetch(
        "UPDATE job_items SET deaths = deaths + 1, claim = NULL, state = 'pending'"
        " WHERE chunk = $1 AND state = 'running' RETURNING id, deaths",
        chunk,
    )
    for row in abandoned:
        if row["deaths"] >= MAX_DEATHS:
            await _end(
                tx,
                "id = $2 AND state = 'pending'",
                ItemState.FAILED,
                ItemError(
                    "worker_died",
                    f"{MAX_DEATHS} workers died in the middle of it; it may be what they died of.",
                    {"deaths": row["deaths"]},
                ),
                row["id"],
            )
    rows = await tx.fetch(
        "SELECT i.id, i.job_id, j.kind, c.id AS collection_id, i.subject, j.options, i.deaths"
        " FROM job_items i JOIN jobs j ON j.id = i.job_id JOIN collections c ON c.key = j.collection_key"
        " WHERE i.chunk = $1 AND i.state = 'pending' ORDER BY i.deaths, i.waits, i.id",
        chunk,
    )
    return [
        OpenItem(
            row["id"], row["job_id"], JobKind(row["kind"]), row["collection_id"], row["subject"], row["options"],
            row["deaths"] > 0,
        )
        for row in rows
    ]  # fmt: skip


async def start(connection: Connection, item_id: int, claim: UUID) -> bool:
    """Whether it is ours now; else it has ended meanwhile."""
    return (
        await connection.fetchval(
            "UPDATE job_items SET state = 'running', claim = $2, attempts = attempts + 1, started_at = now()"
            " WHERE id = $1 AND state = 'pending' RETURNING true",
            item_id,
            claim,
        )
        is True
    )


async def check(tx: Connection, item_id: int, claim: UUID) -> None:
    """It stays ours until the transaction ends. Raises ItemWithdrawn."""
    row = await tx.fetchrow(
        "SELECT 1 FROM job_items WHERE id = $1 AND state = 'running' AND claim = $2 FOR SHARE", item_id, claim
    )
    if row is None:
        raise ItemWithdrawn(f"item {item_id} is done or cancelled")


async def finish(tx: Connection, item_id: int, claim: UUID) -> None:
    """Raises ItemWithdrawn."""
    if not await _end(tx, "id = $2 AND state = 'running' AND claim = $4", ItemState.DONE, None, item_id, claim):
        raise ItemWithdrawn(f"item {item_id} is done or cancelled")


async def skip(tx: Connection, item_id: int, claim: UUID, reason: str) -> None:
    """Raises ItemWithdrawn."""
    error = ItemError(reason, "There was nothing to do.", {})
    if not await _end(tx, "id = $2 AND state = 'running' AND claim = $4", ItemState.SKIPPED, error, item_id, claim):
        raise ItemWithdrawn(f"item {item_id} is done or cancelled")


async def fail(connection: Connection, item_id: int, claim: UUID, error: ItemError) -> None:
    """Nothing where it is no longer ours."""
    await _end(connection, "id = $2 AND state = 'running' AND claim = $4", ItemState.FAILED, error, item_id, claim)


async def put_back(connection: Connection, item_id: int, claim: UUID) -> None:
    """As if it had not been begun."""
    await connection.execute(
        "UPDATE job_items SET state = 'pending', claim = NULL WHERE id = $1 AND state = 'running' AND claim = $2",
        item_id,
        claim,
    )


async def wait(connection: Connection, item_id: int, claim: UUID, error: ItemError, *, patient: bool) -> int:
    """To be tried again later; how often that was said of it. 0 where it is no longer ours, or has failed: for again and
    again, what it waits for was there for others since it was tried last; or for too long. `patient`: it cannot be to
    blame."""
    row = await connection.fetchrow(
        "UPDATE job_items i SET state = 'pending', claim = NULL, error = $3, waits = waits + 1, waited_at = now(),"
        " blamed = blamed + (NOT $4 AND EXISTS (SELECT 1 FROM job_progress p JOIN jobs k ON k.id = p.job_id"
        " WHERE k.kind = j.kind AND p.last_done_at > i.waited_at))::int"
        " FROM jobs j WHERE i.id = $1 AND i.state = 'running' AND i.claim = $2 AND j.id = i.job_id"
        " RETURNING i.waits, i.blamed",
        item_id,
        claim,
        _kept(error),
        patient,
    )
    if row is None:
        return 0
    if patient or (row["blamed"] < PATIENCE and row["waits"] < MAX_WAITS):
        return int(row["waits"])
    await _end(connection, "id = $2 AND state = 'pending'", ItemState.FAILED, error, item_id)
    return 0


async def delay(connection: Connection, job_id: UUID, error: ItemError, delay_s: float) -> None:
    """Why work on the job is put off, for those who look at it."""
    until = datetime.now(UTC) + timedelta(seconds=delay_s)
    await connection.execute(
        "UPDATE jobs SET delayed = $2 WHERE id = $1 AND state = 'running'",
        job_id,
        {**_kept(error), "until": until.isoformat()},
    )


async def erase_subjects(tx: Connection, collection: Collection, subjects: Sequence[str]) -> None:
    """Items of what is being erased say nothing about it any more, and are not begun. After every other lock."""
    rows = await tx.fetch(
        "SELECT i.id FROM job_items i JOIN jobs j ON j.id = i.job_id"
        " WHERE j.collection_key = $1 AND i.subject <> '' AND i.subject = ANY($2::text[]) ORDER BY i.id",
        collection.key,
        list(subjects),
    )
    ids = [row["id"] for row in rows]
    if not ids:
        return
    ended = await tx.fetch(
        "UPDATE job_items SET state = 'skipped', claim = NULL, finished_at = now()"
        " WHERE id = ANY($1::bigint[]) AND state IN ('pending', 'running') RETURNING job_id",
        ids,
    )
    await tx.execute(
        "UPDATE job_items SET subject = '', error = CASE WHEN error IS NULL AND state <> 'skipped' THEN NULL"
        " ELSE $2::jsonb END"
        " WHERE id = ANY($1::bigint[])",
        ids,
        _kept(ItemError(_ERASED, "It was erased.", {})),
    )
    for job_id in sorted(row["job_id"] for row in ended):
        await tx.execute("UPDATE job_progress SET skipped = skipped + 1 WHERE job_id = $1 AND shard = 0", job_id)


async def remaining_subjects(connection: Connection, subjects: Sequence[str]) -> int:
    """Items that still name one of them."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM job_items WHERE subject <> '' AND subject = ANY($1::text[])", list(subjects)
        )
    )


async def _end(
    connection: Connection, which: str, state: ItemState, error: ItemError | None, item_id: int, *others: object
) -> bool:
    """The item's last state, and the counter with it, in one statement. `which`: $2 is the item, $4 the first of `others`."""
    done = ", last_done_at = now()" if state is ItemState.DONE else ""
    found = await connection.fetchval(
        f"WITH item AS (UPDATE job_items SET state = '{state.value}', claim = NULL, error = $1, finished_at = now()"
        f" WHERE {which} RETURNING job_id)"
        f" UPDATE job_progress p SET {state.value} = p.{state.value} + 1{done} FROM item"
        " WHERE p.job_id = item.job_id AND p.shard = $3 RETURNING true",
        None if error is None else _kept(error),
        item_id,
        item_id % SHARDS,
        *others,
    )
    return found is True


def error_of(kept: Mapping[str, JsonValue]) -> ItemError:
    details = kept.get("details")
    return ItemError(str(kept["code"]), str(kept["detail"]), details if isinstance(details, dict) else {})


def _kept(error: ItemError) -> dict[str, JsonValue]:
    return {"code": error.code, "detail": error.detail, "details": dict(error.details)}
