"""A small HTTP/1.1 load generator: prebuilt requests over kept connections, so that the client costs little of the cores
it shares with what it measures. Loopback only."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

HOST = "127.0.0.1"


@dataclass(slots=True)
class Load:
    """Answers by status and their times. `elapsed_s`: of the whole run."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    elapsed_s: float = 0.0

    @property
    def completed(self) -> int:
        return self.statuses[200]

    @property
    def per_second(self) -> float:
        return self.completed / self.elapsed_s if self.elapsed_s else 0.0

    def percentile_ms(self, share: float) -> float:
        """Of the completed ones, by nearest rank."""
        ordered = sorted(self.latencies_s)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e3 if ordered else math.nan

    @property
    def median_ms(self) -> float:
        return statistics.median(self.latencies_s) * 1e3 if self.latencies_s else math.nan


def image_request(path: str, image: bytes, key: str) -> bytes:
    """A POST of the bare picture."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    )
    return head.encode("ascii") + image


def get_request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode("ascii")


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Sends one request, reads its whole answer, returns the status."""
    return _status(await exchange_head(reader, writer, request))


def _status(head: bytes) -> int:
    return int(head[9:12])


def _ends(head: bytes) -> bool:
    """Whether this was the connection's last answer: HAProxy says so while it takes a new configuration."""
    return b"\r\nconnection: close\r\n" in head.lower()


async def exchange_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """`exchange` that returns the status line and the headers."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if lengths:
        await reader.readexactly(int(lengths[0].split(b":")[1]))
    else:
        await _read_chunks(reader)
    return head


async def _read_chunks(reader: asyncio.StreamReader) -> None:
    while (size := int(await reader.readline(), 16)) > 0:
        await reader.readexactly(size + 2)
    await reader.readline()


async def closed_loop(
    port: int, requests: list[bytes], clients: int, duration_s: float, *, pause_s: Callable[[], float] = lambda: 0.0
) -> Load:
    """`clients` that each send the next request as soon as the last is answered (after `pause_s`)."""
    load = Load()
    started = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        turn = number
        try:
            while (begun := time.perf_counter()) - started < duration_s:
                head = await exchange_head(reader, writer, requests[turn % len(requests)])
                load.statuses[_status(head)] += 1
                if _status(head) == 200:
                    load.latencies_s.append(time.perf_counter() - begun)
                turn += 1
                if _ends(head):
                    writer.close()
                    reader, writer = await asyncio.open_connection(HOST, port)
                if (pause := pause_s()) > 0:
                    await asyncio.sleep(pause)
        finally:
            writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    load.elapsed_s = time.perf_counter() - started
    return load


async def open_loop(port: int, requests: list[bytes], per_second: float, duration_s: float) -> Load:
    """Requests at a fixed rate, whether or not earlier ones are answered; each on a connection of its own pool."""
    load = Load()
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    started = time.perf_counter()

    async def one(number: int) -> None:
        begun = time.perf_counter()
        connection = idle.pop() if idle else await asyncio.open_connection(HOST, port)
        try:
            head = await exchange_head(*connection, requests[number % len(requests)])
        except (OSError, asyncio.IncompleteReadError):
            load.statuses[0] += 1
            connection[1].close()
            return
        if _ends(head):
            connection[1].close()
        else:
            idle.append(connection)
        load.statuses[_status(head)] += 1
        if _status(head) == 200:
            load.latencies_s.append(time.perf_counter() - begun)

    tasks = []
    total = int(per_second * duration_s)
    for number in range(total):
        await asyncio.sleep(max(0.0, started + number / per_second - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    load.elapsed_s = time.perf_counter() - started
    for _, writer in idle:
        writer.close()
    return load
