"""What photos are called: file names, folders and tags, as they are kept. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

MAX_TAG_LENGTH = 100
MAX_TAGS = 100
"""Of one photo."""
MAX_FOLDER_LENGTH = 500
MAX_FILE_NAME_LENGTH = 255
_MAX_KEPT_SUFFIX = 16
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Controls of the writing direction, by which a name shows another ending than it has."""
_UNSHOWABLE = ("Cc", "Cs", "Zl", "Zp")


def tag(text: str) -> str:
    """Normalized (NFC), without spaces at the ends. Raises ValueError."""
    found = _plain(text, "a tag")
    if not 1 <= len(found) <= MAX_TAG_LENGTH:
        raise ValueError(f"a tag has 1 to {MAX_TAG_LENGTH} characters")
    return found


def folder(text: str) -> str:
    """`Rome/2024`: parts without spaces at their ends, joined by single slashes; empty for none. Raises ValueError."""
    parts = [_plain(part, "a folder") for part in text.replace("\\", "/").split("/")]
    if {".", ".."} & set(parts):
        raise ValueError("a folder has no parts `.` and `..`")
    found = "/".join(part for part in parts if part)
    if len(found) > MAX_FOLDER_LENGTH:
        raise ValueError(f"a folder has at most {MAX_FOLDER_LENGTH} characters")
    return found


def folder_of(parts: Sequence[str]) -> str:
    """The folder for what lies in folders of these names elsewhere. Never refused, as names of files are not: what cannot be
    kept becomes `_`, and what is too long is cut."""
    kept = []
    for part in parts:
        plain = unicodedata.normalize("NFC", part.replace("/", "_").replace("\\", "_")).strip()
        if not all(map(_showable, plain)):
            plain = "".join(one if _showable(one) else "_" for one in plain).strip()
        kept.append(plain if plain not in ("", ".", "..") else "_")
    return folder("/".join(kept)[:MAX_FOLDER_LENGTH])


def file_name(text: str | None) -> str | None:
    """The last part of the path a client sent, fit to be shown; None where nothing is left of it.

    Never refused: a photo must not be lost for an odd name. What cannot be shown is dropped, a long name is cut before its
    suffix.
    """
    last = (text or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    found = "".join(one for one in unicodedata.normalize("NFC", last) if _showable(one)).strip()
    if found in ("", ".", ".."):
        return None
    if len(found) > MAX_FILE_NAME_LENGTH:
        stem, dot, suffix = found.rpartition(".")
        suffix = dot + suffix if stem and len(suffix) <= _MAX_KEPT_SUFFIX else ""
        found = found[: MAX_FILE_NAME_LENGTH - len(suffix)] + suffix
    return found


def _plain(text: str, what: str) -> str:
    if not all(map(_showable, text)):
        raise ValueError(f"{what} has no control characters, line breaks and lone surrogates")
    return unicodedata.normalize("NFC", text).strip()


def _showable(character: str) -> bool:
    return unicodedata.category(character) not in _UNSHOWABLE and character not in _TURNING
