"""How text becomes words that find each other: whatever their case, accents and script, and with typing errors. Pure.

A word's `key` is what is looked up: ASCII, lower case. Accents are folded, German ä, ö, ü and ae, oe, ue are the same as a,
o, u, Devanagari is read as Hindi (devanagari.py), every other script letter by letter (anyascii). Its `sound` is coarser:
Deepak and दीपक, Stephanie and Stefanie, Meyer and Maier have one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from anyascii import anyascii

from serve_app.text import devanagari

MAX_WORD = 40
"""Characters of a key; the rest is cut."""
_UMLAUT = re.compile(r"([aou])e")
_NOT_WORD = re.compile(r"[^a-z0-9]+")
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufe0e\ufe0f"
_SOUNDS = tuple(
    (re.compile(pattern), heard)
    for pattern, heard in (
        (r"[ae][iy]e?", "ai"),
        (r"sch|sh", "s"),
        (r"ph", "f"),
        (r"th|dt", "t"),
        (r"([bdgkj])h", r"\1"),
        (r"x", "ks"),
        (r"ck|c(?!h)", "k"),
        (r"ee|ie", "i"),
        (r"oo|ou", "u"),
        (r"y", "i"),
        (r"w", "v"),
        (r"(.)\1+", r"\1"),
    )
)


def chunks(text: str) -> Iterator[list[tuple[str, ...]]]:
    """What stands between spaces: its groups, which punctuation parts, each as its parts, which change of case and digits
    part. `IMG_2041.jpg` is (IMG), (2041), (jpg); `iPhone13` is (i, Phone, 13). Chinese characters are parts each."""
    for chunk in unicodedata.normalize("NFKC", text).split():
        found: list[tuple[str, ...]] = []
        parts: list[str] = []
        before = ""
        for character in chunk:
            kind = _kind(character)
            if kind == "":
                continue
            if kind == " ":
                if parts:
                    found.append(tuple(parts))
                parts, before = [], ""
                continue
            if before and (kind == "m" or kind == before or (before, kind) == ("U", "l")) and before not in "hs":
                # A capital begins a part; of several, the last one does: JPEGFile is JPEG, File.
                if (before, kind) == ("U", "l") and len(parts[-1]) > 1 and parts[-1].isupper():
                    parts[-1], start = parts[-1][:-1], parts[-1][-1]
                    parts.append(start)
                parts[-1] += character
            elif kind != "m":
                parts.append(character)
            before = before if kind == "m" else kind
        if parts:
            found.append(tuple(parts))
        if found:
            yield found


def _kind(character: str) -> str:
    """l, U, d: a letter, a capital, a digit; m: a mark that goes with what is before it; h: stands for a word, as s, a
    symbol, does; a space parts; empty for what is not there."""
    if character in _ZERO_WIDTH:
        return ""
    category = unicodedata.category(character)
    if category in ("Lu", "Lt"):
        return "U"
    if category == "Lo" and (
        "\u3400" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff" or character >= "\U00020000"
    ):
        return "h"
    if category.startswith("L"):
        return "l"
    if category.startswith("N"):
        return "d"
    if category.startswith("M"):
        return "m"
    return "s" if category == "So" else " "


def key(word: str) -> str:
    """Empty for what has neither letter nor digit."""
    # Case first: folding takes apart what composing puts together again.
    text = unicodedata.normalize("NFKC", word.casefold())
    if text.isascii():
        latin = text
    else:
        latin = "".join(
            devanagari.romanize(run) if devanagari.FIRST <= run[0] <= devanagari.LAST else anyascii(run) for run in _runs(text)
        ).lower()
    return _UMLAUT.sub(r"\1", _NOT_WORD.sub("", latin))[:MAX_WORD]


def _runs(text: str) -> Iterator[str]:
    """Parts that are Devanagari or not."""
    start = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or _indic(text[place]) != _indic(text[start]):
            yield text[start:place]
            start = place


def _indic(character: str) -> bool:
    return devanagari.FIRST <= character <= devanagari.LAST


def sound(word_key: str) -> str | None:
    """How the word of that key sounds, roughly; None for short ones and what has digits."""
    if len(word_key) < 3 or not word_key.isalpha():
        return None
    heard = word_key
    for pattern, replacement in _SOUNDS:
        heard = pattern.sub(replacement, heard)
    return heard if len(heard) >= 2 else None


def keys(text: str, most: int) -> list[str]:
    """The keys of the words of a name, in their order, `most` at most."""
    found: list[str] = []
    for chunk in chunks(text):
        for group in chunk:
            # Whole: McDonald is one word of a name.
            whole = [key("".join(group))] if not any(_kind(part[0]) in "hs" for part in group) else [key(p) for p in group]
            found += [one for one in whole if one]
            if len(found) >= most:
                return found[:most]
    return found


def typos_allowed(word_key: str) -> int:
    """How many letters of a word may be wrong: none of a short one, nor of a number."""
    if not word_key.isalpha() or len(word_key) < 4:
        return 0
    return 1 if len(word_key) < 7 else 2


def distance(a: str, b: str, most: int) -> int | None:
    """Letters wrong, missing, too many or swapped with their neighbour (optimal string alignment; Boytsov 2011, "Indexing
    methods for approximate dictionary searching", section 2.1); None for more than `most`."""
    if abs(len(a) - len(b)) > most:
        return None
    before: list[int] = []
    last = list(range(len(b) + 1))
    for row, letter in enumerate(a, start=1):
        current = [row]
        for column, other in enumerate(b, start=1):
            cost = min(last[column] + 1, current[-1] + 1, last[column - 1] + (letter != other))
            if row > 1 and column > 1 and letter == b[column - 2] and a[row - 2] == other:
                cost = min(cost, before[column - 2] + 1)
            current.append(cost)
        if min(current) > most:
            return None
        before, last = last, current
    return last[-1] if last[-1] <= most else None
