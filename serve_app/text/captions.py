"""What people wrote into a picture: title, caption, keywords, place; from XMP, IPTC and EXIF. Pure.

XMP: ISO 16684-1, with the properties of IPTC Photo Metadata 2023.2 (Core and Extension). IPTC: records of IIM 4.2, chapter 6.
All of it is somebody else's: each value is taken for itself, cut to a bound, and what makes no sense is not there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from xml.parsers import expat

from serve_app.photos import PictureTexts

MAX_TITLE, MAX_CAPTION, MAX_PLACE = 300, 2000, 100
"""Characters."""
MAX_KEYWORDS, MAX_KEYWORD = 100, 100
MAX_XMP_BYTES = 1 << 20
"""A larger packet holds an editing history, and is not read."""
_MAX_READ = 4 * MAX_CAPTION

_DC = "http://purl.org/dc/elements/1.1/"
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"
_CORE = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

_XMP: dict[str, tuple[str, ...]] = {
    "title": (f"{_DC} title", f"{_PHOTOSHOP} Headline"),
    "caption": (f"{_DC} description",),
    "keywords": (f"{_DC} subject",),
    "sublocation": (f"{_CORE} Location", f"{_EXTENSION} Sublocation"),
    "city": (f"{_PHOTOSHOP} City", f"{_EXTENSION} City"),
    "state": (f"{_PHOTOSHOP} State", f"{_EXTENSION} ProvinceState"),
    "country": (f"{_PHOTOSHOP} Country", f"{_EXTENSION} CountryName"),
}
"""Best first."""
_IPTC: dict[str, tuple[int, ...]] = {
    "title": (5, 105),
    "caption": (120,),
    "keywords": (25,),
    "sublocation": (92,),
    "city": (90,),
    "state": (95,),
    "country": (101,),
}
"""Data sets of record 2."""
_SAID_BY_CAMERAS = ("digital camera", "dcim", "screenshot", "default", "untitled")
"""Descriptions that nobody wrote: OLYMPUS DIGITAL CAMERA."""

Iptc = Mapping[tuple[int, int], bytes | list[bytes]]
"""By record and data set."""
Found = dict[str, list[str]]


def texts_of(xmp: bytes | str | None, iptc: Iptc, exif: Found) -> PictureTexts:
    """XMP before IPTC before `exif` (`title`, `caption`, `keywords`): the best that says it. Keywords are those of all.
    Never raises for what the packets hold."""
    sources = (read_xmp(xmp), read_iptc(iptc), exif)

    def first(name: str, most: int) -> str | None:
        for source in sources:
            for value in source.get(name, ()):
                if (found := clean(value, most)) is not None:
                    return found
        return None

    cleaned = (clean(value, MAX_KEYWORD) for source in sources for value in source.get("keywords", ())[:MAX_KEYWORDS])
    caption = first("caption", MAX_CAPTION)
    if caption is not None and any(said in caption.casefold() for said in _SAID_BY_CAMERAS) and len(caption) < 32:
        caption = None
    return PictureTexts(
        title=first("title", MAX_TITLE),
        caption=caption,
        keywords=tuple(dict.fromkeys(one for one in cleaned if one is not None))[:MAX_KEYWORDS],
        sublocation=first("sublocation", MAX_PLACE),
        city=first("city", MAX_PLACE),
        state=first("state", MAX_PLACE),
        country=first("country", MAX_PLACE),
    )


def clean(text: str, most: int) -> str | None:
    """Composed (NFC), in one line, without control and format characters; None without a letter or digit."""
    plain = "".join(
        " " if one.isspace() else one
        for one in unicodedata.normalize("NFC", text[: 4 * most])
        if one.isspace() or not unicodedata.category(one).startswith("C")
    )
    found = " ".join(plain.split())[:most].rstrip()
    return found if any(map(str.isalnum, found)) else None


def read_iptc(iptc: Iptc) -> Found:
    found: Found = {}
    for name, data_sets in _IPTC.items():
        for data_set in data_sets:
            values = iptc.get((2, data_set), [])
            for value in [values] if isinstance(values, bytes) else list(values)[:MAX_KEYWORDS]:
                if isinstance(value, bytes):
                    found.setdefault(name, []).append(_decoded(value[:_MAX_READ]))
    return found


def _decoded(value: bytes) -> str:
    """UTF-8 as nearly everybody writes today, whatever the record of the character set says; else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def read_xmp(packet: bytes | str | None) -> Found:
    """By our names, as far as the packet can be read."""
    if packet is None or len(packet) > MAX_XMP_BYTES:
        return {}
    reader = _XmpReader()
    # What was read before the damage is as good as it was.
    # (A LookupError: the packet says that it is in an encoding nobody knows.)
    with suppress(expat.ExpatError, _Refused, LookupError, ValueError):
        reader.read(packet.rstrip(b"\0 \n\r\t") if isinstance(packet, bytes) else packet.encode("utf-8", "replace"))
    return {name: [text for one in properties for text in reader.found.get(one, ())] for name, properties in _XMP.items()}


class _Refused(Exception):
    """A document type: nobody writes one into XMP but to harm."""


class _XmpReader:
    """Properties as elements, with one text or an `rdf:li` each, or as attributes."""

    def __init__(self) -> None:
        self.found: Found = {}
        self._wanted = {one for properties in _XMP.values() for one in properties}
        self._open: list[str] = []
        """The wanted properties around the present place."""
        self._text: list[str] = []
        self._size = 0

    def read(self, packet: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.Parse(packet, True)

    def _doctype(self, *_: object) -> None:
        raise _Refused

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        for attribute, value in attributes.items():
            self._keep(attribute, value)
        if name in self._wanted:
            self._open.append(name)
        self._text, self._size = [], 0

    def _end(self, name: str) -> None:
        if self._open and name in (self._open[-1], f"{_RDF} li"):
            self._keep(self._open[-1], "".join(self._text))
        if self._open and name == self._open[-1]:
            self._open.pop()
        self._text, self._size = [], 0

    def _characters(self, data: str) -> None:
        if self._open and self._size < _MAX_READ:
            self._text.append(data)
            self._size += len(data)

    def _keep(self, name: str, text: str) -> None:
        values = self.found.setdefault(name, []) if name in self._wanted else None
        if values is not None and text.strip() and len(values) < MAX_KEYWORDS:
            values.append(text[:_MAX_READ])
