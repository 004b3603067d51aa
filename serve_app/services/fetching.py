"""Pictures by URL, where the operator allows it: never from an address that is not public."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import urljoin, urlsplit

import httpcore

from serve_app.errors import ImageTooLarge, ImageUrlFailed, ImageUrlRefused
from serve_app.imaging.images import ImageLimits

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[IPAddress]]]
SocketOptions = Iterable[tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]] | None


def is_public(address: IPAddress) -> bool:
    """Whether an address lies on the public internet, looked at through IPv4-in-IPv6 forms."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour is not None:
            return is_public(address.sixtofour)
        if address.teredo is not None:
            return False
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve_host(host: str, port: int) -> list[IPAddress]:
    """All addresses of a name, by the system's resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # Scope ids (fe80::1%eth0) are only for addresses that are refused anyway.
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


class _PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to the very address that was checked, so that a name cannot change its meaning in between."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address") from error
        if not addresses or not all(is_public(address) for address in addresses):
            raise ImageUrlRefused("The image URL leads to an address that is not public.")
        return await self._network.connect_tcp(str(addresses[0]), port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: SocketOptions = None
    ) -> httpcore.AsyncNetworkStream:
        raise ImageUrlRefused("The image URL leads to a local socket.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ImageFetcher:
    """Fetches the picture behind a URL. `allowed` False refuses every URL."""

    def __init__(
        self,
        *,
        allowed: bool,
        limits: ImageLimits,
        timeout_s: float,
        resolver: Resolver = resolve_host,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._limits = limits
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._ssl_context = ssl_context

    async def fetch(self, url: str) -> bytes:
        """The encoded picture.

        Raises ImageUrlRefused (not allowed, not http(s), not public), ImageUrlFailed (no answer, not 200, too slow, too many
        redirects), ImageTooLarge.
        """
        if not self._allowed:
            raise ImageUrlRefused("Images by URL are switched off (ALLOW_IMAGE_URLS).")
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                # One pool a picture: keeping connections would let a first, checked host serve a second one's name.
                httpcore.AsyncConnectionPool(
                    network_backend=_PublicNetwork(self._resolver), ssl_context=self._ssl_context
                ) as pool,
            ):
                return await self._follow(pool, url)
        except TimeoutError as error:
            raise ImageUrlFailed(f"The image URL did not answer within {self._timeout_s:g} s.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise ImageUrlFailed("The image URL could not be reached.") from error

    async def _follow(self, pool: httpcore.AsyncConnectionPool, url: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            _check_url(url)
            async with pool.stream("GET", url, headers={"Accept": "image/*", "User-Agent": "kinlens"}) as response:
                if response.status in _REDIRECTS:
                    url = urljoin(url, _location(response))
                    continue
                if response.status != 200:
                    raise ImageUrlFailed(f"The image URL answered {response.status}.", upstream_status=response.status)
                return await self._read(response)
        raise ImageUrlFailed(f"The image URL redirects more than {_MAX_REDIRECTS} times.")

    async def _read(self, response: httpcore.Response) -> bytes:
        chunks, size = [], 0
        async for chunk in response.aiter_stream():
            size += len(chunk)
            if size > self._limits.max_bytes:
                raise ImageTooLarge("The image behind the URL is too large.", max_bytes=self._limits.max_bytes)
            chunks.append(chunk)
        return b"".join(chunks)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ImageUrlRefused("The image URL is malformed.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageUrlRefused("The image URL is not http or https.")
    if parts.username is not None or parts.password is not None:
        raise ImageUrlRefused("The image URL carries credentials.")
    if port == 0 or not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        raise ImageUrlRefused("The image URL is malformed.")


def _location(response: httpcore.Response) -> str:
    for name, value in response.headers:
        if name.lower() == b"location":
            return value.decode("latin-1")
    raise ImageUrlFailed("The image URL redirects to nowhere.")
