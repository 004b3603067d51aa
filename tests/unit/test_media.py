from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from serve_app.imaging.media import Media, recognize


def tiff(order: str, *entries: tuple[int, int]) -> bytes:
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}I", 8)
    rows = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    return head + struct.pack(f"{order}H", len(entries)) + rows + bytes(4)


@pytest.mark.parametrize(
    ("data", "name", "media"),
    [
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "a.jpg", Media.RAW),
        (tiff("<", (254, 1), (256, 160)), None, Media.RAW),
        (tiff(">", (254, 1)), "DSC_1.tif", Media.RAW),
        (tiff("<", (254, 0), (50706, 1)), None, Media.RAW),
        (tiff("<", (254, 0)), "a.NEF", Media.RAW),
        (tiff("<", (254, 0)), "a.tif", None),
        (b"II*\x00\xff\xff\xff\xff", "a.tif", None),
        (b"II*\x00", None, None),
        (tiff("<", (254, 1))[:14], None, None),
        (b"FUJIFILMCCD-RAW 0201", None, Media.RAW),
        (b"\x00\x00\x00\x18ftypcrx \x00", None, Media.RAW),
        (b"\x00\x00\x00\x18ftypisom\x00\x00", None, Media.VIDEO),
        (b"\x00\x00\x00\x14ftypqt  \x00\x00", "IMG_1.MOV", Media.VIDEO),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "a.mov", None),
        (b"\x00\x00\x00\x18ftypavif\x00\x00", None, None),
        (b"\x1a\x45\xdf\xa3....", None, Media.VIDEO),
        (b"RIFF\x00\x00\x00\x00AVI LIST", None, Media.VIDEO),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "a.avi", None),
        (b"\xff\xd8\xff\xe0", "a.dng", None),
        (b"nobody knows", "a.dng", Media.RAW),
        (b"", "clip.MP4", Media.VIDEO),
        (b"", None, None),
        (b"%PDF-1.7", "a.pdf", None),
    ],
)
def test_bytes_decide_and_the_name_where_they_do_not(data: bytes, name: str | None, media: Media | None) -> None:
    assert recognize(data, name) is media


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "AVIF"])
def test_pictures_are_none(image_format: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, image_format)
    assert recognize(buffer.getvalue(), f"a.{image_format.lower()}") is None
