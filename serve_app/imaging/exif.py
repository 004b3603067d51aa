"""What a picture says of itself: size, date, camera, place, and what was written into it. Pure.

Tags are those of EXIF 2.32 (CIPA DC-008-2019), chapters 4.6.4 to 4.6.6. Everything in them was written by somebody else:
each value is taken for itself, and one that makes no sense is None.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from PIL import Image, ImageFile, IptcImagePlugin

from serve_app.imaging.images import DecodedImage, ImageLimits, decode, open_picture, sniff
from serve_app.photos import PictureInfo, PictureTexts
from serve_app.text.captions import Iptc, texts_of

_MAKE, _MODEL, _DATE_TIME, _OFFSET_TIME = 0x010F, 0x0110, 0x0132, 0x9010
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_DATE_TIME_ORIGINAL, _OFFSET_TIME_ORIGINAL = 0x9003, 0x9011
_DATE_TIME_DIGITIZED, _OFFSET_TIME_DIGITIZED = 0x9004, 0x9012
_LENS_MODEL = 0xA434
_DESCRIPTION, _XP_TITLE, _XP_COMMENT, _XP_KEYWORDS = 0x010E, 0x9C9B, 0x9C9C, 0x9C9E
"""The last three are Windows'."""
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE, _ALTITUDE_REF, _ALTITUDE, _GPS_TIME, _GPS_DATE = 1, 2, 3, 4, 5, 6, 7, 29

_DATES = (
    (_DATE_TIME_ORIGINAL, _OFFSET_TIME_ORIGINAL),
    (_DATE_TIME_DIGITIZED, _OFFSET_TIME_DIGITIZED),
    (_DATE_TIME, _OFFSET_TIME),
)
"""When the picture was taken, as far as is known, best first; each with the tag of its zone."""

MAX_NAME_CHARACTERS = 100
"""Of a camera or a lens."""
_FIRST_PHOTOGRAPH_YEAR = 1826
_CLOCK_AHEAD = timedelta(days=1)
"""Clocks of cameras stand in any zone and go wrong by a little."""
_MIN_OFFSET_MIN, _MAX_OFFSET_MIN = -12 * 60, 14 * 60
_OFFSET_STEP_MIN = 15
_GPS_CLOCK_TOLERANCE_MIN = 3
"""A receiver may repeat the time of its last fix, and a camera's clock goes wrong."""
_MIN_ALTITUDE_M, _MAX_ALTITUDE_M = -12_000.0, 100_000.0
"""From the deepest sea to the border of space."""

_DATE = re.compile(r"(\d{4})[:/-](\d{2})[:/-](\d{2})")
_CLOCK = re.compile(r"[ T](\d{2}):(\d{2})(?::(\d{2}))?")
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})")

Tags = Mapping[int, object]


def read_info(data: bytes, limits: ImageLimits, now: datetime | None = None) -> PictureInfo:
    """What the picture says of itself. `now`: with zone; the clock's, if None.

    The picture is decoded as well: one that could never be shown is refused. JPEG, scaled down by 8, takes 22 ms for 12
    megapixels; other formats take what decoding them takes. Damaged metadata never makes a picture unreadable.

    Raises what `images.decode` raises.
    """
    return info_of(decode(data, limits, at_least_px=1), data, now)


def info_of(decoded: DecodedImage, data: bytes, now: datetime | None = None) -> PictureInfo:
    """As `read_info`, of a picture that has been decoded."""
    main, exif, gps, texts = _tags(data)
    taken, offset_min = _taken(main, exif, gps, datetime.now(UTC) if now is None else now)
    latitude, longitude = _position(gps)
    return PictureInfo(
        format=decoded.format.value,
        width_px=decoded.size_px[0],
        height_px=decoded.size_px[1],
        orientation=decoded.orientation,
        taken_local=taken,
        taken_offset_min=offset_min,
        camera=_camera(_name(main.get(_MAKE)), _name(main.get(_MODEL))),
        lens=_name(exif.get(_LENS_MODEL)),
        latitude=latitude,
        longitude=longitude,
        altitude_m=_altitude(gps),
        texts=texts,
    )


def _tags(data: bytes) -> tuple[Tags, Tags, Tags, PictureTexts]:
    """The main directory, that of EXIF and that of GPS, and what was written; what cannot be read is empty."""
    try:
        with open_picture(data, sniff(data)) as image:
            exif = image.getexif()
            main = _values(exif)
            texts = _texts(image, main)
    except Exception:
        # Parsers of hostile bytes raise whatever they stumble over. The picture itself has been decoded.
        return {}, {}, {}, PictureTexts()
    return main, _directory(exif, _EXIF_IFD), _directory(exif, _GPS_IFD), texts


def _texts(image: Image.Image, main: Tags) -> PictureTexts:
    xmp = image.info.get("xmp")
    described = {
        "title": [_wide(main.get(_XP_TITLE))],
        "caption": [_text(main.get(_DESCRIPTION)), _wide(main.get(_XP_COMMENT))],
        "keywords": _wide(main.get(_XP_KEYWORDS)).split(";"),
    }
    return texts_of(xmp if isinstance(xmp, bytes | str) else None, _iptc(image), described)


def _iptc(image: Image.Image) -> Iptc:
    try:
        found = IptcImagePlugin.getiptcinfo(image) if isinstance(image, ImageFile.ImageFile) else None
    except Exception:
        # As below.
        return {}
    return {} if found is None else found


def _wide(value: object) -> str:
    """Windows' way: UTF-16, little endian, up to the first NUL."""
    raw = bytes(value[: 64 << 10]) if isinstance(value, bytes | tuple) and _octets(value) else b""
    return raw.decode("utf-16-le", "ignore").partition("\0")[0]


def _octets(value: bytes | tuple[object, ...]) -> bool:
    return all(isinstance(one, int) and 0 <= one < 256 for one in value[: 64 << 10])


def _directory(exif: Image.Exif, tag: int) -> Tags:
    try:
        return _values(exif.get_ifd(tag))
    except Exception:
        # As above.
        return {}


def _values(directory: Mapping[int, object]) -> Tags:
    """The tags in use. Pillow decodes each value on access, and fails there."""
    found: dict[int, object] = {}
    for tag in _USED:
        try:
            if tag in directory:
                found[tag] = directory[tag]
        except Exception:
            found.pop(tag, None)  # As above: one value is damaged, the others are not.
    return found


_USED = (
    *(tag for pair in _DATES for tag in pair),
    *(_MAKE, _MODEL, _LENS_MODEL),
    *(_DESCRIPTION, _XP_TITLE, _XP_COMMENT, _XP_KEYWORDS),
    *(_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE, _ALTITUDE_REF, _ALTITUDE, _GPS_TIME, _GPS_DATE),
)


def _taken(main: Tags, exif: Tags, gps: Tags, now: datetime) -> tuple[datetime | None, int | None]:
    """What the camera's clock showed, and its zone in minutes east of UTC."""
    # Some writers put a date, or its zone, into the other directory.
    tags = {**exif, **{tag: value for tag, value in main.items() if tag == _DATE_TIME or tag not in exif}}
    latest = now.astimezone(UTC).replace(tzinfo=None) + _CLOCK_AHEAD
    dates = [(_date_time(tags.get(tag), latest), _offset_min(tags.get(zone))) for tag, zone in _DATES]
    taken, offset_min = next(((moment, zone) for moment, zone in dates if moment is not None), (None, None))
    if taken is None:
        return None, None
    if offset_min is None:
        # The zone of another date is this one's only where both are the same moment.
        offset_min = next((zone for moment, zone in dates if moment == taken and zone is not None), None)
    return taken, _offset_from_gps(taken, gps) if offset_min is None else offset_min


def _date_time(value: object, latest: datetime) -> datetime | None:
    text = _text(value)
    day = _DATE.match(text)
    clock = _CLOCK.match(text, day.end()) if day else None
    if day is None or clock is None:
        return None
    try:
        moment = datetime(*map(int, day.groups()), *(int(part or 0) for part in clock.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None
    return moment if moment.year >= _FIRST_PHOTOGRAPH_YEAR and moment <= latest else None


def _offset_min(value: object) -> int | None:
    text = _text(value)
    if text == "Z":
        return 0
    match = _OFFSET.fullmatch(text)
    if match is None or int(match[3]) >= 60:
        return None
    minutes = (int(match[2]) * 60 + int(match[3])) * (-1 if match[1] == "-" else 1)
    return minutes if _MIN_OFFSET_MIN <= minutes <= _MAX_OFFSET_MIN else None


def _offset_from_gps(taken: datetime, gps: Tags) -> int | None:
    """The difference between the camera's clock and that of GPS, which shows UTC; None where it is no zone."""
    day, clock = _DATE.match(_text(gps.get(_GPS_DATE))), _numbers(gps.get(_GPS_TIME))
    if day is None or len(clock) != 3:
        return None
    try:
        year, month, day_of_month = map(int, day.groups())
        midnight = date(year, month, day_of_month)
    except ValueError:
        return None
    hours, minutes, seconds = clock
    if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 61):
        return None
    # From the date alone: the last day of the calendar has no next one.
    since_midnight = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    difference_min = (taken - datetime(midnight.year, midnight.month, midnight.day) - since_midnight).total_seconds() / 60
    zone = round(difference_min / _OFFSET_STEP_MIN) * _OFFSET_STEP_MIN
    plausible = _MIN_OFFSET_MIN <= zone <= _MAX_OFFSET_MIN and abs(difference_min - zone) <= _GPS_CLOCK_TOLERANCE_MIN
    return zone if plausible else None


def _position(gps: Tags) -> tuple[float | None, float | None]:
    """Latitude and longitude in degrees; both or neither."""
    latitude = _degrees(gps.get(_LATITUDE), gps.get(_LATITUDE_REF), "N", "S", 90)
    longitude = _degrees(gps.get(_LONGITUDE), gps.get(_LONGITUDE_REF), "E", "W", 180)
    # 0, 0 is where receivers are that do not know where they are; nobody else is.
    if latitude is None or longitude is None or (latitude == 0 and longitude == 0):
        return None, None
    return latitude, longitude


def _degrees(value: object, reference: object, positive: str, negative: str, limit: float) -> float | None:
    """Degrees, or degrees and minutes, or these and seconds. Without its hemisphere a value means nothing."""
    parts, side = _numbers(value), _text(reference).upper()
    if not 1 <= len(parts) <= 3 or side not in (positive, negative):
        return None
    if min(parts) < 0 or max(parts[1:], default=0) > 60:
        return None
    degrees = sum((part / 60.0**power for power, part in enumerate(parts)), 0.0)
    if degrees > limit:
        return None
    return -degrees if side == negative and degrees else degrees


def _altitude(gps: Tags) -> float | None:
    """Metres above the sea. References 1 and 3 (EXIF 3.0) mean below."""
    parts, reference = _numbers(gps.get(_ALTITUDE)), gps.get(_ALTITUDE_REF, 0)
    if isinstance(reference, bytes):
        reference = reference[0] if len(reference) == 1 else None
    if len(parts) != 1 or reference not in (0, 1, 2, 3):
        return None
    metres = -parts[0] if reference in (1, 3) and parts[0] else parts[0]
    return metres if _MIN_ALTITUDE_M <= metres <= _MAX_ALTITUDE_M else None


def _camera(make: str | None, model: str | None) -> str | None:
    """Maker and model, without the maker's name where the model begins with it: Canon, Canon EOS R5."""
    if make is None or model is None:
        return model or make
    repeated = model.casefold().split()[0] == make.casefold().split()[0]
    return model if repeated else f"{make} {model}"[:MAX_NAME_CHARACTERS].rstrip()


def _name(value: object) -> str | None:
    """A name fit for a database and a page; None for one without a letter or digit, such as dashes."""
    text = " ".join(_text(value).split())[:MAX_NAME_CHARACTERS].rstrip()
    return text if any(map(str.isalnum, text)) else None


def _text(value: object) -> str:
    """Up to the first NUL, without control, format and unassigned characters and surrogates; "" for what is no text."""
    text = value if isinstance(value, str) else ""
    if isinstance(value, bytes) or text.isascii() or max(text) <= "\xff":
        # EXIF has ASCII there, and Pillow reads Latin-1; what cameras write beyond ASCII is UTF-8 today.
        raw = value if isinstance(value, bytes) else text.encode("latin-1")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
    # Before the rest, so that a text of megabytes costs nothing.
    short = text[: 16 * MAX_NAME_CHARACTERS].partition("\0")[0]
    spaced = (" " if character.isspace() else character for character in short)
    return "".join(character for character in spaced if not unicodedata.category(character).startswith("C")).strip()


def _numbers(value: object) -> tuple[float, ...]:
    """The finite numbers of a rational or of several; () where one of them is not finite or not a number."""
    values = value if isinstance(value, tuple | list) else (value,)
    found = []
    for one in values[:4]:
        if isinstance(one, str | bytes):
            return ()
        try:
            number = float(one)
        except (TypeError, ValueError, ArithmeticError):
            return ()
        if not math.isfinite(number):
            return ()
        found.append(number)
    return tuple(found)
