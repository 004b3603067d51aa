"""From which address a request comes, as far as that can be known."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import islice
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Scope

Address = IPv4Address | IPv6Address
EDGE_HEADER = "x-kinlens-peer"
"""What our own HAProxy says: its token, a space, the address it was asked from."""
_MOST_HOPS = 16
_PAIR = re.compile(r'\s*([^\s=;,"]+)=("(?:[^"\\]|\\.)*"|[^\s;,"]*)\s*([;,]|$)', re.ASCII)
"""One of the `Forwarded` header, and what ends it (RFC 7239, section 4). Quoted strings may hold anything."""
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d*)?|([^:]*):\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Peers:
    """`trusted`: proxies whose word counts, in `header`. `edge_token`: by which our own HAProxy is known, which alone may say
    who asked it; empty where there is none."""

    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    edge_token: str = field(default="", repr=False)

    def client(self, scope: Scope) -> Address | None:
        """The last address on the way that is no trusted proxy's. What stands before it in the header is anybody's invention
        and is not read. None where not even the peer has one (a socket file)."""
        headers = Headers(scope=scope)
        found = self._peer(scope, headers)
        if found is None or not self._trusts(found):
            return found
        read = _last_first if self.header == "x-forwarded-for" else _forwarded_last_first
        for hop in read(headers.getlist(self.header)):
            named = _address(hop)
            if named is None:
                # A proxy that does not tell (`unknown`, `_hidden`): it is the last one known.
                return found
            found = named
            if not self._trusts(found):
                break
        return found

    def _peer(self, scope: Scope, headers: Headers) -> Address | None:
        token, _, told = headers.get(EDGE_HEADER, "").partition(" ")
        if self.edge_token and hmac.compare_digest(token.encode("latin-1"), self.edge_token.encode()):
            return _address(told)
        client = scope.get("client")
        return None if client is None else _address(str(client[0]))

    def _trusts(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.trusted)


def whole_site(address: Address) -> str:
    """What limits are for: an IPv4 address, or the /64 that one site has of IPv6."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))


def _last_first(lines: list[str]) -> Iterator[str]:
    hops = 0
    for line in reversed(lines):
        for hop in reversed(line.rsplit(",", _MOST_HOPS)):
            hops += 1
            if hops > _MOST_HOPS:
                return
            yield hop.strip()


def _forwarded_last_first(lines: list[str]) -> Iterator[str]:
    """Who each proxy was asked by; empty where it does not tell, and for the whole of a line that is not well formed."""
    for line in reversed(lines):
        yield from islice(reversed(_forwarded(line)), _MOST_HOPS)


def _forwarded(line: str) -> list[str]:
    found, at = [""], 0
    while at < len(line):
        pair = _PAIR.match(line, at)
        if pair is None:
            return [""]
        if pair[1].lower() == "for":
            found[-1] = pair[2].strip('"')
        if pair[3] == ",":
            found.append("")
        at = pair.end()
    return found


def _address(text: str) -> Address | None:
    """With or without a port, in brackets or not. IPv4 within IPv6 is IPv4."""
    if len(text) > 64:
        return None
    if with_port := _WITH_PORT.fullmatch(text):
        text = with_port[1] or with_port[2] or ""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found
