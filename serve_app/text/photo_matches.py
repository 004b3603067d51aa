"""Why a photo was found: which of its words is what was looked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from serve_app.text import calendar_words
from serve_app.text.photo_document import PhotoTexts, fields, words_of
from serve_app.text.text_queries import Form
from serve_app.text.words import key


class How(StrEnum):
    EXACT = "exact"
    BEGINNING = "beginning"
    SOUND = "sound"
    TYPO = "typo"


@dataclass(frozen=True, slots=True)
class Match:
    """`term`: as it was typed; `field`: of the photo, `person` or `date`; `text`: what stands there."""

    term: str
    field: str
    text: str
    how: How
    person_id: UUID | None = None


Places = dict[str, set[int]]
"""Of a text: where each of its words stands."""


class Matcher:
    """Of one page: photos of an album share their texts, and each text is taken apart once."""

    def __init__(self) -> None:
        self._places: dict[str, Places] = {}

    def best(self, photo: PhotoTexts, term: str, tiers: Sequence[tuple[How, Sequence[Form]]]) -> Match | None:
        """Where the photo has the term, in the best of the ways, and there in the field that says most."""
        for how, forms in tiers:
            if photo.day is not None and any(len(form.words) == 1 for form in forms):
                groups = calendar_words.of_day(photo.day, southern=photo.southern)
                dated = {one for group in groups for one in group}
                if any(_in_place(form, dated) for form in forms if len(form.words) == 1):
                    return Match(term, "date", photo.day.isoformat(), how)
            for name, text in fields(photo) if forms else ():
                places = self._of(text)
                for form in forms:
                    if _stands(form, places):
                        heard = how is How.BEGINNING and not form.prefix
                        return Match(term, name, text, How.SOUND if heard else how)
        return None

    def _of(self, text: str) -> Places:
        found = self._places.get(text)
        if found is None:
            found = {}
            for place, word in words_of(text):
                found.setdefault(word, set()).add(place)
            self._places[text] = found
        return found


def _stands(form: Form, places: Places) -> bool:
    *first, last = form.words
    ends: set[int] | None = None
    for word in first:
        there = places.get(word, set())
        ends = there if ends is None else {one + 1 for one in ends} & there
        if not ends:
            return False
    found = [there for word, there in places.items() if word.startswith(last)] if form.prefix else [places.get(last, set())]
    return any(found) if ends is None else any(one + 1 in there for one in ends for there in found)


def _in_place(form: Form, words: set[str]) -> bool:
    word = form.words[0]
    return word in words or (form.prefix and any(one.startswith(word) for one in words))


def shown(text: str, term: str) -> str:
    """A long text, cut around the first word of the term."""
    if len(text) <= 120:
        return text
    wanted = key(term.split()[0]) if term.split() else ""
    words = text.split()
    place = next((index for index, word in enumerate(words) if wanted and key(word).startswith(wanted)), 0)
    return " ".join(words[max(0, place - 6) : place + 10])[:120]
