"""Jobs: what was asked for, how far it is. Their items, as a worker has to do with them: storage/job_items.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from serve_app.errors import NotFound, Overloaded
from serve_app.identity.people import Collection, new_id
from serve_app.jobs import ItemState, ItemWithdrawn, Job, JobFilter, JobItem, JobKind, JobProgress, JobState, Options
from serve_app.storage import queue
from serve_app.storage.database import Connection, Row
from serve_app.storage.job_items import SHARDS, error_of
from serve_app.storage.vectors import affected

CHUNK_ITEMS = 8
"""Items that a worker takes at once. Ten thousand entries of the queue are written in the time of a hundred thousand items;
and what one worker holds is done within seconds, so that photos just uploaded need not wait for long."""
MAX_OPEN = 200
"""Jobs that somebody asked for and that are not over. Each may have an item for every photo of the library."""
AUTOMATIC_OPTIONS: Options = {"only_new": True}
_PRIORITY_AUTOMATIC, _PRIORITY_WHOLE, _PRIORITY_ASKED = 20, 10, 0
_PURGED_AT_ONCE = 10_000
_FULL_RETRY_AFTER_S = 60
_MARK_S = 10
"""Between the moments that the rate is taken from."""

_OPEN = "state IN ('queued', 'running')"
_COLUMNS = """
    SELECT j.id, c.id AS collection_id, j.kind, j.options, j.automatic, j.state, j.delayed, j.before_at, j.before_ended,
           j.created_at, j.started_at, j.finished_at, now() AS now, p.*
    FROM jobs j JOIN collections c ON c.key = j.collection_key, LATERAL (
        SELECT sum(total) AS total, sum(done) AS done, sum(failed) AS failed, sum(skipped) AS skipped,
               sum(cancelled) AS cancelled
        FROM job_progress WHERE job_id = j.id
    ) p
"""


async def create(
    tx: Connection,
    collection: Collection,
    kind: JobKind,
    options: Options,
    subjects: Sequence[str],
    *,
    automatic: bool = False,
) -> Job:
    """A job of these items, and its chunks in the queue; there when the caller's transaction is committed. One without items
    is done. The collection must be locked. Raises Overloaded where MAX_OPEN are open."""
    if subjects and not automatic:
        count = await tx.fetchval(
            f"SELECT count(*) FROM (SELECT 1 FROM jobs WHERE {_OPEN} AND NOT automatic LIMIT {MAX_OPEN:d}) j"
        )
        if count >= MAX_OPEN:
            raise Overloaded(
                f"{MAX_OPEN} jobs are not over yet. Wait for them, or cancel some.", retry_after_s=_FULL_RETRY_AFTER_S
            )
    job_id = new_id()
    await tx.execute(
        "INSERT INTO jobs (id, collection_key, kind, options, automatic) VALUES ($1, $2, $3, $4, $5)",
        job_id, collection.key, kind.value, dict(options), automatic,
    )  # fmt: skip
    await _begin_counters(tx, job_id)
    if subjects:
        await _insert_items(tx, job_id, kind, automatic, subjects)
    else:
        await tx.execute("UPDATE jobs SET state = 'done', started_at = now(), finished_at = now() WHERE id = $1", job_id)
    return await get(tx, job_id)


async def add_items(tx: Connection, job_id: UUID, subjects: Sequence[str]) -> None:
    """Further items. Raises ItemWithdrawn for a job that is over."""
    # Shared: whoever ends the job waits until we are committed, and then sees our items.
    row = await tx.fetchrow(f"SELECT kind, automatic FROM jobs WHERE id = $1 AND {_OPEN} FOR SHARE", job_id)
    if row is None:
        raise ItemWithdrawn("The job is over.")
    if subjects:
        await _insert_items(tx, job_id, JobKind(row["kind"]), row["automatic"], subjects)


async def add_automatic(tx: Connection, collection: Collection, kind: JobKind, subjects: Sequence[str]) -> None:
    """Items of the collection's open automatic job of the kind, which is made if there is none. Best the last statement of a
    transaction: the first of several concurrent ones is waited for."""
    if not subjects:
        return
    while True:
        job_id = await tx.fetchval(
            f"SELECT id FROM jobs WHERE collection_key = $1 AND kind = $2 AND automatic AND {_OPEN} FOR SHARE",
            collection.key,
            kind.value,
        )
        if job_id is None:
            job_id = await tx.fetchval(
                "INSERT INTO jobs (id, collection_key, kind, options, automatic) VALUES ($1, $2, $3, $4, true)"
                f" ON CONFLICT (collection_key, kind) WHERE automatic AND {_OPEN} DO NOTHING RETURNING id",
                new_id(),
                collection.key,
                kind.value,
                dict(AUTOMATIC_OPTIONS),
            )
            if job_id is None:
                # Somebody else's, committed meanwhile.
                continue
            await _begin_counters(tx, job_id)
        await _insert_items(tx, job_id, kind, True, subjects)
        return


async def _begin_counters(tx: Connection, job_id: UUID) -> None:
    await tx.execute(f"INSERT INTO job_progress (job_id, shard) SELECT $1, generate_series(0, {SHARDS - 1})", job_id)


async def _insert_items(tx: Connection, job_id: UUID, kind: JobKind, automatic: bool, subjects: Sequence[str]) -> None:
    chunks = await _new_chunks(tx, len(subjects))
    await tx.execute(
        "INSERT INTO job_items (job_id, chunk, subject)"
        f" SELECT $1, ($3::bigint[])[1 + (n - 1) / {CHUNK_ITEMS}], s FROM unnest($2::text[]) WITH ORDINALITY AS t (s, n)",
        job_id,
        list(subjects),
        chunks,
    )
    await tx.execute(
        "UPDATE job_progress SET total = total + $2 WHERE job_id = $1 AND shard = $3",
        job_id,
        len(subjects),
        chunks[0] % SHARDS,
    )
    await queue.enqueue(tx, kind, chunks, _priority(kind, automatic))


async def _new_chunks(tx: Connection, items: int) -> list[int]:
    count = -(-items // CHUNK_ITEMS)
    return [row["chunk"] for row in await tx.fetch("SELECT nextval('job_chunks') AS chunk FROM generate_series(1, $1)", count)]


def _priority(kind: JobKind, automatic: bool) -> int:
    if automatic:
        return _PRIORITY_AUTOMATIC
    return _PRIORITY_WHOLE if kind is JobKind.CLUSTER else _PRIORITY_ASKED


async def get(connection: Connection, job_id: UUID) -> Job:
    """Raises NotFound."""
    row = await connection.fetchrow(_COLUMNS + " WHERE j.id = $1", job_id)
    if row is None:
        raise _missing(job_id)
    return _job(row)


async def page(connection: Connection, wanted: JobFilter, after: UUID | None, limit: int) -> list[Job]:
    """Newest first. `after`: the last of the page before."""
    rows = await connection.fetch(
        _COLUMNS
        + " WHERE (cardinality($1::text[]) = 0 OR j.state = ANY($1)) AND (cardinality($2::text[]) = 0 OR j.kind = ANY($2))"
        " AND ($3::boolean IS NULL OR j.automatic = $3) AND ($4::uuid IS NULL OR j.id < $4) ORDER BY j.id DESC LIMIT $5",
        [state.value for state in wanted.states],
        [kind.value for kind in wanted.kinds],
        wanted.automatic,
        after,
        limit,
    )
    return [_job(row) for row in rows]


async def items(
    connection: Connection, job_id: UUID, states: Sequence[ItemState], after: int | None, limit: int
) -> list[JobItem]:
    """In the order they were added."""
    # Written out: there is an index of those that failed.
    chosen = " AND state IN ({})".format(", ".join(f"'{state.value}'" for state in states)) if states else ""
    rows = await connection.fetch(
        "SELECT id, subject, state, attempts, error, started_at, finished_at FROM job_items"
        f" WHERE job_id = $1 AND id > $2{chosen} ORDER BY id LIMIT $3",
        job_id,
        after or 0,
        limit,
    )
    return [_item(row) for row in rows]


async def last_failures(connection: Connection, job_id: UUID, limit: int) -> list[JobItem]:
    rows = await connection.fetch(
        "SELECT id, subject, state, attempts, error, started_at, finished_at FROM job_items"
        " WHERE job_id = $1 AND state = 'failed' ORDER BY id DESC LIMIT $2",
        job_id,
        limit,
    )
    return [_item(row) for row in rows]


async def cancel(tx: Connection, job_id: UUID) -> Job:
    """Every item that has not ended is cancelled, and none is done any more: a worker in the middle of one cannot keep its
    result. What is over stays as it is. Raises NotFound."""
    if await _lock(tx, job_id) in (JobState.QUEUED, JobState.RUNNING):
        rows = await tx.fetch(
            "WITH gone AS (UPDATE job_items SET state = 'cancelled', claim = NULL, finished_at = now()"
            " WHERE job_id = $1 AND state IN ('pending', 'running') RETURNING chunk)"
            " SELECT chunk, count(*) AS items FROM gone GROUP BY chunk",
            job_id,
        )
        await tx.execute(
            "UPDATE job_progress SET cancelled = cancelled + $2 WHERE job_id = $1 AND shard = 0",
            job_id,
            sum(row["items"] for row in rows),
        )
        await queue.withdraw(tx, [row["chunk"] for row in rows])
        await tx.execute(
            "UPDATE jobs SET state = 'cancelled', finished_at = now(), delayed = NULL WHERE id = $1",
            job_id,
        )
    return await get(tx, job_id)


async def retry_failed(tx: Connection, job_id: UUID) -> Job:
    """The items that failed are to be done again; the job goes on. Raises NotFound."""
    await _lock(tx, job_id)
    rows = await tx.fetch("SELECT id FROM job_items WHERE job_id = $1 AND state = 'failed' ORDER BY id FOR UPDATE", job_id)
    if rows:
        chunks = await _new_chunks(tx, len(rows))
        await tx.execute(
            "UPDATE job_items i SET state = 'pending', error = NULL, deaths = 0, waits = 0, blamed = 0, waited_at = NULL,"
            " started_at = NULL, finished_at = NULL, chunk = t.chunk"
            f" FROM (SELECT id, ($2::bigint[])[1 + (n - 1) / {CHUNK_ITEMS}] AS chunk"
            " FROM unnest($1::bigint[]) WITH ORDINALITY AS t (id, n)) t"
            " WHERE i.id = t.id",
            [row["id"] for row in rows],
            chunks,
        )
        # Of one shard, whose own number may go below zero: the sum is right.
        await tx.execute(
            "UPDATE job_progress SET failed = failed - $2 WHERE job_id = $1 AND shard = 0", job_id, len(rows)
        )  # fmt: skip
        # Somebody asked for it now; and there may be another automatic one by now.
        kind = await tx.fetchval(
            "UPDATE jobs SET state = 'queued', automatic = false, finished_at = NULL, delayed = NULL, mark_at = NULL,"
            " before_at = NULL WHERE id = $1 RETURNING kind",
            job_id,
        )
        await queue.enqueue(tx, JobKind(kind), chunks, _priority(JobKind(kind), False))
    return await get(tx, job_id)


async def settle(tx: Connection, job_id: UUID) -> bool:
    """Ends the job when all of its items have ended; whether it is over now. Else notes how far it is, for the rate."""
    row = await tx.fetchrow(
        "SELECT state, mark_at IS NULL OR mark_at < now() - make_interval(secs => $2) AS due FROM jobs WHERE id = $1"
        " FOR NO KEY UPDATE",
        job_id,
        float(_MARK_S),
    )
    if row is None or not JobState(row["state"]).open:
        return True
    # A statement of its own: it sees what those added whom the lock has waited for.
    sums = await tx.fetchrow(
        "SELECT sum(total) AS total, sum(failed) AS failed, sum(done + failed + skipped + cancelled) AS ended"
        " FROM job_progress WHERE job_id = $1",
        job_id,
    )
    assert sums is not None
    if sums["ended"] >= sums["total"]:
        state = JobState.FAILED if 0 < sums["total"] == sums["failed"] else JobState.DONE
        await tx.execute(
            "UPDATE jobs SET state = $2, started_at = coalesce(started_at, now()), finished_at = now(), delayed = NULL"
            " WHERE id = $1",
            job_id,
            state.value,
        )
        return True
    if row["due"]:
        await tx.execute(
            "UPDATE jobs SET before_at = mark_at, before_ended = mark_ended, mark_at = now(), mark_ended = $2 WHERE id = $1",
            job_id,
            sums["ended"],
        )
    return False


async def open_jobs(connection: Connection) -> list[UUID]:
    return [row["id"] for row in await connection.fetch(f"SELECT id FROM jobs WHERE {_OPEN} ORDER BY id")]


async def requeue_lost(tx: Connection) -> int:
    """Chunks with work left that the queue does not know are put back; their number. Nothing should lose them; this is for
    what nobody foresaw, and for a database that was restored without the queue."""
    rows = await tx.fetch(
        "SELECT j.kind, j.automatic, array_agg(DISTINCT i.chunk) AS chunks FROM job_items i JOIN jobs j ON j.id = i.job_id"
        " WHERE i.state IN ('pending', 'running') AND NOT EXISTS (SELECT 1 FROM kinlens_pgqueuer q"
        " WHERE q.dedupe_key = i.chunk::text AND q.status IN ('queued', 'picked')) GROUP BY j.kind, j.automatic"
    )
    for row in rows:
        kind = JobKind(row["kind"])
        await queue.enqueue(tx, kind, row["chunks"], _priority(kind, row["automatic"]))
    return sum(len(row["chunks"]) for row in rows)


async def purge(connection: Connection, kept_days: int) -> int:
    """A part of a job that ended before: some of its items, or what is left when it has none. Returns how many; 0 when there
    is nothing old. In parts, because a hundred thousand items are not deleted in the time of one statement."""
    old = "SELECT id FROM jobs WHERE finished_at < now() - make_interval(days => $1) ORDER BY finished_at, id LIMIT 1"
    items = await connection.execute(
        f"DELETE FROM job_items WHERE id IN (SELECT id FROM job_items WHERE job_id = ({old}) LIMIT {_PURGED_AT_ONCE:d})",
        kept_days,
    )
    if found := affected(items):
        return found
    # Somebody else may be purging the same one, and have left some.
    gone = f"DELETE FROM jobs j WHERE id = ({old}) AND NOT EXISTS (SELECT 1 FROM job_items i WHERE i.job_id = j.id)"
    return affected(await connection.execute(gone, kept_days))


async def _lock(tx: Connection, job_id: UUID) -> JobState:
    state = await tx.fetchval("SELECT state FROM jobs WHERE id = $1 FOR NO KEY UPDATE", job_id)
    if state is None:
        raise _missing(job_id)
    return JobState(state)


def _missing(job_id: UUID) -> NotFound:
    return NotFound(f"There is no job {job_id}.", job_id=str(job_id))


def _job(row: Row) -> Job:
    delayed = row["delayed"]
    until = None if delayed is None else datetime.fromisoformat(delayed["until"])
    return Job(
        id=row["id"],
        collection_id=row["collection_id"],
        kind=JobKind(row["kind"]),
        options=row["options"],
        automatic=row["automatic"],
        state=JobState(row["state"]),
        progress=_progress(row),
        delayed=None if until is None or until < row["now"] else error_of(delayed),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def _progress(row: Row) -> JobProgress:
    counts = {name: int(row[name] or 0) for name in ("total", "done", "failed", "skipped", "cancelled")}
    worked = counts["done"] + counts["failed"] + counts["skipped"]
    running = JobState(row["state"]).open
    if running and row["before_at"] is not None:
        since, worked_of_late = row["before_at"], worked - row["before_ended"]
    else:
        since, worked_of_late = row["started_at"], worked
    rate = None
    if since is not None and worked > 0:
        rate = max(0, worked_of_late) / max(0.001, ((row["finished_at"] or row["now"]) - since).total_seconds())
    remaining = counts["total"] - worked - counts["cancelled"]
    return JobProgress(**counts, rate_per_s=rate, eta_s=remaining / rate if running and rate else None)


def _item(row: Row) -> JobItem:
    return JobItem(
        id=row["id"],
        subject=row["subject"],
        state=ItemState(row["state"]),
        attempts=row["attempts"],
        error=None if row["error"] is None else error_of(row["error"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )
