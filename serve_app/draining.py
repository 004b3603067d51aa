"""The end of an instance: nobody new comes in, and whoever is in is answered."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

logger = logging.getLogger("ray.serve")

_FRONTEND = "http_frontend"
"""Of Serve's configuration of HAProxy: where clients come in."""
_SOCKET_TIMEOUT_S = 2.0
_LOOK_EVERY_S = 0.2
_LOOKS = 2
"""So many in a row without a request: one that HAProxy has let in may not have begun on its replica at the first."""
_SILENT_S = 12.0
"""More than twice what a replica is given to say how many it has: one that is busy may not say it in time."""


def close_entrance(admin_socket: Path) -> bool:
    """Tells HAProxy to let nobody new in: new connections are refused, those there are end with their next answer. False
    where it does not take the order."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SOCKET_TIMEOUT_S)
            connection.connect(str(admin_socket))
            # Not `disable frontend`, after which kept connections would go on bringing requests.
            connection.sendall(f"shutdown frontend {_FRONTEND}\n".encode("ascii"))
            answer = connection.recv(1024).strip()
    except OSError as error:
        logger.warning("HAProxy cannot be told to let nobody in: %s", error)
        return False
    if answer:
        logger.warning("HAProxy does not close: %s", answer.decode("utf-8", "replace"))
    return not answer


async def wait_until_answered(
    unanswered: Callable[[], Awaitable[int | None]], patience_s: float, hurry: Callable[[], bool]
) -> int:
    """How many requests are left without an answer, as last told: 0, unless `patience_s` seconds are over or `hurry` says so.
    `unanswered`: None where nobody knows just now; when that goes on for _SILENT_S, nobody is waited for."""
    left, looks = 0, 0
    begun = told_at = time.monotonic()
    while True:
        told = await unanswered()
        now = time.monotonic()
        if told is not None:
            left, told_at = told, now
        looks = looks + 1 if told == 0 else 0
        if looks == _LOOKS or hurry() or now >= min(begun + patience_s, told_at + _SILENT_S):
            return left
        await asyncio.sleep(_LOOK_EVERY_S)
