"""The faces of the library over the API, on a real database and object store; thumbnails by the real engine."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.models.pictures import CutRequest
from serve_app.imaging.regions import Region
from serve_app.photos import ThumbnailFormat
from serve_app.services.garbage import GarbageCollector
from tests.api.conftest import GOOD, KEY
from tests.storage.conftest import MakeStoredWorld
from tests.storage.test_indexing import BOXES, Library, Models, enrol
from tests.storage.test_photo_files import CHROME, RealPictures, photo_bytes

JPEG = b"\xff\xd8\xff\xe0"


class Cutting(RealPictures):
    """Cuts as well."""

    async def cut(self, image: bytes, region: Region, side_px: int, image_format: ThumbnailFormat) -> bytes:
        self.made += 1
        self.asked.set()
        await self.gate.wait()
        answer = await asyncio.to_thread(self.engine.run, [CutRequest(image, region, side_px, image_format)])
        assert isinstance(answer[0], bytes)
        return answer[0]


@pytest.fixture
def pictures() -> Cutting:
    return Cutting()


@pytest.fixture
async def library(make_stored: MakeStoredWorld, pictures: Cutting) -> Library:
    world = make_stored(pictures=pictures)
    await world.gallery.objects.prepare()
    return Library(world, Models())


async def faces(library: Library, **query: object) -> list[dict[str, object]]:
    """The items of the only page."""
    response = await library.world.client.get("/api/v1/faces", params=query)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    assert response.json()["next_cursor"] is None
    items: list[dict[str, object]] = response.json()["items"]
    return items


async def indexed(library: Library, *found: tuple[tuple[float, ...], int], seed: int = 0) -> str:
    photo_id = await library.photo(*found, data=photo_bytes(1000 + seed))
    await library.index(photo_id)
    return photo_id


async def face_thumbnails(library: Library) -> set[str]:
    return {key for key in await library.world.object_keys() if "/face-thumbnails/" in key}


async def test_a_face_says_what_is_known_of_it(library: Library) -> None:
    library.models.quality = replace(GOOD, size_px=27.5)
    photo_id = await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    assert face == {
        "id": face["id"],
        "photo_id": photo_id,
        "person_id": None,
        "person_name": None,
        "bbox": [300.0, 0.0, 400.0, 120.0],
        "landmarks": [[0.0, 0.0]] * 5,
        "detection_score": pytest.approx(0.9),
        "quality": face["quality"],
        "found_by": "indexing",
        "decided_by": "machine",
        "hidden": False,
        "unassigned": {
            "code": "too_small",
            "metric": "size_px",
            "value": 27.5,
            "limit": 40.0,
            "person_id": None,
            "message": "The face is 28 px wide; at least 40 px are needed to tell whose it is.",
        },
        "thumbnail_url": f"/api/v1/faces/{face['id']}/thumbnail",
        "taken_at": face["taken_at"],
        "created_at": face["created_at"],
    }
    anna = await library.person("Anna")
    await library.give(face["id"], anna)
    for prefix in ("/api/v1", "/api"):
        given = (await library.world.client.get(f"{prefix}/faces/{face['id']}")).json()
        assert (given["person_id"], given["person_name"], given["decided_by"]) == (anna, "Anna", "user")
        assert given["unassigned"] is None


async def test_the_faces_of_a_photo(library: Library) -> None:
    photo_id = await indexed(library, (BOXES[0], 0), (BOXES[1], 1), (BOXES[2], 2))
    (first, *_) = await faces(library)
    await library.world.rows("UPDATE faces SET hidden = true WHERE id = $1", UUID(str(first["id"])))
    client = library.world.client
    detail = (await client.get(f"/api/v1/photos/{photo_id}")).json()
    listed = (await client.get(f"/api/v1/photos/{photo_id}/faces")).json()
    assert listed == {"photo_id": photo_id, "faces": detail["faces"]} and len(detail["faces"]) == 3
    assert [one["hidden"] for one in detail["faces"]].count(True) == 1
    # The listing of photos stays light.
    (photo,) = (await client.get("/api/v1/photos")).json()["items"]
    assert photo == {name: value for name, value in detail.items() if name != "faces"}
    assert (await client.get(f"/api/v1/photos/{uuid4()}/faces")).status_code == 404


async def test_filters(library: Library) -> None:
    photo_id = await indexed(library, (BOXES[0], 0), (BOXES[1], 1))
    library.models.quality = replace(GOOD, size_px=20.0)
    other = await indexed(library, (BOXES[0], 2), (BOXES[2], 3), seed=1)
    library.models.quality = GOOD
    small_b, small_a, good_b, good_a = [str(face["id"]) for face in await faces(library)]
    anna = await library.person("Anna")
    await library.give(good_a, anna)
    await library.world.rows("UPDATE faces SET hidden = true WHERE id = $1", UUID(small_b))

    async def found(**query: object) -> set[str]:
        return {str(face["id"]) for face in await faces(library, **query)}

    assert await found() == {small_a, good_b, good_a}
    assert await found(person_id=anna) == {good_a}
    assert await found(photo_id=photo_id) == {good_a, good_b}
    assert await found(photo_id=other, hidden="include") == {small_a, small_b}
    assert await found(hidden="only") == {small_b}
    assert await found(unassigned="true") == {small_a, good_b}
    assert await found(unassigned="false") == {good_a}
    assert await found(reason="too_small") == {small_a}
    assert await found(reason=["blurred", "too_small"], hidden="include") == {small_a, small_b}
    assert await found(reason="blurred") == set()
    assert await found(decided_by="user") == {good_a}
    assert await found(decided_by="machine", min_size_px=100) == {good_b}
    assert await found(found_by="enrolment") == set()
    assert await found(person_id=anna, photo_id=other) == set()
    for missing in ({"person_id": str(uuid4())}, {"photo_id": str(uuid4())}):
        response = await library.world.client.get("/api/v1/faces", params=missing)
        assert response.status_code == 404


@pytest.mark.parametrize("sort", ["created_at", "taken_at", "size_px"])
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("by_person", [False, True])
async def test_pages_have_every_face_once_in_their_order(library: Library, sort: str, order: str, by_person: bool) -> None:
    for seed, size in enumerate((50.0, 80.0, 50.0)):
        library.models.quality = replace(GOOD, size_px=size)
        await indexed(library, *[(box, 0) for box in BOXES], seed=seed)
    await library.world.rows("UPDATE faces SET taken_at = '2020-01-01' WHERE quality ->> 'size_px' = '80.0'")
    query: dict[str, object] = {"sort": sort, "order": order}
    if by_person:
        anna = await library.person("Anna")
        for face in await faces(library):
            await library.give(face["id"], anna)
        query["person_id"] = anna
    paged: list[dict[str, object]] = []
    cursor: str | None = None
    while True:
        response = await library.world.client.get(
            "/api/v1/faces",
            params=query | {"limit": 2} | ({} if cursor is None else {"cursor": cursor}),  # type: ignore[arg-type]
        )
        assert response.status_code == 200, response.text
        paged += response.json()["items"]
        cursor = response.json()["next_cursor"]
        if cursor is None:
            break
    assert len(paged) == len({face["id"] for face in paged}) == 9

    def place(face: dict[str, object]) -> tuple[object, ...]:
        quality = face["quality"]
        assert isinstance(quality, dict)
        values = {"created_at": "", "taken_at": face["taken_at"], "size_px": quality["size_px"]}
        return values[sort], face["id"]

    assert paged == sorted(paged, key=place, reverse=order == "desc")
    assert paged == await faces(library, **query)


@pytest.mark.parametrize(
    "query",
    [
        {"person_id": "x"},
        {"unassigned": "maybe"},
        {"reason": "a\x00b"},
        {"reason": "'; DROP TABLE faces"},
        {"reason": [f"r{number}" for number in range(21)]},
        {"min_size_px": "nan"},
        {"min_size_px": "inf"},
        {"min_size_px": -1},
        {"sort": "name"},
        {"hidden": "yes"},
        {"limit": 0},
        {"limit": 501},
        {"colour": "red"},
        {"cursor": "nonsense"},
    ],
)
async def test_bad_questions_are_refused(library: Library, query: dict[str, object]) -> None:
    response = await library.world.client.get("/api/v1/faces", params=query)  # type: ignore[arg-type]
    assert response.status_code == 422 and response.json()["code"] in ("invalid_request", "invalid_cursor"), response.text


async def test_a_cursor_is_of_one_listing(library: Library) -> None:
    await indexed(library, *[(box, 0) for box in BOXES])
    client = library.world.client
    first = (await client.get("/api/v1/faces?limit=1")).json()["next_cursor"]
    for query in ("sort=taken_at", "order=asc", "unassigned=true", "hidden=include"):
        response = await client.get(f"/api/v1/faces?{query}&limit=1&cursor={first}")
        assert response.json()["code"] == "invalid_cursor"
    assert (await client.get(f"/api/faces?limit=1&cursor={first}")).status_code == 200


async def test_nothing_without_a_key_or_a_library(library: Library) -> None:
    client = library.world.client
    assert await faces(library) == []
    for path in (f"faces/{uuid4()}", f"faces/{uuid4()}/thumbnail", f"photos/{uuid4()}/faces", f"faces?person_id={uuid4()}"):
        assert (await client.get(f"/api/v1/{path}")).status_code == 404
    await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    for path in ("faces", f"faces/{face['id']}", f"faces/{face['id']}/thumbnail"):
        for key in ("", "Bearer wrong"):
            assert (await client.get(f"/api/{path}", headers={"Authorization": key})).status_code == 401
    assert KEY not in json.dumps(face)


async def test_faces_of_other_collections_are_not_the_library_s(library: Library) -> None:
    await indexed(library, (BOXES[0], 0))
    people = await library.world.collection()
    person = await library.world.person(people)
    (foreign,) = await library.world.enrol_vector(people, person, [0, 0, 0, 1])
    assert len(await faces(library, hidden="include")) == 1
    for path in (f"faces/{foreign}", f"faces/{foreign}/thumbnail", f"faces?person_id={person}"):
        assert (await library.world.client.get(f"/api/v1/{path}")).status_code == 404


async def test_an_enrolled_face_without_a_photo(library: Library) -> None:
    await indexed(library, (BOXES[0], 0))
    anna = await library.person("Anna")
    face_id = await enrol(library, anna, JPEG + bytes([1, 3]))
    (vector_id,) = await library.world.enrol_vector("/api/v1/collections/library", anna, [0, 1, 0, 0])
    for one in (face_id, vector_id):
        face = (await library.world.client.get(f"/api/v1/faces/{one}")).json()
        assert face["photo_id"] is None and face["thumbnail_url"] is None and face["person_name"] == "Anna"
        response = await library.world.client.get(f"/api/v1/faces/{one}/thumbnail")
        assert response.status_code == 404 and "no photo" in response.json()["detail"]


async def test_a_face_nobody_has_can_be_moved_and_erased(library: Library) -> None:
    await indexed(library, (BOXES[0], 0), (BOXES[1], 1))
    first, second = await faces(library)
    anna = await library.person("Anna")
    await library.give(first["id"], anna)
    assert len(await library.templates(anna)) == 1
    response = await library.world.client.delete(f"/api/v1/collections/library/faces/{second['id']}")
    assert response.status_code == 200
    assert {name: response.json()[name] for name in ("faces", "embeddings", "crops", "remaining_rows")} == {
        "faces": 1, "embeddings": 1, "crops": 1, "remaining_rows": 0
    }  # fmt: skip
    await library.check()


# Thumbnails


async def thumbnail(library: Library, face_id: object, query: str = "", **headers: str) -> httpx.Response:
    return await library.world.client.get(f"/api/v1/faces/{face_id}/thumbnail{query}", headers=headers)


async def test_a_thumbnail_shows_the_face(library: Library, pictures: Cutting) -> None:
    pixels = np.full((750, 1000, 3), 40, np.uint8)
    pixels[200:300, 600:680] = (250, 250, 250)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    photo_id = await library.photo(((600.0, 200.0, 680.0, 300.0), 0), data=buffer.getvalue())
    await library.index(photo_id)
    (face,) = await faces(library)
    response = await thumbnail(library, face["id"], "?size=100", Accept="image/webp")
    assert response.status_code == 200 and response.headers["content-type"] == "image/webp"
    shown = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"), np.int16)
    assert shown.shape == (160, 160, 3)
    # 180 px square around the face, which is 100 high and 80 wide, in 160: 89 x 71 in the middle.
    white = np.argwhere(shown[..., 0] > 145)
    assert white.min(axis=0) == pytest.approx([36, 44], abs=2) and white.max(axis=0) == pytest.approx([124, 115], abs=2)


async def test_a_thumbnail_is_made_once(library: Library, pictures: Cutting) -> None:
    await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    pictures.gate.clear()
    requests = [asyncio.create_task(thumbnail(library, face["id"], Accept=CHROME)) for _ in range(20)]
    await asyncio.sleep(0.3)
    pictures.gate.set()
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200} and len({answer.content for answer in answers}) == 1
    assert pictures.made == 1
    (key,) = await face_thumbnails(library)
    assert "/face-thumbnails/160/" in key and key.endswith(".avif")
    again = await thumbnail(library, face["id"], "?size=97", Accept=CHROME)
    assert again.content == answers[0].content and pictures.made == 1
    unchanged = await thumbnail(library, face["id"], **{"Accept": CHROME, "If-None-Match": again.headers["etag"]})
    assert unchanged.status_code == 304 and not unchanged.content
    assert again.headers["cache-control"] == "private, no-cache" and again.headers["vary"] == "Accept"
    assert "sandbox" in again.headers["content-security-policy"]
    # The face is 120 px high: the square 216.
    for size, side in ((1, 96), (96, 96), (161, 216), (5000, 216)):
        made = await thumbnail(library, face["id"], f"?size={size}")
        opened = Image.open(io.BytesIO(made.content))
        assert (opened.format, opened.size) == ("JPEG", (side, side))
    assert (await thumbnail(library, face["id"], "?size=0")).status_code == 422


async def test_a_face_found_elsewhere_has_another_thumbnail(library: Library) -> None:
    photo_id = await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    before = await thumbnail(library, face["id"])
    (old,) = await face_thumbnails(library)
    await library.index(photo_id)
    unmoved = await thumbnail(library, face["id"], **{"If-None-Match": before.headers["etag"]})
    assert unmoved.status_code == 304
    library.models.shift = 12.0
    await library.index(photo_id)
    after = await thumbnail(library, face["id"], **{"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200 and after.headers["etag"] != before.headers["etag"] and after.content != before.content
    await library.world.gallery.housekeeping.once()
    (new,) = await face_thumbnails(library)
    assert new != old


async def test_a_thumbnail_made_while_the_face_moves_is_not_kept(library: Library, pictures: Cutting) -> None:
    photo_id = await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    pictures.gate.clear()
    request = asyncio.create_task(thumbnail(library, face["id"]))
    await pictures.asked.wait()
    library.models.shift = 12.0
    await library.index(photo_id)
    await library.world.gallery.housekeeping.once()
    pictures.gate.set()
    assert (await request).status_code == 200
    assert await face_thumbnails(library) == set()


@pytest.mark.parametrize("how", ["photo", "face", "person", "gone"])
async def test_a_thumbnail_goes_with_its_face(library: Library, how: str) -> None:
    photo_id = await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    anna = await library.person("Anna")
    if how == "person":
        await library.give(face["id"], anna)
    await thumbnail(library, face["id"])
    await thumbnail(library, face["id"], "?size=96", Accept=CHROME)
    assert len(await face_thumbnails(library)) == 2
    client = library.world.client
    if how == "photo":
        assert (await client.delete(f"/api/v1/photos/{photo_id}")).status_code == 200
    elif how == "face":
        assert (await client.delete(f"/api/v1/collections/library/faces/{face['id']}")).status_code == 200
    elif how == "person":
        assert (await client.delete(f"/api/v1/collections/library/persons/{anna}")).status_code == 200
    else:
        library.models.faces[photo_bytes(1000)] = []
        await library.index(photo_id)
        await library.world.gallery.housekeeping.once()
    assert await face_thumbnails(library) == set()
    assert (await thumbnail(library, face["id"])).status_code == 404
    await library.check()


async def test_a_thumbnail_made_while_its_photo_is_erased_is_not_kept(library: Library, pictures: Cutting) -> None:
    photo_id = await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    pictures.gate.clear()
    request = asyncio.create_task(thumbnail(library, face["id"]))
    await pictures.asked.wait()
    assert (await library.world.client.delete(f"/api/v1/photos/{photo_id}")).status_code == 200
    pictures.gate.set()
    assert (await request).status_code == 404
    assert await library.world.object_keys() == set()


async def test_thumbnails_of_faces_are_known_to_gc(library: Library) -> None:
    photo_id = await indexed(library, (BOXES[0], 0))
    (face,) = await faces(library)
    await thumbnail(library, face["id"])
    (kept,) = await face_thumbnails(library)
    # Of a box it does not have, and of no face: what a crash may leave.
    stem, _, _ = kept.rpartition("-")
    stale, foreign = f"{stem}-0123456789ab.jpg", kept.replace(str(face["id"]).replace("-", ""), uuid4().hex)
    for key in (stale, foreign):
        await library.world.gallery.objects.put(key, b"x", "image/jpeg")
    gallery = library.world.gallery
    found = await GarbageCollector(gallery.database, gallery.objects).find_orphans(timedelta(0), delete=True)
    assert sorted(found.orphan_keys) == sorted([stale, foreign]) and found.deleted == 2 and found.unknown == 0
    assert await face_thumbnails(library) == {kept}
    assert (await library.world.client.delete(f"/api/v1/photos/{photo_id}")).status_code == 200
