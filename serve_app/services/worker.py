"""The worker: takes chunks of jobs' items and has them done, whatever dies around it.

What it says of an item is said in the database, under a claim of its own (storage/job_items.py). So it does not matter when it
dies: what was committed stands, the rest is begun again by whoever gets the chunk next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import UUID, uuid4

from serve_app.errors import (
    CapacityError,
    DatabaseUnavailable,
    DeadlineExceeded,
    InternalError,
    KinlensError,
    ObjectStoreUnavailable,
    Overloaded,
    PartUnavailable,
)
from serve_app.jobs import ItemError, ItemWithdrawn, JobKind
from serve_app.observing.outlets import Outlets
from serve_app.observing.spans import Span
from serve_app.observing.stages import Stage, collecting
from serve_app.services.work import ItemHandler, WorkItem
from serve_app.storage import job_items, jobs
from serve_app.storage.database import Connection, Database, Dsn
from serve_app.storage.job_items import OpenItem
from serve_app.storage.queue import Lane, QueueConsumer

logger = logging.getLogger("ray.serve")

ResultT = TypeVar("ResultT")
ChunkEnded = Callable[[JobKind, str], None]
"""Told the kind and the collection."""
ItemWorked = Callable[[JobKind, str, float, Mapping[Stage, float]], None]
"""Told the kind, what became of the item (done, failed, put_off, withdrawn), the seconds in all, and those by stage."""

WHOLE_KINDS = frozenset({JobKind.CLUSTER})
"""Their items are the work of a whole library: one at a time in all, beside the photos, however long it takes."""
CHUNKS_AT_ONCE = 3
ITEM_TIMEOUT_S = {JobKind.CLUSTER: None, JobKind.SCAN: 3600.0}
"""Of others: 300 s."""
_ITEM_TIMEOUT_S = 300.0
_RECONNECT_S = 1.0
_DELAY_S, _MAX_DELAY_S = 1.0, 30.0
_BUSY_DELAY_S = 2.0
_NOTE_RETRY_S, _NOTE_TIMEOUT_S = 0.5, 60.0


@dataclass
class _Chunk:
    """`over`: nothing more of it is begun now; the rest is tried again in `delay_s`, where that is set."""

    lost: asyncio.Event
    over: bool = False
    delay_s: float | None = None
    items: list[OpenItem] = field(default_factory=list)

    def put_off(self, delay_s: float, *, over: bool) -> None:
        self.delay_s = max(delay_s, self.delay_s or 0.0)
        self.over = self.over or over


class Worker:
    """`at_once`: items of photos that are worked on at the same time."""

    def __init__(
        self,
        database: Database,
        dsn: Dsn,
        handlers: Mapping[JobKind, ItemHandler],
        at_once: int,
        chunk_ended: ChunkEnded | None = None,
        item_worked: ItemWorked | None = None,
        outlets: Outlets | None = None,
    ) -> None:
        self._database = database
        self._dsn = dsn
        self._handlers = handlers
        self._places = _Places(at_once)
        self._chunk_ended = chunk_ended
        self._item_worked = item_worked
        self._outlets = outlets or Outlets()
        self._stopping = asyncio.Event()
        self._consumer: QueueConsumer | None = None
        self._loop: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def kinds(self) -> frozenset[JobKind]:
        """What it works on."""
        return frozenset(self._handlers)

    @property
    def alive(self) -> bool:
        return self._loop is not None and not self._loop.done()

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())

    async def stop(self, grace_s: float) -> None:
        """Ends what is in hand, and gives back the rest; as well what is not done in time."""
        self._stopping.set()
        if self._consumer is not None:
            self._consumer.stop()
        if self._loop is None:
            return
        if not (await asyncio.wait([self._loop], timeout=grace_s))[0]:
            for task in list(self._under_way):
                task.cancel()
            if not (await asyncio.wait([self._loop], timeout=grace_s))[0]:
                self._loop.cancel()

    async def _run(self) -> None:
        lanes = {kind: Lane(1 if kind in WHOLE_KINDS else 0) for kind in self._handlers}
        while not self._stopping.is_set():
            # A new one each time: its connection is a new one, perhaps to another port.
            self._consumer = QueueConsumer(self._dsn, lanes, CHUNKS_AT_ONCE, self._work)
            try:
                await self._consumer.run()
            except (PartUnavailable, CapacityError) as error:
                logger.warning("the queue: %s", error.detail)
            except Exception as error:
                # The loop must outlive what nobody foresaw; without it, no job would go on.
                logger.exception("the queue failed")
                self._outlets.report(error, method="queue")
            await self._pause(_RECONNECT_S)

    async def _work(self, kind: JobKind, number: int, lost: asyncio.Event) -> float | None:
        """See storage.queue.Work."""
        try:
            chunk = _Chunk(lost, items=await self._database.run(lambda tx: job_items.open_chunk(tx, number)))
            if not chunk.items:
                await self._close()
                return None
            tasks = [asyncio.create_task(self._one(item, chunk)) for item in chunk.items]
            self._under_way |= set(tasks)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._under_way -= set(tasks)
            job = chunk.items[0]
            for result in results:
                if isinstance(result, BaseException):
                    chunk.put_off(_DELAY_S, over=True)
                    if not isinstance(result, KinlensError | asyncio.CancelledError):
                        logger.error("an item of job %s failed", job.job_id, exc_info=result)
                        self._outlets.report(result, job_kind=kind.value, job_id=str(job.job_id))
            if self._chunk_ended is not None:
                self._chunk_ended(kind, job.collection_id)
            await self._database.run(lambda tx: jobs.settle(tx, job.job_id))
        except (PartUnavailable, CapacityError) as error:
            logger.warning("a chunk of jobs is put off: %s", error.detail)
            return _DELAY_S
        return chunk.delay_s

    async def _close(self) -> None:
        """Whoever had a chunk of which nothing is left may have died before it looked whether that was the job's last."""
        async with self._database.connection() as connection:
            open_jobs = await jobs.open_jobs(connection)
        for job_id in open_jobs:
            await self._database.run(partial(jobs.settle, job_id=job_id))

    async def _one(self, item: OpenItem, chunk: _Chunk) -> None:
        if item.kind in WHOLE_KINDS:
            return await self._begin(item, chunk)
        async with self._places.alone() if item.suspect else self._places.shared():
            return await self._begin(item, chunk)

    async def _begin(self, item: OpenItem, chunk: _Chunk) -> None:
        """Raises PartUnavailable where nobody could be told what became of it: it is found again then, as one whose worker
        died."""
        if chunk.over or chunk.lost.is_set() or self._stopping.is_set():
            return chunk.put_off(0.0, over=True)
        claim = uuid4()
        async with self._database.connection() as connection:
            if not await job_items.start(connection, item.id, claim):
                return None
        started, outcome = time.perf_counter(), "failed"
        span = self._outlets.item()
        try:
            with collecting(*(() if span is None else (span,))) as times:
                try:
                    await self._handle(item, claim)
                    outcome = "done"
                except ItemWithdrawn:
                    outcome = "withdrawn"
                except (CapacityError, PartUnavailable, asyncio.CancelledError):
                    outcome = "put_off"
                    raise
                finally:
                    if self._item_worked is not None:
                        self._item_worked(item.kind, outcome, time.perf_counter() - started, times.seconds)
                    if span is not None:
                        _end(span, item, outcome)
        except asyncio.CancelledError:
            await self._note(lambda connection: job_items.put_back(connection, item.id, claim))
            raise
        except (CapacityError, PartUnavailable) as error:
            await self._put_off(item, claim, error, chunk)
        except KinlensError as error:
            kept = _kept(error)
            await self._note(lambda connection: job_items.fail(connection, item.id, claim, kept))
        except Exception as error:
            logger.exception("an item of job %s failed", item.job_id)
            self._outlets.report(error, job_kind=item.kind.value, job_id=str(item.job_id))
            kept = _kept(InternalError("It failed for a reason that is ours; it is logged."))
            await self._note(lambda connection: job_items.fail(connection, item.id, claim, kept))
        return None

    async def _handle(self, item: OpenItem, claim: UUID) -> None:
        ended = False

        async def finish(tx: Connection) -> None:
            nonlocal ended
            await job_items.finish(tx, item.id, claim)
            ended = True

        async def skip(tx: Connection, reason: str) -> None:
            nonlocal ended
            await job_items.skip(tx, item.id, claim, reason)
            ended = True

        async def add(tx: Connection, subjects: Sequence[str]) -> None:
            await jobs.add_items(tx, item.job_id, subjects)

        async def check(tx: Connection) -> None:
            await job_items.check(tx, item.id, claim)

        work = WorkItem(item.job_id, item.kind, item.collection_id, item.subject, item.options, finish, skip, add, check)
        timeout_s = ITEM_TIMEOUT_S.get(item.kind, _ITEM_TIMEOUT_S)
        try:
            async with asyncio.timeout(timeout_s):
                await self._handlers[item.kind].run(work)
        except TimeoutError as error:
            raise DeadlineExceeded(f"It was not done in {timeout_s} s.", timeout_s=timeout_s) from error
        if not ended:
            raise InternalError("It was left neither done nor failed.")

    async def _put_off(self, item: OpenItem, claim: UUID, error: KinlensError, chunk: _Chunk) -> None:
        """A part that is down is not asked for the next item at once; a queue that is full is, in a moment."""
        kept, busy = _kept(error), isinstance(error, Overloaded)
        # A picture can take a model down, or keep it busy for ever; but no store.
        patient = busy or isinstance(error, DatabaseUnavailable | ObjectStoreUnavailable)
        waits = await self._note(lambda connection: job_items.wait(connection, item.id, claim, kept, patient=patient))
        if waits == 0:
            return
        delay_s = _BUSY_DELAY_S if busy else min(_MAX_DELAY_S, _DELAY_S * 2 ** (waits - 1))
        chunk.put_off(delay_s, over=not busy)
        await self._note(lambda connection: job_items.delay(connection, item.job_id, kept, delay_s))

    async def _note(self, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """Again until the database is back, for a while. What it says holds only under the claim, so that it does not matter
        whether it was said before."""
        given_up = time.monotonic() + _NOTE_TIMEOUT_S
        while True:
            try:
                async with self._database.connection() as connection:
                    return await work(connection)
            except (PartUnavailable, CapacityError):
                if self._stopping.is_set() or time.monotonic() > given_up:
                    raise
            await self._pause(_NOTE_RETRY_S)

    async def _pause(self, seconds: float) -> None:
        """Or until it is to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


class _Places:
    """How many work at once. One who is alone waits until all others have gone, and none begins meanwhile: should the process
    die, it is known over what."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken = 0
        self._alone = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and self._taken < self._count)
            self._taken += 1
        try:
            yield
        finally:
            await self._leave()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        self._alone += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._taken == 0)
                self._taken += 1
            try:
                yield
            finally:
                await self._leave()
        finally:
            self._alone -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _leave(self) -> None:
        async with self._changed:
            self._taken -= 1
            self._changed.notify_all()


def _end(span: Span, item: OpenItem, outcome: str) -> None:
    span.annotate({"kinlens.job.kind": item.kind.value, "kinlens.job.id": str(item.job_id), "kinlens.outcome": outcome})
    if outcome == "failed":
        span.fail(outcome)
    span.end(f"item {item.kind.value}")


def _kept(error: KinlensError) -> ItemError:
    return ItemError(error.code, error.detail, error.details)
