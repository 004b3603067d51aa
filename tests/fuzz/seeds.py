"""Small sound pictures of every format that is read, to be damaged: made here, and real ones where the test data is."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin
from pillow_heif import from_pillow

from tests import data

_MAX_REAL_BYTES = 400_000
_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title><rdf:Alt><rdf:li>A title</rdf:li></rdf:Alt>'
    b"</dc:title><dc:subject><rdf:Bag><rdf:li>boat</rdf:li><rdf:li>sea</rdf:li></rdf:Bag></dc:subject></rdf:Description>"
    b"</rdf:RDF></x:xmpmeta>"
)


@dataclass(frozen=True, slots=True)
class Seed:
    """`name`: format and kind, such as `png/palette`."""

    name: str
    data: bytes

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


@cache
def seeds() -> tuple[Seed, ...]:
    return (*_made(), *_real())


def photograph() -> Image.Image:
    """96 x 72 of a photo with faces: flat colours would leave half of each decoder asleep."""
    with Image.open(io.BytesIO(data.package_image("t1.jpg"))) as whole:
        return whole.convert("RGB").crop((300, 120, 684, 408)).resize((96, 72))


def metadata() -> bytes:
    """An EXIF block with a value for whatever is read of one."""
    exif = Image.Exif()
    exif.update({0x010F: "Canon", 0x0110: "Canon EOS R5", 0x0112: 6, 0x010E: "At the sea", 0x0132: "2021:07:04 12:00:00"})
    exif.update({0x9C9B: "A title\0".encode("utf-16-le"), 0x9C9E: "boat;sea\0".encode("utf-16-le")})
    exif.get_ifd(0x8769).update({0x9003: "2021:07:04 12:30:00", 0x9011: "+02:00", 0xA434: "RF 50mm"})
    exif.get_ifd(0x8825).update(
        {
            1: "N",
            2: (48.0, 12.0, 30.5),
            3: "E",
            4: (16.0, 22.0, 12.0),
            5: b"\0",
            6: 171.0,
            7: (10.0, 30.0, 0.0),
            29: "2021:07:04",
        }
    )
    return exif.tobytes()


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(picture: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    # A copy: encoders leave their settings on the picture they were given.
    picture.copy().save(buffer, image_format, **options)
    return buffer.getvalue()


def _made() -> list[Seed]:
    rgb = photograph()
    grey, palette = rgb.convert("L"), rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    rgba = rgb.copy()
    rgba.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    turned = rgb.rotate(90, expand=True).resize(rgb.size)
    exif, icc = metadata(), profile()
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", _XMP.decode(), zip=True)
    texts.add_text("Comment", "words " * 40, zip=True)

    def several() -> dict[str, object]:
        return {"save_all": True, "append_images": [turned.copy(), turned.rotate(180)]}

    made = {
        "jpeg/plain": saved(rgb, "JPEG", quality=85),
        "jpeg/described": _with_iptc(saved(rgb, "JPEG", exif=exif, icc_profile=icc, xmp=_XMP)),
        "jpeg/progressive": saved(rgb, "JPEG", progressive=True, subsampling=2, restart_marker_rows=2),
        "jpeg/grey": saved(grey, "JPEG"),
        "jpeg/cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "jpeg/several": saved(rgb, "MPO", **several(), exif=exif),
        "png/plain": saved(rgb, "PNG"),
        "png/described": saved(rgb, "PNG", exif=exif, icc_profile=icc, pnginfo=texts),
        "png/alpha": saved(rgba, "PNG"),
        "png/palette": saved(palette, "PNG", transparency=3),
        "png/deep": saved(deep, "PNG"),
        "png/bilevel": saved(rgb.convert("1"), "PNG"),
        "png/several": saved(rgb, "PNG", **several(), default_image=True),
        "webp/lossy": saved(rgb, "WEBP", exif=exif, icc_profile=icc, xmp=_XMP),
        "webp/lossless": saved(rgba, "WEBP", lossless=True),
        "webp/several": saved(rgba, "WEBP", **several()),
        "avif/plain": saved(rgb, "AVIF", speed=9, exif=exif, icc_profile=icc, xmp=_XMP),
        "avif/several": saved(rgb, "AVIF", speed=9, **several()),
        "tiff/plain": saved(rgb, "TIFF", exif=exif, icc_profile=icc),
        "tiff/lzw": saved(rgb, "TIFF", compression="tiff_lzw"),
        "tiff/deflate": saved(rgba, "TIFF", compression="tiff_adobe_deflate"),
        "tiff/jpeg": saved(rgb, "TIFF", compression="jpeg"),
        "tiff/packbits": saved(palette, "TIFF", compression="packbits"),
        "tiff/fax": saved(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff/deep": saved(deep, "TIFF"),
        "tiff/float": saved(floats, "TIFF", compression="tiff_lzw"),
        "tiff/cmyk": saved(rgb.convert("CMYK"), "TIFF"),
        "tiff/several": saved(rgb, "TIFF", **several()),
        "tiff/motorola": _big_endian(),
        "gif/plain": saved(palette, "GIF"),
        "gif/several": saved(palette, "GIF", **several(), transparency=1, loop=0),
        "bmp/plain": saved(rgb, "BMP"),
        "bmp/palette": saved(palette, "BMP"),
        "bmp/bilevel": saved(rgb.convert("1"), "BMP"),
        "bmp/runs": _run_length_bmp(),
        "heif/plain": _heif(rgb, exif=exif, xmp=_XMP),
        "heif/alpha": _heif(rgba),
        "heif/grey": _heif(grey),
        "heif/several": _heif(rgb, turned),
    }
    return [Seed(name, content) for name, content in made.items()]


def _real() -> list[Seed]:
    """Of cameras and other encoders."""
    found = []
    for folder in ("formats", "exif", "corrupt"):
        for path in sorted((data.PHOTOS / folder).glob("*")):
            if path.is_file() and path.suffix != ".gz" and 0 < path.stat().st_size <= _MAX_REAL_BYTES:
                found.append(Seed(f"real/{path.name}", path.read_bytes()))
    return found


def _heif(*pictures: Image.Image, **options: bytes) -> bytes:
    first, *others = pictures
    file = from_pillow(first)
    for other in others:
        file.add_from_pillow(other)
    buffer = io.BytesIO()
    file.save(buffer, quality=60, **options)
    return buffer.getvalue()


def _with_iptc(jpeg: bytes) -> bytes:
    """Its words as Photoshop keeps them: a marker of its own behind the first one."""
    record = b"\x1c\x02\x05" + struct.pack(">H", 7) + b"A title" + b"\x1c\x02\x19" + struct.pack(">H", 4) + b"boat"
    block = b"Photoshop 3.0\x008BIM\x04\x04\x00\x00" + struct.pack(">I", len(record)) + record
    at = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:at] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + jpeg[at:]


def _big_endian() -> bytes:
    """A TIFF in the other byte order, of one strip of 8 x 4 grey pixels."""
    entries = [(256, 3, 1, 8 << 16), (257, 3, 1, 4 << 16), (258, 3, 1, 8 << 16), (259, 3, 1, 1 << 16), (262, 3, 1, 1 << 16),
               (273, 4, 1, 8), (277, 3, 1, 1 << 16), (278, 3, 1, 4 << 16), (279, 4, 1, 32)]  # fmt: skip
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *one) for one in entries) + bytes(4)
    return b"MM\x00*" + struct.pack(">I", 40) + bytes(range(0, 256, 8)) + directory


def _run_length_bmp() -> bytes:
    """8 x 4, RLE8: four runs of eight, and the end."""
    colours = b"".join(bytes([n, n, n, 0]) for n in range(256))
    body = b"".join(bytes([8, 40 * row, 0, 0]) for row in range(4)) + b"\x00\x01"
    head = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    start = 14 + len(head) + len(colours)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + head + colours + body
