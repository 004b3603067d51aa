"""Pictures as arrays: sniff, limit, decode, orient, letterbox, align. Pure functions on bytes and arrays."""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from serve_app.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from serve_app.faces import CROP_SIZE_PX, Crops, FloatArray, RGBImage
from serve_app.imaging.effort import check_jpeg, check_png

MAX_SIDE_PX = 32_766
"""OpenCV's warp and resize address pixels with signed 16-bit integers."""

_BAND_PX = 1 << 20
"""Pixels that are converted at once where a conversion needs wide numbers."""

ARCFACE_TEMPLATE_PX: FloatArray = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float32,
)
"""Where the five landmarks come to lie in a 112 x 112 crop (insightface.utils.face_align.arcface_dst)."""


class ImageFormat(StrEnum):
    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"
    AVIF = "AVIF"
    HEIF = "HEIF"
    TIFF = "TIFF"
    BMP = "BMP"
    GIF = "GIF"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """`max_bytes` of the encoded file, `max_pixels` of the decoded picture (width x height)."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """pixels: (H, W, 3) uint8 RGB, upright as displayed; smaller than the picture where `decode` may scale it down.

    `size_px`: width and height of the picture as displayed. `orientation`: the EXIF orientation that was applied to the
    pixels; 1 where the format's own decoder turns them. `icc_profile`: what the colours mean, where the file says so.
    """

    pixels: RGBImage
    format: ImageFormat
    size_px: tuple[int, int]
    orientation: int = 1
    icc_profile: bytes | None = None


_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


def sniff(data: bytes) -> ImageFormat:
    """The format, by magic bytes alone: file names and content types lie.

    Raises InvalidImage for no bytes at all, UnsupportedImage for anything that is not one of `ImageFormat`.
    """
    if not data:
        raise InvalidImage("The image is empty (0 bytes).")
    head = data[:32]
    if head.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat.PNG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ImageFormat.WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ImageFormat.GIF
    if head.startswith(b"BM"):
        return ImageFormat.BMP
    if head.startswith((b"II*\x00", b"MM\x00*")):
        return ImageFormat.TIFF
    if head[4:8] == b"ftyp":
        # The major brand decides; the generic `mif1` of both families is settled by the compatible brands.
        size = int.from_bytes(head[:4], "big")
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, min(size, 256), 4))}
        if brands & _AVIF_BRANDS:
            return ImageFormat.AVIF
        if brands & _HEIF_BRANDS:
            return ImageFormat.HEIF
    raise UnsupportedImage("The bytes are not a picture in a supported format (JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP, GIF).")


def check_size(data: bytes, limits: ImageLimits) -> None:
    """Raises ImageTooLarge when the encoded file is over `limits.max_bytes`."""
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"The image has {len(data)} bytes; the limit is {limits.max_bytes}.",
            bytes=len(data),
            max_bytes=limits.max_bytes,
        )


def decode(data: bytes, limits: ImageLimits, *, at_least_px: int | None = None) -> DecodedImage:
    """Encoded bytes to upright RGB pixels. The size is read from the header and limited before any pixel is decoded.

    Alpha is dropped, CMYK and palettes converted, 16 bits scaled to 8, animations reduced to their first frame.

    `at_least_px`: where that is quicker, the pixels may come scaled down, their longer side still at least this.

    Raises InvalidImage (damaged), UnsupportedImage (not a picture we read), ImageTooLarge (bytes, pixels, side or effort).
    """
    check_size(data, limits)
    image_format = sniff(data)
    if image_format is ImageFormat.JPEG:
        check_jpeg(data)
    elif image_format is ImageFormat.PNG:
        check_png(data)
    try:
        # Opening reads the header only; `formats` keeps every other parser away from hostile bytes.
        with open_picture(data, image_format) as image:
            _check_pixels(image.size, limits)
            size_px = image.size
            pixels: RGBImage | None = None
            jpeg, reduction = image_format is ImageFormat.JPEG, _reduction(image.size, at_least_px)
            if jpeg and image.mode in ("RGB", "L") and data.endswith(b"\xff\xd9"):
                pixels = _decode_jpeg(data, reduction)
            if pixels is None:
                if jpeg and reduction > 1:
                    # Phones append films and maps of depth; then OpenCV cannot tell whether the picture is complete.
                    image.draft(None, (max(1, size_px[0] // reduction), max(1, size_px[1] // reduction)))
                image.load()
                pixels = _to_rgb(image)
                size_px = size_px if jpeg else (pixels.shape[1], pixels.shape[0])
            # After load(): formats whose decoder already turns the picture (HEIF, TIFF) then report 1.
            orientation = _orientation(image)
            profile = image.info.get("icc_profile")
            return DecodedImage(
                apply_orientation(pixels, orientation),
                image_format,
                (size_px[1], size_px[0]) if orientation >= 5 else size_px,
                orientation,
                profile if isinstance(profile, bytes) else None,
            )
    except (ImageTooLarge, InvalidImage, UnsupportedImage):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge("The image has more pixels than the limit.", max_pixels=limits.max_pixels) from error
    except MemoryError as error:
        raise ImageTooLarge("The image does not fit into memory.") from error
    except Exception as error:
        # Decoders of hostile bytes raise whatever they stumble over (OSError, SyntaxError, struct.error, IndexError,
        # zlib.error, ...). At this one border every failure means the same: these bytes are not a readable picture.
        raise InvalidImage(f"The {image_format} data is damaged or incomplete.") from error


def open_picture(data: bytes, image_format: ImageFormat) -> Image.Image:
    """The header only, by the one parser of the format. Raises whatever that parser stumbles over."""
    return Image.open(io.BytesIO(data), formats=[_pillow_plugin(image_format)])


def _pillow_plugin(image_format: ImageFormat) -> str:
    if image_format is ImageFormat.HEIF:
        _register_heif()
    return image_format.value


@cache
def _register_heif() -> None:
    # Imported on the first HEIC only: the library costs 10 MB in every replica that never sees one.
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage("The image has no pixels.")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} pixels; the limit is {limits.max_pixels}.",
            width_px=width,
            height_px=height,
            max_pixels=limits.max_pixels,
        )
    if max(width, height) > MAX_SIDE_PX:
        raise ImageTooLarge(
            f"The image is {width} x {height} pixels; the longest side may have {MAX_SIDE_PX}.",
            width_px=width,
            height_px=height,
            max_side_px=MAX_SIDE_PX,
        )


def _reduction(size: tuple[int, int], at_least_px: int | None) -> int:
    """The largest of 8, 4, 2 by which the picture may be scaled down, else 1."""
    if at_least_px is None:
        return 1
    return next((factor for factor in (8, 4, 2) if -(-max(size) // factor) >= at_least_px), 1)


_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""The bare scales; those named COLOR bring OpenCV's BGR along, which excludes RGB."""


def _decode_jpeg(data: bytes, reduction: int) -> RGBImage | None:
    """A complete RGB or grey JPEG, or None when OpenCV cannot: then Pillow decides and names the reason.

    Same libjpeg-turbo and the same pixels as Pillow, without its second copy: 2.7 against 3.7 ms for 1280 x 886. Scaled
    down by 8 within the inverse DCT, 12 megapixels take 22 ms instead of 70.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED[reduction]
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if pixels is None else np.asarray(pixels, dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it cannot be read, as image viewers do."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:
        # A damaged EXIF block does not make the picture unreadable.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> RGBImage:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "RGBX", "LA", "PA", "RGBa", "La"):
        # Convert without blending: the colour under the alpha is what other readers (OpenCV) see as well.
        return np.asarray(image.convert("RGBA"), dtype=np.uint8)[:, :, :3].copy()
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _grey_to_rgb(values: npt.NDArray[np.generic]) -> RGBImage:
    """Grey of 16 or 32 bits, or float: integers by their high byte, floats by their own range.

    In bands: whole copies in 64 bits would take 28 bytes a pixel, 1.4 GB for a file of 95 kB.
    """
    rows = max(1, _BAND_PX // values.shape[1])
    bands = [slice(start, start + rows) for start in range(0, len(values), rows)]
    pixels = np.empty((*values.shape, 3), dtype=np.uint8)
    if np.issubdtype(values.dtype, np.floating):
        low = min(float(_finite(values[band]).min()) for band in bands)
        high = max(float(_finite(values[band]).max()) for band in bands)
        scale = 255.0 / (high - low) if high > low else 0.0
        for band in bands:
            pixels[band] = np.clip((_finite(values[band]) - low) * scale, 0, 255).astype(np.uint8)[:, :, None]
    else:
        shift = 8 if int(values.max()) > 255 else 0
        for band in bands:
            pixels[band] = np.clip(values[band].astype(np.int64) >> shift, 0, 255).astype(np.uint8)[:, :, None]
    return pixels


def _finite(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """What is no number is black; what is beyond all numbers stays far beyond those of 32 bits, but can be reckoned with."""
    return np.nan_to_num(values.astype(np.float64), posinf=1e300, neginf=-1e300)


def apply_orientation(pixels: RGBImage, orientation: int) -> RGBImage:
    """Pixels as displayed, for an EXIF orientation 1..8 (EXIF 2.32, tag 0x0112). C-contiguous."""
    if orientation == 1:
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def rotate(pixels: RGBImage, degrees: int) -> RGBImage:
    """Turned clockwise by 0, 90, 180 or 270 degrees. C-contiguous."""
    return np.ascontiguousarray(np.rot90(pixels, k=-degrees // 90))


def unrotate_points(points: FloatArray, degrees: int, width_px: int, height_px: int) -> FloatArray:
    """Points (..., 2) found in `rotate(pixels, degrees)`, in the coordinates of `pixels` (width_px x height_px).

    Whole coordinates are pixel centres, as OpenCV's warps have them.
    """
    x, y = points[..., 0], points[..., 1]
    if degrees == 90:
        x, y = y, height_px - 1 - x
    elif degrees == 180:
        x, y = width_px - 1 - x, height_px - 1 - y
    elif degrees == 270:
        x, y = width_px - 1 - y, x
    return np.stack([x, y], axis=-1).astype(np.float32)


def similarity_transforms(landmarks: FloatArray, template_px: FloatArray | None = None) -> npt.NDArray[np.float64]:
    """(N, 5, 2) landmarks to the (N, 2, 3) transforms that map each onto a (5, 2) template, the ArcFace one by default.

    Least squares over rotation, uniform scale and translation (Umeyama 1991, DOI 10.1109/34.88573), which in the plane
    has the closed form below: with centred points p and q, the complex ratio sum(conj(p) q) / sum(|p|^2).
    """
    source = landmarks.astype(np.float64)
    target = (ARCFACE_TEMPLATE_PX if template_px is None else template_px).astype(np.float64)
    source_mean = source.mean(axis=1, keepdims=True)
    target_mean = target.mean(axis=0)
    p = source - source_mean
    q = target - target_mean
    spread = np.maximum((p**2).sum(axis=(1, 2)), np.finfo(np.float64).eps)
    a = (p * q).sum(axis=(1, 2)) / spread
    b = (p[:, :, 0] * q[:, 1] - p[:, :, 1] * q[:, 0]).sum(axis=1) / spread
    linear = np.stack([np.stack([a, -b], axis=-1), np.stack([b, a], axis=-1)], axis=1)
    shift = target_mean[None, :] - np.einsum("nij,nj->ni", linear, source_mean[:, 0])
    return np.concatenate([linear, shift[:, :, None]], axis=2)


def align(pixels: RGBImage, landmarks: FloatArray) -> Crops:
    """(N, 5, 2) landmarks in `pixels` to (N, 112, 112, 3) crops; what falls outside the picture is black."""
    crops = np.empty((len(landmarks), CROP_SIZE_PX, CROP_SIZE_PX, 3), dtype=np.uint8)
    if len(landmarks):
        for crop, transform in zip(crops, similarity_transforms(landmarks), strict=True):
            cv2.warpAffine(pixels, transform, (CROP_SIZE_PX, CROP_SIZE_PX), dst=crop, borderValue=(0, 0, 0))
    return crops


def encode_png(pixels: RGBImage) -> bytes:
    """Lossless PNG of an RGB picture."""
    ok, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not ok:
        raise InvalidImage("The crop could not be encoded.")
    return encoded.tobytes()
