"""HAProxy, which every request goes through, killed."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import httpx
import psutil

from tests.serve.conftest import Served


def haproxy(served: Served) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(served.pid).children(recursive=True):
        try:
            command = process.cmdline()
            if command and Path(command[0]).name == "haproxy" and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_it_is_started_again_and_nothing_is_called_missing_meanwhile(served: Served) -> None:
    victims = haproxy(served)
    assert victims
    for process in victims:
        process.kill()
    killed = time.monotonic()
    statuses: Counter[int | str] = Counter()
    good = 0
    with served.client(timeout=5) as client:
        while good < 20:
            assert time.monotonic() < killed + 120, statuses
            try:
                status: int | str = client.get("/api/v1/me").status_code
            except httpx.HTTPError as error:
                status = type(error).__name__
            statuses[status] += 1
            good = good + 1 if status == 200 else 0
            if good == 1:
                recovered_s = time.monotonic() - killed
            time.sleep(0.05)
    print(f"\nHAProxy killed: {dict(statuses)}, answered again after {recovered_s:.1f} s")
    # What the path leads to is there: a 404 would tell a client that it was erased.
    assert 404 not in statuses
