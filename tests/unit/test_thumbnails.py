"""Thumbnails: the same picture, smaller; and which format a client gets."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from config.settings import Settings
from deployments.models.pictures import InspectRequest, PictureEngine, ThumbnailRequest
from serve_app.api.accept import thumbnail_format
from serve_app.api.streams import content_disposition, matches
from serve_app.errors import ImageTooLarge, InvalidImage
from serve_app.faces import RGBImage
from serve_app.imaging.images import ImageLimits, decode
from serve_app.imaging.thumbnails import fitted, make_thumbnail, shrink
from serve_app.photos import THUMBNAIL_SIDES_PX, ThumbnailFormat
from serve_app.services.pictures import STORED_LIMITS
from tests import data
from tests.unit.test_images import LIMITS, encoded, picture


def large(width: int, height: int) -> RGBImage:
    return np.asarray(Image.fromarray(picture()).resize((width, height), Image.Resampling.BICUBIC))


def shown(thumbnail: bytes) -> RGBImage:
    return np.asarray(Image.open(io.BytesIO(thumbnail)).convert("RGB"))


@pytest.mark.parametrize("image_format", list(ThumbnailFormat))
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"])
def test_formats(source: str, image_format: ThumbnailFormat) -> None:
    made = make_thumbnail(encoded(source, large(500, 375)), 160, image_format, LIMITS)
    opened = Image.open(io.BytesIO(made))
    assert (opened.format, opened.size) == (image_format.value, (160, 120))
    assert np.abs(shown(made).astype(int) - large(160, 120)).mean() < 14


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_looks_the_same(image_format: str) -> None:
    upright = large(1000, 700)
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
             6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, 3)}  # fmt: skip
    first = shown(make_thumbnail(encoded(image_format, upright, quality=95), 160, ThumbnailFormat.JPEG, LIMITS))
    assert first.shape == (112, 160, 3)
    for orientation, pixels in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = encoded(image_format, np.ascontiguousarray(pixels), exif=exif.tobytes(), quality=95)
        made = make_thumbnail(stored, 160, ThumbnailFormat.JPEG, LIMITS)
        assert shown(made).shape == first.shape, orientation
        assert np.abs(shown(made).astype(int) - first).mean() < 2, orientation
        assert not dict(Image.open(io.BytesIO(made)).getexif())


@pytest.mark.parametrize("side_px", THUMBNAIL_SIDES_PX)
def test_never_up(side_px: int) -> None:
    made = make_thumbnail(encoded("JPEG"), side_px, ThumbnailFormat.JPEG, LIMITS)
    assert shown(made).shape == (48, 64, 3)


@pytest.mark.parametrize("size", [(4000, 20), (20, 4000), (30_000, 1), (641, 639), (1, 1), (1281, 7)])
@pytest.mark.parametrize("image_format", list(ThumbnailFormat))
def test_strips_keep_a_pixel(size: tuple[int, int], image_format: ThumbnailFormat) -> None:
    for source in ("JPEG", "PNG"):
        made = shown(make_thumbnail(encoded(source, large(*size)), 160, image_format, LIMITS))
        scale = min(1.0, 160 / max(size))
        assert made.shape[:2] == (max(1, round(size[1] * scale)), max(1, round(size[0] * scale)))


def test_reduced_decoding_is_the_whole_picture_averaged() -> None:
    pixels = large(3000, 2000)
    stored = encoded("JPEG", pixels, quality=95)
    for side_px in THUMBNAIL_SIDES_PX:
        reduced = decode(stored, LIMITS, at_least_px=side_px)
        assert max(reduced.pixels.shape) >= side_px and reduced.size_px == (3000, 2000)
        size = fitted(reduced.size_px, side_px)
        made = shrink(reduced.pixels, size)
        assert np.abs(made.astype(int) - shrink(decode(stored, LIMITS).pixels, size)).mean() < 1.5


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_what_phones_append_changes_nothing(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(large(3001, 1999)).convert(mode).save(buffer, "JPEG", quality=95)
    for side_px in THUMBNAIL_SIDES_PX:
        appended = decode(buffer.getvalue() + b"a film", LIMITS, at_least_px=side_px)
        assert appended.size_px == (3001, 1999) and max(appended.pixels.shape) >= side_px
        assert side_px > 1500 or max(appended.pixels.shape) < 3001
        made = [make_thumbnail(buffer.getvalue() + more, side_px, ThumbnailFormat.JPEG, LIMITS) for more in (b"", b"a film")]
        assert np.abs(shown(made[0]).astype(int) - shown(made[1])).mean() < 2


def test_incomplete_and_grey_and_cmyk() -> None:
    whole = encoded("JPEG", large(800, 600))
    with pytest.raises(InvalidImage):
        make_thumbnail(whole[: len(whole) // 2], 160, ThumbnailFormat.JPEG, LIMITS)
    with pytest.raises(ImageTooLarge):
        make_thumbnail(whole, 160, ThumbnailFormat.JPEG, ImageLimits(1 << 20, 1000))
    for mode in ("L", "CMYK"):
        buffer = io.BytesIO()
        Image.fromarray(large(800, 600)).convert(mode).save(buffer, "JPEG")
        assert shown(make_thumbnail(buffer.getvalue(), 160, ThumbnailFormat.WEBP, LIMITS)).shape == (120, 160, 3)


def test_limits_of_uploads_do_not_bind_what_is_stored() -> None:
    stored = encoded("PNG", large(800, 600))
    engine = PictureEngine(ImageLimits(len(stored) - 1, 1000))
    inspected, made = engine.run([InspectRequest(stored), ThumbnailRequest(stored, 160, ThumbnailFormat.JPEG)])
    assert isinstance(inspected, ImageTooLarge) and isinstance(made, bytes)
    schema = Settings.model_json_schema()["properties"]
    assert ImageLimits(schema["max_image_bytes"]["maximum"], schema["max_image_pixels"]["maximum"]) == STORED_LIMITS


def test_metadata_does_not_travel() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Canon of somebody"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = encoded("JPEG", large(800, 600), exif=exif, icc_profile=profile, comment=b"somebody's secret")
    for image_format in ThumbnailFormat:
        made = make_thumbnail(stored, 160, image_format, LIMITS)
        info = Image.open(io.BytesIO(made)).info
        assert b"somebody" not in made and not {"exif", "icc_profile", "comment", "xmp"} & set(info)


def test_colours_of_a_wide_profile_become_srgb() -> None:
    """Display P3's reds are redder than sRGB's: the same numbers shown as sRGB would look dull."""
    stored = data.read("formats/immich_IMG_2682.heic")
    decoded = decode(stored, LIMITS)
    assert decoded.icc_profile is not None
    made = shown(make_thumbnail(stored, 640, ThumbnailFormat.WEBP, LIMITS)).astype(int)
    naive = shrink(decoded.pixels, fitted(decoded.size_px, 640))
    expected = ImageCms.profileToProfile(
        Image.fromarray(naive), io.BytesIO(decoded.icc_profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert expected is not None
    assert np.abs(made - np.asarray(expected)).mean() < np.abs(made - naive).mean()


@pytest.mark.parametrize("profile", [b"", b"nonsense", b"\0" * 200])
def test_a_damaged_profile_is_as_none(profile: bytes) -> None:
    made = make_thumbnail(encoded("PNG", large(300, 200), icc_profile=profile), 160, ThumbnailFormat.JPEG, LIMITS)
    assert np.abs(shown(made).astype(int) - large(160, 107)).mean() < 6


BUILT, BURNT = (f"sRGB {name}-in".encode("utf-16-be") for name in ("built", "burnt"))
# Renamed, else nothing would be converted.
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(BUILT, BURNT)


@given(st.lists(st.tuples(st.integers(0, len(SRGB) - 1), st.integers(0, 255)), max_size=8))
@settings(max_examples=100, deadline=None)
def test_hostile_profiles_never_raise(changes: list[tuple[int, int]]) -> None:
    assert BURNT in SRGB
    profile = bytearray(SRGB)
    for place, value in changes:
        profile[place] = value
    made = make_thumbnail(encoded("PNG", icc_profile=bytes(profile)), 160, ThumbnailFormat.JPEG, LIMITS)
    assert shown(made).shape == (48, 64, 3)


@pytest.mark.parametrize(("accept", "expected"), [
    (None, "JPEG"),
    ("", "JPEG"),
    ("*/*", "JPEG"),
    ("image/*", "JPEG"),
    ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "AVIF"),  # Chrome
    ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "AVIF"),  # Firefox
    ("image/webp,image/avif,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "AVIF"),  # Safari
    ("image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5", "JPEG"),  # old Safari
    ("image/webp,*/*", "WEBP"),
    ("image/webp", "WEBP"),
    ("image/jpeg", "JPEG"),
    ("image/avif;q=0.5,image/webp;q=0.9,image/jpeg;q=0.8", "WEBP"),
    ("image/avif;q=0.5, image/jpeg", "JPEG"),
    ("image/avif;q=0, image/webp;q=0.1", "WEBP"),
    ("image/avif;q=0", "JPEG"),
    ("IMAGE/AVIF ; Q=0.9 , image/webp;q=0.8", "AVIF"),
    ("image/avif;q=2,image/webp;q=0.3", "WEBP"),
    ("image/avif;q=nan", "JPEG"),
    ("image/avif;level=1;q=0.2,image/webp;q=0.3", "WEBP"),
    ("text/html", "JPEG"),
    ("image/webp;q=0.7,image/*;q=0.9", "JPEG"),
    (",;,;q=,image/avif," + "x" * 100_000, "AVIF"),
])  # fmt: skip
def test_accept(accept: str | None, expected: str) -> None:
    assert thumbnail_format(accept).value == expected


@pytest.mark.parametrize(("header", "expected"), [
    (None, False), ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False), ("", False),
])  # fmt: skip
def test_if_none_match(header: str | None, expected: bool) -> None:
    assert matches(header, '"a"') is expected


@pytest.mark.parametrize(("name", "plain", "whole"), [
    ("cat.jpg", "cat.jpg", "cat.jpg"),
    ("cat.JPEG", "cat.JPEG", "cat.JPEG"),
    ("page.html", "page.html.jpg", "page.html.jpg"),
    ("Käse.jpg", "K_se.jpg", "K%C3%A4se.jpg"),
    ('a"b\\c;d%41.jpg', "c;d_41.jpg", "c%3Bd%2541.jpg"),
    ('say "hi".jpg', "say _hi_.jpg", "say%20%22hi%22.jpg"),
    ("a\r\nSet-Cookie: x.jpg", "aSet-Cookie: x.jpg", "aSet-Cookie%3A%20x.jpg"),
    ("../../etc/passwd", "passwd.jpg", "passwd.jpg"),
    ("", "photo.jpg", "photo.jpg"),
    (".jpg", "jpg.jpg", "jpg.jpg"),
    ("猫.jpg", "_.jpg", "%E7%8C%AB.jpg"),
    ("a\u202egpj.exe", "agpj.exe.jpg", "agpj.exe.jpg"),
    ("x" * 300 + ".jpg", "x" * 120 + ".jpg", "x" * 120 + ".jpg"),
])  # fmt: skip
def test_file_names(name: str, plain: str, whole: str) -> None:
    assert content_disposition(name, "JPEG") == f"inline; filename=\"{plain}\"; filename*=UTF-8''{whole}"
