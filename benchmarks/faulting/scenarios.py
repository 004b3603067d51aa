"""What goes wrong. Each scenario breaks one thing while clients are at work, and returns when it was mended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.faulting.stages import Kind, Stage
from benchmarks.instance import KEY
from benchmarks.mixed import API, Load
from serve_app.ports import HOST

MIX: Mapping[str, int] = {
    "upload": 1, "index": 2, "enrol": 1, "identify": 1, "verify-face": 1, "analyze": 1, "photo": 1, "list": 1, "health": 1,
}  # fmt: skip
_OUTAGE_S = 8.0
_LOITERERS = 120
_UPLOADS = 500

Act = Callable[[Stage, Load], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`act` returns when the fault is over: what is still wrong then is the product's to mend."""

    name: str
    kind: Kind
    act: Act


def _replica(deployment: str) -> Act:
    async def act(stage: Stage, load: Load) -> None:
        replicas = stage.instance.replicas(deployment)
        if not replicas:
            raise RuntimeError(f"there is no replica of {deployment}")
        replicas[0].kill()

    return act


async def _haproxy(stage: Stage, load: Load) -> None:
    found = stage.instance.haproxy()
    if not found:
        raise RuntimeError("there is no HAProxy")
    for process in found:
        process.kill()


async def _proxy_actor(stage: Stage, load: Load) -> None:
    """What looks after HAProxy."""
    found = [one for one in stage.instance.processes() if "HAProxyManager" in " ".join(one.cmdline())]
    if not found:
        raise RuntimeError("there is no HAProxyManager")
    for process in found:
        process.kill()


async def _controller(stage: Stage, load: Load) -> None:
    found = [one for one in stage.instance.processes() if "ServeController" in " ".join(one.cmdline())]
    if not found:
        raise RuntimeError("there is no ServeController")
    for process in found:
        process.kill()


async def _postgres(stage: Stage, load: Load) -> None:
    os.kill(stage.instance.postmaster(), signal.SIGKILL)


async def _backend(stage: Stage, load: Load) -> None:
    """One connection's process: Postgres then restarts all of them."""
    import psutil

    children = psutil.Process(stage.instance.postmaster()).children()
    found = [one for one in children if " idle" in " ".join(one.cmdline()) or "SELECT" in " ".join(one.cmdline())]
    (found or children)[0].kill()


async def _postgres_stopped(stage: Stage, load: Load) -> None:
    """It hangs: nothing refuses a connection, nothing answers."""
    pid = stage.instance.postmaster()
    import psutil

    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        process.suspend()
    await asyncio.sleep(_OUTAGE_S)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.resume()


async def _folder_gone(stage: Stage, load: Load) -> None:
    """A file stands where the folder was: not even root can write or read there."""
    objects = stage.instance.data / "objects"
    away = objects.with_name("objects.away")
    objects.rename(away)
    objects.touch()
    await asyncio.sleep(_OUTAGE_S)
    objects.unlink()
    away.rename(objects)


async def _object_server(stage: Stage, load: Load) -> None:
    assert stage.objects is not None
    stage.objects.kill()
    await asyncio.sleep(_OUTAGE_S)
    await asyncio.to_thread(stage.objects.restart)


async def _object_server_hangs(stage: Stage, load: Load) -> None:
    assert stage.objects is not None
    stage.objects.signal(signal.SIGSTOP)
    await asyncio.sleep(_OUTAGE_S)
    stage.objects.signal(signal.SIGCONT)


async def _disk_full(stage: Stage, load: Load) -> None:
    filler = stage.instance.data / "filler"
    await asyncio.to_thread(_fill, filler)
    deadline = time.monotonic() + _OUTAGE_S
    while time.monotonic() < deadline:
        await asyncio.sleep(1)
        # What somebody deleted meanwhile is taken, too.
        await asyncio.to_thread(_fill, filler)
    filler.unlink()


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as stream:
        for size in (1 << 20, 4 << 10, 512, 1):
            with suppress(OSError):
                while stream.write(b"\0" * size) == size:
                    pass


async def _slow_senders(stage: Stage, load: Load) -> None:
    """Requests with a good key whose bodies come a byte a second."""
    head = (
        f"POST {API}/face/verify-face HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(load.pictures.plain)}\r\n\r\n"
    ).encode()

    async def loiter() -> None:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, stage.instance.port)
            writer.write(head)
            for byte in load.pictures.plain[:60]:
                writer.write(bytes([byte]))
                await asyncio.sleep(1)

    tasks = [asyncio.create_task(loiter()) for _ in range(_LOITERERS)]
    await asyncio.sleep(4 * _OUTAGE_S)
    for task in tasks:
        task.cancel()


async def _slow_headers(stage: Stage, load: Load) -> None:
    """Requests whose headers come a byte a second: nobody knows yet who asks."""

    async def loiter() -> None:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, stage.instance.port)
            for byte in f"GET {API}/health HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: {'x' * 100}".encode():
                writer.write(bytes([byte]))
                await asyncio.sleep(1)

    tasks = [asyncio.create_task(loiter()) for _ in range(4 * _LOITERERS)]
    await asyncio.sleep(2 * _OUTAGE_S)
    for task in tasks:
        task.cancel()


async def _slow_readers(stage: Stage, load: Load) -> None:
    """Clients that ask for pictures and take nothing of the answers."""
    photo_id = next(iter(load.book.photos))
    request = f"GET {API}/photos/{photo_id}/image HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
    sockets = []
    for _ in range(_LOITERERS):
        one = socket.socket()
        # As little as the kernel allows on this side.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect((HOST, stage.instance.port))
        one.sendall(request * 20)
        sockets.append(one)
    await asyncio.sleep(2 * _OUTAGE_S)
    for one in sockets:
        one.close()


async def _many_uploads(stage: Stage, load: Load) -> None:
    """All at once; what is refused for lack of room is sent again after its Retry-After, as clients should."""
    async with load.client() as client:

        async def one() -> None:
            for _ in range(60):
                if await load.upload_one(client, "500 uploads") is not None:
                    return
                await asyncio.sleep(1 + 2 * (os.urandom(1)[0] / 255))
            raise RuntimeError("an upload was refused sixty times")

        client.timeout = httpx.Timeout(120)
        await asyncio.gather(*(one() for _ in range(_UPLOADS)))


async def _clock(stage: Stage, load: Load) -> None:
    """An hour ahead, two hours back, and right again."""
    assert stage.clock is not None
    for offset in ("+3600", "-3600", "+0"):
        stage.clock.write_text(offset)
        await asyncio.sleep(_OUTAGE_S)


SCENARIOS = (
    *(Scenario(f"{name} killed", Kind.PLAIN, _replica(name))
      for name in ("Ingress", "Detection", "Embedding", "Analysis", "Indexing")),
    Scenario("HAProxy killed", Kind.PLAIN, _haproxy),
    Scenario("HAProxy's keeper killed", Kind.PLAIN, _proxy_actor),
    Scenario("Serve's controller killed", Kind.PLAIN, _controller),
    Scenario("Postgres killed", Kind.PLAIN, _postgres),
    Scenario("a backend of Postgres killed", Kind.PLAIN, _backend),
    Scenario("Postgres hangs", Kind.PLAIN, _postgres_stopped),
    Scenario("object folder gone", Kind.PLAIN, _folder_gone),
    Scenario("slow senders", Kind.PLAIN, _slow_senders),
    Scenario("slow headers", Kind.PLAIN, _slow_headers),
    Scenario("slow readers", Kind.PLAIN, _slow_readers),
    Scenario("500 uploads at once", Kind.PLAIN, _many_uploads),
    Scenario("object server killed", Kind.S3, _object_server),
    Scenario("object server hangs", Kind.S3, _object_server_hangs),
    Scenario("disk full", Kind.SMALL_DISK, _disk_full),
    Scenario("clock jumps", Kind.CLOCK, _clock),
)  # fmt: skip
