"""Dates as words, English and German: those of a photo, and those of a question. Pure.

What a date is found by begins with `@`, so that no other word is mistaken for it: `@2024`, `@202408`, `@20240817`, and of
every year `@m08` and `@m0817`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from serve_app.text.words import key

FIRST_YEAR, LAST_YEAR = 1826, 2100
"""Numbers between are years: from the first photograph on."""

MONTHS: tuple[tuple[str, ...], ...] = (
    ("january", "januar", "jan", "jänner"),
    ("february", "februar", "feb", "feber"),
    ("march", "märz", "mar", "mrz"),
    ("april", "apr"),
    ("may", "mai"),
    ("june", "juni", "jun"),
    ("july", "juli", "jul"),
    ("august", "aug"),
    ("september", "sep", "sept"),
    ("october", "oktober", "oct", "okt"),
    ("november", "nov"),
    ("december", "dezember", "dec", "dez"),
)
_WEEKDAYS = (
    ("monday", "montag"),
    ("tuesday", "dienstag"),
    ("wednesday", "mittwoch"),
    ("thursday", "donnerstag"),
    ("friday", "freitag"),
    ("saturday", "samstag", "sonnabend"),
    ("sunday", "sonntag"),
)
_SEASONS = (
    ("winter",),
    ("spring", "frühling", "frühjahr"),
    ("summer", "sommer"),
    ("autumn", "fall", "herbst"),
)
"""Meteorological, of the north."""

_MONTH_OF = {key(name): number for number, names in enumerate(MONTHS, start=1) for name in names}
CALENDAR_KEYS = frozenset(key(name) for group in (*MONTHS, *_WEEKDAYS, *_SEASONS) for name in group)
"""What every library has, as `words.key` makes it."""

_YEAR = re.compile(r"\d{4}")
_ISO = re.compile(r"(\d{4})([-./_:])(\d{1,2})(?:\2(\d{1,2}))?")
_DAY_FIRST = re.compile(r"(\d{1,2})([-./])(\d{1,2})\2(\d{4}|\d{2})")
_DAY_AND_MONTH = re.compile(r"(\d{1,2})\.(\d{1,2})\.?")
_COMPACT = re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})(?!\d)")
_IN_NAME = re.compile(r"(?<!\d)(\d{4})[-._ ](\d{2})[-._ ](\d{2})(?!\d)")
_ORDINAL = re.compile(r"(\d{1,2})(?:\.|st|nd|rd|th|,)?", re.IGNORECASE)
_TWO_DIGIT_YEARS_FROM = 70
"""17.8.69 is of 2069, 17.8.70 of 1970."""


@dataclass(frozen=True, slots=True)
class DateWords:
    """A date that a question names, in `length` of its words. `word`: what photos of it are found by. `first`, `last`: the
    days it means; None for one of every year."""

    word: str
    first: date | None
    last: date | None
    length: int


def of_day(day: date, *, southern: bool = False) -> list[list[str]]:
    """What a photo of that day is found by: `@` words, and the keys of month, weekday and season in each language."""
    season = (day.month % 12 // 3 + (2 if southern else 0)) % 4
    dated = [f"@{day:%Y}", f"@{day:%Y%m}", f"@{day:%Y%m%d}", f"@m{day:%m}", f"@m{day:%m%d}"]
    names = (MONTHS[day.month - 1], _WEEKDAYS[day.weekday()], _SEASONS[season])
    return [dated, *([key(name) for name in group] for group in names)]


def in_name(text: str) -> date | None:
    """The day in a file's name: IMG_20240817_0012, 2024-08-17 Rome."""
    for pattern in (_COMPACT, _IN_NAME):
        for match in pattern.finditer(text[:300]):
            day = _day(*map(int, match.groups()))
            if day is not None:
                return day
    return None


def read(words: Sequence[str]) -> DateWords | None:
    """The date that a question's words begin with, the longest: `17 august 2024`, `aug 2024`, `2024-08`, `17.8.2024`,
    `2024`. None where they begin with none. A month alone is one as well, by whatever name it has here."""
    return _numeric(words[0]) or _named(words)


def _numeric(word: str) -> DateWords | None:
    bare = word.strip(",;")
    if match := _ISO.fullmatch(bare):
        year, month = int(match[1]), int(match[3])
        return _whole_day(_day(year, month, int(match[4]))) if match[4] else _month(year, month, 1)
    if match := _DAY_FIRST.fullmatch(bare):
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        if len(match[4]) == 2:
            year += 1900 if year >= _TWO_DIGIT_YEARS_FROM else 2000
        # Months first only where it cannot be otherwise.
        return _whole_day(_day(year, second, first) or (_day(year, first, second) if match[2] == "/" else None))
    if match := _COMPACT.fullmatch(bare):
        return _whole_day(_day(*map(int, match.groups())))
    if match := _DAY_AND_MONTH.fullmatch(bare):
        day = _day(2000, int(match[2]), int(match[1]))
        return DateWords(f"@m{day:%m%d}", None, None, 1) if day and bare.endswith(".") else None
    alone = _year(bare)
    return None if alone is None else DateWords(f"@{alone:04d}", date(alone, 1, 1), date(alone, 12, 31), 1)


def _named(words: Sequence[str]) -> DateWords | None:
    bare = [word.strip(",;") for word in words[:3]]
    month = _month_of(bare[0])
    if month is not None:
        if len(bare) > 1 and (year := _year(bare[1])) is not None:
            return _month(year, month, 2)
        if len(bare) > 2 and (day := _ordinal(words[1])) is not None and (year := _year(bare[2])) is not None:
            return _whole_day(_day(year, month, day), 3)
        if len(bare) > 1 and (day := _ordinal(words[1])) is not None and _day(2000, month, day):
            return DateWords(f"@m{month:02d}{day:02d}", None, None, 2)
        return DateWords(f"@m{month:02d}", None, None, 1)
    day = _ordinal(words[0])
    month = _month_of(bare[1]) if day is not None and len(bare) > 1 else None
    if day is None or month is None or _day(2000, month, day) is None:
        return None
    if len(bare) > 2 and (year := _year(bare[2])) is not None and (whole := _whole_day(_day(year, month, day), 3)):
        return whole
    return DateWords(f"@m{month:02d}{day:02d}", None, None, 2)


def _month_of(word: str) -> int | None:
    return _MONTH_OF.get(key(word.rstrip(".")))


def _ordinal(word: str) -> int | None:
    match = _ORDINAL.fullmatch(word)
    return int(match[1]) if match else None


def _year(word: str) -> int | None:
    return int(word) if _YEAR.fullmatch(word) and FIRST_YEAR <= int(word) <= LAST_YEAR else None


def _day(year: int, month: int, day: int) -> date | None:
    if not FIRST_YEAR <= year <= LAST_YEAR:
        return None
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _whole_day(day: date | None, length: int = 1) -> DateWords | None:
    return None if day is None else DateWords(f"@{day:%Y%m%d}", day, day, length)


def _month(year: int, month: int, length: int) -> DateWords | None:
    first = _day(year, month, 1)
    if first is None:
        return None
    after = date(year + month // 12, month % 12 + 1, 1)
    return DateWords(f"@{first:%Y%m}", first, after - timedelta(days=1), length)
