"""What tests of the object stores share."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import httpx

from serve_app.storage.objects import (
    ObjectInfo,
    ObjectStore,
    collection_prefix,
)
from tests.storage.object_servers import Backend

MIB = 1 << 20
JPEG = "image/jpeg"


def new_prefix() -> str:
    """A collection of this test's own: objects of other tests lie in the same bucket."""
    return collection_prefix(secrets.randbits(60))


def new_key() -> str:
    return f"{new_prefix()}one"


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def listed(store: ObjectStore, prefix: str) -> dict[str, ObjectInfo]:
    found = [info async for info in store.list(prefix)]
    assert len({info.key for info in found}) == len(found)
    return {info.key: info for info in found}


async def longest_pause() -> float:
    """Until it is cancelled: the longest time, in seconds, for which the event loop was not free."""
    worst = 0.0
    while True:
        before = time.perf_counter()
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            return worst
        worst = max(worst, time.perf_counter() - before)


async def fetched(backend: Backend, url: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=backend.transport, base_url="http://kinlens.test", trust_env=False) as client:
        return await client.get(url)
