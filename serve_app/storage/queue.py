"""The queue: which chunks of items are to be worked on, and by whom. PgQueuer's tables, leases and wake-ups.

An entry is a chunk: its number is the payload, and the key by which there is never a second entry of it. It is enqueued in
the transaction that writes the items, and is leased to a worker for as long as that sends heartbeats.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder, QuerySchedulerBuilder
from pgqueuer.core.executors import AbstractEntrypointExecutor, EntrypointExecutorParameters
from pgqueuer.core.qm import QueueManager
from pgqueuer.domain.errors import FailingListenerError, RetryRequested
from pgqueuer.domain.models import Context
from pgqueuer.domain.models import Job as Entry
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.queries import Queries

from serve_app.errors import DatabaseUnavailable
from serve_app.jobs import JobKind
from serve_app.storage.database import Connection, Dsn, connect, translated

LEASE_S = 10.0
"""Without a heartbeat for so long, a chunk is another worker's. Heartbeats are sent every half of it."""
_POLL_S = 2.0
"""How often an idle worker looks, beside being woken up."""
_BUSY_POLL_S = 0.25
_LOG_KEPT = "1 day"
CLOCK_S = 5.0
"""How often a worker looks whether the clock was set back."""
_FUTURE_S = 60.0
"""Nothing is put off for longer: see the worker's delays."""


def queue_settings() -> DBSettings:
    """Every name is given: PgQueuer would read what is not from the environment."""
    prefix = "kinlens_"
    return DBSettings(
        prefix=prefix,
        db_schema=None,
        channel=f"{prefix}ch_pgqueuer",
        function=f"{prefix}fn_pgqueuer_changed",
        statistics_table=f"{prefix}pgqueuer_statistics",
        queue_status_type=f"{prefix}pgqueuer_status",
        queue_table=f"{prefix}pgqueuer",
        queue_table_log=f"{prefix}pgqueuer_log",
        trigger=f"{prefix}tg_pgqueuer_changed",
        schedules_table=f"{prefix}pgqueuer_schedules",
        durability=Durability.balanced,
        widen_id=False,
    )


class _Borrowed(AsyncpgDriver):
    """A connection of ours in the middle of a transaction of ours."""

    def __init__(self, tx: Connection) -> None:
        super().__init__(cast("asyncpg.Connection", tx))

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        # Our connections encode jsonb themselves: what is encoded already would become a string.
        return await super().fetch(query, *(_decoded(argument) for argument in args))


def _decoded(argument: object) -> object:
    if isinstance(argument, list) and argument and all(value == "null" for value in argument):
        return [json.loads(value) for value in argument]
    return argument


def _queries(driver: AsyncpgDriver) -> Queries:
    settings = queue_settings()
    return Queries(driver, QueryBuilderEnvironment(settings), QueryQueueBuilder(settings), QuerySchedulerBuilder(settings))


async def enqueue(tx: Connection, kind: JobKind, chunks: Sequence[int], priority: int) -> None:
    """In the caller's transaction: the entries are there when it is committed, or not at all. Higher priorities first. A chunk
    that is in the queue already stays as it is."""
    if not chunks:
        return
    count = len(chunks)
    names = [str(chunk) for chunk in chunks]
    await _queries(_Borrowed(tx)).enqueue(
        [kind.value] * count,
        [name.encode() for name in names],
        [priority] * count,
        dedupe_key=list(names),
        on_conflict="skip",
    )


async def withdraw(tx: Connection, chunks: Sequence[int]) -> None:
    """Takes chunks out that nobody works on yet."""
    await tx.execute(
        "DELETE FROM kinlens_pgqueuer WHERE status = 'queued' AND dedupe_key = ANY($1::text[])",
        [str(chunk) for chunk in chunks],
    )


async def depth(connection: Connection) -> dict[JobKind, int]:
    """Chunks that wait or are being worked on."""
    rows = await connection.fetch("SELECT entrypoint, count(*) AS chunks FROM kinlens_pgqueuer GROUP BY entrypoint")
    return {JobKind(row["entrypoint"]): row["chunks"] for row in rows if row["entrypoint"] in set(JobKind)}


async def tidy(connection: Connection) -> None:
    """Forgets what became of entries long ago, and entries that PgQueuer put aside; see `jobs.requeue_lost`."""
    await connection.execute(f"DELETE FROM kinlens_pgqueuer_log WHERE created < now() - interval '{_LOG_KEPT}'")
    await connection.execute("DELETE FROM kinlens_pgqueuer WHERE status = 'failed'")


async def set_right(connection: Connection | AsyncpgDriver) -> None:
    """Entries of a time that has not come, because the clock was set back since, are of now. They would wait for it: those put
    off, those enqueued at that time, and those of a worker that died."""
    await connection.execute(
        "UPDATE kinlens_pgqueuer SET execute_after = least(execute_after, now()), heartbeat = least(heartbeat, now())"
        " WHERE execute_after > now() + $1::float8 * interval '1 s'"
        " OR status = 'picked' AND heartbeat > now() + $2::float8 * interval '1 s'",
        _FUTURE_S,
        LEASE_S,
    )


async def _watch_the_clock(driver: AsyncpgDriver) -> None:
    """Until it is cancelled, or the connection is lost, which others notice."""
    with suppress(asyncpg.InterfaceError, OSError):
        while True:
            # Two workers may be in each other's way: the next time will do.
            with suppress(asyncpg.PostgresError):
                await set_right(driver)
            await asyncio.sleep(CLOCK_S)


@dataclass(frozen=True, slots=True)
class Lane:
    """How many chunks of a kind may be worked on at once by all workers together; 0: any number."""

    limit: int = 0


Work = Callable[[JobKind, int, asyncio.Event], Awaitable[float | None]]
"""Works on a chunk. Returns None when nothing of it is left, else in how many seconds it is to be tried again. The event: to
stop after what is in hand, because the lease is about to be lost or the worker to end."""


class _Executor(AbstractEntrypointExecutor):
    def __init__(self, parameters: EntrypointExecutorParameters, kind: JobKind, work: Work, stop: asyncio.Event) -> None:
        super().__init__(parameters)
        self._kind = kind
        self._work = work
        self._stop = stop

    async def execute(self, job: Entry, context: Context) -> None:
        delay_s = await self._work(self._kind, int(job.payload or b"0"), self._stop)
        if delay_s is not None:
            raise RetryRequested(timedelta(seconds=delay_s))


async def _nothing(_: Entry) -> None:
    raise AssertionError("the executor does the work")


class QueueConsumer:
    """Takes chunks of the queue, over a connection of its own, for as long as that lasts."""

    def __init__(self, dsn: Dsn, lanes: Mapping[JobKind, Lane], chunks_at_once: int, work: Work) -> None:
        self._dsn = dsn
        self._lanes = lanes
        self._at_once = max(2, chunks_at_once)
        self._work = work
        self._stopping = asyncio.Event()
        self._manager: QueueManager | None = None

    def stop(self) -> None:
        """No further chunk is taken; what is in hand is brought to an end. `run` returns then."""
        self._stopping.set()
        if self._manager is not None:
            self._manager.shutdown.set()

    async def run(self) -> None:
        """Until `stop`, or until the connection is lost: then raises DatabaseUnavailable, and may be called again."""
        with translated():
            connection = await connect(self._dsn())
        # Of this connection: leases cannot be renewed without it.
        lost = asyncio.Event()
        driver = AsyncpgDriver(connection)
        manager = QueueManager(_queries(driver), channel=queue_settings().channel)
        manager.min_dequeue_poll_interval = timedelta(seconds=_BUSY_POLL_S)

        def on_lost(_: object) -> None:
            lost.set()
            manager.shutdown.set()

        connection.add_termination_listener(on_lost)
        for kind, lane in self._lanes.items():
            parameters = EntrypointExecutorParameters(concurrency_limit=lane.limit, func=_nothing, on_failure="hold")
            manager.register_executor(kind.value, _Executor(parameters, kind, self._work, lost))
        self._manager = manager
        if self._stopping.is_set():
            manager.shutdown.set()
        watching = asyncio.create_task(_watch_the_clock(driver))
        try:
            with translated():
                await manager.run(
                    dequeue_timeout=timedelta(seconds=_POLL_S),
                    batch_size=1,
                    max_concurrent_tasks=self._at_once,
                    shutdown_on_listener_failure=True,
                    heartbeat_timeout=timedelta(seconds=LEASE_S),
                    log_aggregation_interval=timedelta(0),
                )
        except FailingListenerError as error:
            raise DatabaseUnavailable("The connection to the queue is silent.") from error
        finally:
            self._manager = None
            watching.cancel()
            connection.remove_termination_listener(on_lost)
            # A connection that is lost would be waited for.
            connection.terminate() if lost.is_set() else await connection.close(timeout=5)
        if lost.is_set() and not self._stopping.is_set():
            raise DatabaseUnavailable("The connection to the queue was lost.")
