"""`GET storage/{file_path}`: what the object store has of the library, and nothing else; and the health of the parts."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from serve_app.errors import ModelUnavailable, ObjectStoreUnavailable, Overloaded
from serve_app.jobs import JobKind
from serve_app.services.health import Part
from serve_app.storage import backlog, collections, jobs
from serve_app.storage.database import Connection
from serve_app.storage.objects import crop_key, original_key
from tests.api.conftest import image
from tests.storage.conftest import StoredWorld
from tests.storage.test_enrolment_api import enrol
from tests.storage.test_photos_api import add, picture

STORAGE = "/api/storage"


async def keys(world: StoredWorld, part: str) -> list[str]:
    return sorted(key for key in await world.object_keys() if f"/{part}/" in key)


async def get(world: StoredWorld, path: str, **headers: str) -> httpx.Response:
    return await world.client.get(f"{STORAGE}/{quote(path)}", headers=headers)


class TestProxy:
    async def test_an_original_by_its_key(self, stored_everywhere: StoredWorld) -> None:
        world = stored_everywhere
        photo = await add(world, 1, folder="Rom")
        (key,) = await keys(world, "originals")
        found = await get(world, key)
        assert found.status_code == 200 and found.content == picture(1)
        assert found.headers["content-type"] == "image/jpeg" and found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["content-disposition"].startswith('inline; filename="1.jpg"')
        assert found.headers["etag"] == f'"{photo["sha256"]}"' and "private" in found.headers["cache-control"]
        part = await get(world, key, Range="bytes=2-4")
        assert part.status_code == 206 and part.content == picture(1)[2:5]
        assert part.headers["content-range"] == f"bytes 2-4/{len(picture(1))}"
        assert (await get(world, key, **{"If-None-Match": found.headers["etag"]})).status_code == 304
        assert (await world.client.get(f"/api/v1/storage/{key}")).content == picture(1)

    async def test_thumbnails_and_crops(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1)
        await stored.client.get(f"/api/v1/photos/{photo['id']}/thumbnail?size=160", headers={"Accept": "image/webp"})
        person = await stored.person("/api/v1/collections/library", name="Anna")
        await enrol(stored, "/api/v1/collections/library", person, image(1, 3))
        for part in ("thumbnails", "crops"):
            (key,) = await keys(stored, part)
            found = await get(stored, key)
            assert found.status_code == 200 and found.content == await stored.gallery.objects.get(key)
            assert found.headers["content-disposition"] == f'inline; filename="{key.rpartition("/")[2]}"'

    async def test_a_photo_by_its_folder_and_name(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1, folder="Bilder/Müller & Söhne")
        found = await get(stored, f"{photo['folder']}/{photo['file_name']}")
        assert found.status_code == 200 and found.content == picture(1)
        await add(stored, 2)
        assert (await get(stored, "2.jpg")).content == picture(2)

    async def test_what_no_row_of_the_library_names_is_not_there(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        other = await stored.collection("people")
        person = await stored.person(other, name="Anna")
        await enrol(stored, other, person, image(1, 3))
        library = await stored.rows("SELECT object_key FROM images ORDER BY created_at")
        foreign = sorted(await stored.object_keys() - {library[0]["object_key"]})
        assert len(foreign) == 2
        orphan = original_key(stored.first_key, uuid4())
        await stored.gallery.objects.put(orphan, picture(9), "image/jpeg")
        (stored.folder / "objects" / "secret").write_bytes(b"secret")
        answers = []
        for path in (
            *foreign, orphan, crop_key(stored.first_key, uuid4()),
            "", "secret", "/secret", "..", "../api_key", "%2e%2e/api_key", "collections/1/../../../api_key", "a\\..\\b",
            "collections", "collections/", "\0", "a\0b", "x" * 5000, "\ud7ff\u202e.jpg", "1.jpg/", "//1.jpg",
        ):  # fmt: skip
            answers.append(await get(stored, path))
        assert {one.status_code for one in answers} == {404}, [(one.url, one.status_code) for one in answers]
        assert {one.json()["code"] for one in answers} == {"not_found"}
        raw = await stored.client.request("GET", httpx.URL("http://test", raw_path=b"/api/storage/..%2f..%2fapi_key"))
        assert raw.status_code == 404

    async def test_an_erased_photo_is_gone_at_once(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1)
        await stored.client.get(f"/api/v1/photos/{photo['id']}/thumbnail?size=160")
        everything = await stored.object_keys()
        await stored.client.delete(f"/api/v1/photos/{photo['id']}")
        for key in everything:
            await stored.gallery.objects.put(key, picture(1), "image/jpeg")  # as if deletion were late
            assert (await get(stored, key)).status_code == 404

    async def test_it_asks_for_the_key(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        (key,) = await keys(stored, "originals")
        for path in (key, "nothing"):
            found = await stored.client.get(f"{STORAGE}/{path}", headers={"Authorization": "Bearer wrong"})
            assert found.status_code == 401
        assert (await stored.client.get(f"{STORAGE}/{key}?download=1")).json()["code"] == "invalid_request"

    async def test_before_the_first_photo(self, stored: StoredWorld) -> None:
        assert (await get(stored, "collections/1/originals/00/00")).status_code == 404


class TestHealth:
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part that is slow is as good as none; but here all parts may be, on a busy machine."""
        monkeypatch.setattr("serve_app.services.health._TIMEOUT_S", 60.0)

    async def test_the_parts(self, stored: StoredWorld) -> None:
        await add(stored, 1)

        async def work(tx: Connection) -> None:
            library = await collections.get(tx, "library")
            await jobs.create(tx, library, JobKind.SCAN, {}, ["a", "b", "c"])

        await stored.gallery.database.run(work)
        for path in ("/api/health", "/api/v1/health/parts"):
            found = await stored.client.get(path, headers={"Authorization": ""})
            assert found.status_code == 200
            body = found.json()
            assert body == {
                "status": "ok", "version": body["version"], "database": "ok", "object_store": "ok",
                "models": {"pack": "fake", "detection": "ok", "embedding": "ok"},
                "queue": {"waiting": body["queue"]["waiting"], "kinds": body["queue"]["kinds"]},
            }  # fmt: skip
            assert body["queue"]["kinds"]["scan"] == 3 and body["queue"]["waiting"] >= 3

    async def test_many_who_ask_cost_one_look(self, stored: StoredWorld) -> None:
        answers = await asyncio.gather(*(stored.client.get("/api/health") for _ in range(20)))
        assert {one.status_code for one in answers} == {200} and stored.pictures.inspected == 1

    async def test_many_who_wait_until_it_is_ready_cost_one_look(
        self, stored: StoredWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        health = stored.gallery.health
        looks, check = 0, stored.gallery.objects.check
        asked, reachable, all_there = 0, health.reachable, asyncio.Event()

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await all_there.wait()
            await check()

        async def arrived() -> tuple[Part, Part]:
            nonlocal asked
            asked += 1
            if asked == 20:
                all_there.set()
            return await reachable()

        monkeypatch.setattr(health, "reachable", arrived)
        monkeypatch.setattr(stored.gallery.objects, "check", counted)
        answers = await asyncio.gather(*(stored.client.get("/api/v1/ready") for _ in range(20)))
        assert {one.status_code for one in answers} == {200} and looks == 1
        # It is no old news: the next one looks anew.
        assert (await stored.client.get("/api/v1/ready")).json() == {"database": "ok", "object_store": "ok"} and looks == 2

    async def test_what_is_down_is_named(self, stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        async def down() -> None:
            raise ObjectStoreUnavailable("The object store does not answer.")

        monkeypatch.setattr(stored.gallery.objects, "check", down)
        stored.pictures.error = ModelUnavailable("Detection has no replica that answers.")

        async def full(crops: object) -> None:
            raise Overloaded("The queue of Embedding is full.")

        monkeypatch.setattr(stored.embedder, "embed", full)
        found = await stored.client.get("/api/health")
        body = found.json()
        assert found.status_code == 200 and body["status"] == "degraded"
        assert (body["database"], body["object_store"]) == ("ok", "unavailable")
        assert (body["models"]["detection"], body["models"]["embedding"]) == ("unavailable", "busy")
        assert "replica" not in found.text

    async def test_without_a_database(self, make_stored: Any) -> None:
        world = make_stored(dsn=lambda: "postgresql://nobody:secret@127.0.0.1:1/none")
        body = (await world.client.get("/api/health")).json()
        assert body["database"] == "unavailable" and body["queue"] is None and body["status"] == "degraded"
        assert "secret" not in str(body)

    async def test_the_depth_is_that_of_open_jobs(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        async with stored.gallery.database.connection() as connection:
            before = await backlog.waiting(connection)

        async def work(tx: Connection) -> None:
            job = await jobs.create(tx, await collections.get(tx, "library"), JobKind.SCAN, {}, ["a"])
            await jobs.cancel(tx, job.id)

        await stored.gallery.database.run(work)
        async with stored.gallery.database.connection() as connection:
            assert await backlog.waiting(connection) == before
