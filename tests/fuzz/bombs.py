"""Pictures that are small as files and large as pixels, text or frames. Made with care rather than by chance."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.fuzz.mutations import png
from tests.fuzz.seeds import photograph, saved

_SIDE = 7000
"""Squared: just below the limit of pixels that the service has by default."""


def bombs() -> tuple[tuple[str, Callable[[], bytes]], ...]:
    """Names, and what makes each: together they would take more memory than one of them is allowed."""
    return (
        ("rgb png", lambda: _flat_png(8, 2, 3)),
        ("alpha png", lambda: _flat_png(8, 6, 4)),
        ("deep grey png", lambda: _flat_png(16, 0, 2)),
        ("deep alpha png", lambda: _flat_png(16, 6, 8)),
        ("bilevel png", lambda: _flat_png(1, 0, 1 / 8)),
        ("png over the limit", lambda: _flat_png(8, 0, 1, side=7100)),
        ("png with a long text", lambda: _with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9))),
        (
            "png with a long xmp",
            lambda: _with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<a>" * (40 << 20), 9)),
        ),
        ("png with a long profile", lambda: _with_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(bytes(200 << 20), 9))),
        ("png with 100,000 texts", lambda: _with_chunk(b"tEXt", b"Comment\0words", 100_000)),
        ("jpeg", lambda: saved(Image.new("RGB", (_SIDE, _SIDE)), "JPEG", subsampling=0)),
        ("progressive jpeg", lambda: saved(Image.new("RGB", (_SIDE, _SIDE)), "JPEG", progressive=True)),
        ("cmyk jpeg", lambda: saved(Image.new("CMYK", (_SIDE, _SIDE)), "JPEG")),
        ("jpeg of 10,000 scans", lambda: _many_scans(10_000)),
        ("jpeg of 20,000 comments", lambda: _with_comments(20_000)),
        ("jpeg of five million comments", lambda: _joined("JPEG", 2, b"\xff\xfe\x00\x02")),
        ("png of 1.6 million chunks", lambda: _joined("PNG", 33, png([(b"abCd", b"")])[8:])),
        ("gif of four million comments", lambda: _joined("GIF", 13, b"\x21\xfe\x01a\x00", palette=True)),
        ("webp of 2.4 million chunks", _many_riff_chunks),
        ("tiff of 65,535 entries", lambda: _many_entries(65_535)),
        ("webp", lambda: saved(Image.new("RGB", (_SIDE, _SIDE)), "WEBP", lossless=True)),
        ("webp of 500 frames", lambda: _film("WEBP")),
        ("gif", lambda: saved(Image.new("P", (_SIDE, _SIDE)), "GIF")),
        ("gif of 500 frames", lambda: _film("GIF")),
        ("gif whose screen is larger than its frame", _large_screen),
        ("float tiff", lambda: _tiff(np.zeros((_SIDE, _SIDE), np.float32))),
        ("deep tiff", lambda: _tiff(np.zeros((_SIDE, _SIDE), np.uint16))),
        ("wide tiff", lambda: _tiff(np.zeros((2, 32_000), np.uint8))),
        ("tiff of 2,000 pictures", lambda: _film("TIFF", 2000)),
        ("bilevel tiff", lambda: saved(Image.new("1", (_SIDE, _SIDE)), "TIFF", compression="group4")),
        ("avif", lambda: saved(Image.new("RGB", (4000, 4000)), "AVIF", speed=10)),
        ("bmp of runs", _long_runs),
        ("narrow png", lambda: _flat_png(8, 2, 3, width=1, height=32_000)),
        ("wide jpeg", lambda: saved(Image.new("RGB", (32_000, 3)), "JPEG")),
    )


def _flat_png(depth: int, colour: int, bytes_a_pixel: float, *, side: int = _SIDE, width: int = 0, height: int = 0) -> bytes:
    width, height = width or side, height or side
    row = 1 + int(-(-width * bytes_a_pixel // 1))
    packer = zlib.compressobj(9)
    packed = b"".join([packer.compress(bytes(row)) for _ in range(height)]) + packer.flush()
    return png([(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")])


def _with_chunk(name: bytes, body: bytes, count: int = 1) -> bytes:
    plain = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return png([plain, *[(name, body)] * count, (b"IDAT", zlib.compress(bytes(25 * 8))), (b"IEND", b"")])


def _many_scans(count: int) -> bytes:
    jpeg = saved(photograph().resize((1000, 750)), "JPEG", progressive=True)
    at = jpeg.rfind(b"\xff\xda")
    return jpeg[:at] + jpeg[at:-2] * min(count, (18 << 20) // len(jpeg[at:-2])) + b"\xff\xd9"


def _with_comments(count: int) -> bytes:
    jpeg = saved(photograph(), "JPEG")
    return jpeg[:2] + (b"\xff\xe1" + struct.pack(">H", 40) + b"Exif\0\0" + bytes(32)) * count + jpeg[2:]


def _joined(image_format: str, at: int, piece: bytes, palette: bool = False) -> bytes:
    """19 MB of one piece, behind the first `at` bytes of a picture."""
    picture = saved(photograph().convert("P") if palette else photograph(), image_format)
    if palette:
        # Behind the colours that its head announces.
        at += 3 << ((picture[10] & 7) + 1)
    return picture[:at] + piece * ((19 << 20) // len(piece)) + picture[at:]


def _many_riff_chunks() -> bytes:
    body = saved(photograph(), "WEBP", exif=b"Exif\0\0")[12:] + b"abCd\0\0\0\0" * ((19 << 20) // 8)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _many_entries(count: int) -> bytes:
    """Each of a tag of its own, with a value elsewhere."""
    first = saved(photograph(), "TIFF")
    (start,) = struct.unpack_from("<I", first, 4)
    (known,) = struct.unpack_from("<H", first, start)
    own = first[start + 2 : start + 2 + 12 * known]
    more = b"".join(struct.pack("<HHII", 1000 + number % 64_000, 2, 250_000, 8) for number in range(count - known))
    return first[:4] + struct.pack("<I", len(first)) + first[8:] + struct.pack("<H", count) + own + more + bytes(4)


def _film(image_format: str, count: int = 500) -> bytes:
    frames = [Image.new("L", (16, 16), number % 256) for number in range(count)]
    return saved(frames[0], image_format, save_all=True, append_images=frames[1:])


def _large_screen() -> bytes:
    gif = bytearray(saved(photograph().convert("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", _SIDE, _SIDE)
    return bytes(gif)


def _tiff(pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


def _long_runs() -> bytes:
    """RLE8 of 7000 x 7000: every byte pair is 255 pixels."""
    colours = b"".join(bytes([n, n, n, 0]) for n in range(256))
    body = b"\xff\x07" * (_SIDE * _SIDE // 255) + b"\x00\x01"
    head = struct.pack("<IiiHHIIiiII", 40, _SIDE, _SIDE, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    start = 14 + len(head) + len(colours)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + head + colours + body
