"""Pictures by URL: real sockets on loopback, names resolved by the test."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from serve_app.errors import ImageTooLarge, ImageUrlFailed, ImageUrlRefused
from serve_app.imaging.images import ImageLimits
from serve_app.services import fetching
from serve_app.services.fetching import ImageFetcher, IPAddress, is_public

LIMITS = ImageLimits(1024, 1_000_000)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255",
     "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def resolver(**names: str) -> Callable[[str, int], Awaitable[list[IPAddress]]]:
    async def resolve(host: str, port: int) -> list[IPAddress]:
        known = names.get(host.replace(".", "_"))
        if known is None:
            return await fetching.resolve_host(host, port)
        return [ipaddress.ip_address(part) for part in known.split(",")]

    return resolve


def fetcher(allowed: bool = True, timeout_s: float = 60, **names: str) -> ImageFetcher:
    return ImageFetcher(allowed=allowed, limits=LIMITS, timeout_s=timeout_s, resolver=resolver(**names))


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.org/a.jpg", "gopher://x", "//example.org/a", "example.org/a.jpg", "http://", "http://[::1",
     "http://user:pass@example.org/", "http://example.org:99999/", "http://example.org/\r\nHost: x", "http://exa mple.org/", ""],
)  # fmt: skip
async def test_urls_that_are_refused_unresolved(url: str) -> None:
    with pytest.raises(ImageUrlRefused):
        await fetcher().fetch(url)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a", "http://localhost/a", "http://[::1]/a", "http://0.0.0.0/", "http://2130706433/", "http://0x7f.1/",
     "http://127.1/", "http://169.254.169.254/latest/meta-data", "http://[::ffff:127.0.0.1]/", "http://inside.example/", "http://both.example/"],
)  # fmt: skip
async def test_private_addresses_are_refused_however_written(url: str) -> None:
    with pytest.raises(ImageUrlRefused, match="not public"):
        await fetcher(inside_example="10.0.0.5", both_example="8.8.8.8,127.0.0.1").fetch(url)


async def test_off_means_off() -> None:
    with pytest.raises(ImageUrlRefused, match="switched off"):
        await fetcher(allowed=False).fetch("https://example.org/a.jpg")


@asynccontextmanager
async def server(answer: Callable[[str], bytes], delay_s: float = 0) -> AsyncIterator[int]:
    """A raw HTTP server on loopback that answers by path."""

    open_writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(delay_s)
        writer.write(answer(head.split()[1].decode()))
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
    for writer in open_writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n".encode() + body


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets 127.0.0.1, and only it, stand for a public host."""
    real = fetching.is_public
    monkeypatch.setattr(fetching, "is_public", lambda address: str(address) == "127.0.0.1" or real(address))


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_picture_arrives() -> None:
    async with server(lambda _: response(b"picture")) as port:
        assert await fetcher(photos_example="127.0.0.1").fetch(f"http://photos.example:{port}/a.jpg") == b"picture"


@pytest.mark.usefixtures("loopback_is_public")
async def test_redirects_are_followed_and_each_target_is_checked() -> None:
    targets = {
        "/relative": response(b"", "302 Found", "Location: /a.jpg\r\n"),
        "/private": response(b"", "302 Found", "Location: http://10.0.0.1/a.jpg\r\n"),
        "/file": response(b"", "302 Found", "Location: file:///etc/passwd\r\n"),
        "/loop": response(b"", "302 Found", "Location: /loop\r\n"),
        "/nowhere": response(b"", "302 Found"),
        "/a.jpg": response(b"picture"),
        "/missing": response(b"", "404 Not Found"),
        "/huge": response(b"x" * 2000),
        "/endless": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 100_000,
        "/garbage": b"not http at all\r\n\r\n",
    }
    async with server(targets.__getitem__) as port:
        base = f"http://photos.example:{port}"
        one = fetcher(photos_example="127.0.0.1")
        assert await one.fetch(f"{base}/relative") == b"picture"
        for path in ("/private", "/file"):
            with pytest.raises(ImageUrlRefused):
                await one.fetch(base + path)
        for path in ("/loop", "/nowhere", "/missing", "/garbage"):
            with pytest.raises(ImageUrlFailed):
                await one.fetch(base + path)
        for path in ("/huge", "/endless"):
            with pytest.raises(ImageTooLarge):
                await one.fetch(base + path)


@pytest.mark.usefixtures("loopback_is_public")
async def test_slow_and_silent_hosts() -> None:
    async with server(lambda _: response(b"late"), delay_s=0.5) as port:
        with pytest.raises(ImageUrlFailed, match="within"):
            await fetcher(timeout_s=0.1, photos_example="127.0.0.1").fetch(f"http://photos.example:{port}/")
    with pytest.raises(ImageUrlFailed):
        await fetcher(photos_example="127.0.0.1").fetch("http://photos.example:1/")


@pytest.mark.usefixtures("loopback_is_public")
async def test_the_checked_address_is_the_one_connected_to() -> None:
    """A name that turns private after the check (DNS rebinding) is asked only once."""
    asked = 0

    async def rebinding(host: str, port: int) -> list[IPAddress]:
        nonlocal asked
        asked += 1
        return [ipaddress.ip_address("127.0.0.1" if asked == 1 else "10.0.0.1")]

    async with server(lambda _: response(b"picture")) as port:
        one = ImageFetcher(allowed=True, limits=LIMITS, timeout_s=60, resolver=rebinding)
        assert await one.fetch(f"http://photos.example:{port}/") == b"picture"
    assert asked == 1
