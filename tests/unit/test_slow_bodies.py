"""A body that hardly comes is given up; one that comes slowly, or that is read slowly, is not. On a clock of the tests' own."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.requests import Request
from starlette.types import Message

from serve_app.api import forms
from serve_app.errors import DeadlineExceeded


class Clock:
    """It goes on only where a test lets time pass: the event loop has it as well."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    async def wait(self, seconds: float) -> None:
        self.now_s += seconds
        # What is due by now comes first: a time limit, and the cancellation that it is.
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now_s)
    return made


def request(clock: Clock, chunk: bytes, count: int, every_s: float) -> Request:
    left = count

    async def receive() -> Message:
        nonlocal left
        await clock.wait(every_s)
        left -= 1
        return {"type": "http.request", "body": chunk, "more_body": left > 0}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


@pytest.mark.parametrize("every_s", [1, 3600])
async def test_a_body_that_trickles_is_given_up(clock: Clock, every_s: float) -> None:
    begun = clock.now_s
    with pytest.raises(DeadlineExceeded):
        await forms.read_body(request(clock, b"x", 1000, every_s), 1 << 20)
    assert clock.now_s - begun >= 10


async def test_a_slow_body_arrives(clock: Clock) -> None:
    """Twenty seconds, at 2 kB/s: longer than for one that hardly comes."""
    assert len(await forms.read_body(request(clock, b"x" * 4096, 10, 2), 1 << 20)) == 40960


async def test_a_slow_reader_is_no_slow_client(clock: Clock) -> None:
    received = 0
    async for chunk in forms.stream_body(request(clock, b"x", 5, 0), 1 << 20):
        received += len(chunk)
        await clock.wait(4)
    assert received == 5


async def test_a_caller_s_own_limit_stays_its_own(clock: Clock) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await forms.read_body(request(clock, b"x", 10, 5), 1 << 20)
