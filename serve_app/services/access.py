"""All that decides about a request before it is done, and what is written down of it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, field
from datetime import timedelta

from config.settings import Settings
from serve_app.errors import CapacityError, PartUnavailable
from serve_app.services.api_keys import ApiKeys, KeyRing
from serve_app.services.audit_log import AuditLog
from serve_app.services.rate_limits import RateLimits
from serve_app.storage import api_keys
from serve_app.storage.database import Database, Dsn
from serve_app.storage.rate_limits import PostgresBuckets
from serve_app.storage.redis_limits import RedisBuckets

logger = logging.getLogger("ray.serve")

_CONNECTIONS = 2
"""Apart from those of requests: whether a key is good must be told while searches hold all of them."""
_INTERVAL_S = 20.0


@dataclass(frozen=True, slots=True)
class AccessLimits:
    """`per_minute`, `at_once`: requests of a key; `failures`: unknown keys of an address, a minute; 0 for no limit."""

    per_minute: int
    at_once: int
    audit_kept_for: timedelta
    failures: int = 0


def access_limits(settings: Settings) -> AccessLimits:
    kept_for = timedelta(days=settings.audit_days)
    return AccessLimits(settings.rate_limit, settings.max_concurrent_requests, kept_for, settings.failed_keys_limit)


@dataclass(frozen=True, slots=True)
class Access:
    """Of one ingress replica. `start` it, and `close` it."""

    database: Database
    ring: KeyRing
    keys: ApiKeys
    limits: RateLimits
    audit: AuditLog
    audit_kept_for: timedelta
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self) -> None:
        self._tasks.add(asyncio.create_task(self._repeat()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        try:
            await self.audit.flush()
        except (PartUnavailable, CapacityError) as error:
            logger.error("counted lines of the audit log are missing: %s", error.detail)
        await self.limits.close()
        await self.database.close()

    async def server_secret(self) -> bytes:
        """What cursors and signed addresses are signed with; made by whoever asks first. Raises DatabaseUnavailable,
        Overloaded."""
        async with self.database.connection() as connection:
            return await api_keys.server_secret(connection, "signatures", secrets.token_bytes(32))

    async def once(self) -> None:
        """What is done beside the requests. Raises DatabaseUnavailable, Overloaded."""
        await self.ring.flush()
        await self.audit.flush()
        await self.limits.purge()
        await self.audit.purge(self.audit_kept_for)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            try:
                await self.once()
            except (PartUnavailable, CapacityError) as error:
                logger.warning("the use of keys is written down later: %s", error.detail)
            except Exception:
                # The loop must outlive what nobody foresaw.
                logger.exception("writing down the use of keys failed")


def open_access(bootstrap: str, dsn: Dsn, limits: AccessLimits, redis_url: str | None = None) -> Access:
    """Connects to nothing yet. `bootstrap`: the API key of the environment. Raises ConfigurationError for a Redis that cannot
    be."""
    database = Database(dsn, _CONNECTIONS)
    buckets = PostgresBuckets(database) if redis_url is None else RedisBuckets(redis_url)
    return Access(
        database,
        KeyRing(bootstrap, database),
        ApiKeys(database),
        RateLimits(buckets, limits.per_minute, limits.at_once, limits.failures),
        AuditLog(database),
        limits.audit_kept_for,
    )
