"""The audit log: who searched and who changed persons, and nothing of whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from serve_app.errors import DatabaseUnavailable
from serve_app.storage import audit
from serve_app.storage.database import Connection
from tests.storage.conftest import StoredWorld

AUDIT = "/api/v1/audit"
VECTOR = [1.0, 0.0, 0.0, 0.0]


async def lines(world: StoredWorld, **query: str) -> list[dict[str, object]]:
    response = await world.client.get(AUDIT, params=query)
    assert response.status_code == 200, response.text
    items: list[dict[str, object]] = response.json()["items"]
    return items


async def test_searches_and_changes_are_written_down_with_their_counts(stored: StoredWorld) -> None:
    people = await stored.collection("people")
    ada = await stored.person(people, name="Ada Lovelace")
    await stored.enrol_vector(people, ada, VECTOR)
    made = await stored.client.post("/api/v1/keys", json={"name": "Reception", "scopes": ["read"], "collections": ["people"]})
    header = {"Authorization": f"Bearer {made.json()['key']}"}
    probe = {"embedding": VECTOR, "model": "fake-model"}
    for route in ("search", "identify", f"persons/{ada}/verify"):
        assert (await stored.client.post(f"{people}/{route}", json=probe, headers=header)).status_code == 200
    assert (await stored.client.delete(f"{people}/persons/{ada}", headers=header)).status_code == 403
    assert (await stored.client.post("/api/v1/collections/others/search", json=probe, headers=header)).status_code == 404
    await stored.client.delete(f"{people}/persons/{ada}")
    await stored.client.get("/api/v1/search/by-person?name=nobody")
    found = [
        (one["action"], one["key_name"], one["collection_id"], one["status"], one["results"]) for one in await lines(stored)
    ]
    assert found == [
        ("library.search", "bootstrap", "library", 404, None),
        ("person.erase", "bootstrap", "people", 200, None),
        ("search", "Reception", "others", 404, None),
        ("person.erase", "Reception", "people", 403, None),
        ("verify", "Reception", "people", 200, 1),
        ("identify", "Reception", "people", 200, 1),
        ("search", "Reception", "people", 200, 1),
        ("key.create", "bootstrap", None, 201, None),
        ("face.enrol", "bootstrap", "people", 201, None),
        ("person.create", "bootstrap", "people", 201, None),
        ("collection.create", "bootstrap", None, 201, None),
    ]
    whole = str([tuple(row) for row in await stored.rows("SELECT audit::text FROM audit")])
    assert ada not in whole and "Ada" not in whole


async def test_it_is_filtered_and_paged(stored: StoredWorld) -> None:
    people = await stored.collection("people")
    for _ in range(5):
        await stored.client.post(f"{people}/search", json={"embedding": VECTOR, "model": "fake-model"})
    assert len(await lines(stored, action="search")) == 5 and len(await lines(stored, collection_id="people")) == 5
    assert await lines(stored, key_id="0" * 12) == [] and await lines(stored, until="2020-01-01T00:00:00Z") == []
    first = (await stored.client.get(AUDIT, params={"limit": 4, "action": "search"})).json()
    rest = await stored.client.get(AUDIT, params={"action": "search", "cursor": first["next_cursor"]})
    assert len(first["items"]) == 4 and len(rest.json()["items"]) == 1 and rest.json()["next_cursor"] is None
    for wrong in ({"cursor": first["next_cursor"]}, {"action": "a b"}, {"since": "yesterday"}, {"key_id": "\0"}):
        assert (await stored.client.get(AUDIT, params=wrong)).status_code == 422


async def test_only_admins_read_it_and_of_their_collections(stored: StoredWorld) -> None:
    for name in ("a", "b"):
        await stored.client.post(f"{await stored.collection(name)}/search", json={"embedding": VECTOR, "model": "fake-model"})
    headers = []
    for scope in ("write", "admin"):
        made = await stored.client.post("/api/v1/keys", json={"name": "x", "scopes": [scope], "collections": ["a"]})
        headers.append({"Authorization": f"Bearer {made.json()['key']}"})
    assert (await stored.client.get(AUDIT, headers=headers[0])).status_code == 403
    found = (await stored.client.get(AUDIT, headers=headers[1])).json()["items"]
    assert {one["collection_id"] for one in found} == {"a"}
    assert (await stored.client.get(AUDIT, params={"collection_id": "b"}, headers=headers[1])).json()["items"] == []


async def test_what_cannot_be_written_down_is_not_answered(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    people = await stored.collection("people")
    ada = await stored.person(people, name="Ada")
    await stored.enrol_vector(people, ada, VECTOR)

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("The database does not answer.", retry_after_s=2)

    monkeypatch.setattr(audit, "write", fail)
    response = await stored.client.post(f"{people}/search", json={"embedding": VECTOR, "model": "fake-model"})
    assert response.status_code == 503 and response.json()["code"] == "database_unavailable"
    assert ada not in response.text and response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["retry-after"] == "2" and response.json()["request_id"]


async def test_odd_names_of_collections_break_nothing(stored: StoredWorld) -> None:
    for name in ("%00", "x%0ay", "é" * 70, "x" * 500, "..%2f.."):
        response = await stored.client.post(f"/api/v1/collections/{name}/search", json={"embedding": VECTOR})
        assert response.status_code in (404, 422), response.text
    assert {one["collection_id"] for one in await lines(stored)} <= {None, "x" * 63}


async def test_it_is_forgotten_in_time(stored: StoredWorld) -> None:
    await stored.collection("people")
    await stored.rows("UPDATE audit SET at = now() - interval '400 days'")
    await stored.services.access.audit.purge(timedelta(days=401))
    assert len(await stored.rows("SELECT 1 FROM audit")) == 1
    await stored.services.access.once()
    assert await stored.rows("SELECT 1 FROM audit") == []
    # Of a great many, so many at a time that it never takes longer than a statement may.
    await stored.rows(
        "INSERT INTO audit (id, at, key_id, key_name, action, status)"
        " SELECT gen_random_uuid(), now() - interval '400 days', 'x', 'x', 'search', 200 FROM generate_series(1, $1::integer)",
        audit.PURGED_AT_ONCE + 10,
    )
    await stored.services.access.once()
    assert (await stored.rows("SELECT count(*) FROM audit"))[0][0] == 10


async def test_many_searches_at_once_are_all_written_down(stored: StoredWorld) -> None:
    people = await stored.collection("people")
    probe = {"embedding": VECTOR, "model": "fake-model"}
    found = await asyncio.gather(*(stored.client.post(f"{people}/search", json=probe) for _ in range(50)))
    assert [one.status_code for one in found] == [200] * 50
    assert len(await lines(stored, action="search")) == 50


async def test_who_leaves_before_the_answer_is_written_down(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone after the commit and before the answer; and gone while the line is being written."""
    # It has a connection: on a busy machine making one takes longer than is waited for here.
    await stored.services.access.once()
    people = await stored.collection("people")
    done = asyncio.Event()

    async def hang_after(work: Callable[[Connection], Awaitable[object]]) -> None:
        await run(work)
        done.set()
        await asyncio.sleep(60)

    run = stored.services.gallery.database.run
    ada = await stored.person(people, name="Ada")
    monkeypatch.setattr(stored.services.gallery.database, "run", hang_after)
    leaving = asyncio.create_task(stored.client.delete(f"{people}/persons/{ada}"))
    await done.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    monkeypatch.undo()
    # The change brought its line along; that nobody was told is another.
    assert await until_written(stored, "person.erase", 2) == [499, 200]
    assert (await stored.client.get(f"{people}/persons/{ada}")).status_code == 404

    async def slowly(*arguments: object) -> None:
        done.set()
        await asyncio.sleep(0.3)
        await write(*arguments)  # type: ignore[arg-type]

    write = audit.write
    done.clear()
    monkeypatch.setattr(audit, "write", slowly)
    leaving = asyncio.create_task(stored.client.delete(f"{people}/persons/{ada}"))
    await done.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    assert await until_written(stored, "person.erase", 3) == [404, 499, 200]


async def until_written(world: StoredWorld, action: str, count: int = 1) -> list[object]:
    """The statuses, the newest first."""
    for _ in range(600):
        if len(await lines(world, action=action)) >= count:
            break
        await asyncio.sleep(0.05)
    return [one["status"] for one in await lines(world, action=action)]


async def test_times_outside_of_the_calendar_are_refused(stored: StoredWorld) -> None:
    for moment in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        assert (await stored.client.get(AUDIT, params={"since": moment})).status_code == 422
        made = await stored.client.post("/api/v1/keys", json={"name": "x", "scopes": ["read"], "expires_at": moment})
        assert made.status_code == 422
    assert await lines(stored, until="9999-12-31T23:59:59+00:00", since="2020-01-01T00:00:00+14:00") != []


async def test_reading_the_log_leaves_the_connections_of_keys_alone(stored: StoredWorld) -> None:
    """A search through years of lines must not be what nobody's key can be looked up for."""
    access = stored.services.access.database
    async with access.connection(), access.connection():
        assert (await asyncio.wait_for(stored.client.get(AUDIT), 60)).status_code == 200
