"""What a photo is found by: its words, each with how much it says of the photo, and where it stands. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime

from serve_app.photos import Photo, PictureTexts
from serve_app.text import calendar_words
from serve_app.text.words import MAX_WORD, chunks, key, sound

VERSION = 1
"""Of these rules and those of words.py and calendar_words.py. A photo read by others is read again."""
MAX_WORDS = 600
"""Of a photo, a caption of 2000 characters included."""
MAX_PLACES = 4096
"""Words that are looked at of a photo, repeated ones included: its texts are somebody else's, and there are characters of
which each is many words."""
_GAP = 2
"""Places between fields: a phrase does not reach from one into the next."""
HEARD = "~"
"""Begins how a word sounds."""

FIELDS = {
    "tag": "A", "title": "A", "keyword": "A",
    "sublocation": "B", "city": "B", "state": "B", "country": "B", "caption": "B", "date": "B",
    "folder": "C", "camera": "C",
    "file_name": "D", "lens": "D",
}  # fmt: skip
"""How much a word says where it stands: A is what somebody said of this very photo, D what a machine did."""
WEIGHTS = {"A": 1.0, "B": 0.75, "C": 0.5, "D": 0.3}


@dataclass(frozen=True, slots=True)
class PhotoTexts:
    """What is read of a photo. `day`: when it was taken, as far as anybody knows."""

    file_name: str
    folder: str
    tags: tuple[str, ...]
    camera: str | None
    lens: str | None
    texts: PictureTexts
    day: date | None
    southern: bool


@dataclass(frozen=True, slots=True)
class Document:
    """`places`: of each word, where it stands, with the letter of its field. `vocabulary`: those of letters, and how they
    sound; without the calendar's, which every library has."""

    places: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    vocabulary: frozenset[str] = frozenset()


def texts_of(photo: Photo) -> PhotoTexts:
    info = photo.info
    return PhotoTexts(
        photo.file_name,
        photo.folder,
        photo.tags,
        info.camera,
        info.lens,
        info.texts,
        day_of(photo.file_name, info.taken_local, photo.taken_at, photo.created_at),
        info.latitude is not None and info.latitude < 0,
    )


def day_of(file_name: str, taken_local: datetime | None, taken_at: datetime, created_at: datetime) -> date | None:
    """What the camera's clock showed, else what the file's name says, else what the upload said. A photo that is sorted by
    its upload for want of a date has none."""
    if taken_local is not None:
        return taken_local.date()
    return calendar_words.in_name(file_name) or (taken_at.date() if taken_at != created_at else None)


def fields(photo: PhotoTexts) -> Iterator[tuple[str, str]]:
    """Name and text of each, what says most first."""
    texts = photo.texts
    for tag in photo.tags:
        yield "tag", tag
    for keyword in texts.keywords:
        yield "keyword", keyword
    for name, text in (
        ("title", texts.title),
        ("sublocation", texts.sublocation),
        ("city", texts.city),
        ("state", texts.state),
        ("country", texts.country),
        ("caption", texts.caption),
    ):
        if text is not None:
            yield name, text
    # Whole: "2024 August" is found in 2024/August.
    for name, text in (
        ("folder", photo.folder or None),
        ("camera", photo.camera),
        ("lens", photo.lens),
        ("file_name", photo.file_name),
    ):
        if text is not None:
            yield name, text


def words_of(text: str) -> Iterator[tuple[int, str]]:
    """Place and word. What is written together is found whole and by its parts, which
    stand at places of their own; numbers without leading zeros, too."""
    place = 0
    for chunk in chunks(text):
        for group in chunk:
            parts = [key(part) for part in group]
            if len(parts) > 1 and (whole := key("".join(group))) and len(whole) < MAX_WORD:
                yield place, whole
            for part in parts:
                if not part:
                    continue
                yield place, part
                if part.isdecimal() and (short := part.lstrip("0")) and short != part:
                    yield place, short
                if (heard := sound(part)) is not None and heard != part:
                    yield place, HEARD + heard
                place += 1


def document(photo: PhotoTexts) -> Document:
    places: dict[str, list[tuple[int, str]]] = {}
    vocabulary: set[str] = set()
    start = 1

    def add(word: str, place: int, letter: str) -> None:
        if word in places or len(places) < MAX_WORDS:
            places.setdefault(word, []).append((place, letter))

    for group in [] if photo.day is None else calendar_words.of_day(photo.day, southern=photo.southern):
        for word in group:
            add(word, start, FIELDS["date"])
        start += _GAP
    for name, text in fields(photo):
        last = 0
        for place, word in words_of(text):
            if start + place > MAX_PLACES:
                break
            add(word, start + place, FIELDS[name])
            last = place
            if word.removeprefix(HEARD).isalpha() and len(word) > 1 and word not in calendar_words.CALENDAR_KEYS:
                vocabulary.add(word)
        start += last + _GAP
    return Document(places, frozenset(word for word in vocabulary if word in places))
