"""The pictures of photos and their thumbnails, on a real database and object store; thumbnails by the real engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.models.pictures import InspectRequest, PictureEngine, ThumbnailRequest
from serve_app.errors import DatabaseUnavailable, DeadlineExceeded, InvalidImage, ObjectStoreUnavailable, Overloaded
from serve_app.imaging.images import ImageLimits
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.services.thumbnails import Thumbnails
from serve_app.storage.objects import ObjectMissing
from tests.api.conftest import FakePictures, image
from tests.storage.conftest import MakeStoredWorld, StoredWorld

CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


@dataclass
class RealPictures(FakePictures):
    """What a Detection replica does. `made`: thumbnails asked for, which sets `asked`; `gate`: they wait for it; `refusals`:
    raised first."""

    made: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    refusals: list[Exception] = field(default_factory=list)
    engine: PictureEngine = field(default_factory=lambda: PictureEngine(ImageLimits(20 << 20, 50_000_000)))

    def __post_init__(self) -> None:
        self.gate.set()

    async def inspect(self, image: bytes) -> PictureInfo:
        answer = await asyncio.to_thread(self.engine.run, [InspectRequest(image)])
        if not isinstance(answer[0], PictureInfo):
            assert isinstance(answer[0], Exception)
            raise answer[0]
        return answer[0]

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes:
        self.made += 1
        self.asked.set()
        await self.gate.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        answer = await asyncio.to_thread(self.engine.run, [ThumbnailRequest(image, side_px, image_format)])
        assert isinstance(answer[0], bytes)
        return answer[0]


def photo_bytes(width: int = 1000, height: int = 750, image_format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(width).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture
def pictures() -> RealPictures:
    return RealPictures()


@pytest.fixture
async def world(make_stored: MakeStoredWorld, pictures: RealPictures) -> StoredWorld:
    made = make_stored(pictures=pictures)
    await made.gallery.objects.prepare()
    return made


async def upload(world: StoredWorld, data: bytes, name: str = "cat.jpg") -> str:
    """The address of the new photo."""
    response = await world.client.post("/api/v1/photos/upload", files=[("files", (name, data))])
    assert response.status_code == 200, response.text
    return f"/api/v1/photos/{response.json()['results'][0]['photo']['id']}"


async def thumbnails(world: StoredWorld) -> set[str]:
    return {key for key in await world.object_keys() if "/thumbnails/" in key}


async def waiting(world: StoredWorld, *callers: int) -> None:
    """Until so many wait for each thumbnail that is under way."""
    under_way = world.gallery.thumbnails._under_way
    async with asyncio.timeout(60):
        while sorted(making.waiting for making, _ in under_way.values()) != sorted(callers):  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)


async def asked_for(world: StoredWorld, pictures: RealPictures, path: str) -> asyncio.Task[httpx.Response]:
    """A request whose thumbnail is being made, until the gate opens."""
    pictures.gate.clear()
    pictures.asked.clear()
    request = asyncio.create_task(world.client.get(path))
    await pictures.asked.wait()
    return request


async def test_a_thumbnail_is_made_once(world: StoredWorld, pictures: RealPictures) -> None:
    photo = await upload(world, photo_bytes())
    pictures.gate.clear()
    requests = [asyncio.create_task(world.client.get(f"{photo}/thumbnail", headers={"Accept": CHROME})) for _ in range(20)]
    await asyncio.sleep(0.3)
    pictures.gate.set()
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200} and len({answer.content for answer in answers}) == 1
    assert pictures.made == 1
    (key,) = await thumbnails(world)
    assert "/thumbnails/320/" in key and key.endswith(".avif")
    assert await world.gallery.objects.get(key) == answers[0].content
    again = await world.client.get(f"{photo}/thumbnail?size=161", headers={"Accept": CHROME})
    assert again.content == answers[0].content and pictures.made == 1


async def test_formats_and_sizes(world: StoredWorld, pictures: RealPictures) -> None:
    photo = await upload(world, photo_bytes())
    for accept, name in ((CHROME, "AVIF"), ("image/webp", "WEBP"), ("*/*", "JPEG"), ("image/webp;q=0.1,image/jpeg", "JPEG")):
        answer = await world.client.get(f"{photo}/thumbnail?size=1", headers={"Accept": accept})
        opened = Image.open(io.BytesIO(answer.content))
        assert (opened.format, opened.size) == (name, (160, 120))
        assert answer.headers["content-type"] == f"image/{name.lower()}" and answer.headers["vary"] == "Accept"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "private, no-cache"
    for size, width in ((160, 160), (161, 320), (640, 640), (641, 1000), (2048, 1000), (65_535, 1000)):
        answer = await world.client.get(f"{photo}/thumbnail?size={size}")
        assert Image.open(io.BytesIO(answer.content)).size[0] == width
    # All that are larger than the photo are the same one.
    assert {key.split("/")[3] for key in await thumbnails(world)} == {"160", "320", "640", "1280"}
    assert (await world.client.get(f"{photo}/thumbnail".replace("/v1", ""))).status_code == 200
    for wrong in ("size=0", "size=-5", "size=x", "size=65536", "width=320"):
        assert (await world.client.get(f"{photo}/thumbnail?{wrong}")).status_code == 422


async def test_a_client_that_has_it_gets_no_bytes(world: StoredWorld, pictures: RealPictures) -> None:
    data = photo_bytes()
    photo = await upload(world, data)
    first = await world.client.get(f"{photo}/thumbnail")
    etag = first.headers["etag"]
    assert etag == f'"{hashlib.sha256(data).hexdigest()}-320-jpeg"'
    answer = await world.client.get(f"{photo}/thumbnail", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert (answer.headers["vary"], answer.headers["cache-control"]) == ("Accept", "private, no-cache")
    other = await world.client.get(f"{photo}/thumbnail", headers={"If-None-Match": etag, "Accept": "image/webp"})
    assert other.status_code == 200 and other.headers["etag"] != etag
    # Known without being made.
    made = pictures.made
    etag = etag.replace("320", "640")
    assert (await world.client.get(f"{photo}/thumbnail?size=640", headers={"If-None-Match": etag})).status_code == 304
    assert pictures.made == made


async def test_the_picture_as_it_was_uploaded(world: StoredWorld) -> None:
    data = photo_bytes()
    photo = await upload(world, data, "Käse & <b>.jpg")
    answer = await world.client.get(f"{photo}/image")
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, data, etag)
    assert answer.headers["content-type"] == "image/jpeg" and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith('inline; filename="K_se & <b>.jpg"; filename*=UTF-8')
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cache-control"] == "private, no-cache"
    for given in (etag, f'"x", W/{etag}', "*"):
        answer = await world.client.get(f"{photo}/image", headers={"If-None-Match": given})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    part = await world.client.get(f"{photo}/image", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}" and part.headers["etag"] == etag
    same = await world.client.get(f"{photo}/image", headers={"Range": "bytes=-5", "If-Range": etag})
    assert (same.status_code, same.content) == (206, data[-5:])
    changed = await world.client.get(f"{photo}/image", headers={"Range": "bytes=-5", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, data)


async def test_every_object_store(stored_everywhere: StoredWorld) -> None:
    data = image(2, 1)
    photo = await upload(stored_everywhere, data)
    redirected = await stored_everywhere.client.get(f"{photo}/image?redirect=true")
    assert redirected.status_code == 307 and "signature" in redirected.headers["location"].lower()
    assert (await stored_everywhere.client.get(f"{photo}/image")).content == data
    first = await stored_everywhere.client.get(f"{photo}/thumbnail", headers={"Accept": "image/webp"})
    assert first.content == b"WEBP 320 JPEG" + data and first.headers["content-type"] == "image/webp"
    assert await thumbnails(stored_everywhere)
    assert (await stored_everywhere.client.delete(photo)).status_code == 200
    assert await stored_everywhere.object_keys() == set()


async def test_a_photo_deleted_meanwhile_leaves_no_thumbnail(world: StoredWorld, pictures: RealPictures) -> None:
    photo = await upload(world, photo_bytes())
    await world.client.get(f"{photo}/thumbnail?size=160")
    request = await asked_for(world, pictures, f"{photo}/thumbnail?size=640")
    assert (await world.client.delete(photo)).status_code == 200
    assert await world.object_keys() == set()
    pictures.gate.set()
    assert (await request).status_code == 404
    assert await world.object_keys() == set()
    assert (await world.client.get(f"{photo}/thumbnail?size=640")).status_code == 404


async def unavailable(*_: object) -> None:
    raise ObjectStoreUnavailable("The disk is full.")


async def test_what_was_put_for_a_deleted_photo_is_deleted_however_often_that_fails(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = await upload(world, photo_bytes())
    objects = world.gallery.objects
    put = objects.put

    async def put_and_fail(key: str, data: bytes, content_type: str) -> None:
        await put(key, data, content_type)
        raise ObjectStoreUnavailable("The store took too long.")

    request = await asked_for(world, pictures, f"{photo}/thumbnail")
    assert (await world.client.delete(photo)).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(objects, "put", put_and_fail)
        patch.setattr(objects, "delete", unavailable)
        pictures.gate.set()
        assert (await request).status_code == 404
    (key,) = await thumbnails(world)
    assert [row["object_key"] for row in await world.rows("SELECT object_key FROM object_deletions")] == [key]
    await world.gallery.housekeeping.once()
    assert await world.object_keys() == set()


async def test_without_the_database_the_thumbnail_is_shown_and_not_kept(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = await upload(world, photo_bytes())
    request = await asked_for(world, pictures, f"{photo}/thumbnail")

    def down() -> None:
        raise DatabaseUnavailable("The database does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(world.gallery.database, "connection", down)
        pictures.gate.set()
        assert (await request).status_code == 200
    assert await thumbnails(world) == set()


async def test_closing_finishes_what_may_be_in_the_store(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = await upload(world, photo_bytes())
    objects = world.gallery.objects
    put = objects.put
    there, gate = asyncio.Event(), asyncio.Event()

    async def put_slowly(key: str, data: bytes, content_type: str) -> None:
        await put(key, data, content_type)
        there.set()
        await gate.wait()

    monkeypatch.setattr(objects, "put", put_slowly)
    kept = asyncio.create_task(world.client.get(f"{photo}/thumbnail?size=160"))
    await there.wait()
    made = await asked_for(world, pictures, f"{photo}/thumbnail?size=640")
    assert (await world.client.delete(photo)).status_code == 200
    closing = asyncio.create_task(world.gallery.thumbnails.close())
    await asyncio.wait({made}, timeout=60)
    assert made.done() and not closing.done() and not kept.done()
    gate.set()
    await closing
    assert (await kept).status_code == 404
    assert await world.object_keys() == set()
    await asyncio.gather(made, return_exceptions=True)


async def test_closing_does_not_take_forever(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = await upload(world, photo_bytes())
    there = asyncio.Event()

    async def hang(*_: object) -> None:
        there.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.gallery.objects, "put", hang)
    monkeypatch.setattr("serve_app.services.thumbnails._CLOSE_TIMEOUT_S", 0.1)
    request = asyncio.create_task(world.client.get(f"{photo}/thumbnail"))
    await there.wait()
    async with asyncio.timeout(60):
        await world.gallery.thumbnails.close()
    await asyncio.gather(request, return_exceptions=True)


async def test_one_that_another_caller_has_just_finished_is_not_made_again(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = await upload(world, photo_bytes())
    objects = world.gallery.objects
    get = objects.get
    missed: list[str] = []

    async def miss_once(key: str) -> bytes:
        if "/thumbnails/" in key and not missed:
            missed.append(key)
            await objects.put(key, b"the other's", "image/jpeg")
            raise ObjectMissing(key)
        return await get(key)

    monkeypatch.setattr(objects, "get", miss_once)
    assert (await world.client.get(f"{photo}/thumbnail")).content == b"the other's"
    assert len(missed) == 1 and pictures.made == 0


async def test_a_store_that_takes_nothing_is_no_reason_to_show_nothing(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = await upload(world, photo_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(world.gallery.objects, "put", unavailable)
        assert (await world.client.get(f"{photo}/thumbnail")).status_code == 200
    assert await thumbnails(world) == set()
    assert (await world.client.get(f"{photo}/thumbnail")).status_code == 200
    assert len(await thumbnails(world)) == 1 and pictures.made == 2


async def test_a_caller_that_leaves_takes_nothing_from_the_others(world: StoredWorld, pictures: RealPictures) -> None:
    photo = await upload(world, photo_bytes())
    first = await asked_for(world, pictures, f"{photo}/thumbnail")
    second = asyncio.create_task(world.client.get(f"{photo}/thumbnail"))
    await waiting(world, 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    pictures.gate.set()
    assert (await second).status_code == 200 and pictures.made == 1


async def left(*requests: asyncio.Task[httpx.Response]) -> None:
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)


async def test_nobody_waits_for_thumbnails_that_nobody_wants(
    make_stored: MakeStoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.services.thumbnails._MADE_AT_ONCE", 1)
    world = make_stored(pictures=pictures)
    await world.gallery.objects.prepare()
    photo = await upload(world, photo_bytes())

    def request(size: int) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(world.client.get(f"{photo}/thumbnail?size={size}"))

    first = await asked_for(world, pictures, f"{photo}/thumbnail?size=160")
    unwanted, one_of_two, other_of_two, back_again = request(320), request(640), request(640), request(1280)
    await waiting(world, 1, 1, 2, 1)
    await left(unwanted, one_of_two, back_again)
    again = request(1280)
    await waiting(world, 1, 1, 1)
    # This one has its place already: it is finished and kept.
    await left(first)
    pictures.gate.set()
    assert [(await one).status_code for one in (other_of_two, again)] == [200, 200]
    assert {key.split("/")[3] for key in await thumbnails(world)} == {"160", "640", "1280"} and pictures.made == 3


async def test_the_line_is_not_endless(world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.services.thumbnails._UNDER_WAY", 1)
    photo = await upload(world, photo_bytes())
    first = await asked_for(world, pictures, f"{photo}/thumbnail?size=160")
    same = asyncio.create_task(world.client.get(f"{photo}/thumbnail?size=160"))
    refused = await world.client.get(f"{photo}/thumbnail?size=320")
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
    pictures.gate.set()
    assert [(await one).status_code for one in (first, same)] == [200, 200]
    assert (await world.client.get(f"{photo}/thumbnail?size=320")).status_code == 200


async def test_waiting_in_line_is_not_making(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.services.thumbnails._MADE_AT_ONCE", 1)
    await upload(world, photo_bytes())
    gallery = world.gallery
    line = Thumbnails(gallery.database, gallery.objects, pictures, world.services.settings.library_collection, 3)
    (row,) = await world.rows("SELECT id FROM photos")
    first, second = [await line.find(row["id"], size, ThumbnailFormat.JPEG) for size in (160, 320)]
    pictures.gate.clear()
    late = asyncio.create_task(line.get(first))
    await pictures.asked.wait()
    in_time = asyncio.create_task(line.get(second))
    with pytest.raises(DeadlineExceeded):
        await late
    pictures.gate.set()
    assert await in_time
    await line.close()


async def test_what_goes_wrong_is_said_and_tried_anew(world: StoredWorld, pictures: RealPictures) -> None:
    photo = await upload(world, photo_bytes())
    pictures.refusals = [InvalidImage("The JPEG data is damaged or incomplete.")]
    refused = await world.client.get(f"{photo}/thumbnail")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_image")
    # Full is no answer for a page of thumbnails: they wait.
    pictures.refusals = [Overloaded("The queue of Detection is full.", retry_after_s=0)] * 3
    assert (await world.client.get(f"{photo}/thumbnail")).status_code == 200
    assert pictures.made == 5


async def test_a_call_that_hangs_ends(make_stored: MakeStoredWorld, pictures: RealPictures) -> None:
    world = make_stored(pictures=pictures, worker_timeout=3)
    await world.gallery.objects.prepare()
    photo = await upload(world, photo_bytes())
    pictures.gate.clear()
    late = await world.client.get(f"{photo}/thumbnail")
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    await waiting(world)
    pictures.gate.set()
    assert (await world.client.get(f"{photo}/thumbnail")).status_code == 200


async def test_pages_and_drawings_are_never_served_as_such(world: StoredWorld) -> None:
    photo = await upload(world, photo_bytes(), "page.html")
    assert "page.html.jpg" in (await world.client.get(f"{photo}/image")).headers["content-disposition"]
    (key,) = await world.object_keys()
    for markup in (b"<html><script>alert(1)</script></html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        await world.gallery.objects.put(key, markup, "text/html")
        answer = await world.client.get(f"{photo}/image")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_who_may_see_what(world: StoredWorld) -> None:
    nothing = f"/api/v1/photos/{uuid4()}"
    for path in ("image", "thumbnail"):
        assert (await world.client.get(f"{nothing}/{path}")).status_code == 404  # no library yet
    photo = await upload(world, photo_bytes())
    for path in ("image", "thumbnail"):
        assert (await world.client.get(f"{nothing}/{path}")).status_code == 404
        assert (await world.client.get(f"/api/v1/photos/x/{path}")).status_code == 422
        assert (await world.client.get(f"{photo}/{path}", headers={"Authorization": "Bearer wrong"})).status_code == 401
    (key,) = {key for key in await world.object_keys() if "/originals/" in key}
    await world.gallery.objects.delete(key)
    for path in ("image", "thumbnail"):
        gone = await world.client.get(f"{photo}/{path}")
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
