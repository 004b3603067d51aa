"""How often a key may ask: one bucket for all replicas, on a real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from serve_app.access import Caller, Scope
from serve_app.faces import DetectionOptions, Detections
from serve_app.services import rate_limits
from serve_app.services.rate_limits import RateLimits
from serve_app.storage.database import Database
from serve_app.storage.rate_limits import PostgresBuckets
from tests.api.conftest import JPEG
from tests.storage.conftest import MakeStoredWorld, StoredWorld

ME = "/api/v1/me"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is limited while the database takes longer than a second, as it does where all else runs beside it."""
    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 60.0)


@pytest.fixture
async def limits(database_dsn: str) -> AsyncIterator[RateLimits]:
    """Of 5 a minute."""
    database = Database(lambda: database_dsn, 1)
    yield RateLimits(PostgresBuckets(database), 5, 0)
    await database.close()


def caller(limit: int | None = None) -> Caller:
    return Caller("0" * 12, "tests", frozenset({Scope.READ}), None, limit)


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(make_stored: MakeStoredWorld) -> None:
    world = make_stored(rate_limit=60)
    found = [await world.client.get(ME) for _ in range(61)]
    limited = [one for one in found if one.status_code == 429]
    assert [one.status_code for one in found[:50]] == [200] * 50
    while not limited:
        limited = [one for one in [await world.client.get(ME)] if one.status_code == 429]
    problem = limited[0].json()
    assert problem["code"] == "rate_limited" and problem["details"]["limit"] == "rate"
    assert 1 <= int(limited[0].headers["retry-after"]) <= 2
    assert found[0].headers["ratelimit-policy"] == '"key";q=60;w=60'
    left = [int(one.headers["ratelimit"].split(";")[1].removeprefix("r=")) for one in found[:3]]
    assert left[0] == 59 and left == sorted(left, reverse=True)
    await asyncio.sleep(int(limited[0].headers["retry-after"]))
    assert (await world.client.get(ME)).status_code == 200


async def test_replicas_share_a_limit_exactly(make_stored: MakeStoredWorld) -> None:
    """Two replicas, 300 requests at once: together no more than the bucket holds and what flows in meanwhile."""
    replicas = [make_stored(rate_limit=100) for _ in range(2)]
    await asyncio.gather(*(world.client.get("/api/v1/health") for world in replicas))
    begun = time.monotonic()
    found = await asyncio.gather(*(replicas[number % 2].client.get(ME) for number in range(300)))
    took = time.monotonic() - begun
    served = sum(one.status_code == 200 for one in found)
    assert {one.status_code for one in found} == {200, 429}
    assert 100 <= served <= 101 + took * 100 / 60


async def test_a_key_may_have_a_limit_of_its_own(make_stored: MakeStoredWorld) -> None:
    world = make_stored()
    made = await world.client.post("/api/v1/keys", json={"name": "x", "scopes": ["read"], "rate_limit": 2})
    header = {"Authorization": f"Bearer {made.json()['key']}"}
    assert [(await world.client.get(ME, headers=header)).status_code for _ in range(3)] == [200, 200, 429]
    assert "ratelimit" not in (await world.client.get(ME)).headers


async def test_a_clock_that_was_set_back_locks_nobody_out(make_stored: MakeStoredWorld) -> None:
    world = make_stored(rate_limit=600)
    await world.client.get(ME)
    await world.rows("UPDATE rate_limits SET full_at = now() + interval '1 day'")
    assert (await world.client.get(ME)).status_code == 429
    await asyncio.sleep(1)
    assert (await world.client.get(ME)).status_code == 200


async def test_nobody_is_limited_while_the_database_is_away(make_stored: MakeStoredWorld) -> None:
    down = make_stored(dsn=lambda: "postgresql://nobody:x@127.0.0.1:1/none", rate_limit=1, max_concurrent_requests=50)
    files = {"file": ("a.jpg", JPEG + b"\x01\x00", "image/jpeg")}
    begun = time.monotonic()
    for _ in range(5):
        assert (await down.client.post("/api/v1/face/verify-face", files=files)).status_code == 200
    assert time.monotonic() - begun < 10


async def test_a_database_that_hangs_delays_one_request_not_all(limits: RateLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 1.0)

    async def hang(*_: object) -> object:
        await asyncio.sleep(60)
        return None

    monkeypatch.setattr("serve_app.storage.rate_limits.take", hang)
    begun = time.monotonic()
    for _ in range(200):
        assert await limits.take(caller()) is None
    # Each of them would have waited for a second.
    assert time.monotonic() - begun < 20


async def test_a_key_has_so_many_requests_in_the_works(make_stored: MakeStoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_stored(max_concurrent_requests=2)
    go, detect = asyncio.Event(), world.detector.detect

    async def held(image: bytes, options: DetectionOptions) -> Detections:
        await go.wait()
        return await detect(image, options)

    monkeypatch.setattr(world.detector, "detect", held)
    files = {"file": ("a.jpg", JPEG + b"\x01\x00", "image/jpeg")}
    asked = [asyncio.create_task(world.client.post("/api/v1/face/verify-face", files=files)) for _ in range(4)]
    first, second, *rest = asyncio.as_completed(asked)
    # Those that are refused do not wait for those that are not.
    refused = await first
    assert refused.status_code == (await second).status_code == 429
    go.set()
    assert [(await one).status_code for one in rest] == [200, 200]
    assert refused.json()["details"]["limit"] == "concurrency" and refused.headers["retry-after"] == "1"
    assert (await world.client.post("/api/v1/face/verify-face", files=files)).status_code == 200


async def test_full_buckets_are_forgotten(stored: StoredWorld) -> None:
    limits = stored.services.access.limits
    await limits.take(caller(5))
    await limits.purge()
    assert len(await stored.rows("SELECT 1 FROM rate_limits")) == 1
    await stored.rows("UPDATE rate_limits SET full_at = now() - interval '2 hours'")
    await limits.purge()
    assert await stored.rows("SELECT 1 FROM rate_limits") == []


async def test_a_mistake_of_ours_leaves_nobody_waiting(limits: RateLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> object:
        raise ValueError("ours")

    async with asyncio.timeout(60):
        with monkeypatch.context() as patch:
            patch.setattr("serve_app.storage.rate_limits.take", fail)
            found = await asyncio.gather(*(limits.take(caller()) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [ValueError] * 3
        assert await limits.take(caller()) is not None
