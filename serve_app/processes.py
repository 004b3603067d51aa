"""Processes that Kinlens starts, and how they are told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SAME_S = 1.0


class StopRequests:
    """How often a process was asked to stop. Signals within a second of the last one are the same request: `timeout` sends
    one to its child and another to the group of it, and nobody who is in a hurry did that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self.count = 0

    def signalled(self) -> bool:
        """Whether this signal is another request."""
        now, last = self._clock(), self._last
        self._last = now
        if last is not None and now - last < _SAME_S:
            return False
        self.count += 1
        return True


@contextmanager
def groups_of_their_own() -> Iterator[None]:
    """Within it each process that Ray starts leads a process group, to which its own children belong.

    `timeout`, supervisors and shells end the group of what they started. Without this Ray's processes would end with, or
    before, the one that has to wait for answers, close the entrance and stop the rest in order. With `kill -9` of that one
    they end all the same, by Linux' parent-death signal; where there is none, Ray counts on the common group, and keeps it.
    """
    from ray._private import services, utils

    if not utils.detect_fate_sharing_support():
        yield
        return
    process = services.ConsolePopen

    class Leader(process):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, process_group=0, **options)

    services.ConsolePopen = Leader
    try:
        yield
    finally:
        services.ConsolePopen = process
