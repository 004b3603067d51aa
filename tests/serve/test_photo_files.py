"""Photos through a real Ray Serve: what Detection reads of a picture, and the thumbnails it makes of it and its faces."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from tests import data
from tests.serve.conftest import Served

PHOTOS = "/api/v1/photos"


def test_a_photo_is_read_and_shown_by_detection(served: Served) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "E-M10"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(data.package_image("t1.jpg")))
    picture.save(buffer, "JPEG", exif=exif)
    stored = buffer.getvalue()
    with served.client() as client:
        files = [("files", ("group.jpg", stored)), ("files", ("half.jpg", stored[: len(stored) // 2]))]
        answer = client.post(f"{PHOTOS}/upload", files=files).json()
        whole, half = answer["results"]
        assert (whole["status"], half["status"], half["problem"]["code"]) == ("created", "failed", "invalid_image")
        photo = whole["photo"]
        assert (photo["width_px"], photo["height_px"], photo["camera"]) == (picture.height, picture.width, "E-M10")
        address = f"{PHOTOS}/{photo['id']}"
        assert client.get(f"{address}/image").content == stored
        upright = np.asarray(
            picture.convert("RGB").resize((160, round(160 * picture.height / picture.width))).rotate(270, expand=True)
        )
        for name in ("avif", "webp", "jpeg"):
            thumbnail = client.get(f"{address}/thumbnail?size=160", headers={"Accept": f"image/{name}"})
            shown = Image.open(io.BytesIO(thumbnail.content))
            assert (thumbnail.headers["content-type"], shown.format) == (f"image/{name}", name.upper())
            assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - upright).mean() < 10


def test_the_faces_of_a_photo_are_found_and_shown(served: Served) -> None:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(data.package_image("t1.jpg"))).convert("RGB")
    picture.save(buffer, "PNG")
    with served.client() as client:
        answer = client.post(f"{PHOTOS}/upload", files=[("files", ("faces.png", buffer.getvalue()))]).json()
        address = f"{PHOTOS}/{answer['results'][0]['photo']['id']}"
        until = time.monotonic() + 60
        while len(faces := client.get(f"{address}/faces").json()["faces"]) < 6:
            assert time.monotonic() < until, faces
            time.sleep(0.2)
        assert [face["quality"]["size_px"] for face in faces] == sorted(
            (face["quality"]["size_px"] for face in faces), reverse=True
        )
        for face in faces:
            x1, y1, x2, y2 = face["bbox"]
            assert all(x1 < x < x2 and y1 < y < y2 for x, y in face["landmarks"])
            side = 1.8 * max(x2 - x1, y2 - y1)
            left = min(max((x1 + x2 - side) / 2, 0), picture.width - side)
            top = min(max((y1 + y2 - side) / 2, 0), picture.height - side)
            wanted = np.asarray(picture.resize((96, 96), box=(left, top, left + side, top + side)), int)
            thumbnail = client.get(f"{face['thumbnail_url']}?size=96", headers={"Accept": "image/webp"})
            shown = Image.open(io.BytesIO(thumbnail.content))
            assert (shown.format, shown.size) == ("WEBP", (96, 96))
            assert np.abs(np.asarray(shown.convert("RGB"), int) - wanted).mean() < 10


def test_a_page_of_thumbnails_has_no_gaps(served: Served) -> None:
    """More at once than the queue of Detection takes."""
    with served.client() as client:
        colours = [("files", (f"{shade}.png", _plain(shade))) for shade in range(60)]
        answer = client.post(f"{PHOTOS}/upload", files=colours).json()
        assert answer["created"] == 60
        addresses = [f"{PHOTOS}/{one['photo']['id']}/thumbnail" for one in answer["results"]]
        with ThreadPoolExecutor(60) as threads:
            assert {one.status_code for one in threads.map(client.get, addresses)} == {200}


def _plain(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()
