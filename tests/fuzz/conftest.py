"""The API on a socket, around a real Postgres and a real store: what HTTP libraries never send can be sent there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

from tests.api.conftest import KEY
from tests.storage.conftest import *  # noqa: F403  fixtures
from tests.storage.conftest import MakeStoredWorld, StoredWorld


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Listening:
    """`world`: what is behind the socket."""

    world: StoredWorld
    port: int
    client: httpx.AsyncClient

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def send(self, request: bytes, *headers: bytes, body: bytes = b"") -> Answer:
        """Exactly these bytes; the key is added."""
        async with self.connection() as (reader, writer):
            lines = [request + b" HTTP/1.1", b"Host: x", b"Authorization: Bearer " + KEY.encode(), *headers]
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            return await answer(reader)


async def answer(reader: asyncio.StreamReader) -> Answer:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    if head.startswith(b"HTTP/1.1 100"):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(first.split()[1]), headers, body)


@asynccontextmanager
async def listening_to(world: StoredWorld) -> AsyncIterator[Listening]:
    await world.gallery.objects.prepare()
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(world.api, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        )
        try:
            yield Listening(world, port, client)
        finally:
            server.should_exit = True
            await serving


@pytest.fixture
async def listening(make_stored: MakeStoredWorld) -> AsyncIterator[Listening]:
    async with listening_to(make_stored(max_image_bytes=200_000, max_json_bytes=300_000)) as found:
        yield found
