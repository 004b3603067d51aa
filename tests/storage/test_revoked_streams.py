"""A key that ended ends what it began; and one made for a collection that is just being erased opens nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from serve_app.storage import api_keys
from serve_app.storage.database import Connection
from tests.storage.conftest import StoredWorld
from tests.storage.jobs_world import make_job, make_library
from tests.storage.test_jobs_api import Events
from tests.storage.test_keys import pass_time

ENDS_WITHIN_S = 60.0
"""It takes two or three; where the key did not matter, five minutes."""


class As:
    """A world as it is for another key."""

    def __init__(self, world: StoredWorld, key: str) -> None:
        self.api = world.api
        self.client = type("Client", (), {"headers": {"Authorization": f"Bearer {key}"}})()


async def made(world: StoredWorld, **fields: object) -> tuple[str, str]:
    response = await world.client.post("/api/v1/keys", json={"name": "x", "scopes": ["read"], **fields})
    assert response.status_code == 201, response.text
    return response.json()["id"], response.json()["key"]


@pytest.mark.parametrize("how", ["revoked", "expired", "rotated", "collection erased"])
async def test_a_stream_ends_with_its_key(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    library = await make_library(stored.gallery.database)
    other = await stored.collection("other")
    job = await make_job(stored.gallery.database, library, ["a"])
    path = f"/api/v1/jobs/{job.id}/events"
    expires = datetime.now(UTC) + timedelta(hours=1)
    fields: dict[str, object] = {"expires_at": expires.isoformat()} if how == "expired" else {}
    key_id, key = await made(stored, **fields, collections=["library", "other"])
    stream = Events(As(stored, key), path)  # type: ignore[arg-type]
    staying = Events(stored, path)
    for one in (stream, staying):
        await one.until("event: progress")
    if how == "revoked":
        assert (await stored.client.delete(f"/api/v1/keys/{key_id}")).status_code == 200
    elif how == "rotated":
        rotated = await stored.client.post(f"/api/v1/keys/{key_id}/rotate", json={"overlap_s": 0})
        assert rotated.status_code == 200, rotated.text
    elif how == "collection erased":
        assert (await stored.client.delete(other)).status_code == 200
    else:
        pass_time(monkeypatch, timedelta(hours=1))
    await asyncio.wait_for(stream.task, ENDS_WITHIN_S)
    assert "event: end" not in stream.text
    assert not staying.task.done()
    staying.gone.set()
    await asyncio.wait_for(staying.task, 30)


async def test_a_stream_goes_on_with_its_key(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.api.jobs._SILENCE_S", 0.1)
    library = await make_library(stored.gallery.database)
    job = await make_job(stored.gallery.database, library, ["a"])
    _, key = await made(stored)
    stream = Events(As(stored, key), f"/api/v1/jobs/{job.id}/events")  # type: ignore[arg-type]
    for _ in range(2):
        stream.text = ""
        await stream.until(": still there")
    stream.gone.set()
    await asyncio.wait_for(stream.task, 30)


@pytest.mark.parametrize("erased_first", [True, False])
async def test_a_key_for_a_collection_that_is_being_erased(
    stored: StoredWorld, monkeypatch: pytest.MonkeyPatch, erased_first: bool
) -> None:
    address = await stored.collection("people")
    reached, go_on = asyncio.Event(), asyncio.Event()
    name = "forget_collection" if erased_first else "create"
    real = getattr(api_keys, name)

    async def held(tx: Connection, *args: object, **named: object) -> object:
        """Holds the lock, and has not committed."""
        found = await real(tx, *args, **named)
        reached.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(api_keys, name, held)
    fields = {"name": "x", "scopes": ["read"], "collections": ["people", "not-yet"]}

    async def make() -> int:
        return (await stored.client.post("/api/v1/keys", json=fields)).status_code

    async def erase() -> int:
        return (await stored.client.delete(address)).status_code

    first = asyncio.create_task(erase() if erased_first else make())
    await reached.wait()
    asked = asyncio.Event()
    look = api_keys.collections_of

    async def looked(connection: Connection, ids: frozenset[str]) -> dict[str, int]:
        found = await look(connection, ids)
        asked.set()
        return found

    monkeypatch.setattr(api_keys, "collections_of", looked)
    second = asyncio.create_task(make() if erased_first else erase())
    if erased_first:
        await asked.wait()
    await asyncio.sleep(0.3)
    assert not second.done()
    go_on.set()
    assert await first == (200 if erased_first else 201)
    assert await second == (404 if erased_first else 200)
    assert [row["collections"] for row in await stored.rows("SELECT collections FROM api_keys")] == (
        [] if erased_first else [["not-yet"]]
    )
    # One for a collection that is not there may be made all the same: it waits for it.
    assert await make() == 201
