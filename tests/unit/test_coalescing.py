"""Calls that travel together: who waits, who does not, and what an error does."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from serve_app.coalescing import Coalescer
from serve_app.errors import ModelUnavailable


@dataclass
class Far:
    """Answers each item with its double, when told to."""

    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    poison: int | None = None
    cancelled: int = 0

    async def __call__(self, key: str, items: Sequence[int]) -> list[int]:
        self.calls.append((key, list(items)))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        if self.poison in items:
            raise ValueError("poison")
        return [item * 2 for item in items]


def coalescer(far: Far, full: int = 4) -> Coalescer[str, int, int]:
    return Coalescer(far, weight=lambda item: max(1, item // 100), full=full)


async def submitted(one: Coalescer[str, int, int], *items: int, key: str = "a") -> list[asyncio.Task[int]]:
    """One after another, each with time to be sent."""
    tasks = []
    for item in items:
        tasks.append(asyncio.create_task(one.submit(key, item)))
        for _ in range(5):
            await asyncio.sleep(0)
    return tasks


async def test_nobody_waits_while_nothing_is_under_way() -> None:
    far = Far()
    far.gate.set()
    assert await coalescer(far).submit("a", 3) == 6 and far.calls == [("a", [3])]


async def test_what_comes_meanwhile_goes_together_in_order() -> None:
    far = Far()
    tasks = await submitted(coalescer(far), 1, 2, 3, 4, 5)
    # Two calls under way; three that wait for one of them.
    assert far.calls == [("a", [1]), ("a", [2])]
    far.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10]
    assert far.calls[2:] == [("a", [3, 4, 5])]


async def test_those_woken_by_the_same_event_go_together() -> None:
    far = Far()
    one = coalescer(far)
    tasks = [asyncio.create_task(one.submit("a", item)) for item in (1, 2, 3)]
    far.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6] and far.calls == [("a", [1, 2, 3])]


async def test_a_full_call_waits_for_nobody() -> None:
    far = Far()
    tasks = await submitted(coalescer(far), *range(1, 12))
    assert far.calls == [("a", [1]), ("a", [2]), ("a", [3, 4, 5, 6]), ("a", [7, 8, 9, 10])]
    far.gate.set()
    assert await asyncio.gather(*tasks) == [item * 2 for item in range(1, 12)]


async def test_an_item_heavier_than_a_call_goes_alone() -> None:
    far = Far()
    tasks = await submitted(coalescer(far), 1, 2, 900, 3)
    assert far.calls[2] == ("a", [900])
    far.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 1800, 6]


async def test_keys_do_not_mix() -> None:
    far = Far()
    one = coalescer(far)
    tasks = [*await submitted(one, 1, 2, 3, key="a"), *await submitted(one, 4, key="b")]
    far.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert ("b", [4]) in far.calls


async def test_a_refusal_goes_to_every_caller() -> None:
    far = Far(error=ModelUnavailable("gone"))
    tasks = await submitted(coalescer(far), 1, 2, 3, 4)
    far.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, ModelUnavailable) for answer in answers) and len(far.calls) == 3


async def test_only_the_item_at_fault_fails() -> None:
    far = Far(poison=4)
    tasks = await submitted(coalescer(far), 1, 2, 3, 4, 5)
    far.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, int)] == [2, 4, 6, 10]
    assert isinstance(answers[3], ValueError)


async def test_a_cancelled_caller_leaves_the_queue() -> None:
    far = Far()
    tasks = await submitted(coalescer(far), 1, 2, 3, 4)
    tasks[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    far.gate.set()
    assert [await task for task in (tasks[0], tasks[1], tasks[3])] == [2, 4, 8] and far.calls[2] == ("a", [4])


async def test_a_call_without_callers_is_cancelled_and_makes_room() -> None:
    far = Far()
    tasks = await submitted(coalescer(far), 1, 2, 3)
    for task in tasks[:2]:
        task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert far.cancelled == 2 and far.calls[2] == ("a", [3])
    far.gate.set()
    assert await tasks[2] == 6


async def test_a_call_that_is_cancelled_from_elsewhere_leaves_nobody_waiting() -> None:
    """Serve cancels the calls of a request whose client is gone; the others of the call get an answer they can act on."""
    far = Far(error=asyncio.CancelledError())  # type: ignore[arg-type]
    tasks = await submitted(coalescer(far), 1, 2, 3)
    far.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, ModelUnavailable) for answer in answers)


async def test_a_call_belongs_to_no_single_caller() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    async def run(key: str, items: Sequence[int]) -> list[int]:
        seen.append(request.get())
        await asyncio.sleep(0)
        return list(items)

    one: Coalescer[str, int, int] = Coalescer(run, weight=lambda item: 1, full=2)

    async def caller(name: str, item: int) -> int:
        request.set(name)
        return await one.submit("a", item)

    await asyncio.gather(*(caller(f"request {item}", item) for item in range(9)))
    assert set(seen) == {"none"}


async def test_each_caller_gets_an_error_of_its_own() -> None:
    far = Far(error=ModelUnavailable("gone", retry_after_s=1))
    one = coalescer(far)
    tasks = [asyncio.create_task(one.submit("a", item)) for item in (1, 2)]
    far.gate.set()
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, ModelUnavailable) and isinstance(second, ModelUnavailable)
    first.details["side"] = "a"
    assert second.details == {"retry_after_s": 1} and second.detail == "gone" and len(far.calls) == 1
