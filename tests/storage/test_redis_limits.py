"""Rate limits on a real Redis: the very same buckets as on Postgres."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from serve_app.access import Caller, Scope
from serve_app.errors import ConfigurationError, RateLimited
from serve_app.services import rate_limits
from serve_app.services.rate_limits import RateLimits
from serve_app.storage import redis_limits
from serve_app.storage.database import Database
from serve_app.storage.rate_limits import Buckets, BucketsUnavailable, PostgresBuckets
from serve_app.storage.redis_limits import RedisBuckets
from tests.storage.redis_server import *  # noqa: F403  fixtures
from tests.storage.redis_server import RedisServer


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is limited while the store takes longer than a second, as it does where all else runs beside it."""
    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 60.0)
    monkeypatch.setattr(redis_limits, "_CONNECT_TIMEOUT_S", 60.0)


def caller(limit: int | None = None) -> Caller:
    return Caller(uuid.uuid4().hex[:12], "tests", frozenset({Scope.READ}), None, limit)


async def test_both_stores_count_alike(redis_url: str, database_dsn: str) -> None:
    database = Database(lambda: database_dsn, 1)
    stores: list[Buckets] = [RedisBuckets(redis_url), PostgresBuckets(database)]
    name = uuid.uuid4().hex
    # Limits so low that no token flows in meanwhile.
    for limit, wanted in [(6, 1), (6, 2), (6, 100), (6, 1), (1, 1), (1, 9)]:
        ours, theirs = [await store.take(f"{name}{limit}", limit, wanted) for store in stores]
        assert (ours.granted, ours.remaining) == (theirs.granted, theirs.remaining)
        assert ours.full_in_s == pytest.approx(theirs.full_in_s, abs=5)
    for store in stores:
        await store.close()
    await database.close()


async def test_replicas_share_a_limit_exactly(redis_url: str) -> None:
    replicas = [RateLimits(RedisBuckets(redis_url), 100, 0) for _ in range(2)]
    key = caller()
    begun = time.monotonic()
    turns = (replicas[number % 2].take(key) for number in range(300))
    found = await asyncio.gather(*turns, return_exceptions=True)
    took = time.monotonic() - begun
    served = sum(not isinstance(one, BaseException) for one in found)
    assert all(isinstance(one, RateLimited) for one in found if isinstance(one, BaseException))
    assert 100 <= served <= 101 + took * 100 / 60
    for one in replicas:
        await one.close()


async def test_a_bucket_fills_up_again_and_is_forgotten(redis_url: str) -> None:
    buckets, name = RedisBuckets(redis_url), uuid.uuid4().hex
    begun = time.monotonic()
    assert (await buckets.take(name, 600, 600)).granted == 600
    at_once = (await buckets.take(name, 600, 1)).granted
    await asyncio.sleep(0.25)
    later = (await buckets.take(name, 600, 600)).granted
    # One a tenth of a second.
    assert 2 <= at_once + later <= (time.monotonic() - begun) * 10
    await buckets.close()


async def test_nobody_is_limited_while_redis_is_away(redis_server: RedisServer) -> None:
    limits = RateLimits(RedisBuckets(redis_server.url), 2, 0)
    key = caller()
    for _ in range(2):
        await limits.take(key)
    with pytest.raises(RateLimited):
        await limits.take(key)
    redis_server.kill()
    begun = time.monotonic()
    other = caller()
    assert [await limits.take(other) for _ in range(100)] == [None] * 100
    assert time.monotonic() - begun < 20
    redis_server.start()
    await asyncio.sleep(2.1)
    allowed = await limits.take(other)
    assert allowed is not None and allowed.remaining == 1
    await limits.close()


async def test_a_redis_that_says_no_is_one_that_is_away(redis_url: str) -> None:
    buckets = RedisBuckets(redis_url)
    with pytest.raises(BucketsUnavailable):
        await buckets.take("x", 60, "no number")  # type: ignore[arg-type]
    await buckets.close()


def test_an_address_that_cannot_be_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as refused:
        RedisBuckets("http://:secret@host")
    assert "secret" not in str(refused.value)
