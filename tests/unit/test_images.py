"""Decoding, on pictures made here and on real ones where they are."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import ImageError, ImageTooLarge, InvalidImage, UnsupportedImage
from serve_app.faces import RGBImage
from serve_app.imaging.images import (
    ARCFACE_TEMPLATE_PX,
    ImageFormat,
    ImageLimits,
    align,
    decode,
    rotate,
    similarity_transforms,
    sniff,
    unrotate_points,
)
from tests import data

LIMITS = ImageLimits(max_bytes=20 << 20, max_pixels=50_000_000)


def picture(width: int = 64, height: int = 48) -> RGBImage:
    """A gradient: every orientation and colour channel tells itself apart."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 40)], axis=-1).astype(np.uint8)


def encoded(image_format: str, pixels: RGBImage | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture() if pixels is None else pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"])
def test_formats_are_sniffed_and_decoded(image_format: str) -> None:
    data = encoded(image_format)
    assert sniff(data) == image_format
    decoded = decode(data, LIMITS)
    assert decoded.pixels.shape == (48, 64, 3) and decoded.pixels.dtype == np.uint8
    # Lossy formats and palettes stay near.
    assert np.abs(decoded.pixels.astype(int) - picture()).mean() < 12


def test_jpeg_pixels_are_those_of_pillow() -> None:
    data = encoded("JPEG", quality=90)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image_format in ("JPEG", "PNG", "WEBP"):
        data = encoded(image_format, exif=exif, lossless=True)
        from PIL import ImageOps

        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        np.testing.assert_array_equal(decode(data, LIMITS).pixels, expected)


@pytest.mark.parametrize("data", [b"hello world, this is text", b"<svg xmlns='x'/>", b"PK\x03\x04" + b"\0" * 40, b"\xff\xd8"])
def test_other_bytes_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImage):
        decode(data, LIMITS)


def test_no_bytes_are_invalid() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        decode(b"", LIMITS)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(image_format: str, share: float) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(image_format, noise)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)], LIMITS)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and brings nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + chunk + idat


@pytest.mark.parametrize("size", [(65000, 65000), (10_000, 6_000), (40_000, 10)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge):
        decode(png_header(*size), LIMITS)


def test_too_many_bytes() -> None:
    with pytest.raises(ImageTooLarge) as caught:
        decode(encoded("PNG"), ImageLimits(max_bytes=10, max_pixels=1000))
    assert caught.value.details["max_bytes"] == 10


def test_modes_become_rgb() -> None:
    grey16 = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey16).save(buffer, "PNG")
    decoded = decode(buffer.getvalue(), LIMITS).pixels
    np.testing.assert_array_equal(decoded[:, :, 0], grey16 >> 8)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        buffer = io.BytesIO()
        Image.fromarray(picture()).convert(mode).save(buffer, "PNG")
        assert decode(buffer.getvalue(), LIMITS).pixels.shape == (48, 64, 3)
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert("CMYK").save(buffer, "JPEG")
    assert np.abs(decode(buffer.getvalue(), LIMITS).pixels.astype(int) - picture()).mean() < 12


def test_alpha_is_dropped_not_blended() -> None:
    pixels = np.dstack([picture(), np.full((48, 64), 7, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), LIMITS).pixels, picture())


@given(
    st.binary(max_size=400),
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00", b"RIFF\0\0\0\0WEBP"]),
)
@settings(max_examples=300, deadline=None)
def test_hostile_bytes_only_raise_image_errors(tail: bytes, magic: bytes) -> None:
    try:
        decode(magic + tail, ImageLimits(1 << 20, 1_000_000))
    except ImageError:
        pass


@given(st.integers(0, 2**31), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_flipped_bytes_only_raise_image_errors(position: int, value: int) -> None:
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        damaged = bytearray(encoded(image_format))
        damaged[position % len(damaged)] = value
        try:
            decode(bytes(damaged), ImageLimits(1 << 20, 1_000_000))
        except ImageError:
            pass


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_and_back(degrees: int) -> None:
    pixels = picture()
    turned = rotate(pixels, degrees)
    points = np.array([[0, 0], [10, 3], [63, 47]], dtype=np.float32)
    # Where each pixel of the turned picture came from, the colour is the same.
    width = turned.shape[1]
    for x, y in ((0, 0), (width - 1, 0), (5, 7)):
        back = unrotate_points(np.array([x, y], dtype=np.float32), degrees, 64, 48)
        np.testing.assert_array_equal(turned[y, x], pixels[int(back[1]), int(back[0])])
    assert unrotate_points(points, degrees, 64, 48).shape == points.shape


def test_similarity_transform_maps_landmarks_onto_the_template() -> None:
    angle, scale = 0.4, 2.5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    landmarks = (ARCFACE_TEMPLATE_PX @ turn.T + [30, 400]).astype(np.float32)
    (transform,) = similarity_transforms(landmarks[None])
    np.testing.assert_allclose(landmarks @ transform[:, :2].T + transform[:, 2], ARCFACE_TEMPLATE_PX, atol=1e-3)


def test_similarity_transform_is_umeyamas() -> None:
    """Against scikit-image's general solution, on landmarks that fit no similarity exactly."""
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(3)
    for _ in range(20):
        landmarks = (ARCFACE_TEMPLATE_PX * 3 + rng.normal(0, 12, (5, 2)) + 100).astype(np.float32)
        expected = transform.SimilarityTransform.from_estimate(landmarks, ARCFACE_TEMPLATE_PX).params[:2]
        np.testing.assert_allclose(similarity_transforms(landmarks[None])[0], expected, atol=1e-4)


def test_align_of_nothing_and_of_degenerate_landmarks() -> None:
    assert align(picture(), np.empty((0, 5, 2), np.float32)).shape == (0, 112, 112, 3)
    assert align(picture(), np.zeros((1, 5, 2), np.float32)).shape == (1, 112, 112, 3)


@pytest.mark.parametrize("name", ["empty.jpg", "truncated_header.jpg", "garbage_tail.jpg", "text.jpg", "zip_as.jpg", "html.png",
    "badcrc.png", "truncated.png", "bomb_20000x20000.png", "bomb_header_65000.png", "svg_as.jpg", "corrupted.heic",
    "corrupted.hif", "empty.heic", "truncated_half.jpg"])  # fmt: skip
def test_corrupt_samples_are_refused(name: str) -> None:
    with pytest.raises(ImageError):
        decode(data.read(f"corrupt/{name}"), LIMITS)


@pytest.mark.parametrize("name", ["png_named.jpg", "one_pixel.png"])
def test_odd_but_valid_samples_are_read(name: str) -> None:
    decode(data.read(f"corrupt/{name}"), LIMITS)


def test_all_format_samples_show_the_same_kind_of_picture() -> None:
    folder = data.require(data.PHOTOS / "formats")
    for path in sorted(folder.iterdir()):
        decoded = decode(path.read_bytes(), LIMITS)
        assert decoded.pixels.ndim == 3, path.name
        if path.suffix in (".avif",):
            assert decoded.format is ImageFormat.AVIF
        if path.suffix == ".heic":
            assert decoded.format is ImageFormat.HEIF


def test_exif_samples_all_decode_to_the_same_upright_picture() -> None:
    data.require(data.PHOTOS / "exif")
    upright = decode(data.read("exif/face_orient1.jpg"), LIMITS).pixels
    for orientation in range(2, 9):
        other = decode(data.read(f"exif/face_orient{orientation}.jpg"), LIMITS).pixels
        assert other.shape == upright.shape
        small = [cv2.resize(pixels, (32, 32)).astype(int) for pixels in (upright, other)]
        assert np.abs(small[0] - small[1]).mean() < 3, orientation
