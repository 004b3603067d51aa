"""The pictures of photos and their thumbnails, on a real database and object store; thumbnails by the real engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import dataclass, field
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from deployments.models.pictures import InspectRequest, PictureEngine, ThumbnailRequest
from serve_app.errors import InvalidImage, ObjectStoreUnavailable, Overloaded
from serve_app.images import ImageLimits
from serve_app.photos import PictureInfo, ThumbnailFormat
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
        assert answer.headers["x-content-type-options"] == "nosniff" and "private" in answer.headers["cache-control"]
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
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag) and answer.headers[
        "vary"
    ] == "Accept"
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
    assert "private" in answer.headers["cache-control"]
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
    pictures.gate.clear()
    pictures.asked.clear()
    request = asyncio.create_task(world.client.get(f"{photo}/thumbnail?size=640"))
    await pictures.asked.wait()
    assert (await world.client.delete(photo)).status_code == 200
    assert await world.object_keys() == set()
    pictures.gate.set()
    assert (await request).status_code == 200
    assert await world.object_keys() == set()
    assert (await world.client.get(f"{photo}/thumbnail?size=640")).status_code == 404


async def test_a_store_that_takes_nothing_is_no_reason_to_show_nothing(
    world: StoredWorld, pictures: RealPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = await upload(world, photo_bytes())

    async def full(*_: object) -> None:
        raise ObjectStoreUnavailable("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(world.gallery.objects, "put", full)
        assert (await world.client.get(f"{photo}/thumbnail")).status_code == 200
    assert await thumbnails(world) == set()
    assert (await world.client.get(f"{photo}/thumbnail")).status_code == 200
    assert len(await thumbnails(world)) == 1 and pictures.made == 2


async def test_a_caller_that_leaves_takes_nothing_from_the_others(world: StoredWorld, pictures: RealPictures) -> None:
    photo = await upload(world, photo_bytes())
    pictures.gate.clear()
    first = asyncio.create_task(world.client.get(f"{photo}/thumbnail"))
    await pictures.asked.wait()
    second = asyncio.create_task(world.client.get(f"{photo}/thumbnail"))
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    pictures.gate.set()
    assert (await second).status_code == 200 and pictures.made == 1


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
    world = make_stored(pictures=pictures, worker_timeout=1)
    await world.gallery.objects.prepare()
    photo = await upload(world, photo_bytes())
    pictures.gate.clear()
    late = await world.client.get(f"{photo}/thumbnail")
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    await asyncio.sleep(0.1)
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
