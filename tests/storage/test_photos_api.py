"""The photo library through the API, on a real database and real object stores; only what reads pictures is a fake."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from serve_app.errors import InvalidImage, ObjectStoreUnavailable
from serve_app.photos import PictureInfo, PictureTexts, ThumbnailFormat
from serve_app.services.garbage import GarbageCollector
from serve_app.services.photos import Upload
from serve_app.services.writing import Once
from serve_app.storage import checks, collections, photos
from serve_app.storage.objects import ObjectStore, thumbnail_key
from tests.api.conftest import JPEG, image
from tests.storage.conftest import StoredWorld
from tests.storage.test_enrolment_api import enrol

PHOTOS = "/api/v1/photos"


def picture(number: int) -> bytes:
    return JPEG + number.to_bytes(4, "big")


async def send(world: StoredWorld, *files: tuple[str, bytes], **options: str) -> httpx.Response:
    """`headers` are those of the request; the rest are fields."""
    parts = [("files", (name, data, "image/jpeg")) for name, data in files]
    return await world.client.post(f"{PHOTOS}/upload", files=parts, params=options)


async def add(world: StoredWorld, number: int, info: PictureInfo | None = None, **options: str) -> dict[str, Any]:
    data = picture(number)
    if info is not None:
        world.pictures.infos[data] = info
    response = await send(world, (f"{number}.jpg", data), **options)
    assert response.status_code == 200, response.text
    (item,) = response.json()["results"]
    assert item["status"] == "created", item
    photo: dict[str, Any] = item["photo"]
    return photo


def taken(text: str, offset_min: int | None = None) -> PictureInfo:
    return PictureInfo("JPEG", 640, 480, taken_local=datetime.fromisoformat(text), taken_offset_min=offset_min)


async def names(world: StoredWorld, **query: Any) -> list[str]:
    """Of all pages, two photos each, in their order."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        response = await world.client.get(PHOTOS, params={"limit": 2, **query, **cursor})
        assert response.status_code == 200, response.text
        page = response.json()
        found += [photo["file_name"].partition(".")[0] for photo in page["items"]]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def count(world: StoredWorld, table: str) -> int:
    number: int = (await world.rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"]
    return number


async def tag(world: StoredWorld, photo: dict[str, Any], **body: list[str]) -> list[str]:
    response = await world.client.post(f"{PHOTOS}/{photo['id']}/tags", json=body)
    assert response.status_code == 200, response.text
    tags: list[str] = response.json()["tags"]
    return tags


class TestUpload:
    async def test_what_is_known_of_a_photo(self, stored_everywhere: StoredWorld) -> None:
        world = stored_everywhere
        info = PictureInfo(
            "JPEG", 4000, 3000, 6, datetime(2024, 5, 1, 12, 30), 120, "Canon EOS R6", "RF24-105", 41.9, 12.5, 21.0,
            PictureTexts("Forum", "At noon", ("ruins", "sun"), city="Roma", country="Italia"),
        )  # fmt: skip
        photo = await add(world, 1, info, folder="/Italy/Rome/", tags='["b", " a", "a"]')
        data = picture(1)
        assert photo == {
            "id": photo["id"], "file_name": "1.jpg", "folder": "Italy/Rome", "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data), "format": "JPEG", "width_px": 4000, "height_px": 3000,
            "taken_at": "2024-05-01T10:30:00Z", "taken_local": "2024-05-01T12:30:00", "taken_offset_min": 120,
            "camera": "Canon EOS R6", "lens": "RF24-105", "latitude": 41.9, "longitude": 12.5, "altitude_m": 21.0,
            "title": "Forum", "caption": "At noon", "keywords": ["ruins", "sun"],
            "place": {"sublocation": None, "city": "Roma", "state": None, "country": "Italia"},
            "tags": ["a", "b"], "face_count": 0, "created_at": photo["created_at"], "updated_at": photo["updated_at"],
        }  # fmt: skip
        assert (await world.client.get(f"{PHOTOS}/{photo['id']}")).json() == photo | {"faces": []}
        (key,) = await world.object_keys()
        assert await world.gallery.objects.get(key) == data
        library = (await world.client.get("/api/v1/collections/library")).json()
        assert library["image_count"] == 1 and library["embedding"]["model"] == "fake-model"

    async def test_the_date_for_sorting(self, stored: StoredWorld) -> None:
        zoned = await add(stored, 1, taken("2024-05-01T12:00", -90), taken_at="2000-01-01")
        plain = await add(stored, 2, taken("2024-05-01T12:00"), taken_at="2000-01-01")
        told = await add(stored, 3, taken_at="2000-01-01")
        untold = await add(stored, 4)
        assert [one["taken_at"] for one in (zoned, plain, told)] == [
            "2024-05-01T13:30:00Z",
            "2024-05-01T12:00:00Z",
            "2000-01-01T00:00:00Z",
        ]
        assert told["taken_local"] is None and untold["taken_at"] == untold["created_at"]

    async def test_the_same_picture_is_there_once(self, stored: StoredWorld) -> None:
        first = await add(stored, 1, tags="a")
        again = await send(stored, ("other.jpg", picture(1)), tags="b", folder="elsewhere")
        body = again.json()
        assert body["exists"] == 1 and body["results"][0]["photo"] == first
        assert stored.pictures.inspected == 1 and len(await stored.object_keys()) == 1

    async def test_the_same_picture_many_times_at_once(self, stored_everywhere: StoredWorld) -> None:
        world = stored_everywhere
        world.pictures.delay_s = 0.05
        answers = await asyncio.gather(*(send(world, ("a.jpg", picture(1)), ("b.jpg", picture(1))) for _ in range(4)))
        items = [item for answer in answers for item in answer.json()["results"]]
        assert sorted(item["status"] for item in items) == ["created"] + ["exists"] * 7
        assert len({item["photo"]["id"] for item in items}) == 1
        assert await count(world, "photos") == await count(world, "images") == 1
        assert (await world.rows("SELECT count(*) AS n FROM collections"))[0]["n"] == 1
        await world.gallery.housekeeping.once()
        assert len(await world.object_keys()) == 1

    async def test_each_file_has_its_own_result(self, stored: StoredWorld) -> None:
        response = await send(
            stored,
            ("Fotos/good.jpg", picture(1)),
            ("raw.nef", b"II*\x00\x08\x00\x00\x00\x00\x00"),
            ("film.mov", b"\x00\x00\x00\x14ftypqt  "),
            ("notes.txt", b"hello"),
            ("bad.jpg", JPEG + b"broken"),
            ("empty.jpg", b""),
            ("huge.mp4", b"x" * (21 << 20)),
            ("huge.jpg", JPEG + b"x" * (21 << 20)),
        )
        body = response.json()
        found = [(one["status"], (one["problem"] or {}).get("code")) for one in body["results"]]
        assert found == [
            ("created", None),
            ("unsupported", "unsupported_image"),
            ("unsupported", "unsupported_image"),
            ("unsupported", "unsupported_image"),
            ("failed", "invalid_image"),
            ("failed", "invalid_image"),
            ("unsupported", "unsupported_image"),
            ("failed", "image_too_large"),
        ]
        kinds = [(one["problem"] or {}).get("details", {}).get("kind") for one in body["results"]]
        assert kinds == [None, "raw", "video", None, None, None, "video", None]
        assert "raw photo" in body["results"][1]["problem"]["detail"]
        assert body["results"][0]["photo"]["file_name"] == "good.jpg"
        assert body["results"][0]["filename"] == "Fotos/good.jpg"
        assert [body[name] for name in ("created", "exists", "unsupported", "failed")] == [1, 0, 4, 3]
        assert len(await stored.object_keys()) == 1

    async def test_json(self, stored: StoredWorld) -> None:
        texts = [base64.b64encode(picture(number)).decode() for number in (1, 2)]
        named = {"image": texts[1], "file_name": "a/b.jpg"}
        body = {"images": [texts[0], named, "%%%"], "tags": ["x"], "folder": "f"}
        answer = (await stored.client.post(f"{PHOTOS}/upload", json=body)).json()
        assert [one["status"] for one in answer["results"]] == ["created", "created", "failed"]
        photos = [one["photo"] for one in answer["results"][:2]]
        assert photos[0]["file_name"] == photos[0]["sha256"][:16] + ".jpg" and photos[1]["file_name"] == "b.jpg"
        assert all(one["tags"] == ["x"] and one["folder"] == "f" for one in photos)

    @pytest.mark.parametrize(
        "options", [{"tags": '["a\\u0000"]'}, {"folder": "a/../b"}, {"tags": "x" * 101}, {"colour": "red"}, {"taken_at": "7"}]
    )
    async def test_options_that_do_not_fit(self, stored: StoredWorld, options: dict[str, str]) -> None:
        response = await send(stored, ("a.jpg", picture(1)), **options)
        assert response.status_code == 422, response.text
        assert await stored.object_keys() == set()

    async def test_a_repeated_key_gets_the_first_answer(self, stored: StoredWorld) -> None:
        async def once(data: bytes) -> dict[str, Any]:
            response = await stored.client.post(
                f"{PHOTOS}/upload", files={"files": ("a.jpg", data)}, headers={"Idempotency-Key": "k"}
            )
            item: dict[str, Any] = response.json()["results"][0]
            return item

        first = await once(picture(1))
        assert first["status"] == "created" and await once(picture(1)) == first
        assert (await once(picture(2)))["problem"]["code"] == "idempotency_key_reused"
        former = await stored.client.post(
            "/api/photos/upload", files={"files": ("a.jpg", picture(1))}, headers={"Idempotency-Key": "k"}
        )
        assert former.json()["results"][0] == first
        await stored.client.delete(f"{PHOTOS}/{first['photo']['id']}")
        assert (await once(picture(1)))["problem"]["code"] == "not_found"
        assert (await stored.rows("SELECT 1 FROM idempotency_keys WHERE response IS NOT NULL")) == []

    async def test_a_failing_store_leaves_no_row(self, stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*_: object) -> None:
            raise ObjectStoreUnavailable("The object store is full.")

        monkeypatch.setattr(type(stored.gallery.objects), "put", fail)
        item = (await send(stored, ("a.jpg", picture(1)))).json()["results"][0]
        assert (item["status"], item["problem"]["code"]) == ("failed", "object_store_unavailable")
        assert await count(stored, "photos") == await count(stored, "images") == 0

    async def test_a_client_that_leaves_while_the_object_is_put_leaves_none(
        self, stored: StoredWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, putting = type(stored.gallery.objects).put, asyncio.Event()

        async def slow(store: ObjectStore, key: str, data: bytes, content_type: str) -> None:
            putting.set()
            await asyncio.sleep(0.1)
            await real(store, key, data, content_type)

        monkeypatch.setattr(type(stored.gallery.objects), "put", slow)
        task = asyncio.create_task(stored.gallery.photos.upload(Upload(picture(1), "a.jpg"), Once(None, lambda _: (200, b""))))
        await putting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stored.gallery.photos.settle(60)
        assert await count(stored, "photos") == 0 and await stored.object_keys() == set()

    async def test_a_client_that_leaves_leaves_no_object(self, stored: StoredWorld) -> None:
        stored.pictures.delay_s = 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await send(stored, ("a.jpg", picture(1)))
        await asyncio.sleep(0.2)
        assert await count(stored, "photos") == 0 and await stored.object_keys() == set()

    @pytest.mark.parametrize("refused", [False, True])
    async def test_a_client_that_leaves_during_the_transaction_leaves_both_or_none(
        self, stored: StoredWorld, monkeypatch: pytest.MonkeyPatch, refused: bool
    ) -> None:
        real, inside, go_on = photos.insert, asyncio.Event(), asyncio.Event()

        async def slow(*given: Any) -> Any:
            inside.set()
            await go_on.wait()
            if refused:
                raise InvalidImage("no")
            return await real(*given)

        monkeypatch.setattr("serve_app.storage.photos.insert", slow)
        task = asyncio.create_task(stored.gallery.photos.upload(Upload(picture(1), "a.jpg"), Once(None, lambda _: (200, b""))))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await stored.object_keys()) == 1
        # The gallery waits for it before it closes the database and the store.
        closing = asyncio.create_task(stored.gallery.close())
        await asyncio.sleep(0.2)
        go_on.set()
        await closing
        assert len(
            [one for one in (stored.folder / "objects").rglob("*") if one.is_file() and "originals" in one.parts]
        ) == int(not refused)
        assert await count(stored, "photos") == await count(stored, "images") == int(not refused)

    async def test_a_refused_transaction_leaves_no_object(self, stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        async def refuse(*_: object) -> None:
            raise InvalidImage("no")

        await add(stored, 1)
        monkeypatch.setattr("serve_app.storage.photos.insert", refuse)
        assert (await send(stored, ("b.jpg", picture(2)))).json()["failed"] == 1
        assert len(await stored.object_keys()) == 1


class TestListing:
    async def test_orders_and_pages(self, stored: StoredWorld) -> None:
        # Five of one date: the id decides, in both directions.
        for number in range(1, 6):
            await add(stored, number, taken("2020-01-01T00:00"))
        await add(stored, 6, taken("2019-01-01T00:00"))
        await add(stored, 7, taken("2021-01-01T00:00"))
        ascending = await names(stored, order="asc")
        assert ascending[0] == "6" and ascending[-1] == "7" and sorted(ascending[1:-1]) == list("12345")
        assert await names(stored) == ascending[::-1]
        assert await names(stored, sort="created_at", order="asc") == list("1234567")
        assert await names(stored, sort="created_at") == list("7654321")

    async def test_pages_hold_while_photos_come_and_go(self, stored: StoredWorld) -> None:
        photos = [await add(stored, number, taken(f"2020-01-0{number}T00:00")) for number in range(1, 6)]
        first = (await stored.client.get(PHOTOS, params={"limit": 2})).json()
        await stored.client.delete(f"{PHOTOS}/{photos[3]['id']}")
        await add(stored, 9, taken("2022-01-01T00:00"))
        second = (await stored.client.get(PHOTOS, params={"limit": 2, "cursor": first["next_cursor"]})).json()
        assert [one["file_name"] for one in second["items"]] == ["3.jpg", "2.jpg"]

    async def test_a_cursor_is_of_its_listing(self, stored: StoredWorld) -> None:
        for number in (1, 2):
            await add(stored, number, tags="a")
        cursor = (await stored.client.get(PHOTOS, params={"limit": 1})).json()["next_cursor"]
        for query in ({"order": "asc"}, {"sort": "created_at"}, {"tag": "a"}, {"untagged": "true"}, {"folder": ""},
                      {"person_id": str(uuid4())}, {"taken_from": "2000-01-01"}):  # fmt: skip
            response = await stored.client.get(PHOTOS, params={"cursor": cursor, **query})
            assert response.status_code == 422 and response.json()["code"] == "invalid_cursor", query

    async def test_by_tags_folder_and_date(self, stored: StoredWorld) -> None:
        await add(stored, 1, taken("2020-01-01T00:00"), tags="a,b", folder="x")
        await add(stored, 2, taken("2021-01-01T00:00"), tags="a", folder="x/y")
        await add(stored, 3, taken("2022-01-01T00:00"))
        assert await names(stored, tag="a") == ["2", "1"]
        assert await names(stored, tag=["a", "b"]) == ["1"]
        assert await names(stored, tag=["a", "c"]) == []
        assert await names(stored, untagged="true") == ["3"]
        assert await names(stored, folder="x") == ["1"]
        assert await names(stored, folder="/x/y/") == ["2"]
        assert await names(stored, folder="") == ["3"]
        assert await names(stored, taken_from="2021-01-01") == ["3", "2"]
        assert await names(stored, taken_to="2021-01-01") == ["1"]
        assert await names(stored, taken_from="2020-06-01T00:00:00+02:00", taken_to="2021-06-01", tag="a") == ["2"]

    async def test_a_walk_that_takes_too_long_is_told(self, stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        await add(stored, 1, tags="a,b")
        monkeypatch.setattr("serve_app.storage.photo_pages.MAX_SORTED", 0)
        assert await names(stored, tag=["a", "b"]) == ["1"]
        monkeypatch.setattr("serve_app.storage.photos._WALK_TIMEOUT_S", 1e-6)
        response = await stored.client.get(PHOTOS, params={"tag": ["a", "b"]})
        assert response.status_code == 504 and response.json()["code"] == "deadline_exceeded"
        monkeypatch.undo()
        assert await names(stored, tag=["a", "b"]) == ["1"]

    async def test_by_persons(self, stored: StoredWorld) -> None:
        library = await stored.collection("library")
        anna, bob = await stored.person(library, name="Anna"), await stored.person(library, name="Bob")
        both, only, nobody = image(1, 1), image(1, 2), image(1, 3)
        for name, data in (("both", both), ("only", only), ("nobody", nobody)):
            assert (await send(stored, (f"{name}.jpg", data))).json()["created"] == 1
        for person, data in ((anna, both), (bob, both), (anna, only)):
            assert (await enrol(stored, library, person, data, review="false")).status_code == 201
        assert await names(stored, person_id=anna) == ["only", "both"]
        assert await names(stored, person_id=[anna, bob]) == ["only", "both"]
        assert await names(stored, person_id=[anna, bob], persons="all") == ["both"]
        assert await names(stored, person_id=[anna, bob], persons="none") == ["nobody"]
        assert await names(stored, person_id=bob, persons="none") == ["nobody", "only"]
        assert await names(stored, person_id=str(uuid4())) == []
        photo = (await stored.client.get(PHOTOS, params={"person_id": bob})).json()["items"][0]
        assert photo["face_count"] == 2

    async def test_before_the_first_photo(self, stored: StoredWorld) -> None:
        assert (await stored.client.get(PHOTOS)).json() == {"items": [], "next_cursor": None}
        assert (await stored.client.get("/api/v1/tags")).json() == {"items": [], "next_cursor": None}
        nothing = f"{PHOTOS}/{uuid4()}"
        for method, path, body in (
            ("GET", nothing, None),
            ("DELETE", nothing, None),
            ("GET", f"{nothing}/tags", None),
            ("POST", f"{nothing}/tags", {"add": ["a"]}),
        ):
            response = await stored.client.request(method, path, json=body)
            assert response.status_code == 404 and response.json()["code"] == "not_found", (method, path)

    @pytest.mark.parametrize(
        "query",
        ["limit=0", "limit=501", "sort=name", "order=up", "persons=some", "person_id=anna", "tag=%00", "taken_from=yesterday",
         "folder=..", "colour=red", "tag=" + "&tag=".join(map(str, range(21)))],
    )  # fmt: skip
    async def test_queries_that_do_not_fit(self, stored: StoredWorld, query: str) -> None:
        response = await stored.client.get(f"{PHOTOS}?{query}")
        assert response.status_code == 422 and response.json()["code"] == "invalid_request", response.text

    async def test_the_former_paths(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        photo = (await stored.client.get("/api/photos?limit=1")).json()["items"][0]
        assert photo["file_name"] == "1.jpg"
        assert (await stored.client.get(f"/api/photos/{photo['id']}")).json() == photo | {"faces": []}
        assert (await stored.client.get("/api/photos?colour=red")).status_code == 422
        answer = await stored.client.post("/api/photos/upload", files={"files": ("2.jpg", picture(2))})
        assert answer.json()["created"] == 1
        assert (await stored.client.get("/api/tags")).status_code == 200
        unknown = httpx.AsyncClient(transport=httpx.ASGITransport(stored.api), base_url="http://test")
        assert (await unknown.get("/api/photos")).status_code == 401
        paths = (await stored.client.get("/openapi.json")).json()["paths"]
        assert "/api/v1/photos" in paths and "/api/photos" not in paths


class TestTags:
    async def test_add_remove_replace(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1, tags="a")
        assert await tag(stored, photo, add=["b", " b ", "c"], remove=["a", "x"]) == ["b", "c"]
        assert await tag(stored, photo, add=["b"], remove=["b"]) == ["b", "c"]
        assert await tag(stored, photo, tags=["c", "d"]) == ["c", "d"]
        assert (await stored.client.get(f"{PHOTOS}/{photo['id']}/tags")).json() == {
            "photo_id": photo["id"],
            "tags": ["c", "d"],
        }
        changed = (await stored.client.get(f"{PHOTOS}/{photo['id']}")).json()
        assert changed["updated_at"] > photo["updated_at"] and changed["tags"] == ["c", "d"]
        assert await tag(stored, photo, tags=["c", "d"]) == ["c", "d"]
        assert (await stored.client.get(f"{PHOTOS}/{photo['id']}")).json()["updated_at"] == changed["updated_at"]
        assert await tag(stored, photo, tags=[]) == []

    async def test_counts(self, stored: StoredWorld) -> None:
        for number, tags in ((1, "a,b"), (2, "a"), (3, "c")):
            await add(stored, number, tags=tags)
        assert (await stored.client.get("/api/v1/tags")).json() == {
            "items": [{"tag": "a", "photo_count": 2}, {"tag": "b", "photo_count": 1}, {"tag": "c", "photo_count": 1}],
            "next_cursor": None,
        }
        first = (await stored.client.get("/api/v1/tags?limit=2")).json()
        second = (await stored.client.get("/api/v1/tags", params={"limit": 2, "cursor": first["next_cursor"]})).json()
        assert [one["tag"] for one in second["items"]] == ["c"] and second["next_cursor"] is None

    @pytest.mark.parametrize(
        "body", [{}, {"tags": ["a"], "add": ["b"]}, {"add": [""]}, {"add": ["a\x00"]}, {"add": ["x" * 101]}, {"tags": None}]
    )
    async def test_bodies_that_do_not_fit(self, stored: StoredWorld, body: dict[str, Any]) -> None:
        photo = await add(stored, 1)
        response = await stored.client.post(f"{PHOTOS}/{photo['id']}/tags", json=body)
        assert response.status_code == 422, response.text

    async def test_a_photo_has_only_so_many(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1)
        assert len(await tag(stored, photo, tags=[f"t{index}" for index in range(100)])) == 100
        response = await stored.client.post(f"{PHOTOS}/{photo['id']}/tags", json={"add": ["more"]})
        assert response.status_code == 422 and len(await tag(stored, photo, remove=["t1"])) == 99

    async def test_changes_at_once_are_all_kept(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1)
        await asyncio.gather(*(tag(stored, photo, add=[f"t{index}"]) for index in range(8)))
        assert len((await stored.client.get(f"{PHOTOS}/{photo['id']}/tags")).json()["tags"]) == 8


class TestErasure:
    async def test_a_photo_leaves_nothing_behind(self, stored_everywhere: StoredWorld) -> None:
        world = stored_everywhere
        photo, other = await add(world, 1, tags="a,b"), await add(world, 2, tags="a")
        image_id = (await world.rows("SELECT image_id FROM photos WHERE id = $1", photo["id"]))[0]["image_id"]
        thumbnail = thumbnail_key(world.first_key, image_id, 320, ThumbnailFormat.WEBP)
        await world.gallery.objects.put(thumbnail, b"small", "image/webp")
        receipt = (await world.client.delete(f"{PHOTOS}/{photo['id']}")).json()
        assert receipt["photos"] == receipt["images"] == 1 and receipt["faces"] == receipt["persons"] == 0
        assert receipt["remaining_rows"] == receipt["objects_pending"] == 0
        await world.gallery.housekeeping.once()
        assert len(await world.object_keys()) == 1
        assert await count(world, "photos") == await count(world, "images") == await count(world, "photo_tags") == 1
        assert await count(world, "object_deletions") == 0
        assert (await world.client.get(f"{PHOTOS}/{photo['id']}")).status_code == 404
        assert (await world.client.delete(f"{PHOTOS}/{photo['id']}")).status_code == 404
        assert (await world.client.get(f"{PHOTOS}/{other['id']}")).status_code == 200

    async def test_it_takes_the_faces_in_it_with_it(self, stored: StoredWorld) -> None:
        library = await stored.collection("library")
        anna, bob = await stored.person(library, name="Anna"), await stored.person(library, name="Bob")
        group, alone = image(2, 1), image(1, 0)
        photo = (await send(stored, ("group.jpg", group))).json()["results"][0]["photo"]
        for person, data in ((anna, group), (bob, group), (anna, alone)):
            assert (await enrol(stored, library, person, data, face="largest", review="false")).status_code == 201
        receipt = (await stored.client.delete(f"{PHOTOS}/{photo['id']}")).json()
        assert {name: receipt[name] for name in ("photos", "images", "faces", "embeddings", "crops", "remaining_rows")} == {
            "photos": 1, "images": 1, "faces": 2, "embeddings": 2, "crops": 2, "remaining_rows": 0,
        }  # fmt: skip
        await stored.gallery.housekeeping.once()
        assert len(await stored.object_keys()) == 2
        assert (await stored.client.get(f"{library}/persons/{anna}")).json()["face_count"] == 1
        assert (await stored.client.get(f"{library}/persons/{bob}")).json()["face_count"] == 0
        assert len(await stored.rows("SELECT 1 FROM templates")) == 1

    async def test_no_answer_of_a_face_in_it_is_repeated(self, stored: StoredWorld) -> None:
        library = await stored.collection("library")
        anna, data = await stored.person(library, name="Anna"), image(1, 1)
        photo = (await send(stored, ("a.jpg", data))).json()["results"][0]["photo"]

        async def enrolled() -> httpx.Response:
            return await stored.client.post(
                f"{library}/persons/{anna}/faces",
                files={"files": ("a.jpg", data)},
                params={"review": "false"},
                headers={"Idempotency-Key": "e"},
            )

        first, again = await enrolled(), await enrolled()
        face = first.json()["faces"][0]["id"]
        assert again.headers["idempotent-replayed"] == "true" and face in again.text
        await stored.client.delete(f"{PHOTOS}/{photo['id']}")
        gone = await enrolled()
        assert gone.status_code == 404 and face not in gone.text and "idempotent-replayed" not in gone.headers

    async def test_a_person_leaves_the_photo(self, stored: StoredWorld) -> None:
        library = await stored.collection("library")
        anna = await stored.person(library, name="Anna")
        data = image(1, 0)
        assert (await enrol(stored, library, anna, data)).status_code == 201
        photo = (await send(stored, ("a.jpg", data))).json()["results"][0]["photo"]
        assert photo["face_count"] == 1
        receipt = (await stored.client.delete(f"{library}/persons/{anna}")).json()
        assert receipt["images"] == receipt["photos"] == 0 and receipt["faces"] == 1
        await stored.gallery.housekeeping.once()
        assert len(await stored.object_keys()) == 1
        assert (await stored.client.get(f"{PHOTOS}/{photo['id']}")).json()["face_count"] == 0

    async def test_the_whole_library(self, stored_everywhere: StoredWorld) -> None:
        world = stored_everywhere
        for number in (1, 2, 3):
            await add(world, number, tags="a")
        await world.gallery.objects.put(thumbnail_key(world.first_key, uuid4(), 320), b"small", "image/jpeg")
        receipt = (await world.client.delete("/api/v1/collections/library")).json()
        assert receipt["photos"] == receipt["images"] == 3 and receipt["remaining_rows"] == 0
        assert await world.object_keys() == set()
        assert await count(world, "photos") == await count(world, "photo_tags") == 0
        assert (await world.client.get(PHOTOS)).json()["items"] == []
        await add(world, 1)

    async def test_deleting_while_enrolling_and_uploading(self, stored: StoredWorld) -> None:
        library = await stored.collection("library")
        people = [await stored.person(library) for _ in range(4)]
        data = image(1, 1)
        for _ in range(5):
            photo = (await send(stored, ("a.jpg", data))).json()["results"][0]["photo"]
            answers = await asyncio.gather(
                stored.client.delete(f"{PHOTOS}/{photo['id']}"),
                *(enrol(stored, library, person, data, review="false") for person in people),
                send(stored, ("a.jpg", data)),
            )
            assert [one.status_code for one in answers if one.status_code not in (200, 201, 422)] == []
        await stored.gallery.housekeeping.once()
        named = await stored.rows("SELECT object_key AS key FROM images UNION ALL SELECT crop_key FROM faces")
        assert await stored.object_keys() == {row["key"] for row in named}
        assert await stored.rows("SELECT 1 FROM faces f LEFT JOIN images i ON i.id = f.image_id WHERE i.id IS NULL") == []


class TestUpkeep:
    async def test_gc_knows_photos_and_their_thumbnails(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        (row,) = await stored.rows("SELECT image_id, object_key FROM photos JOIN images ON images.id = image_id")
        mine, orphan = (thumbnail_key(stored.first_key, one, 320) for one in (row["image_id"], uuid4()))
        for key in (mine, orphan):
            await stored.gallery.objects.put(key, b"small", "image/jpeg")
        collector = GarbageCollector(stored.gallery.database, stored.gallery.objects)
        found = await collector.find_orphans(timedelta(0), delete=True)
        assert found.orphan_keys == [orphan] and await stored.object_keys() == {mine, row["object_key"]}
        await stored.gallery.objects.delete(row["object_key"])
        await collector.find_dangling(found)
        assert found.dangling_keys == [row["object_key"]]

    async def test_db_check_knows_photos(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1, tags="a")
        await add(stored, 2)

        async def found() -> tuple[int, int, int]:
            async with stored.gallery.database.connection() as connection:
                mismatches = await checks.mismatches(connection, await collections.get(connection, "library"))
                return (
                    mismatches.pictures_of_nothing,
                    mismatches.photos_of_another_collection,
                    mismatches.photos_with_wrong_tag_count,
                )

        assert await found() == (0, 0, 0)
        await stored.rows("UPDATE photos SET tag_count = 1 - tag_count")
        assert await found() == (0, 0, 2)
        await stored.rows("UPDATE photos SET tag_count = 1 - tag_count")
        await stored.rows("UPDATE photo_tags SET collection_key = 0")
        await stored.rows("DELETE FROM photos WHERE id <> $1", photo["id"])
        assert await found() == (1, 1, 0)
