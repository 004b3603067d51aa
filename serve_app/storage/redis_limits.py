"""Rate limits in Redis, or Valkey: the same buckets as those of `storage.rate_limits`, for who has a Redis anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, cast

from serve_app.errors import ConfigurationError
from serve_app.storage.rate_limits import WINDOW_S, BucketsUnavailable, Taken

if TYPE_CHECKING:
    from redis.asyncio import Redis

_CONNECTIONS = 8
_CONNECT_TIMEOUT_S = 1.0
_PREFIX = "kinlens:limit:"

_TAKE = """
local time = redis.call('TIME')
local now, window = time[1] + time[2] / 1e6, tonumber(ARGV[1])
local cost, wanted = tonumber(ARGV[2]), tonumber(ARGV[3])
local full_at = math.min(math.max(tonumber(redis.call('GET', KEYS[1]) or now), now), now + window)
local granted = math.max(0, math.min(wanted, math.floor((window - full_at + now) / cost + 1e-6)))
full_at = full_at + granted * cost
redis.call('SET', KEYS[1], string.format('%.6f', full_at), 'PX', math.ceil((full_at - now) * 1000) + 1000)
return {granted, string.format('%.6f', full_at - now)}
"""
"""GCRA as in `storage.rate_limits.take`, by Redis' own clock. A bucket that is full is forgotten a second later."""


class RedisBuckets:
    """Connects when it is first asked."""

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError where the extra is missing, or the address cannot be one."""
        try:
            from redis.asyncio import Redis
        except ImportError as error:
            raise ConfigurationError("REDIS_URL is set, and the extra `redis` is not installed.") from error
        try:
            client: Redis = Redis.from_url(
                url,
                max_connections=_CONNECTIONS,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                socket_timeout=_CONNECT_TIMEOUT_S,
                retry=None,
            )
        except ValueError as error:
            # Not told: it may hold a password.
            raise ConfigurationError("REDIS_URL is not an address of Redis.") from error
        self._client = client
        # More at once wait for a turn; the pool would refuse them.
        self._turns = asyncio.Semaphore(_CONNECTIONS)

    async def take(self, bucket: str, limit: int, wanted: int) -> Taken:
        """See `storage.rate_limits.take`. Raises BucketsUnavailable."""
        from redis.exceptions import RedisError

        cost_s = WINDOW_S / limit
        try:
            async with self._turns:
                found = await cast(
                    "Awaitable[tuple[int, bytes]]",
                    self._client.eval(_TAKE, 1, _PREFIX + bucket, str(WINDOW_S), repr(cost_s), str(wanted)),
                )
        except (RedisError, OSError) as error:
            raise BucketsUnavailable(f"Redis: {type(error).__name__}") from error
        granted, full_in_s = int(found[0]), max(0.0, float(found[1]))
        return Taken(granted, max(0, int((WINDOW_S - full_in_s) / cost_s + 1e-6)), full_in_s)

    async def purge(self) -> None:
        """Redis forgets by itself."""

    async def close(self) -> None:
        await self._client.aclose()
