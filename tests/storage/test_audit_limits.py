"""What the audit log costs, and what of it cannot be lost."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.errors import DatabaseUnavailable
from serve_app.services import audit_log
from serve_app.services.audit_log import REFUSALS_A_MINUTE
from serve_app.storage import audit
from serve_app.storage.audit import Line
from serve_app.storage.database import Connection
from tests.storage.conftest import StoredWorld

AUDIT = "/api/v1/audit"


async def lines(world: StoredWorld, **query: str) -> list[dict[str, object]]:
    response = await world.client.get(AUDIT, params={"limit": "1000", **query})
    assert response.status_code == 200, response.text
    items: list[dict[str, object]] = response.json()["items"]
    return items


@pytest.fixture
def one_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not end during the test, however slow the machine is."""
    monkeypatch.setattr(audit_log, "_MINUTE_S", 3600.0)


async def test_refusals_without_end_are_counted_not_written(stored: StoredWorld, one_minute: None) -> None:
    people = await stored.collection()
    made = await stored.client.post("/api/v1/keys", json={"name": "x", "scopes": ["enrol"]})
    header = {"Authorization": f"Bearer {made.json()['key']}"}
    probe = {"embedding": [1.0, 0, 0, 0], "model": "fake-model"}
    for number in range(REFUSALS_A_MINUTE + 25):
        address = people if number % 2 else f"/api/v1/collections/other{number}"
        assert (await stored.client.post(f"{address}/search", json=probe, headers=header)).status_code == 403
    assert len(await lines(stored, action="search")) == REFUSALS_A_MINUTE
    # What others do, and what is done, is written all the same.
    assert (await stored.client.post(f"{people}/search", json=probe)).status_code == 200
    await stored.services.access.audit.flush()
    found = await lines(stored, action="search")
    assert sum(int(str(one["requests"])) for one in found) == REFUSALS_A_MINUTE + 26
    counted = found[0]
    assert (counted["status"], counted["requests"], counted["collection_id"]) == (403, 25, None)
    assert counted["key_id"] == made.json()["id"] and len(found) == REFUSALS_A_MINUTE + 2
    await stored.services.access.audit.flush()
    assert len(await lines(stored, action="search")) == REFUSALS_A_MINUTE + 2


async def test_counts_wait_until_the_database_is_back(
    stored: StoredWorld, one_minute: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stored.services.access.audit
    for _ in range(REFUSALS_A_MINUTE + 3):
        await log.write(Line("0" * 12, "x", "search", "people", 404, None))
    real = audit.write

    async def away(connection: Connection, line: Line) -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(audit, "write", away)
    with pytest.raises(DatabaseUnavailable):
        await log.flush()
    await log.write(Line("0" * 12, "x", "search", "people", 404, None))
    monkeypatch.setattr(audit, "write", real)
    await log.flush()
    assert (await lines(stored))[0]["requests"] == 4
    assert (await lines(stored))[0]["collection_id"] == "people"


async def test_a_change_and_its_line_are_one(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a change needs nothing after the commit: a process that dies then has written it."""
    people = await stored.collection()

    async def never(self: object, line: Line) -> None:
        raise AssertionError(f"written on its own: {line}")

    monkeypatch.setattr("serve_app.services.audit_log.AuditLog.write", never)
    ada = await stored.person(people, name="Ada")
    assert (await stored.client.patch(f"{people}/persons/{ada}", json={"name": "Eve"})).status_code == 200
    assert (await stored.client.post("/api/v1/persons", json={"name": "Bo"})).status_code == 201
    found = [(one["action"], one["status"], one["collection_id"]) for one in await lines(stored)]
    assert found[:3] == [("person.create", 201, "library"), ("person.change", 200, "people"), ("person.create", 201, "people")]
    monkeypatch.undo()

    async def full(connection: Connection, line: Line) -> None:
        raise DatabaseUnavailable("The disk is full.")

    monkeypatch.setattr(audit, "write", full)
    assert (await stored.client.patch(f"{people}/persons/{ada}", json={"name": "Mallory"})).status_code == 503
    assert (await stored.client.get(f"{people}/persons/{ada}")).json()["name"] == "Eve"


async def test_a_repeated_write_is_one_change_and_two_lines(stored: StoredWorld) -> None:
    people = await stored.collection()
    for _ in range(2):
        made = await stored.client.post(f"{people}/persons", json={"name": "Ada"}, headers={"Idempotency-Key": "a"})
        assert made.status_code == 201
    assert [one["status"] for one in await lines(stored, action="person.create")] == [201, 201]


async def test_every_filter_has_its_index(stored: StoredWorld) -> None:
    """Of 60,000 lines of other keys and actions none is read for a page of a rare one."""
    await stored.rows(
        "INSERT INTO audit (id, key_id, key_name, action, collection_id, status)"
        " SELECT uuidv7(), lpad((n % 50)::text, 12, '0'), 'x', 'a' || n % 20, 'c' || n % 30, 200"
        " FROM generate_series(1, 60000) n"
    )
    await stored.rows("ANALYZE audit")
    for condition in ("key_id = 'none'", "action = 'none'", "collection_id = 'none'", "at > now()"):
        plan = [
            row[0]
            for row in await stored.rows(
                f"EXPLAIN (ANALYZE, BUFFERS) SELECT * FROM audit WHERE {condition} ORDER BY id DESC LIMIT 101"
            )
        ]
        text = "\n".join(plan)
        assert "Index" in text and "Seq Scan" not in text and "Rows Removed" not in text, text


async def test_lines_of_concurrent_changes_are_all_there(stored: StoredWorld) -> None:
    people = await stored.collection()
    await asyncio.gather(*(stored.person(people, name=str(number)) for number in range(20)))
    assert len(await lines(stored, action="person.create")) == 20
