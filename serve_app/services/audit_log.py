"""The audit log: lines written before they are answered, and refusals that come by the thousand counted together."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from serve_app.errors import CapacityError, DatabaseUnavailable, PartUnavailable
from serve_app.storage import audit
from serve_app.storage.audit import AuditFilter, Line, Written
from serve_app.storage.database import Database

REFUSALS_A_MINUTE = 60
"""Of a key, on each replica, that get a line of their own."""
_TIMEOUT_S = 10.0
_MINUTE_S = 60.0
_CLIENT_LEFT = 499


class AuditLog:
    """Of one ingress replica. Every method raises DatabaseUnavailable and Overloaded."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._minute = time.monotonic()
        self._refusals: Counter[str] = Counter()
        self._counted: dict[tuple[str, str, int], Line] = {}

    async def write(self, line: Line) -> None:
        """What was done, at once. A refusal (400 to 498) of a key that had REFUSALS_A_MINUTE is counted, and written with
        others like it by `flush`: nobody fills the disk by asking for what he may not have."""
        if 400 <= line.status < _CLIENT_LEFT and self._beyond(line.key_id):
            self._count(line)
            return
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._database.connection() as connection:
                await audit.write(connection, line)
        except TimeoutError as error:
            raise DatabaseUnavailable("The database did not take the line of the audit log.", retry_after_s=2) from error

    async def flush(self) -> None:
        """Writes what was counted. What `kill -9` finds here is lost: counts of some seconds of refusals."""
        counted, self._counted = self._counted, {}
        lines = list(counted.values())
        try:
            while lines:
                async with self._database.connection() as connection:
                    await audit.write(connection, lines[-1])
                lines.pop()
        except (PartUnavailable, CapacityError, asyncio.CancelledError):
            for line in lines:
                self._count(line)
            raise

    async def page(self, wanted: AuditFilter, after: UUID | None, limit: int) -> list[Written]:
        """The newest first."""
        async with self._database.connection() as connection:
            return await audit.page(connection, wanted, after, limit)

    async def purge(self, kept_for: timedelta) -> None:
        async with self._database.connection() as connection:
            await audit.purge(connection, kept_for)

    def _beyond(self, key_id: str) -> bool:
        now = time.monotonic()
        if now - self._minute >= _MINUTE_S:
            self._minute = now
            self._refusals.clear()
        self._refusals[key_id] += 1
        return self._refusals[key_id] > REFUSALS_A_MINUTE

    def _count(self, line: Line) -> None:
        of = (line.key_id, line.action, line.status)
        known = self._counted.get(of)
        if known is not None:
            # Of several collections it is about none: clients make names up.
            same = known.collection_id if known.collection_id == line.collection_id else None
            line = replace(line, collection_id=same, requests=known.requests + line.requests)
        self._counted[of] = line
