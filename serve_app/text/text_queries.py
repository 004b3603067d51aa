"""What somebody types to find photos, taken apart. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.text import calendar_words
from serve_app.text.calendar_words import DateWords
from serve_app.text.photo_document import HEARD
from serve_app.text.words import chunks, key, keys, sound

MAX_QUERY = 500
"""Characters."""
MAX_TERMS = 16
_MIN_PREFIX = 2
"""Characters of a word that may be the beginning of another."""
_QUOTED = re.compile(r"""["„“”«»]([^"„“”«»]*)["„“”«»]|(\S+)""")
_JOINING = frozenset(("und", "and", "mit", "with", "plus", "sowie"))
"""Words, as key() makes them, between two things that are wanted both."""
_FILLING = frozenset(
    key(word)
    for word in (
        "in", "im", "am", "an", "at", "on", "the", "a", "der", "die", "das", "den", "dem", "of", "von", "vom", "zu", "zum",
        "bei", "beim", "aus", "from", "foto", "fotos", "photo", "photos", "bild", "bilder", "picture", "pictures", "image",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Form:
    """Words that follow each other. `prefix`: the last one may go on."""

    words: tuple[str, ...]
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that is wanted. `text`: as it was typed. `exact`, `loose`: what photos of it have, the latter more loosely:
    as the beginning of a word, or by its sound. `names`: what it would be as a part of a person's name. `parted`: something
    like "and" stands before it, so it is not of the name before."""

    text: str
    exact: tuple[Form, ...]
    loose: tuple[Form, ...] = ()
    names: tuple[str, ...] = ()
    date: DateWords | None = None
    quoted: bool = False
    parted: bool = False


def parse(text: str) -> list[Term]:
    """Raises ValueError for a text without a word, with too many of them, or of more than 500 characters."""
    if len(text) > MAX_QUERY:
        raise ValueError(f"has {len(text)} characters; the limit is {MAX_QUERY}")
    plain = "".join(" " if one.isspace() else one for one in text if one.isspace() or not _invisible(one))
    found = list(_terms(plain, drop=True)) or list(_terms(plain, drop=False))
    if not found:
        raise ValueError("has no word to look for")
    if len(found) > MAX_TERMS:
        raise ValueError(f"has {len(found)} words; the limit is {MAX_TERMS}")
    # What is said twice is meant once.
    return list({(term.exact, term.loose): term for term in reversed(found)}.values())[::-1]


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn")


def _terms(text: str, *, drop: bool) -> Iterator[Term]:
    """`drop`: leave out the words that only join and fill."""
    matches = list(_QUOTED.finditer(text))
    place, parted = 0, False
    while place < len(matches):
        quoted, word = matches[place].groups()
        if quoted is not None:
            words = tuple(keys(quoted, MAX_TERMS))
            if words:
                yield Term(quoted.strip(), (Form(words),), names=words, quoted=True, parted=parted)
            place, parted = place + 1, False
            continue
        following = [match[2] for match in matches[place : place + 3]]
        dated = calendar_words.read(following[: following.index(None)] if None in following else following)
        if dated is not None:
            yield _date(following[: dated.length], dated, parted)
            place, parted = place + dated.length, False
            continue
        place += 1
        word_key = key(word)
        if drop and (word_key in _JOINING or word_key in _FILLING or word in ("&", "+")):
            parted = parted or word_key in _JOINING or not word_key
            continue
        term = _word(word, parted)
        if term is not None:
            yield term
            parted = False
        parted = parted or word.endswith((",", ";"))


def _date(words: list[str], dated: DateWords, parted: bool) -> Term:
    """As a date, or as these very words: in the name of a folder, for instance."""
    text = " ".join(words)
    written = tuple(keys(text, MAX_TERMS))
    # A month may be somebody's name, or begin another word.
    alone = dated.length == 1 and dated.first is None and len(written) == 1 and written[0].isalpha()
    loose = [Form(written, prefix=alone)] if written else []
    if len(written) == 2:
        loose.append(Form(written[::-1]))
    if len(written) > 1 and "".join(written).isdecimal():
        loose.append(Form(("".join(written),)))
    names = written if alone else ()
    return Term(text, (Form((dated.word,)),), tuple(loose), names, dated, parted=parted)


def _word(word: str, parted: bool) -> Term | None:
    groups = [[one for one in map(key, group) if one] for chunk in chunks(word) for group in chunk]
    parts = tuple(one for group in groups for one in group)
    if not parts:
        return None
    whole = "".join(groups[0]) if len(groups) == 1 else None
    exact = [Form(parts)]
    if len(parts) > 1 and whole is not None:
        # Written together: iPhone, as iphone is.
        exact.append(Form((whole,)))
    # Numbers do not begin others, but what is written together is often cut off while it is typed.
    loose = [
        Form(form.words, prefix=True)
        for form in exact
        if len(form.words[-1]) >= _MIN_PREFIX and (len(parts) > 1 or not form.words[-1].isdecimal())
    ]
    heard = sound(parts[0]) if len(parts) == 1 else None
    if heard is not None:
        loose += [Form((one,)) for one in (heard, HEARD + heard) if one != parts[0]]
    return Term(word.strip(".,;:!?()[]"), tuple(exact), tuple(loose), tuple(keys(word, MAX_TERMS)), parted=parted)
