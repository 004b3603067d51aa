"""Erasure: what is deleted is gone from every table and from the object store, and nothing else is."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from serve_app.errors import ObjectStoreUnavailable
from serve_app.services.erasure import Eraser
from serve_app.storage import objects_outbox
from serve_app.storage.objects import thumbnail_key
from serve_app.storage.objects_outbox import BACKUP_LOCK
from tests.api.conftest import image
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.conftest import stored_everywhere as stored  # noqa: F401  every test on every object store
from tests.storage.test_enrolment_api import FailingStore, enrol
from tests.storage.test_search_api import X, Y, Z


async def found_names(world: StoredWorld, collection: str, probe: list[float]) -> set[str]:
    response = await world.client.post(f"{collection}/search", json={"model": "fake-model", "embedding": probe, "top_k": 100})
    return {one["person"]["name"] for one in response.json()["results"][0]["candidates"]}


async def table_counts(world: StoredWorld) -> dict[str, int]:
    tables = ("persons", "faces", "images", "embeddings", "templates", "object_deletions")
    return {table: (await world.rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"] for table in tables}


async def test_erasing_a_person_leaves_nothing_of_it(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna, bob = await stored.person(collection, name="Anna"), await stored.person(collection, name="Bob")
    for identity in (0, 1):
        assert (await enrol(stored, collection, anna, image(identity=identity))).status_code == 201
    await stored.enrol_vector(collection, anna, Z)
    await enrol(stored, collection, bob, image(identity=3))
    before = await stored.object_keys()
    receipt = (await stored.client.delete(f"{collection}/persons/{anna}")).json()
    assert receipt == {
        "collections": 0, "persons": 1, "faces": 3, "embeddings": 3, "templates": receipt["templates"], "images": 2,
        "crops": 2, "photos": 0, "remaining_rows": 0, "objects_pending": 0,
    } and receipt["templates"] >= 1  # fmt: skip
    assert len(before) == 6 and len(await stored.object_keys()) == 2
    for probe in (X, Y, Z):
        assert await found_names(stored, collection, probe) == {"Bob"}
    assert (await stored.client.get(f"{collection}/persons/{anna}")).status_code == 404
    counts = await table_counts(stored)
    assert counts == {"persons": 1, "faces": 1, "images": 1, "embeddings": 1, "templates": 1, "object_deletions": 0}


async def test_a_picture_that_others_come_from_stays(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna, bob = await stored.person(collection, name="Anna"), await stored.person(collection, name="Bob")
    group = image(faces=2, identity=1)
    await enrol(stored, collection, anna, group, face="largest", review="false")
    bobs = (await enrol(stored, collection, bob, group, face="largest", review="false")).json()["faces"][0]
    assert len(await stored.rows("SELECT 1 FROM images")) == 1
    await stored.gallery.housekeeping.once()  # the second upload of the same picture
    assert len(await stored.object_keys()) == 3
    first = (await stored.client.delete(f"{collection}/persons/{anna}")).json()
    assert first["images"] == 0 and first["crops"] == 1
    assert (await stored.client.get(f"{collection}/faces/{bobs['id']}/image")).content == group
    second = (await stored.client.delete(f"{collection}/persons/{bob}")).json()
    assert second["images"] == 1
    assert await stored.object_keys() == set()


async def test_erasing_a_collection_leaves_the_others(stored: StoredWorld) -> None:
    first, second = await stored.collection("first"), await stored.collection("second")
    for collection in (first, second):
        person = await stored.person(collection, name=collection)
        await enrol(stored, collection, person, image(identity=0))
    receipt = (await stored.client.delete(first)).json()
    assert receipt["collections"] == receipt["persons"] == receipt["faces"] == receipt["images"] == receipt["crops"] == 1
    assert receipt["remaining_rows"] == receipt["objects_pending"] == 0
    assert (await stored.client.get(first)).status_code == 404
    assert await found_names(stored, second, X) == {second}
    assert len(await stored.object_keys()) == 2
    assert len(await stored.rows("SELECT 1 FROM pg_class WHERE relname LIKE 'embed%\\_m1\\_c%' AND relkind = 'r'")) == 1
    # The id is free again, and nothing of the old one comes back.
    again = await stored.collection("first")
    assert await found_names(stored, again, X) == set()


async def test_bulk_deletions_count_what_is_not_there_as_gone(stored: StoredWorld) -> None:
    collection = await stored.collection()
    ids = [await stored.person(collection, name=str(index)) for index in range(3)]
    faces = [(await stored.enrol_vector(collection, one, vector))[0] for one, vector in zip(ids, (X, Y, Z), strict=True)]
    nobody = "01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"
    receipt = (await stored.client.post(f"{collection}/faces:delete", json={"face_ids": [faces[0], nobody, faces[0]]})).json()
    assert receipt["faces"] == 1 and receipt["persons"] == 0
    receipt = (await stored.client.post(f"{collection}/persons:delete", json={"person_ids": [*ids[:2], nobody]})).json()
    assert receipt["persons"] == 2 and receipt["faces"] == 1
    assert await found_names(stored, collection, X) == {"2"}
    for unfit in ([], ["x"], [nobody] * 1001):
        assert (await stored.client.post(f"{collection}/faces:delete", json={"face_ids": unfit})).status_code == 422


async def test_objects_of_a_deletion_wait_for_the_object_store(stored: StoredWorld, make_stored: MakeStoredWorld) -> None:
    store: Any = FailingStore(stored.gallery.objects)
    world = make_stored(objects=store)
    collection = await world.collection()
    person = await world.person(collection)
    await enrol(world, collection, person, image())
    store.fail_delete = True
    response = await world.client.delete(f"{collection}/persons/{person}", headers={"idempotency-key": "d"})
    assert response.status_code == 200 and response.json()["objects_pending"] == 2
    assert len(await world.object_keys()) == 2
    store.fail_delete = False
    await world.gallery.housekeeping.once()
    assert await world.object_keys() == set() and (await table_counts(world))["object_deletions"] == 0


async def test_enrol_delete_move_and_search_of_one_person_at_once_stay_consistent(stored: StoredWorld) -> None:
    """Many clients on two persons; at the end every table tells the same story."""
    collection = await stored.collection()
    people = [await stored.person(collection, name=f"p{index}") for index in range(2)]
    statuses: list[int] = []

    async def client(number: int) -> None:
        mine = people[number % 2]
        for turn in range(6):
            picture = image(identity=number % 4) + f"{number}-{turn}".encode()
            added = await enrol(stored, collection, mine, picture, review="false")
            statuses.append(added.status_code)
            if added.status_code != 201:
                continue
            face = added.json()["faces"][0]["id"]
            search = await stored.client.post(f"{collection}/search", json={"model": "fake-model", "embedding": X})
            statuses.append(search.status_code)
            if turn % 3 == 0:
                moved = await stored.client.post(f"{collection}/faces/{face}/move", json={"person_id": people[turn % 2]})
                statuses.append(moved.status_code)
            if turn % 2:
                statuses.append((await stored.client.delete(f"{collection}/faces/{face}")).status_code)

    await asyncio.gather(*(client(number) for number in range(8)))
    assert set(statuses) <= {200, 201}, statuses
    await stored.gallery.housekeeping.once()
    mismatched = await stored.rows(
        "SELECT f.id FROM faces f FULL JOIN embeddings e ON e.face_id = f.id"
        " WHERE f.id IS NULL OR e.face_id IS NULL OR f.person_id IS DISTINCT FROM e.person_id"
    )
    assert mismatched == []
    counts = await stored.rows(
        "SELECT (SELECT count(*) FROM faces) AS faces, (SELECT sum(face_count) FROM templates) AS templated"
    )
    assert counts[0]["faces"] == counts[0]["templated"] == 24
    named = {row["key"] for row in await stored.rows("SELECT object_key AS key FROM images UNION SELECT crop_key FROM faces")}
    assert await stored.object_keys() == named
    for person in people:
        assert (await stored.client.delete(f"{collection}/persons/{person}")).json()["remaining_rows"] == 0
    assert await stored.object_keys() == set()


async def table_counts_of(world: StoredWorld, table: str) -> int:
    number: int = (await world.rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"]
    return number


@pytest.mark.parametrize("review", ["true", "false"])
async def test_deleting_a_person_while_it_is_enrolled_ends_one_way(stored: StoredWorld, review: str) -> None:
    collection = await stored.collection()
    for turn in range(5):
        person = await stored.person(collection)
        stored.detector.delay_s = 0.01 * turn

        async def remove(person: str = person) -> int:
            await asyncio.sleep(0.02)
            return (await stored.client.delete(f"{collection}/persons/{person}")).status_code

        added, removed = await asyncio.gather(
            enrol(stored, collection, person, image(identity=turn % 4), review=review), remove()
        )
        assert removed == 200 and added.status_code in (201, 404), added.text
    await stored.gallery.housekeeping.once()
    assert await stored.object_keys() == set()
    assert (await table_counts(stored))["faces"] == 0 and (await table_counts(stored))["templates"] == 0


async def test_no_object_is_deleted_while_a_backup_runs(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    await enrol(stored, collection, person, image())
    connection = await asyncpg.connect(stored.dsn)
    await connection.execute("SELECT pg_advisory_lock($1)", BACKUP_LOCK)
    receipt = (await stored.client.delete(f"{collection}/persons/{person}")).json()
    assert receipt["objects_pending"] == 2 and len(await stored.object_keys()) == 2
    await connection.close()
    await stored.gallery.housekeeping.once()
    assert await stored.object_keys() == set()


async def test_searches_during_the_deletion_of_their_collection_end_in_200_or_404(stored: StoredWorld) -> None:
    statuses: set[int] = set()
    stop = asyncio.Event()

    async def search() -> None:
        while not stop.is_set():
            body = {"model": "fake-model", "embedding": X}
            statuses.add((await stored.client.post("/api/v1/collections/people/search", json=body)).status_code)

    tasks = [asyncio.create_task(search()) for _ in range(4)]
    for _ in range(8):
        collection = await stored.collection()
        await stored.enrol_vector(collection, await stored.person(collection), X)
        assert (await stored.client.delete(collection)).status_code == 200
    stop.set()
    await asyncio.gather(*tasks)
    assert statuses <= {200, 404}, statuses


async def test_what_a_broken_off_enrolment_left_goes_with_the_collection(stored: StoredWorld) -> None:
    collection = await stored.collection()
    await stored.gallery.objects.put(f"collections/{stored.first_key}/originals/aa/{'a' * 32}", b"orphan", "image/jpeg")
    await stored.client.delete(collection)
    assert await stored.object_keys() == set()


@pytest.mark.parametrize("why", ["many", "backup", "down"])
async def test_a_collection_s_objects_that_no_row_names_wait_as_the_others_do(
    stored: StoredWorld, make_stored: MakeStoredWorld, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    store: Any = FailingStore(stored.gallery.objects)
    world = make_stored(objects=store)
    monkeypatch.setattr("serve_app.services.erasure._BATCH", 2)
    monkeypatch.setattr("serve_app.services.erasure._AT_ONCE", 1 if why == "many" else 1000)
    collection = await world.collection()
    await enrol(world, collection, await world.person(collection), image())
    thumbnails = [thumbnail_key(world.first_key, uuid4(), 320) for _ in range(5)]
    for key in thumbnails:
        await store.put(key, b"small", "image/jpeg")
    connection = await asyncpg.connect(world.dsn)
    if why == "backup":
        await connection.execute("SELECT pg_advisory_lock($1)", BACKUP_LOCK)
    store.fail_delete = why == "down"
    receipt = (await world.client.delete(collection)).json()
    # The picture, the crop, and whatever lies beside them.
    assert receipt["objects_pending"] == 3 and receipt["remaining_rows"] == 0
    assert len(await world.object_keys()) == 7
    async with world.gallery.database.connection() as other:
        assert await objects_outbox.known_keys(other, thumbnails) == set(thumbnails)
        assert await objects_outbox.known_keys(other, ["collections/99/crops/aa/b.png"]) == set()
    if why == "backup":
        await world.gallery.housekeeping.once()
        assert len(await world.object_keys()) == 7
    await connection.close()
    store.fail_delete = False
    await world.gallery.housekeeping.once()
    assert await world.object_keys() == set() and (await table_counts_of(world, "object_deletions")) == 0


async def test_a_request_deletes_only_so_much_of_what_lies_beside(
    stored: StoredWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.services.erasure._BATCH", 2)
    monkeypatch.setattr("serve_app.services.erasure._AT_ONCE", 4)
    collection = await stored.collection()
    for _ in range(7):
        await stored.gallery.objects.put(thumbnail_key(stored.first_key, uuid4(), 320), b"small", "image/jpeg")
    assert (await stored.client.delete(collection)).json()["objects_pending"] == 1
    assert len(await stored.object_keys()) == 3
    assert await Eraser(stored.gallery.database, stored.gallery.objects).sweep() == 3
    assert await stored.object_keys() == set() and (await table_counts_of(stored, "object_deletions")) == 0


async def test_the_answer_of_an_enrolment_is_forgotten_with_its_face(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna, bob = await stored.person(collection), await stored.person(collection)

    async def enrolled(key: str) -> httpx.Response:
        body = {"embeddings": [X], "model": "fake-model", "review": False}
        headers = {"Idempotency-Key": key}
        return await stored.client.post(f"{collection}/persons/{anna}/faces", json=body, headers=headers)

    deleted, moved = [(await enrolled(key)).json()["faces"][0]["id"] for key in "ab"]
    assert (await stored.client.delete(f"{collection}/faces/{deleted}")).status_code == 200
    assert (await stored.client.post(f"{collection}/faces/{moved}/move", json={"person_id": bob})).status_code == 200
    assert (await stored.client.delete(f"{collection}/persons/{bob}")).status_code == 200
    for key, face in (("a", deleted), ("b", moved)):
        again = await enrolled(key)
        assert again.status_code == 404 and face not in again.text


async def test_one_object_that_cannot_be_deleted_does_not_stop_the_others(
    stored: StoredWorld, make_stored: MakeStoredWorld
) -> None:
    class Stubborn(FailingStore):
        victim = ""

        async def delete(self, key: str) -> None:
            if key == self.victim:
                raise ObjectStoreUnavailable("locked", retry_after_s=1)
            await self._inner.delete(key)

    store: Any = Stubborn(stored.gallery.objects)
    world = make_stored(objects=store)
    collection = await world.collection()
    for identity in range(3):
        await enrol(world, collection, await world.person(collection), image(identity=identity))
    store.victim = sorted(await world.object_keys())[0]
    store.fail_delete = True
    await world.client.delete(collection)
    await world.gallery.housekeeping.once()
    assert await world.object_keys() == {store.victim}
    store.victim = ""
    await world.rows("UPDATE object_deletions SET not_before = now()")
    await world.gallery.housekeeping.once()
    assert await world.object_keys() == set()
