"""`kinlens gc` on a real database and object stores: what nothing names goes, everything else stays."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from serve_app.services.erasure import Eraser
from serve_app.services.garbage import Garbage, GarbageCollector
from serve_app.storage import object_rows, objects_outbox
from serve_app.storage.objects import ObjectStore, crop_key, original_key, thumbnail_key
from tests.api.conftest import image
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.object_servers import Backend

NOW = timedelta(0)
DAY = timedelta(days=1)


async def enrol(world: StoredWorld, address: str, count: int) -> list[str]:
    """`count` persons with a picture each; their face ids."""
    faces = []
    for index in range(count):
        person = await world.person(address)
        picture = {"files": ("a.jpg", image(1, index))}
        response = await world.client.post(f"{address}/persons/{person}/faces", files=picture, params={"review": "false"})
        assert response.status_code == 201, response.text
        faces.append(response.json()["faces"][0]["id"])
    return faces


def collector(world: StoredWorld) -> GarbageCollector:
    return GarbageCollector(world.gallery.database, world.gallery.objects)


async def dangling(world: StoredWorld) -> Garbage:
    found = Garbage()
    await collector(world).find_dangling(found)
    return found


def age(world: StoredWorld, key: str, by: timedelta) -> None:
    moment = (datetime.now(UTC) - by).timestamp()
    os.utime(world.folder / "objects" / key, (moment, moment))


async def test_only_what_nothing_names_and_is_old_goes(stored: StoredWorld) -> None:
    await enrol(stored, await stored.collection(), 4)
    named = await keys(stored.gallery.objects)
    assert len(named) == 8
    old, young = original_key(1, uuid4()), crop_key(1, uuid4())
    waiting, elsewhere = original_key(1, uuid4()), crop_key(77, uuid4())
    thumbnail, foreign = thumbnail_key(1, uuid4(), 200), "collections/1/notes.txt"
    for key in (old, young, waiting, elsewhere, thumbnail, foreign, "other/program"):
        await stored.gallery.objects.put(key, b"12345", "image/jpeg")
    for key in (old, waiting, elsewhere, thumbnail, foreign, *named):
        age(stored, key, timedelta(hours=25))
    async with stored.gallery.database.connection() as connection:
        await objects_outbox.add(connection, [waiting])

    found = await collector(stored).find_orphans(DAY)
    assert (found.orphans, found.orphan_bytes, found.young, found.unknown, found.deleted) == (3, 15, 1, 1, 0)
    assert set(found.orphan_keys) == {old, elsewhere, thumbnail}
    assert len(await keys(stored.gallery.objects)) == 8 + 7

    assert (await collector(stored).find_orphans(DAY, delete=True)).deleted == 3
    assert await keys(stored.gallery.objects) == named | {young, waiting, foreign, "other/program"}
    assert await Eraser(stored.gallery.database, stored.gallery.objects).sweep() == 1
    assert waiting not in await keys(stored.gallery.objects)


async def test_batches_of_a_thousand_are_all_looked_at(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.services.garbage._BATCH", 3)
    monkeypatch.setattr("serve_app.services.garbage._KEPT", 5)
    monkeypatch.setattr(object_rows, "PAGE", 3)
    await enrol(stored, await stored.collection(), 5)
    named = await keys(stored.gallery.objects)
    for _ in range(7):
        await stored.gallery.objects.put(original_key(3, uuid4()), b"x", "image/jpeg")
    found = await collector(stored).find_orphans(NOW, delete=True)
    assert (found.objects, found.orphans, found.deleted, len(found.orphan_keys)) == (17, 7, 7, 5)
    assert await keys(stored.gallery.objects) == named
    rows = await dangling(stored)
    assert (rows.rows, rows.dangling) == (10, 0)


async def test_rows_without_their_object_are_told_and_kept(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_rows, "PAGE", 3)
    address = await stored.collection()
    faces = await enrol(stored, address, 4)
    lost = sorted(await keys(stored.gallery.objects))[2:5]
    await stored.gallery.objects.delete_many(lost)
    found = await dangling(stored)
    assert (found.rows, found.dangling, found.dangling_keys) == (8, 3, lost)
    listed = (await stored.client.get(f"{address}/faces")).json()["items"]
    assert {face["id"] for face in listed} == set(faces)
    assert (await collector(stored).find_orphans(NOW, delete=True)).orphans == 0


async def test_a_face_erased_meanwhile_is_not_dangling(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    address = await stored.collection()
    faces = await enrol(stored, address, 2)
    real = type(stored.gallery.objects).exists
    erased = False

    async def exists(store: ObjectStore, key: str) -> bool:
        nonlocal erased
        if not erased:
            erased = True
            assert (await stored.client.delete(f"{address}/faces/{faces[0]}")).status_code == 200
        return await real(store, key)

    monkeypatch.setattr(type(stored.gallery.objects), "exists", exists)
    found = await dangling(stored)
    assert erased and (found.rows, found.dangling) == (4, 0)


async def test_on_every_store(make_stored: MakeStoredWorld, backend: Backend, tmp_path: Path) -> None:
    world = make_stored(objects=backend.open_store())
    await enrol(world, await world.collection(), 2)
    named = {
        row["key"] for row in await world.rows("SELECT object_key AS key FROM images UNION ALL SELECT crop_key FROM faces")
    }
    orphan = original_key(99_001, uuid4())
    await world.gallery.objects.put(orphan, b"x", "image/jpeg")
    found = await collector(world).find_orphans(NOW)
    # The bucket is that of all tests.
    assert orphan in found.orphan_keys or found.orphans > 100
    assert not named & set(found.orphan_keys)
    await world.gallery.objects.delete(sorted(named)[0])
    rows = await dangling(world)
    assert (rows.rows, rows.dangling) == (4, 1)
    await world.gallery.objects.delete_many([orphan, *named])


async def keys(objects: ObjectStore) -> set[str]:
    return {info.key async for info in objects.list("")}
