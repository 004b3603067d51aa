"""How the parts are that the service stands on. Asked at most every few seconds, however many want to know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Literal

from serve_app.errors import CapacityError, KinlensError, PartUnavailable
from serve_app.jobs import JobKind
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import FacePipeline
from serve_app.storage import backlog
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectStore

logger = logging.getLogger("ray.serve")

Part = Literal["ok", "unavailable"]
Model = Literal["ok", "busy", "unavailable"]

_TIMEOUT_S = 3.0
_KEPT_S = 2.0
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a4944415478da6360000000020001e527defc0000000049454e44ae426082"
)
"""A PNG of one pixel."""


@dataclass(frozen=True, slots=True)
class Health:
    """`busy`: a model that takes no more work just now, or did not answer in time. `waiting`: items of jobs, by kind; None
    where the database does not say."""

    database: Part
    object_store: Part
    detection: Model
    embedding: Model
    waiting: Mapping[JobKind, int] | None

    @property
    def ok(self) -> bool:
        """A busy model is none that is missing."""
        return "unavailable" not in (self.database, self.object_store, self.detection, self.embedding)


class HealthChecks:
    def __init__(self, database: Database, objects: ObjectStore, pictures: PictureReader, pipeline: FacePipeline) -> None:
        self._database = database
        self._objects = objects
        self._pictures = pictures
        self._pipeline = pipeline
        self._found: Health | None = None
        self._found_at = 0.0
        self._running: asyncio.Task[Health] | None = None
        self._reaching: asyncio.Task[tuple[Part, Part]] | None = None

    async def get(self) -> Health:
        """Within a few seconds, whatever is down."""
        if self._found is not None and time.monotonic() - self._found_at < _KEPT_S:
            return self._found
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._look())
        # Shielded: others wait for it too.
        return await asyncio.shield(self._running)

    async def reachable(self) -> tuple[Part, Part]:
        """Database and object store, as they are now. Who asks while somebody else does is told the same: nobody needs a key
        for it, and it must not take connections from those who have one."""
        if self._reaching is None or self._reaching.done():
            self._reaching = asyncio.create_task(self._reach())
        return await asyncio.shield(self._reaching)

    async def _reach(self) -> tuple[Part, Part]:
        database, objects = await asyncio.gather(_state(self._database.check()), _state(self._objects.check()))
        return _part(database), _part(objects)

    async def _look(self) -> Health:
        database, object_store, detection, embedding, waiting = await asyncio.gather(
            _state(self._database.check()),
            _state(self._objects.check()),
            _state(self._pictures.inspect(_PIXEL)),
            _state(self._pipeline.check()),
            self._waiting(),
        )
        self._found = Health(_part(database), _part(object_store), detection, embedding, waiting)
        self._found_at = time.monotonic()
        return self._found

    async def _waiting(self) -> Mapping[JobKind, int] | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._database.connection() as connection:
                return await backlog.waiting(connection)
        except (PartUnavailable, CapacityError, TimeoutError):
            return None


def _part(state: Model) -> Part:
    """A model that does not answer may be at work; another part is not there then."""
    return "ok" if state == "ok" else "unavailable"


async def _state(check: Awaitable[object]) -> Model:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await check
    except (CapacityError, TimeoutError):
        return "busy"
    except KinlensError:
        return "unavailable"
    except Exception:
        # A report of what is broken must not break with it.
        logger.exception("a part failed in a way of its own")
        return "unavailable"
    return "ok"
