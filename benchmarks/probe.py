"""How long trivial requests take, seen from a process of its own; and how late the machine itself wakes who sleeps:

    uv run python -m benchmarks.probe PORT DELAY SECONDS KEY PATH ...

The paths take turns, after DELAY seconds. Prints JSON: milliseconds by path, and under `sleep` by how much a sleep of 10 ms
was too long.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict

from benchmarks.client import HOST, exchange

_EVERY_S = 0.05
_NAP_S = 0.01


async def probe(port: int, seconds: float, key: str, paths: list[str]) -> dict[str, list[float]]:
    """Ends early where the service does. A lost connection counts as 10 s."""
    found: dict[str, list[float]] = defaultdict(list)
    end = time.perf_counter() + seconds
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    turn = 0
    while time.perf_counter() < end:
        begun = time.perf_counter()
        await asyncio.sleep(_NAP_S)
        found["sleep"].append((time.perf_counter() - begun - _NAP_S) * 1e3)
        path = paths[turn % len(paths)]
        turn += 1
        request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\n\r\n".encode("ascii")
        begun = time.perf_counter()
        try:
            if connection is None:
                connection = await asyncio.open_connection(HOST, port)
            status = await asyncio.wait_for(exchange(*connection, request), 10)
            found[path if status == 200 else f"{path} {status}"].append((time.perf_counter() - begun) * 1e3)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            found[path].append(10_000.0)
            if connection is not None:
                connection[1].close()
            connection = None
        await asyncio.sleep(max(0.0, _EVERY_S - _NAP_S))
    return dict(found)


if __name__ == "__main__":
    time.sleep(float(sys.argv[2]))
    print(json.dumps(asyncio.run(probe(int(sys.argv[1]), float(sys.argv[3]), sys.argv[4], sys.argv[5:]))))
