"""How often, and how many at once, a key may ask; and how often an address may ask with keys that nobody knows."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.access import Caller
from serve_app.errors import CapacityError, PartUnavailable, RateLimited, TooManyFailures
from serve_app.storage import rate_limits
from serve_app.storage.rate_limits import Buckets, BucketsUnavailable, Taken

logger = logging.getLogger("ray.serve")

_TIMEOUT_S = 1.0
_TOLD_EVERY_S = 10.0
_WITHOUT_S = 2.0
"""For which no limit is asked for after there was no answer: requests must not wait for it one by one."""
_MOST_REFUSED = 20_000
"""Buckets known to be empty. Beyond that all are forgotten, and asked for again."""
_FAILURES = "failures:"
_FAILURES_AT_ONCE = 1
"""Addresses that are counted at the same time. Unknown keys from thousands of them must not take the connections that good
keys and the audit log need."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left, as the RateLimit header tells it."""

    limit: int
    remaining: int
    full_in_s: int


class RateLimits:
    """A bucket a key, which every replica takes from; and places for requests of a key, on each replica.

    No library: `limits`, the one in wide use, cannot keep its counts in Postgres, and has no bucket that takes many in one
    round trip. While Postgres, or Redis, does not answer nobody is limited: limits are for fairness, and must not be what
    stops the face API.
    """

    def __init__(self, buckets: Buckets, per_minute: int, at_once: int, failures: int = 0) -> None:
        """0 for no limit. `per_minute` is for keys that have none of their own. `failures`: unknown keys a minute of one
        address."""
        self._buckets = buckets
        self._per_minute = per_minute
        self._at_once = at_once
        self._failures = failures
        self._running: Counter[str] = Counter()
        self._refused_until: dict[str, float] = {}
        self._waiting: dict[str, list[asyncio.Future[Allowance | None]]] = {}
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._counting: set[str] = set()
        # Apart for keys and for addresses: those who have no key must not be able to end the limits of those who have.
        self._off_until: dict[bool, float] = {}
        self._told_at = float("-inf")

    async def take(self, caller: Caller) -> Allowance | None:
        """None without a limit. Raises RateLimited."""
        return await self._allowance(caller.id, caller.rate_limit or self._per_minute)

    def failing(self, address: str) -> bool:
        """Whether this replica knows that the address has had its unknown keys."""
        return self._refused_until.get(_FAILURES + address, 0.0) > time.monotonic()

    async def failed(self, address: str) -> None:
        """An unknown key came from there; it is not counted while others are. Raises TooManyFailures."""
        bucket = _FAILURES + address
        if bucket not in self._counting and len(self._counting) >= _FAILURES_AT_ONCE and not self.failing(address):
            return
        try:
            await self._allowance(bucket, self._failures)
        except RateLimited as error:
            raise TooManyFailures(
                f"More than {self._failures} unknown API keys a minute came from this address.",
                **(error.details | {"limit": "failures"}),
            ) from None

    async def _allowance(self, bucket: str, limit: int) -> Allowance | None:
        now = time.monotonic()
        if not limit or now < self._off_until.get(_of_an_address(bucket), 0.0):
            return None
        until = self._refused_until.get(bucket, now)
        if until > now:
            # What this replica knows costs no round trip: a key that asks a thousand times a second is not to load Postgres.
            raise _too_often(limit, until - now)
        turn: asyncio.Future[Allowance | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(bucket, []).append(turn)
        if bucket not in self._taking:
            if _of_an_address(bucket):
                self._counting.add(bucket)
            self._taking[bucket] = asyncio.create_task(self._take_for_all(bucket, limit))
        return await turn

    async def _take_for_all(self, key_id: str, limit: int) -> None:
        """One round trip for all that came during the one before: a burst must not wait until nobody is limited any more."""
        turns: list[asyncio.Future[Allowance | None]] = []
        try:
            while turns := [turn for turn in self._waiting.pop(key_id, []) if not turn.done()]:
                taken = await self._take(key_id, limit, len(turns))
                for place, turn in enumerate(turns):
                    if turn.done():
                        continue
                    if taken is None:
                        turn.set_result(None)
                    elif place < taken.granted:
                        left = taken.remaining + taken.granted - place - 1
                        turn.set_result(Allowance(limit, left, math.ceil(taken.full_in_s)))
                    else:
                        wait_s = max(0.05, taken.full_in_s + rate_limits.WINDOW_S / limit - rate_limits.WINDOW_S)
                        if len(self._refused_until) >= _MOST_REFUSED:
                            # Addresses are many.
                            self._refused_until.clear()
                        self._refused_until[key_id] = time.monotonic() + wait_s
                        turn.set_exception(_too_often(limit, wait_s))
        except Exception as error:
            # A mistake of ours. It is theirs who wait, or they would wait for ever.
            for turn in [*turns, *self._waiting.pop(key_id, [])]:
                if not turn.done():
                    turn.set_exception(error)
        finally:
            del self._taking[key_id]
            self._counting.discard(key_id)
            for turn in self._waiting.pop(key_id, []):
                turn.cancel()

    async def _take(self, key_id: str, limit: int, wanted: int) -> Taken | None:
        """None while there is no answer."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._buckets.take(key_id, limit, wanted)
        except (TimeoutError, BucketsUnavailable, PartUnavailable, CapacityError) as error:
            now = time.monotonic()
            self._off_until[_of_an_address(key_id)] = now + _WITHOUT_S
            if now - self._told_at > _TOLD_EVERY_S:
                self._told_at = now
                logger.warning("rate limits are off while nobody answers for them: %s", str(error) or type(error).__name__)
            return None

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """Holds one of the key's places. Raises RateLimited."""
        if self._at_once and self._running[caller.id] >= self._at_once:
            raise RateLimited(
                f"The API key has {self._at_once} requests in the works already.", limit="concurrency", retry_after_s=1
            )
        self._running[caller.id] += 1
        try:
            yield
        finally:
            self._running[caller.id] -= 1
            if not self._running[caller.id]:
                del self._running[caller.id]

    async def purge(self) -> None:
        """Raises DatabaseUnavailable, Overloaded."""
        await self._buckets.purge()

    async def close(self) -> None:
        await self._buckets.close()


def _of_an_address(bucket: str) -> bool:
    return bucket.startswith(_FAILURES)


def _too_often(limit: int, wait_s: float) -> RateLimited:
    return RateLimited(
        f"The API key may ask {limit} times a minute.", limit="rate", per_minute=limit, retry_after_s=math.ceil(wait_s)
    )
