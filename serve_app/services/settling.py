"""New faces find their persons: soon after their photos were indexed, and every now and then whatever is left waiting."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Protocol

from serve_app.errors import CapacityError, PartUnavailable
from serve_app.jobs import JobKind

logger = logging.getLogger("ray.serve")

_PAUSE_S = 1.0
"""Between two looks: faces of photos that are indexed in quick succession are looked at together."""
_REST = 4.0
"""How many times as long as a look took, the next waits: finding faces needs the CPU as well, and of more faces each costs
less."""
_MAX_PAUSE_S = 10.0
_INTERVAL_S = 15.0
"""Also without being woken: workers die, and users give faces back."""


class Settles(Protocol):
    async def settle(self, collection_id: str) -> object:
        """A look-up where no face waits. Raises DatabaseUnavailable, Overloaded."""
        ...


class Settling:
    """A task beside a worker. `collection_id`: which is looked at without being woken."""

    def __init__(self, clustering: Settles, collection_id: str) -> None:
        self._clustering = clustering
        self._collection_id = collection_id
        self._waiting: set[str] = set()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def chunk_ended(self, kind: JobKind, collection_id: str) -> None:
        if kind in (JobKind.FACES, JobKind.SCAN):
            self._waiting.add(collection_id)
            self._woken.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _INTERVAL_S)
            self._woken.clear()
            waiting, self._waiting = self._waiting | {self._collection_id}, set()
            begun = time.monotonic()
            for collection_id in sorted(waiting):
                try:
                    await self._clustering.settle(collection_id)
                except (PartUnavailable, CapacityError) as error:
                    logger.warning("faces of %s wait for their persons: %s", collection_id, error.detail)
                except Exception:
                    # The loop must outlive what nobody foresaw; without it, no new face would find its person.
                    logger.exception("faces of %s wait for their persons", collection_id)
            took_s = time.monotonic() - begun
            await asyncio.sleep(min(_MAX_PAUSE_S, max(_PAUSE_S, _REST * took_s)))
