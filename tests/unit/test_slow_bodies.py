"""A body that hardly comes is given up; one that comes slowly, or that is read slowly, is not."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from serve_app.api import forms
from serve_app.errors import DeadlineExceeded


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_SLOW_BODY_S", 0.5)


def request(chunk: bytes, count: int, every_s: float) -> Request:
    left = count

    async def receive() -> Message:
        nonlocal left
        await asyncio.sleep(every_s)
        left -= 1
        return {"type": "http.request", "body": chunk, "more_body": left > 0}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


@pytest.mark.parametrize("every_s", [0.05, 3600])
async def test_a_body_that_trickles_is_given_up(every_s: float) -> None:
    begun = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineExceeded):
        await forms.read_body(request(b"x", 1000, every_s), 1 << 20)
    assert asyncio.get_running_loop().time() - begun > 0.4


async def test_a_slow_body_arrives() -> None:
    """A second, at 10 kB/s: longer than for one that hardly comes."""
    assert len(await forms.read_body(request(b"x" * 1024, 10, 0.1), 1 << 20)) == 10240


async def test_a_slow_reader_is_no_slow_client() -> None:
    received = 0
    async for chunk in forms.stream_body(request(b"x", 5, 0), 1 << 20):
        received += len(chunk)
        await asyncio.sleep(0.2)
    assert received == 5


async def test_a_caller_s_own_limit_stays_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await forms.read_body(request(b"x", 10, 3600), 1 << 20)
