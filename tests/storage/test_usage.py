"""How much is stored: counted where it is little, the database's estimate where it is much."""

from __future__ import annotations

import pytest

from serve_app.services import health, system
from serve_app.storage import usage
from tests.storage.conftest import StoredWorld


async def test_what_is_stored_is_counted(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = await stored.collection()
    person = await stored.person(collection, name="One")
    await stored.enrol_vector(collection, person, [1, 0, 0, 0], [0.9, 0.1, 0, 0])
    await stored.person(collection, name="Two")
    async with stored.gallery.database.connection() as connection:
        found = await usage.measure(connection)
        assert (found.faces, found.persons, found.photos, found.pictures, found.picture_bytes) == (2, 2, 0, 0, 0)
        assert found.database_bytes > 1_000_000 and not found.estimated
        await connection.execute("ANALYZE faces, persons, photos, images")
        # As if two rows were many.
        monkeypatch.setattr(usage, "EXACT_UP_TO", 1)
        await connection.execute("DELETE FROM persons WHERE name = 'Two'")
        estimated = await usage.measure(connection)
        assert estimated.estimated and estimated.persons == 2 and estimated.faces == 2


async def test_the_answer_is_kept_for_a_while(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    # A while is longer than this test, and nobody is given up before it, on any machine.
    monkeypatch.setattr(system, "_USAGE_KEPT_S", 3600.0)
    monkeypatch.setattr(system, "_USAGE_TIMEOUT_S", 60.0)
    monkeypatch.setattr(health, "_TIMEOUT_S", 60.0)
    collection = await stored.collection()
    first = (await stored.client.get("/api/v1/system")).json()
    assert first["stored"]["persons"] == 0 and first["database"]["state"] == "ok"
    await stored.person(collection, name="One")
    assert (await stored.client.get("/api/v1/system")).json()["stored"] == first["stored"]
    assert first["jobs"] == {"waiting": {}} and first["object_store"]["disk"]["total_bytes"] > 0
