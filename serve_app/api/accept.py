"""Content negotiation for thumbnails (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re

from serve_app.photos import ThumbnailFormat

_PREFERRED = (ThumbnailFormat.AVIF, ThumbnailFormat.WEBP, ThumbnailFormat.JPEG)
"""Smallest first: half the bytes of JPEG, three quarters, all."""

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)
_MAX_HEADER_CHARACTERS = 2000


def thumbnail_format(accept: str | None) -> ThumbnailFormat:
    """The format the client likes best; of those it likes equally, the smallest.

    A wildcard stands for JPEG only: clients that know a newer format name it. So JPEG is also the answer where nothing
    fits, which is more of use than an error (a server may disregard the header).
    """
    qualities = _qualities((accept or "")[:_MAX_HEADER_CHARACTERS])
    liked = {one: qualities.get(f"image/{one.value.lower()}", 0.0) for one in (ThumbnailFormat.AVIF, ThumbnailFormat.WEBP)} | {
        ThumbnailFormat.JPEG: next((qualities[name] for name in ("image/jpeg", "image/*", "*/*") if name in qualities), 0.0)
    }
    best = max(_PREFERRED, key=lambda one: liked[one])
    return best if liked[best] > 0 else ThumbnailFormat.JPEG


def _qualities(accept: str) -> dict[str, float]:
    """Media types and how much they are wanted, 0 to 1; 1 where it is not said, 0 where it is nonsense."""
    found: dict[str, float] = {}
    for entry in accept.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter[:2].lower() == "q=":
                match = _QUALITY.fullmatch(parameter)
                quality = float(match[1]) if match else 0.0
        found[name.lower()] = quality
    return found
