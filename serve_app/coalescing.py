"""Calls that travel together.

A hop to another process costs the same for one face as for sixteen: a millisecond or two of CPU. While calls are under way,
what else comes waits for each other and goes as one call; where nothing is under way, nobody waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.errors import RETRY_AFTER_S, KinlensError, ModelUnavailable

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_PARTIAL_CALLS = 2
"""Under way at once before less than a full call waits: one that is worked on, one that is ready when it is done."""


@dataclass(eq=False, slots=True)
class _Waiting(Generic[ItemT, ResultT]):
    item: ItemT
    weight: int
    future: asyncio.Future[ResultT]


class Coalescer(Generic[KeyT, ItemT, ResultT]):
    """Merges items of one key. `run`: one result an item, in order. `full`: weight of a call that waits for nobody.

    A KinlensError of `run` goes to every caller of the call. Any other error of several is not shared: each item goes again
    alone. A call whose callers have all gone is cancelled. All methods belong to one event loop.
    """

    def __init__(
        self,
        run: Callable[[KeyT, Sequence[ItemT]], Awaitable[Sequence[ResultT]]],
        *,
        weight: Callable[[ItemT], int],
        full: int,
    ) -> None:
        self._run = run
        self._weight = weight
        self._full = full
        self._queues: defaultdict[KeyT, deque[_Waiting[ItemT, ResultT]]] = defaultdict(deque)
        self._under_way: defaultdict[KeyT, int] = defaultdict(int)
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, key: KeyT, item: ItemT) -> ResultT:
        """The result of `item`. Cancelling the caller takes it out of the queue if no call has it yet."""
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, self._weight(item), future)
        self._queues[key].append(waiting)
        # Not at once: whoever was woken by the same event submits first.
        self._soon(key)
        try:
            return await future
        except asyncio.CancelledError:
            if waiting in self._queues.get(key, ()):
                self._queues[key].remove(waiting)
            raise

    def _soon(self, key: KeyT) -> None:
        # In a context of its own: a call belongs to all its callers, and must not be taken down with the request of one.
        asyncio.get_running_loop().call_soon(self._dispatch, key, context=contextvars.Context())

    def _dispatch(self, key: KeyT) -> None:
        queue = self._queues[key]
        while queue:
            full = sum(waiting.weight for waiting in queue) >= self._full
            if not full and self._under_way[key] >= _PARTIAL_CALLS:
                return
            self._under_way[key] += 1
            task = asyncio.get_running_loop().create_task(self._work(key, self._take(queue)))
            # The loop itself keeps only weak references to tasks.
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self, queue: deque[_Waiting[ItemT, ResultT]]) -> list[_Waiting[ItemT, ResultT]]:
        """The oldest that fit into one call; an item heavier than a full call goes alone."""
        call = [queue.popleft()]
        weight = call[0].weight
        while queue and weight + queue[0].weight <= self._full:
            weight += queue[0].weight
            call.append(queue.popleft())
        return call

    async def _work(self, key: KeyT, call: list[_Waiting[ItemT, ResultT]]) -> None:
        task = asyncio.current_task()
        assert task is not None

        def left(_: object) -> None:
            if all(waiting.future.cancelled() for waiting in call):
                task.cancel()

        for waiting in call:
            waiting.future.add_done_callback(left)
        try:
            await self._resolve(key, call)
        finally:
            for waiting in call:
                # Only where the call was cancelled from elsewhere, by a shutdown for instance.
                if not waiting.future.done():
                    waiting.future.set_exception(ModelUnavailable("The call was cancelled.", retry_after_s=RETRY_AFTER_S))
            self._under_way[key] -= 1
            if not self._queues[key] and not self._under_way[key]:
                del self._queues[key], self._under_way[key]
            else:
                self._soon(key)

    async def _resolve(self, key: KeyT, call: list[_Waiting[ItemT, ResultT]]) -> None:
        try:
            results = await self._run(key, [waiting.item for waiting in call])
        except Exception as error:
            # Whatever the other side raised belongs to the caller whose item caused it.
            left = [waiting for waiting in call if not waiting.future.done()]
            if len(call) > 1 and not isinstance(error, KinlensError):
                await asyncio.gather(*(self._resolve(key, [waiting]) for waiting in left))
                return
            for waiting in left:
                waiting.future.set_exception(_own(error))
            return
        for waiting, result in zip(call, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(result)


def _own(error: Exception) -> Exception:
    """For one caller, who may add to its details."""
    if not isinstance(error, KinlensError):
        return error
    own = copy.copy(error)
    own.details = dict(error.details)
    return own.with_traceback(error.__traceback__)
