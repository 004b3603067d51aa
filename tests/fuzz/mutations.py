"""Ways to damage a picture. Each takes sound bytes and a source of chance; the same chance makes the same file."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable

from tests.fuzz.seeds import Seed, metadata, photograph, profile, saved

Mutation = Callable[[random.Random, bytes, tuple[Seed, ...]], bytes]

_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 32, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""At the ends of what fields of 8, 16 and 32 bits hold."""
_SIDES = (0, 1, 2, 7, 8, 9, 63, 64, 65, 255, 256, 1000, 4096, 16383, 16384, 30_000, 32_766, 32_767, 65_535)


def mutate(chance: random.Random, seed: Seed, all_seeds: tuple[Seed, ...]) -> tuple[str, bytes]:
    """What was done, and the file: one to four mutations, at least one of them made for the format three times of four."""
    data = seed.data
    done: list[str] = []
    for step in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        if not data:
            break
        own = _FORMATS.get(_format(data), ())
        mutation = chance.choice(own) if own and (step == 0) and chance.random() < 0.75 else chance.choice(_GENERAL)
        data = mutation(chance, data, all_seeds)
        done.append(mutation.__name__.strip("_"))
    return "+".join(done), data


def _format(data: bytes) -> str:
    head = data[:16]
    for magic, name in ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"),
                        (b"II*\0", "tiff"), (b"MM\0*", "tiff")):  # fmt: skip
        if head.startswith(magic):
            return name
    return "boxes" if head[4:8] == b"ftyp" else ""


# Of any file.


def _flip_bits(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    changed = bytearray(data)
    for _number in range(chance.choice((1, 1, 2, 4, 16, 64))):
        changed[_place(chance, data)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _set_bytes(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    changed = bytearray(data)
    for _number in range(chance.choice((1, 2, 8))):
        changed[_place(chance, data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, chance.randrange(256)))
    return bytes(changed)


def _set_number(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    kind = chance.choice(("<H", ">H", "<I", ">I"))
    number = chance.choice((*_NUMBERS, len(data), len(data) - 1)) & (0xFFFF if kind.endswith("H") else 0xFFFFFFFF)
    at = _place(chance, data)
    return data[:at] + struct.pack(kind, number) + data[at + struct.calcsize(kind) :]


def _truncate(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    return data[: chance.choice((_place(chance, data), chance.randrange(len(data)), len(data) - 1))]


def _cut_out(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    start = _place(chance, data)
    return data[:start] + data[start + chance.choice((1, 2, 4, 12, chance.randrange(1, 2000))) :]


def _repeat(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    start = _place(chance, data)
    piece = data[start : start + chance.choice((1, 4, 12, 64, 1000))]
    return data[:start] + piece * chance.choice((2, 3, 50, 2000)) + data[start:]


def _insert(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    start = _place(chance, data)
    return data[:start] + chance.randbytes(chance.choice((1, 2, 4, 64, 1024))) + data[start:]


def _exchange(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    first, second, third = sorted(chance.randrange(len(data) + 1) for _number in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _splice(chance: random.Random, data: bytes, all_seeds: tuple[Seed, ...]) -> bytes:
    """The beginning of one, the end of another; half the time of the same format."""
    other = chance.choice(all_seeds).data
    if chance.random() < 0.5:
        same = [one.data for one in all_seeds if _format(one.data) == _format(data)]
        other = chance.choice(same or [other])
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _append(chance: random.Random, data: bytes, all_seeds: tuple[Seed, ...]) -> bytes:
    other = chance.choice(all_seeds).data
    return data + chance.choice((other, other * 3, chance.randbytes(5000), bytes(200_000), b"<?php ?><script>", b"\xff\xd9"))


def _other_head(chance: random.Random, data: bytes, all_seeds: tuple[Seed, ...]) -> bytes:
    """The magic bytes of one format before another."""
    length = chance.choice((4, 8, 12, 16, 32))
    return chance.choice(all_seeds).data[:length] + data[length:]


def _place(chance: random.Random, data: bytes) -> int:
    """Half the time within the first 200 bytes, where the headers are."""
    if not data:
        return 0
    return chance.randrange(min(200, len(data)) if chance.random() < 0.5 else len(data))


_GENERAL: tuple[Mutation, ...] = (_flip_bits, _set_bytes, _set_number, _truncate, _cut_out, _repeat, _insert, _exchange, _splice,
                                  _append, _other_head)  # fmt: skip


# JPEG


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    """Marker, start and end of each segment before the first scan."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], at, end))
        if data[at + 1] == 0xDA or end <= at:
            break
        at = end
    return found


def _jpeg_frame(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """Precision, height, width, number of components, sampling, tables: of the frame header."""
    for marker, start, end in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and end <= len(data):
            changed = bytearray(data)
            what = chance.randrange(5)
            if what == 0:
                changed[start + 4] = chance.choice((0, 1, 2, 8, 12, 16, 255))
            elif what == 1:
                changed[start + 5 : start + 9] = struct.pack(">HH", chance.choice(_SIDES), chance.choice(_SIDES))
            elif what == 2:
                changed[start + 9] = chance.choice((0, 1, 2, 3, 4, 5, 255))
            elif what == 3:
                changed[start + 1] = 0xC0 + chance.randrange(16)
            else:
                changed[min(start + 10 + chance.randrange(9), end - 1)] = chance.choice(
                    (0, 0x11, 0x22, 0x41, 0x44, 0xF1, 0xFF)
                )
            return bytes(changed)
    return data


def _jpeg_segment(chance: random.Random, data: bytes, all_seeds: tuple[Seed, ...]) -> bytes:
    """A segment dropped, doubled a thousand times, of a false length, or one of another file in its place."""
    found = _segments(data)
    if not found:
        return data
    _marker, start, end = chance.choice(found)
    what = chance.randrange(4)
    if what == 0:
        return data[:start] + data[end:]
    if what == 1:
        return data[:start] + data[start:end] * chance.choice((2, 20, 1000)) + data[end:]
    if what == 2:
        return data[: start + 2] + struct.pack(">H", chance.choice((0, 1, 2, 3, 0x7FFF, 0xFFFF))) + data[start + 4 :]
    others = [one.data for one in all_seeds if _format(one.data) == "jpeg"]
    other = chance.choice(others)
    pieces = _segments(other)
    _other, from_, to = chance.choice(pieces) if pieces else (0, 0, 0)
    return data[:start] + other[from_:to] + data[end:]


def _jpeg_scans(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """The last scan again and again, which progressive decoders would do each time over the whole picture."""
    at = data.rfind(b"\xff\xda")
    scan = data[at:].removesuffix(b"\xff\xd9")
    return data if at < 0 else data[:at] + scan * chance.choice((2, 10, 100)) + b"\xff\xd9"


def _new_metadata(chance: random.Random, _data: bytes, all_seeds: tuple[Seed, ...]) -> bytes:
    """A sound picture with damaged EXIF, ICC and XMP."""
    general: tuple[Mutation, ...] = (_flip_bits, _set_bytes, _set_number, _truncate, _cut_out, _exchange)
    exif, icc = metadata(), profile()
    for _number in range(chance.choice((1, 2, 6))):
        exif = chance.choice(general)(chance, exif, all_seeds) or b"\0"
        icc = chance.choice(general)(chance, icc, all_seeds) or b"\0"
    image_format = chance.choice(("JPEG", "JPEG", "PNG", "WEBP", "TIFF", "AVIF"))
    if image_format == "AVIF":
        return saved(photograph(), image_format, speed=10, icc_profile=icc)
    if image_format == "TIFF":
        return saved(photograph(), image_format, icc_profile=icc)
    return saved(photograph(), image_format, exif=exif[:60_000], icc_profile=icc[:60_000])


# PNG


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """With right lengths and checksums."""
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _png_header(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    chunks = _chunks(data)
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return data
    width, height, depth, colour, packing, filtering, lacing = struct.unpack(">IIBBBBB", chunks[0][1])
    what = chance.randrange(4)
    if what == 0:
        width, height = chance.choice((*_SIDES, *_NUMBERS)), chance.choice((*_SIDES, *_NUMBERS))
    elif what == 1:
        depth, colour = chance.choice((0, 1, 2, 4, 8, 16, 32)), chance.choice((0, 1, 2, 3, 4, 6, 7))
    elif what == 2:
        lacing = chance.choice((1, 1, 2, 255))
    else:
        packing, filtering = chance.choice((0, 1, 255)), chance.choice((0, 1, 64))
    chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, packing, filtering, lacing))
    return png(chunks)


def _png_chunks(chance: random.Random, data: bytes, all_seeds: tuple[Seed, ...]) -> bytes:
    """Dropped, doubled, moved, renamed, damaged below a right checksum, or taken from another file."""
    chunks = _chunks(data)
    if not chunks:
        return data
    at, what = chance.randrange(len(chunks)), chance.randrange(6)
    name, body = chunks[at]
    if what == 0:
        del chunks[at]
    elif what == 1:
        chunks[at:at] = [chunks[at]] * chance.choice((1, 3, 500))
    elif what == 2:
        chunks.insert(chance.randrange(len(chunks)), chunks.pop(at))
    elif what == 3:
        chunks[at] = (chance.choice((b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT",
                                     b"IEND", b"gAMA", b"cHRM", b"pHYs")), body)  # fmt: skip
    elif what == 4:
        changed = _flip_bits(chance, body, all_seeds) if body else chance.randbytes(8)
        chunks[at] = (name, changed)
    else:
        others = [one.data for one in all_seeds if _format(one.data) == "png"]
        pieces = _chunks(chance.choice(others))
        chunks[at] = chance.choice(pieces) if pieces else chunks[at]
    return png(chunks)


def _png_pixels(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """Other pixels in a sound stream: filters that do not exist, too few rows, too many."""
    chunks = [one for one in _chunks(data) if one[0] != b"IDAT"]
    rows = chance.choice((chance.randbytes(500), chance.randbytes(40_000), bytes([chance.randrange(256)]) * 100_000, b""))
    end = next((index for index, one in enumerate(chunks) if one[0] == b"IEND"), len(chunks))
    return png([*chunks[:end], (b"IDAT", zlib.compress(rows)), *chunks[end:]])


# RIFF


def _webp_header(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """Canvas, flags, sizes of chunks, sizes within the stream."""
    names = [match.start() for match in re.finditer(rb"VP8X|VP8L|VP8 |ANIM|ANMF|ALPH|ICCP|EXIF|XMP ", data)]
    if not names:
        return data
    at = chance.choice(names)
    changed = bytearray(data)
    what = chance.randrange(4)
    if what == 0:
        changed[at + 4 : at + 8] = struct.pack("<I", chance.choice(_NUMBERS))
    elif what == 1:
        changed[4:8] = struct.pack("<I", chance.choice((*_NUMBERS, len(data))))
    elif what == 2:
        changed[at : at + 4] = chance.choice((b"VP8X", b"VP8L", b"VP8 ", b"ANIM", b"ANMF", b"ALPH", b"ICCP", b"EXIF", b"XMP "))
    else:
        for place in range(at + 8, min(at + 24, len(changed))):
            if chance.random() < 0.3:
                changed[place] = chance.choice((0, 1, 0x3F, 0x7F, 0xFF, chance.randrange(256)))
    return bytes(changed)


# TIFF


def _tiff_entry(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """One to three entries of a directory: other tag, type, count or value; or a directory that leads to itself."""
    order = ">" if data[:1] == b"M" else "<"
    if len(data) < 8:
        return data
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if not 8 <= start <= len(data) - 2:
        return data
    (count,) = struct.unpack_from(f"{order}H", data, start)
    changed = bytearray(data)
    for _number in range(chance.choice((1, 1, 2, 3))):
        at = start + 2 + 12 * chance.randrange(max(1, min(count, 64)))
        if at + 12 > len(changed):
            break
        tag, kind, number, value = struct.unpack_from(f"{order}HHII", changed, at)
        what = chance.randrange(5)
        if what == 0:
            tag = chance.choice((254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 297, 317, 320, 322, 323, 324, 325,
                                 330, 338, 339, 347, 529, 530, 532, 33723, 34377, 34665, 34675, 34853, 700))  # fmt: skip
        elif what == 1:
            kind = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 255))
        elif what == 2:
            number = chance.choice(_NUMBERS)
        else:
            known = {
                259: (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 34925, 50000, 50001),
                262: range(11),
                258: (1, 2, 4, 8, 12, 16, 32, 64),
            }
            value = chance.choice((*known.get(tag, ()), *_NUMBERS, *_SIDES, start, len(data)))
            value = value << 16 if order == ">" and kind == 3 and value < 65_536 else value
        struct.pack_into(f"{order}HHII", changed, at, tag, kind, number & 0xFFFFFFFF, value & 0xFFFFFFFF)
    after = start + 2 + 12 * count
    if chance.random() < 0.1 and after + 4 <= len(changed):
        struct.pack_into(f"{order}I", changed, after, chance.choice((start, 0, len(data), after)))
    return bytes(changed)


# GIF


def _gif_header(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """The screen, a frame, or the code size of its pixels."""
    changed = bytearray(data)
    frame = data.find(b"\x2c", 13)
    what = chance.randrange(4)
    if what == 0 or frame < 0 or frame + 11 > len(data):
        changed[6:10] = struct.pack("<HH", chance.choice(_SIDES), chance.choice(_SIDES))
    elif what == 1:
        changed[frame + 1 : frame + 9] = struct.pack("<HHHH", *(chance.choice(_SIDES) for _number in range(4)))
    elif what == 2:
        changed[frame + 9] = chance.randrange(256)
    else:
        changed[frame + 10] = chance.choice((0, 1, 2, 8, 9, 11, 12, 13, 255))
    return bytes(changed)


# BMP


def _bmp_header(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """Size of the header, width and height (negative: top down), depth, packing, number of colours, start of pixels."""
    changed = bytearray(data)
    kind, at, values = chance.choice((
        ("<I", 14, (0, 12, 16, 40, 52, 56, 64, 108, 124, 255)),
        ("<i", 18, (*_SIDES, -1, -96, 0x7FFFFFFF)),
        ("<i", 22, (*_SIDES, -1, -72, 0x7FFFFFFF, -0x80000000)),
        ("<H", 28, (0, 1, 2, 4, 8, 16, 24, 32, 64)),
        ("<I", 30, (0, 1, 2, 3, 4, 5, 6, 11)),
        ("<I", 46, _NUMBERS),
        ("<I", 10, (*_NUMBERS, len(data))),
    ))  # fmt: skip
    struct.pack_into(kind, changed, at, chance.choice(values)) if len(changed) >= at + 4 else None
    return bytes(changed)


# HEIC and AVIF


_BOXES = (b"ftyp", b"meta", b"hdlr", b"pitm", b"iloc", b"iinf", b"infe", b"iprp", b"ipco", b"ipma", b"ispe", b"pixi", b"colr", b"hvcC",
          b"av1C", b"irot", b"imir", b"clap", b"auxC", b"iref", b"dimg", b"idat", b"mdat", b"moov", b"grpl", b"Exif", b"hvc1", b"av01",
          b"grid", b"iovl", b"iden", b"mime", b"thmb", b"cdsc", b"mvhd", b"tkhd", b"stsz", b"stsc", b"stco", b"stts")  # fmt: skip


def _boxes(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """Length, name or contents of a box."""
    found = [match.start() for match in re.finditer(b"|".join(_BOXES), data[:20_000]) if match.start() >= 4]
    if not found:
        return data
    at = chance.choice(found)
    changed = bytearray(data)
    what = chance.randrange(5)
    if what == 0:
        changed[at - 4 : at] = struct.pack(">I", chance.choice((*_NUMBERS, len(data))))
    elif what == 1:
        changed[at : at + 4] = chance.choice(_BOXES)
    elif what == 2:
        place = at + 4 + chance.randrange(24)
        changed[place : place + 4] = struct.pack(">I", chance.choice((*_NUMBERS, *_SIDES)))
    elif what == 3:
        for place in range(at + 4, min(at + 40, len(changed))):
            if chance.random() < 0.2:
                changed[place] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    else:
        length = int.from_bytes(data[at - 4 : at], "big")
        piece = data[at - 4 : at - 4 + min(length, 4000)]
        changed[at - 4 : at - 4] = piece * chance.choice((1, 5, 200))
    return bytes(changed)


def _picture_size(chance: random.Random, data: bytes, _: tuple[Seed, ...]) -> bytes:
    """All sizes that the container tells, or one of them only: the stream within knows better."""
    places = [match.start() for match in re.finditer(b"ispe", data)]
    if not places:
        return data
    changed = bytearray(data)
    width, height = chance.choice((*_SIDES, *_NUMBERS)), chance.choice((*_SIDES, *_NUMBERS))
    for at in places if chance.random() < 0.7 else places[:1]:
        changed[at + 8 : at + 16] = struct.pack(">II", width, height)
    return bytes(changed)


_FORMATS: dict[str, tuple[Mutation, ...]] = {
    "jpeg": (_jpeg_frame, _jpeg_segment, _jpeg_scans, _new_metadata),
    "png": (_png_header, _png_chunks, _png_pixels, _new_metadata),
    "webp": (_webp_header, _webp_header, _new_metadata),
    "tiff": (_tiff_entry,),
    "gif": (_gif_header,),
    "bmp": (_bmp_header,),
    "boxes": (_boxes, _picture_size),
}
