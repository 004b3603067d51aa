"""Squares around faces, and what is cut out of pictures."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments.models.pictures import CutRequest, PictureEngine
from serve_app.errors import InvalidImage
from serve_app.imaging.images import ImageLimits
from serve_app.imaging.regions import FACE_MARGIN, Region, square_around
from serve_app.imaging.thumbnails import cut_thumbnail
from serve_app.photos import ThumbnailFormat

LIMITS = ImageLimits(20 << 20, 50_000_000)


@st.composite
def boxes_in_pictures(draw: st.DrawFn) -> tuple[tuple[float, float, float, float], int, int]:
    width, height = draw(st.integers(1, 9000)), draw(st.integers(1, 9000))
    x1, y1 = draw(st.floats(0, width)), draw(st.floats(0, height))
    return (x1, y1, draw(st.floats(x1, width)), draw(st.floats(y1, height))), width, height


@given(boxes_in_pictures())
def test_a_square_lies_in_the_picture_and_shows_the_face(
    given_box: tuple[tuple[float, float, float, float], int, int],
) -> None:
    box, width, height = given_box
    region, side = square_around(box, width, height)
    assert 0 <= region.left < region.right <= 1 + 1e-9 and 0 <= region.top < region.bottom <= 1 + 1e-9
    assert math.isclose((region.right - region.left) * width, side, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose((region.bottom - region.top) * height, side, rel_tol=1e-6, abs_tol=1e-6)
    wanted = max(1.0, (1 + 2 * FACE_MARGIN) * max(box[2] - box[0], box[3] - box[1]))
    assert side <= wanted + 1e-6 and (side == wanted or side == min(width, height))
    # Its middle is in the square.
    x, y = (box[0] + box[2]) / 2 / width, (box[1] + box[3]) / 2 / height
    assert region.left - 1e-9 <= x <= region.right + 1e-9 and region.top - 1e-9 <= y <= region.bottom + 1e-9


def picture(width: int, height: int, image_format: str = "JPEG", orientation: int = 1) -> bytes:
    """Red left of the middle and blue right of it; green in the lower half besides."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    pixels[height // 2 :, :, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, quality=95, exif=exif.tobytes())
    return buffer.getvalue()


def cut(data: bytes, region: Region, side_px: int, image_format: ThumbnailFormat = ThumbnailFormat.JPEG) -> Image.Image:
    return Image.open(io.BytesIO(cut_thumbnail(data, region, side_px, image_format, LIMITS)))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("side_px", [96, 160, 320, 640])
def test_the_part_is_cut_where_it_is(image_format: str, side_px: int) -> None:
    data = picture(4000, 3000, image_format)
    # A square of 600 px around 3000, 750: the middle of the upper right quarter.
    region = Region(2700 / 4000, 450 / 3000, 3300 / 4000, 1050 / 3000)
    shown = cut(data, region, side_px)
    assert shown.size == (min(side_px, 600),) * 2
    assert np.abs(np.asarray(shown.convert("RGB"), np.int16) - (0, 0, 255)).max() < 12
    corner = cut(data, Region(1700 / 4000, 1200 / 3000, 2300 / 4000, 1800 / 3000), 96)
    red, green, blue = (np.asarray(corner.convert("RGB"), np.int16)[..., channel] for channel in range(3))
    assert red[:40, :40].min() > 200 and blue[:40, 56:].min() > 200 and green[56:].min() > 200 and green[:40].max() < 60


def test_a_picture_that_is_turned_is_cut_as_displayed() -> None:
    data = picture(400, 300, orientation=6)
    # Turned clockwise: what was left is up, what was below is left.
    shown = np.asarray(cut(data, Region(0, 0, 100 / 300, 100 / 400), 96).convert("RGB"), np.int16)
    assert np.abs(shown - (255, 255, 0)).max() < 12


def test_nothing_is_enlarged_and_a_part_of_no_size_is_a_pixel() -> None:
    data = picture(400, 300)
    assert cut(data, Region(0.5, 0.5, 0.6, 0.5 + 40 / 300), 320).size == (40, 40)
    assert cut(data, Region(1, 1, 1, 1), 320).size == (1, 1)
    assert cut(data, Region(0, 0, 1, 1), 320).size == (300, 300)


def test_formats() -> None:
    for image_format in ThumbnailFormat:
        assert cut(picture(400, 300), Region(0, 0, 0.5, 0.6), 96, image_format).format == image_format.value


def test_bytes_that_cannot_be_read_are_an_answer() -> None:
    engine = PictureEngine(LIMITS)
    (answer,) = engine.run([CutRequest(picture(64, 64)[:200], Region(0, 0, 1, 1), 96, ThumbnailFormat.JPEG)])
    assert isinstance(answer, InvalidImage)
