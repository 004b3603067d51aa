"""Dynamic batching that grows with the backlog.

`@serve.batch` closes a batch before it holds the model, so batches stay small exactly when the queue is long. Here a batch
is closed at the moment the model is free: whatever waits then goes along, up to `max_batch_size`. Waiting for company
(`batch_wait_timeout_s`) is only of use where a larger batch is cheaper an item than a small one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from serve_app.observing.spans import Spans
from serve_app.observing.stages import Stage, StageTimes, Timed, collecting

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class BatchConfig(BaseModel):
    """The `user_config` of a model deployment in serve_config.yaml; changes take effect without a restart.

    `max_batch_size`: largest weight of one batch (pictures for Detection, faces for Embedding); None follows the device.
    `batch_wait_timeout_s`: how long the oldest item may wait for company while the model is free. `threads`: batches run
    at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch_size: int | None = Field(None, ge=1, le=1024)
    batch_wait_timeout_s: float = Field(0.0, ge=0, le=1)
    threads: int = Field(1, ge=1, le=64)


@dataclass(slots=True)
class _Pending(Generic[ItemT, ResultT]):
    item: ItemT
    weight: int
    future: asyncio.Future[Timed[ResultT]]
    spans: Spans = ()
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[ItemT, ResultT]):
    """Collects items of concurrent callers into batches and runs them on its own threads.

    `run` gets a list of items and returns one result an item, in order. It is called on a worker thread, on up to
    `threads` of them at once. An exception from a batch of several is not shared: each item is run again alone, and only
    the one at fault fails. `default_batch_size`: where the configuration names none. All methods belong to one event loop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[ItemT]], Sequence[ResultT]],
        config: BatchConfig,
        *,
        weight: Callable[[ItemT], int] = lambda _: 1,
        default_batch_size: int = 1,
    ) -> None:
        self._run = run
        self._default_batch_size = default_batch_size
        self._weight = weight
        self._queue: deque[_Pending[ItemT, ResultT]] = deque()
        self._running = 0
        self._wake: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._config = config
        self._executor = ThreadPoolExecutor(config.threads, thread_name_prefix="model")

    def configure(self, config: BatchConfig) -> None:
        """Takes effect with the next batch; batches under way and waiting items are not touched."""
        if config.threads != self._config.threads:
            self._executor.shutdown(wait=False)
            self._executor = ThreadPoolExecutor(config.threads, thread_name_prefix="model")
        self._config = config

    @property
    def config(self) -> BatchConfig:
        return self._config

    @property
    def max_batch_size(self) -> int:
        return self._config.max_batch_size or self._default_batch_size

    async def submit(self, item: ItemT) -> ResultT:
        """The result of `item`. Cancelling the caller takes the item out of the queue if no batch has it yet."""
        return (await self.submit_timed(item)).value

    async def submit_timed(self, item: ItemT, spans: Spans = ()) -> Timed[ResultT]:
        """`submit`, and how long it waited and took. An item took as long as its batch: so long was waited for it. `spans`: of
        who waits; each gets a child for the queue, and for every stage of its batch."""
        future: asyncio.Future[Timed[ResultT]] = asyncio.get_running_loop().create_future()
        pending: _Pending[ItemT, ResultT] = _Pending(item, self._weight(item), future, spans)
        self._queue.append(pending)
        self._dispatch()
        try:
            return await pending.future
        except asyncio.CancelledError:
            if pending in self._queue:
                self._queue.remove(pending)
            raise

    def _dispatch(self) -> None:
        """Starts as many batches as there are free threads, or sets a timer while waiting for company pays."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        while self._queue and self._running < self._config.threads:
            left_s = self._queue[0].arrived + self._config.batch_wait_timeout_s - time.monotonic()
            waiting = sum(pending.weight for pending in self._queue)
            if left_s > 0 and waiting < self.max_batch_size:
                self._wake = asyncio.get_running_loop().call_later(left_s, self._dispatch)
                return
            self._running += 1
            task = asyncio.get_running_loop().create_task(self._work(self._take()))
            # The loop itself keeps only weak references to tasks.
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[_Pending[ItemT, ResultT]]:
        """The oldest items that fit together; an item heavier than the limit goes alone."""
        batch = [self._queue.popleft()]
        weight = batch[0].weight
        while self._queue and weight + self._queue[0].weight <= self.max_batch_size:
            weight += self._queue[0].weight
            batch.append(self._queue.popleft())
        return batch

    async def _work(self, batch: list[_Pending[ItemT, ResultT]]) -> None:
        try:
            await self._resolve(batch)
        finally:
            self._running -= 1
            self._dispatch()

    async def _resolve(self, batch: list[_Pending[ItemT, ResultT]]) -> None:
        spans = tuple(span for pending in batch for span in pending.spans)
        call = functools.partial(self._timed, [pending.item for pending in batch], spans)
        started = time.monotonic()
        if spans:
            # A traced request says whom it shared the model with, in numbers.
            shared = {"kinlens.batch.items": len(batch), "kinlens.batch.weight": sum(pending.weight for pending in batch)}
            for pending in batch:
                for span in pending.spans:
                    span.record(Stage.QUEUE.value, started - pending.arrived)
                    span.annotate(shared)
        try:
            results, times = await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except Exception as error:
            # Whatever the model code raised belongs to the caller whose item caused it.
            if len(batch) == 1:
                if not batch[0].future.done():
                    batch[0].future.set_exception(error)
                return
            logger.warning("a batch of %d failed (%s); running its items alone", len(batch), type(error).__name__)
            for pending in batch:
                await self._resolve([pending])
            return
        for pending, result in zip(batch, results, strict=True):
            if not pending.future.done():
                seconds = {Stage.QUEUE: started - pending.arrived, **times.seconds}
                pending.future.set_result(Timed(result, seconds))

    def _timed(self, items: Sequence[ItemT], spans: Spans) -> tuple[Sequence[ResultT], StageTimes]:
        """On a worker thread."""
        with collecting(*spans) as times:
            return self._run(items), times
