"""A run of `kinlens index`: files are listed, those that are known left out, the others handed to workers in batches.

What is in memory is bounded, however many files there are: a page of the listing, and a few batches for each worker.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from serve_app.bulk.files import BatchResult, Outcome, Source, SourceFile, Status, Unlisted, file_id, version_id
from serve_app.errors import CapacityError, FileUnreadable, InternalError, KinlensError, NotFound, PartUnavailable
from serve_app.storage import collections, indexed_files
from serve_app.storage.database import Database

ItemT = TypeVar("ItemT")

BATCH_FILES = 16
BATCH_BYTES = 32 << 20
"""Of encoded pictures; one that is larger goes alone."""
BATCHES_A_WORKER = 3
"""One is read, one is looked at, one is written."""
_PAGE = 256
"""Files that the database is asked about at once."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_DEATHS = 2
"""Of a worker that had one file and nothing else: then it is the file."""


class WorkerFailed(Exception):
    """`died`: its process is gone, and another stands in its place. Else it raised what nobody foresaw, and logged it."""

    def __init__(self, detail: str, *, died: bool) -> None:
        super().__init__(detail)
        self.died = died


class WorkersGone(Exception):
    """None can be started any more."""


class Pool(Protocol):
    @property
    def size(self) -> int:
        """Workers."""
        ...

    async def index(self, worker: int, files: Sequence[SourceFile]) -> BatchResult:
        """Raises WorkerFailed, WorkersGone."""
        ...


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`limit`: files handed to workers at most. `give_up_after_s`: without anything coming about."""

    collection_id: str
    limit: int | None = None
    give_up_after_s: float = 300


@dataclass(slots=True)
class Summary:
    """`reasons`: by status and code. `gave_up`: why it ended before everything was looked at."""

    statuses: Counter[Status] = field(default_factory=Counter)
    reasons: Counter[tuple[Status, str]] = field(default_factory=Counter)
    faces: int = 0
    new: int = 0
    """Files that a dry run would have handed to workers."""
    gave_up: str | None = None
    stopped: bool = False

    @property
    def seen(self) -> int:
        return sum(self.statuses.values())

    @property
    def complete(self) -> bool:
        return not self.stopped and self.gave_up is None and not self.statuses[Status.FAILED]


@dataclass(slots=True)
class _Lane:
    """A worker. `alone`: of its batches, how many wait for having it to themselves; `running`: calls."""

    number: int
    alone: int = 0
    running: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class BulkRun:
    """`record`: is told of each outcome. `pool`: None for a dry run."""

    def __init__(
        self, pool: Pool | None, source: Source, database: Database, options: RunOptions, record: Callable[[Outcome], None]
    ) -> None:
        self._pool = pool
        self._source = source
        self._database = database
        self._options = options
        self._record = record
        self._summary = Summary()
        self._stop = asyncio.Event()
        self._last_good = time.monotonic()
        size = 0 if pool is None else pool.size
        self._batches: asyncio.Queue[list[SourceFile] | None] = asyncio.Queue(max(1, size))

    def stop(self) -> None:
        """What is being worked on is brought to its end, and nothing more is begun."""
        self._summary.stopped = True
        self._stop.set()

    async def run(self) -> Summary:
        """Without a pool nothing is read."""
        if self._pool is None:
            await self._count_new()
            return self._summary
        lanes = [_Lane(number) for number in range(self._pool.size)]
        workers = [asyncio.create_task(self._work(self._pool, lane)) for lane in lanes for _ in range(BATCHES_A_WORKER)]
        feeding = asyncio.create_task(self._feed(len(workers)))
        try:
            # Whatever nobody foresaw ends the run, and what is being worked on with it.
            await asyncio.gather(feeding, *workers)
        finally:
            self._stop.set()
            for task in (feeding, *workers):
                task.cancel()
            await asyncio.wait((feeding, *workers))
        return self._summary

    async def _count_new(self) -> None:
        try:
            async for page in self._new_files():
                self._summary.new += len(page)
        except KinlensError as error:
            self._give_up(error.detail)

    async def _feed(self, workers: int) -> None:
        left = self._options.limit
        try:
            async for files in self._new_files():
                chosen = files if left is None else files[:left]
                left = None if left is None else left - len(chosen)
                for batch in _batches(chosen):
                    await self._put(batch)
                if left == 0:
                    break
        except KinlensError as error:
            # The listing broke off. What came before is worked off.
            self._summary.gave_up = self._summary.gave_up or error.detail
        for _ in range(workers):
            await self._put(None)

    async def _put(self, batch: list[SourceFile] | None) -> None:
        """Waits for room, unless nobody will make any."""
        put = asyncio.create_task(self._batches.put(batch))
        await self._unless_stopped(put)

    async def _unless_stopped(self, task: asyncio.Task[ItemT]) -> ItemT | None:
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stop.cancel()

    async def _new_files(self) -> AsyncIterator[list[SourceFile]]:
        """Pages of files to be read; what becomes of the others is told."""
        listing = self._source.files()
        error: KinlensError | None = None
        while not self._stop.is_set() and error is None:
            page, error = await asyncio.to_thread(_taken, listing)
            files = [one for one in page if isinstance(one, SourceFile)]
            for one in page:
                if isinstance(one, Unlisted):
                    self._note(Outcome(one.name, Status.FAILED, code=FileUnreadable.code, detail=one.detail))
            known = await self._unchanged(files) if files else set()
            for file in files:
                if file in known:
                    self._note(Outcome(file.name, Status.KNOWN))
            if files and not self._stop.is_set():
                yield [file for file in files if file not in known]
            if not page:
                break
        if error is not None:
            raise error

    async def _unchanged(self, files: Sequence[SourceFile]) -> set[SourceFile]:
        """Asked again while the database is away."""
        ids = {file_id(self._source.location, one.name): one for one in files}
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                async with self._database.connection() as connection:
                    collection = await collections.get(connection, self._options.collection_id)
                    asked = [(identity, version_id(one)) for identity, one in ids.items()]
                    found = await indexed_files.unchanged(connection, collection, asked)
                self._last_good = time.monotonic()
                return {ids[identity] for identity in found}
            except NotFound:
                return set()
            except (CapacityError, PartUnavailable) as error:
                if not await self._wait(wait_s, error.detail):
                    return set()
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _work(self, pool: Pool, lane: _Lane) -> None:
        while not self._stop.is_set():
            batch = await self._unless_stopped(asyncio.create_task(self._batches.get()))
            if batch is None:
                return
            try:
                await self._together(pool, lane, batch)
            except WorkersGone as error:
                self._give_up(str(error))

    async def _together(self, pool: Pool, lane: _Lane, batch: Sequence[SourceFile]) -> None:
        async with lane.changed:
            await lane.changed.wait_for(lambda: not lane.alone)
            lane.running += 1
        failed = False
        try:
            await self._index(pool, lane, batch)
        except WorkerFailed:
            # One of the files, of this batch or of those beside it.
            failed = True
        finally:
            async with lane.changed:
                lane.running -= 1
                lane.alone += failed
                lane.changed.notify_all()
        if not failed:
            return
        try:
            for file in batch:
                await self._alone(pool, lane, file)
        finally:
            async with lane.changed:
                lane.alone -= 1
                lane.changed.notify_all()

    async def _alone(self, pool: Pool, lane: _Lane, file: SourceFile) -> None:
        """The worker has nothing else to do meanwhile: if it dies, it is known over what."""
        for death in range(1, _DEATHS + 1):
            if self._stop.is_set():
                return
            async with lane.changed:
                await lane.changed.wait_for(lambda: not lane.running)
                lane.running += 1
            try:
                await self._index(pool, lane, [file])
                return
            except WorkerFailed as error:
                if death == _DEATHS or not error.died:
                    code = "worker_died" if error.died else InternalError.code
                    self._note(Outcome(file.name, Status.FAILED, code=code, detail=str(error)))
                    return
            finally:
                async with lane.changed:
                    lane.running -= 1
                    lane.changed.notify_all()

    async def _index(self, pool: Pool, lane: _Lane, files: Sequence[SourceFile]) -> None:
        """Until something is known of each, or the run is given up. Raises WorkerFailed, WorkersGone."""
        wait_s = _FIRST_WAIT_S
        while True:
            result = await pool.index(lane.number, files)
            if result.trouble is None:
                self._last_good = time.monotonic()
                for outcome in result.outcomes:
                    self._note(outcome)
                return
            if not await self._wait(wait_s, result.trouble):
                return
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _wait(self, wait_s: float, why: str) -> bool:
        """False where there is no use in trying again."""
        if time.monotonic() - self._last_good > self._options.give_up_after_s:
            self._give_up(f"Nothing came about for {self._options.give_up_after_s:g} s: {why}")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), wait_s)
        return not self._stop.is_set()

    def _give_up(self, why: str) -> None:
        self._summary.gave_up = self._summary.gave_up or why
        self._stop.set()

    def _note(self, outcome: Outcome) -> None:
        self._summary.statuses[outcome.status] += 1
        self._summary.faces += outcome.faces
        if outcome.code is not None:
            self._summary.reasons[outcome.status, outcome.code] += 1
        self._record(outcome)


def _taken(listing: Iterator[SourceFile | Unlisted]) -> tuple[list[SourceFile | Unlisted], KinlensError | None]:
    """On a thread: the next page, and why it is the last one where it broke off."""
    page: list[SourceFile | Unlisted] = []
    try:
        page.extend(itertools.islice(listing, _PAGE))
    except KinlensError as error:
        return page, error
    return page, None


def _batches(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    batch: list[SourceFile] = []
    held = 0
    for file in files:
        if batch and (len(batch) == BATCH_FILES or held + file.size_bytes > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(file)
        held += file.size_bytes
    if batch:
        yield batch
