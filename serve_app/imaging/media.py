"""Files that are no picture Kinlens reads, but that cameras and phones put beside them: raw photos and videos. Pure.

A raw photo is mostly a TIFF with a small preview in front: a reader of TIFF would take the preview for the photo.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from pathlib import PurePath


class Media(StrEnum):
    RAW = "raw"
    VIDEO = "video"


_RAW_HEADS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\x00", b"FOVb", b"\x00MRM")
"""RAF, ORF, RW2, X3F, MRW."""
_RAW_SUFFIXES = frozenset({".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25",
                           ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2",
                           ".rwl", ".sr2", ".srf", ".srw", ".x3f"})  # fmt: skip
_VIDEO_HEADS = (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75", b"FLV\x01", b"OggS")
"""Matroska and WebM, MPEG, ASF, FLV, Ogg."""
_VIDEO_SUFFIXES = frozenset({".3g2", ".3gp", ".avi", ".flv", ".insv", ".lrv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
                             ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"})  # fmt: skip
_VIDEO_BRANDS = (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"mp4v", b"avc1", b"qt  ", b"M4V", b"3g",
                 b"MSNV", b"dash", b"XAVC", b"hvc1")  # fmt: skip
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"skip", b"pnot")
_TIFF_HEADS = {b"II*\x00": "<", b"MM\x00*": ">"}
_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_MAX_ENTRIES = 512


def recognize(data: bytes, file_name: str | None) -> Media | None:
    """What the file is, by its first bytes; the name decides only where these leave it open. None: neither."""
    head = data[:32]
    suffix = PurePath(file_name or "").suffix.lower()
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand == b"crx ":
            return Media.RAW
        return Media.VIDEO if brand.startswith(_VIDEO_BRANDS) else None
    if head.startswith(_RAW_HEADS):
        return Media.RAW
    if head.startswith(tuple(_TIFF_HEADS)):
        return Media.RAW if suffix in _RAW_SUFFIXES or _is_raw_tiff(data) else None
    if head.startswith(_VIDEO_HEADS) or head[4:8] in _QUICKTIME_ATOMS or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return Media.VIDEO
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM")):
        return None
    if suffix in _RAW_SUFFIXES:
        return Media.RAW
    return Media.VIDEO if suffix in _VIDEO_SUFFIXES else None


def _is_raw_tiff(data: bytes) -> bool:
    """CR2 says so in its head, DNG by its version; of NEF, ARW and the like the first picture is a reduced one."""
    if data[8:10] == b"CR":
        return True
    order = _TIFF_HEADS[data[:4]]
    (start,) = struct.unpack_from(f"{order}I", data, 4) if len(data) >= 8 else (0,)
    if not 8 <= start <= len(data) - 2:
        return False
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for index in range(min(count, _MAX_ENTRIES)):
        place = start + 2 + 12 * index
        if place + 12 > len(data):
            return False
        tag, _, _, value = struct.unpack_from(f"{order}HHII", data, place)
        if tag == _DNG_VERSION or (tag == _NEW_SUBFILE_TYPE and value & 1):
            return True
    return False
