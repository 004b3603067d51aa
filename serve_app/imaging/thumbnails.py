"""Smaller copies of pictures. Pure functions on bytes and arrays."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
from PIL import Image, ImageCms

from serve_app.faces import RGBImage
from serve_app.imaging.images import ImageLimits, decode
from serve_app.imaging.regions import Region
from serve_app.photos import ThumbnailFormat

_OPTIONS: dict[ThumbnailFormat, dict[str, int | bool]] = {
    ThumbnailFormat.JPEG: {"quality": 82, "progressive": True, "optimize": True},
    # Methods above 2 save 6 % of the bytes and take more than twice as long.
    ThumbnailFormat.WEBP: {"quality": 80, "method": 2},
    # Speeds below 9 save 4 % of the bytes and take three times as long and more. One thread: a replica has one to spare.
    ThumbnailFormat.AVIF: {"quality": 60, "speed": 9, "max_threads": 1},
}


def make_thumbnail(data: bytes, side_px: int, image_format: ThumbnailFormat, limits: ImageLimits) -> bytes:
    """The picture encoded anew: upright, its longer side at most `side_px`, never enlarged, without metadata.

    Colours that an RGB profile defines are converted to sRGB; those that only HEIF's own colour box (nclx) defines are not.

    Raises what `images.decode` raises.
    """
    decoded = decode(data, limits, at_least_px=side_px)
    small = shrink(decoded.pixels, fitted(decoded.size_px, side_px))
    return encode(_to_srgb(small, decoded.icc_profile), image_format)


def cut_thumbnail(data: bytes, region: Region, side_px: int, image_format: ThumbnailFormat, limits: ImageLimits) -> bytes:
    """A square part of the picture, encoded anew: otherwise as `make_thumbnail` does.

    Raises what `images.decode` raises.
    """
    share = max(min(region.right - region.left, region.bottom - region.top), 1e-4)
    decoded = decode(data, limits, at_least_px=math.ceil(side_px / share))
    height, width = decoded.pixels.shape[:2]
    # The file may have changed its mind about its size since the region was measured; it is still a square within it.
    side = min(max(1, round((region.right - region.left) * width)), width, height)
    left = min(max(0, round(region.left * width)), width - side)
    top = min(max(0, round(region.top * height)), height - side)
    square = np.ascontiguousarray(decoded.pixels[top : top + side, left : left + side])
    small = shrink(square, fitted((side, side), side_px))
    return encode(_to_srgb(small, decoded.icc_profile), image_format)


def fitted(size_px: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Width and height of the thumbnail of a picture of this size; each at least one pixel."""
    width, height = size_px
    scale = min(1.0, side_px / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink(pixels: RGBImage, size_px: tuple[int, int]) -> RGBImage:
    """Scaled to width and height; each pixel the mean of the area it stands for."""
    if size_px == (pixels.shape[1], pixels.shape[0]):
        return pixels
    return np.asarray(cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def encode(picture: Image.Image, image_format: ThumbnailFormat) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format.value, **_OPTIONS[image_format])
    return buffer.getvalue()


_SRGB = frozenset({"sRGB IEC61966-2.1", "sRGB built-in", "sRGB"})
"""Descriptions of sRGB's own profile: by far the most frequent ones, and nothing to convert."""


def _to_srgb(pixels: RGBImage, icc_profile: bytes | None) -> Image.Image:
    """After shrinking, where it costs next to nothing. A damaged profile, or one of grey or CMYK, is as none."""
    picture = Image.fromarray(pixels)
    if icc_profile is None:
        return picture
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if profile.profile.xcolor_space.strip() != "RGB" or (profile.profile.profile_description or "").strip() in _SRGB:
            return picture
        converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return picture
    if converted is None:
        return picture
    # Else the encoders would write the profile of sRGB into each file.
    converted.info.pop("icc_profile", None)
    return converted
