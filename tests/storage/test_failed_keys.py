"""Unknown keys from one address: so many a minute, and never at the cost of who has a good one."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from serve_app.access import Caller, Scope, Secret
from serve_app.errors import RateLimited
from serve_app.services import api_keys, rate_limits
from serve_app.storage.rate_limits import BucketsUnavailable, Taken
from tests.api.conftest import KEY
from tests.storage.conftest import MakeStoredWorld

ME = "/api/v1/me"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is counted while the database takes longer than a second, as it does where all else runs beside it."""
    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 60.0)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def client_at(api: object, address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(api, raise_app_exceptions=False, client=(address, 40000)),  # type: ignore[arg-type]
        base_url="http://test",
    )


async def test_who_tries_keys_is_told_to_wait_and_a_good_key_is_not(make_stored: MakeStoredWorld) -> None:
    # So few that no further one is granted during the test: that is after half a minute.
    world, other = make_stored(failed_keys_limit=2), make_stored(failed_keys_limit=2)
    made = (await world.client.post("/api/v1/keys", json={"name": "x", "scopes": ["read"]})).json()["key"]
    async with client_at(world.api, "203.0.113.9") as bad, client_at(other.api, "203.0.113.9") as elsewhere:
        found = [(await bad.get(ME, headers=bearer(Secret.new().token))).status_code for _ in range(2)]
        assert found == [401] * 2
        refused = await bad.get(ME, headers=bearer("no key at all"))
        assert refused.status_code == 429 and refused.json()["code"] == "too_many_failures"
        assert refused.json()["details"]["limit"] == "failures" and 1 <= int(refused.headers["retry-after"]) <= 30
        # All replicas share it.
        assert (await elsewhere.get(ME, headers=bearer(Secret.new().token))).status_code == 429
        for good in (KEY, made):
            assert [(await one.get(ME, headers=bearer(good))).status_code for one in (bad, elsewhere)] == [200, 200]
        # No key is no guess.
        assert (await bad.get(ME)).status_code == 401
    async with client_at(world.api, "203.0.113.10") as neighbour:
        assert (await neighbour.get(ME, headers=bearer("no key at all"))).status_code == 401
    assert "203.0.113" not in str(await world.rows("SELECT * FROM rate_limits"))
    assert "203.0.113" not in str(await world.rows("SELECT * FROM audit"))


async def test_a_made_up_address_is_no_way_around_it(make_stored: MakeStoredWorld) -> None:
    world = make_stored(failed_keys_limit=2)
    async with client_at(world.api, "203.0.113.9") as bad:
        statuses = [
            (
                await bad.get(
                    ME,
                    headers=bearer("wrong")
                    | {"X-Forwarded-For": f"198.51.100.{number}", "Forwarded": f"for=198.51.100.{number}"}
                    | {"X-Kinlens-Peer": f" 198.51.100.{number}"},
                )
            ).status_code
            for number in range(5)
        ]
    assert statuses == [401, 401, 429, 429, 429]


async def test_behind_a_trusted_proxy_each_client_is_counted_for_itself(make_stored: MakeStoredWorld) -> None:
    world = make_stored(failed_keys_limit=2, trusted_proxies="10.0.0.0/8")
    async with client_at(world.api, "10.0.0.5") as proxy:

        async def status(client: str) -> int:
            return (await proxy.get(ME, headers=bearer("wrong") | {"X-Forwarded-For": f"6.6.6.6, {client}"})).status_code

        assert [await status("203.0.113.9") for _ in range(3)] == [401, 401, 429]
        assert await status("203.0.113.10") == 401


async def test_who_has_no_key_ends_nobody_s_limit(make_stored: MakeStoredWorld) -> None:
    """Thousands of addresses at once: one is counted at a time, and that there is no answer for it is its own affair."""
    world = make_stored(failed_keys_limit=5)
    limits = world.services.access.limits
    take, at_once, most = limits._buckets.take, 0, 0

    async def slow(bucket: str, limit: int, wanted: int) -> Taken:
        nonlocal at_once, most
        if not bucket.startswith("failures:"):
            return await take(bucket, limit, wanted)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        raise BucketsUnavailable("too many of them")

    limits._buckets.take = slow  # type: ignore[method-assign]
    caller = Caller("key", "key", frozenset(Scope), rate_limit=1)

    async def ask() -> list[bool]:
        granted = []
        for _ in range(5):
            try:
                await limits.take(caller)
                granted.append(True)
            except RateLimited:
                granted.append(False)
            await asyncio.sleep(0.02)
        return granted

    granted, *_ = await asyncio.gather(ask(), *(limits.failed(f"address {number}") for number in range(1000)))
    assert granted == [True, False, False, False, False] and most == 1


async def test_without_a_limit_there_is_none(make_stored: MakeStoredWorld) -> None:
    world = make_stored(failed_keys_limit=0)
    assert {(await world.client.get(ME, headers=bearer("wrong"))).status_code for _ in range(100)} == {401}


async def test_the_database_is_not_asked_for_each_unknown_key(
    make_stored: MakeStoredWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_stored(failed_keys_limit=1)
    ring = world.services.access.ring
    # Else a slow machine is the reason for which it is asked.
    monkeypatch.setattr(api_keys, "FRESH_S", 60)
    for _ in range(2):
        await world.client.get(ME, headers=bearer(Secret.new().token))
    looked = ring._known.looked_at
    for _ in range(20):
        assert (await world.client.get(ME, headers=bearer(Secret.new().token))).status_code == 429
    assert ring._known.looked_at == looked


async def test_without_a_database_bad_keys_are_still_refused_and_the_good_one_not(make_stored: MakeStoredWorld) -> None:
    world = make_stored(dsn=lambda: "postgresql://nobody:x@127.0.0.1:1/none", failed_keys_limit=1)
    assert {(await world.client.get(ME, headers=bearer("wrong"))).status_code for _ in range(5)} == {401}
    assert (await world.client.get(ME)).status_code == 200
