"""The batcher, without models: timing by events, never by the clock's speed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from deployments.batching import BatchConfig, Batcher


class Recorder:
    """A `run` that records its batches and, while closed, holds the worker thread."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.concurrent = 0
        self.most_concurrent = 0
        self._lock = threading.Lock()

    def __call__(self, items: Sequence[int]) -> list[int]:
        with self._lock:
            self.batches.append(list(items))
            self.concurrent += 1
            self.most_concurrent = max(self.most_concurrent, self.concurrent)
        self.gate.wait(60)
        with self._lock:
            self.concurrent -= 1
        if -1 in items:
            raise ValueError("minus one")
        return [item * 10 for item in items]


async def settle(turns: int = 50) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_items_that_wait_for_the_model_go_together() -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=8))
    run.gate.clear()
    first = asyncio.create_task(batcher.submit(1))
    await settle()
    rest = [asyncio.create_task(batcher.submit(i)) for i in (2, 3, 4)]
    await settle()
    run.gate.set()
    assert await asyncio.gather(first, *rest) == [10, 20, 30, 40]
    assert run.batches == [[1], [2, 3, 4]]


async def test_batches_stay_within_their_weight_and_heavy_items_go_alone() -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=5), weight=lambda item: item)
    run.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3, 2, 9, 1)]
    await settle()
    run.gate.set()
    assert await asyncio.gather(*tasks) == [10, 20, 30, 20, 90, 10]
    assert run.batches == [[1], [2, 3], [2], [9], [1]]


async def test_one_bad_item_fails_alone() -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=8))
    run.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(item)) for item in (0, 1, -1, 2)]
    await settle()
    run.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == 0 and results[1] == 10 and results[3] == 20
    assert isinstance(results[2], ValueError)


async def test_a_cancelled_caller_leaves_the_queue() -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=8))
    run.gate.clear()
    first = asyncio.create_task(batcher.submit(1))
    await settle()
    gone, stays = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
    await settle()
    gone.cancel()
    await settle()
    run.gate.set()
    assert await first == 10 and await stays == 30
    assert run.batches == [[1], [3]]


async def test_cancelling_a_running_item_does_not_disturb_its_neighbours() -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=8))
    run.gate.clear()
    task = asyncio.create_task(batcher.submit(1))
    await settle()
    task.cancel()
    after = asyncio.create_task(batcher.submit(2))
    await settle()
    run.gate.set()
    assert await after == 20


async def test_waiting_for_company_ends_when_the_batch_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Recorder()
    # On a clock that stands still, so that the second for which it could wait is never over.
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=3, batch_wait_timeout_s=1))
    assert await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3))) == [10, 20, 30]
    assert run.batches == [[1, 2, 3]]


async def test_waiting_for_company_ends_by_time() -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=3, batch_wait_timeout_s=0.05))
    assert await asyncio.wait_for(batcher.submit(1), 60) == 10


async def test_reconfiguration_takes_effect_without_losing_items() -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=1))
    run.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(item)) for item in range(6)]
    await settle()
    batcher.configure(BatchConfig(max_batch_size=5, threads=2))
    run.gate.set()
    assert await asyncio.gather(*tasks) == [0, 10, 20, 30, 40, 50]
    assert run.batches[0] == [0] and max(len(batch) for batch in run.batches) > 1


@pytest.mark.parametrize("threads", [1, 3])
async def test_at_most_so_many_batches_run_at_once(threads: int) -> None:
    run = Recorder()
    batcher: Batcher[int, int] = Batcher(run, BatchConfig(threads=threads))
    run.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(item)) for item in range(8)]
    async with asyncio.timeout(60):
        while run.concurrent < threads:  # noqa: ASYNC110  what its threads do has no event of the loop's
            await asyncio.sleep(0.005)
    run.gate.set()
    await asyncio.gather(*tasks)
    assert run.most_concurrent == threads


def test_unknown_keys_of_user_config_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        BatchConfig.model_validate({"batch_size": 4})
