"""What pictures say of themselves, on files made here and on real ones where they are."""

from __future__ import annotations

import io
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

from serve_app.errors import ImageError, ImageTooLarge, InvalidImage
from serve_app.imaging.exif import MAX_NAME_CHARACTERS, read_info
from serve_app.imaging.images import ImageLimits, decode
from serve_app.photos import PictureTexts
from tests import data
from tests.unit.test_images import LIMITS, encoded, picture, png_header
from tests.unit.test_words import WRITTEN_XMP

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
MAIN, EXIF, GPS = 0, 0x8769, 0x8825
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF")


def exif_of(main: dict[int, object], exif: dict[int, object], gps: dict[int, object]) -> Image.Exif:
    made = Image.Exif()
    for tag, value in main.items():
        made[tag] = value
    for directory, values in ((EXIF, exif), (GPS, gps)):
        if values:
            made.get_ifd(directory).update(values)
    return made


def tagged(
    image_format: str = "JPEG",
    main: dict[int, object] | None = None,
    exif: dict[int, object] | None = None,
    gps: dict[int, object] | None = None,
) -> bytes:
    made = exif_of(main or {}, exif or {}, gps or {})
    if image_format == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    return encoded(image_format, exif=made.tobytes())


def taken(**tags: str) -> tuple[datetime | None, int | None]:
    """`original`, `digitized`, `changed` and their zones; of a JPEG."""
    places = {
        "original": 0x9003,
        "original_zone": 0x9011,
        "digitized": 0x9004,
        "digitized_zone": 0x9012,
        "changed_zone": 0x9010,
    }
    main: dict[int, object] = {0x0132: tags.pop("changed")} if "changed" in tags else {}
    info = read_info(tagged(main=main, exif={places[name]: value for name, value in tags.items()}), LIMITS, NOW)
    return info.taken_local, info.taken_offset_min


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_tells_what_it_knows(image_format: str) -> None:
    data = tagged(
        image_format,
        main={0x010F: "Canon", 0x0110: "Canon EOS R5", 0x0132: "2025:01:01 00:00:00"},
        exif={0x9003: "2024:02:29 23:59:58", 0x9011: "+05:45", 0x9291: "99", 0xA434: "RF 24-70mm F2.8 L"},
        gps={1: "S", 2: (33.0, 51.0, 30.0), 3: "E", 4: (151.0, 12.0, 36.0), 5: b"\x00", 6: 58.5},
    )
    info = read_info(data, LIMITS, NOW)
    assert (info.format, info.width_px, info.height_px, info.orientation) == (image_format, 64, 48, 1)
    assert (info.taken_local, info.taken_offset_min) == (datetime(2024, 2, 29, 23, 59, 58), 345)
    assert (info.camera, info.lens) == ("Canon EOS R5", "RF 24-70mm F2.8 L")
    assert info.latitude == pytest.approx(-33.858333) and info.longitude == pytest.approx(151.21)
    assert info.altitude_m == pytest.approx(58.5)


@pytest.mark.parametrize("image_format", [*FORMATS, "BMP", "GIF"])
def test_pictures_that_say_nothing(image_format: str) -> None:
    info = read_info(tagged(image_format) if image_format in FORMATS else encoded(image_format), LIMITS, NOW)
    assert (info.width_px, info.height_px, info.orientation) == (64, 48, 1)
    assert {info.taken_local, info.taken_offset_min, info.camera, info.lens, info.latitude, info.altitude_m} == {None}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_as_displayed(image_format: str, orientation: int) -> None:
    data = tagged(image_format, main={0x0112: orientation})
    info = read_info(data, LIMITS, NOW)
    height, width = decode(data, LIMITS).pixels.shape[:2]
    assert (info.width_px, info.height_px) == (width, height)
    assert (width, height) == ((48, 64) if orientation >= 5 else (64, 48))
    # HEIF and TIFF are turned by their decoders.
    assert info.orientation == (1 if image_format in ("HEIF", "TIFF") else orientation)


def test_a_jpeg_of_several_pictures() -> None:
    """As phones write them for depth or a second camera."""
    buffer = io.BytesIO()
    frames = [Image.fromarray(picture()), Image.fromarray(picture(32, 24))]
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:], exif=exif_of({0x010F: "Apple", 0x0112: 6}, {}, {}))
    info = read_info(buffer.getvalue(), LIMITS, NOW)
    assert (info.format, info.width_px, info.height_px, info.orientation, info.camera) == ("JPEG", 48, 64, 6, "Apple")


def test_a_large_jpeg_is_measured_by_its_header() -> None:
    big = Image.fromarray(picture()).resize((1001, 333))
    for orientation, size in ((1, (1001, 333)), (6, (333, 1001))):
        buffer = io.BytesIO()
        big.save(buffer, "JPEG", exif=exif_of({0x0112: orientation}, {}, {}))
        info = read_info(buffer.getvalue(), LIMITS, NOW)
        assert (info.width_px, info.height_px, info.orientation) == (*size, orientation)


@pytest.mark.parametrize(("tags", "expected"), [
    ({"original": "2020:05:06 07:08:09", "digitized": "2021:01:01 00:00:00", "changed": "2022:01:01 00:00:00"}, "2020-05-06 07:08:09"),
    ({"digitized": "2021:01:01 00:00:00", "changed": "2022:01:01 00:00:00"}, "2021-01-01 00:00:00"),
    ({"changed": "2022:01:01 00:00:00"}, "2022-01-01 00:00:00"),
    # Nonsense makes room for the next.
    ({"original": "0000:00:00 00:00:00", "changed": "2022:01:01 00:00:00"}, "2022-01-01 00:00:00"),
    ({"original": "2020-05-06T07:08:09"}, "2020-05-06 07:08:09"),
    ({"original": "2020/05/06 07:08"}, "2020-05-06 07:08:00"),
    ({"original": "1826:07:01 00:00:00"}, "1826-07-01 00:00:00"),
    ({"original": "1825:12:31 00:00:00"}, None),
    ({"original": "2026:07:02 11:00:00"}, "2026-07-02 11:00:00"),
    ({"original": "2026:07:02 13:00:00"}, None),
    ({"original": "9999:12:31 23:59:59"}, None),
    ({"original": "2020:13:06 07:08:09"}, None),
    ({"original": "2023:02:29 07:08:09"}, None),
    ({"original": "2020:05:06 24:08:09"}, None),
    ({"original": "    :  :     :  :  "}, None),
    ({"original": "2020:05:06"}, None),
    ({"original": "yesterday"}, None),
    ({"original": ""}, None),
])  # fmt: skip
def test_dates(tags: dict[str, str], expected: str | None) -> None:
    found, _ = taken(**tags)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(("tags", "expected"), [
    ({"original_zone": "+02:00"}, 120),
    ({"original_zone": "-09:30"}, -570),
    ({"original_zone": "Z"}, 0),
    ({"original_zone": "+0200"}, 120),
    ({"original_zone": "+14:00"}, 840),
    ({"original_zone": "+14:15"}, None),
    ({"original_zone": "-12:15"}, None),
    ({"original_zone": "+02:75"}, None),
    ({"original_zone": "   :  "}, None),
    ({"original_zone": "CEST"}, None),
    # The zone of another date counts only where that is the same moment.
    ({"changed": "2020:05:06 07:08:09", "changed_zone": "+01:00"}, 60),
    ({"changed": "2021:05:06 07:08:09", "changed_zone": "+01:00"}, None),
    ({"changed": "2021:05:06 07:08:09", "changed_zone": "+01:00", "original_zone": "+03:00"}, 180),
])  # fmt: skip
def test_zones(tags: dict[str, str], expected: int | None) -> None:
    assert taken(original="2020:05:06 07:08:09", **tags) == (datetime(2020, 5, 6, 7, 8, 9), expected)


@pytest.mark.parametrize(("day", "clock", "expected"), [
    ("2020:05:06", (5.0, 8.0, 9.0), 120),
    ("2020:05:06", (5.0, 6.0, 0.0), 120),  # the fix is two minutes old
    ("2020:05:06", (5.0, 3.0, 0.0), None),  # five: no zone
    ("2020:05:06", (1.0, 23.0, 9.0), 345),
    ("2020:05:06", (16.0, 38.0, 9.0), -570),
    ("2020:05:05", (17.0, 8.0, 9.0), 840),
    ("2020:05:05", (16.0, 8.0, 9.0), None),  # 15 h
    ("2020:05:04", (5.0, 8.0, 9.0), None),  # two days apart
    ("2020:05:06", (25.0, 8.0, 9.0), None),
    ("2020:05:06", (5.0, 8.0), None),
    ("0000:00:00", (5.0, 8.0, 9.0), None),
    ("", (5.0, 8.0, 9.0), None),
])  # fmt: skip
def test_the_clock_of_gps_tells_the_zone(day: str, clock: tuple[float, ...], expected: int | None) -> None:
    data = tagged(exif={0x9003: "2020:05:06 07:08:09"}, gps={7: clock, 29: day})
    assert read_info(data, LIMITS, NOW).taken_offset_min == expected
    # What the camera says of its zone counts more.
    data = tagged(exif={0x9003: "2020:05:06 07:08:09", 0x9011: "+09:00"}, gps={7: clock, 29: day})
    assert read_info(data, LIMITS, NOW).taken_offset_min == 540


NOTHING = IFDRational(0, 0)
PARIS: dict[int, object] = {1: "N", 2: (48.0, 51.0, 24.0), 3: "E", 4: (2.0, 21.0, 3.0)}


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, (48.856667, 2.350833)),
    ({1: "S", 3: "W"}, (-48.856667, -2.350833)),
    ({1: "s", 3: "w\0"}, (-48.856667, -2.350833)),
    ({2: (48.0, 51.4, 0.0)}, (48.856667, 2.350833)),
    ({2: (48.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, (48.0, 0.0)),
    ({2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, None),
    ({2: (NOTHING, NOTHING, NOTHING)}, None),
    ({2: (48.0, 51.0, NOTHING)}, None),
    ({2: (90.0, 0.0, 1.0)}, None),
    ({2: (90.0, 0.0, 0.0)}, (90.0, 2.350833)),
    ({4: (181.0, 0.0, 0.0)}, None),
    ({4: (180.0, 0.0, 0.0)}, (48.856667, 180.0)),
    ({2: (48.0, 61.0, 0.0)}, None),
    ({1: ""}, None),
    ({1: "X"}, None),
    ({3: None}, None),
    ({2: None}, None),
])  # fmt: skip
def test_places(changes: dict[int, object], expected: tuple[float, float] | None) -> None:
    gps = {tag: value for tag, value in (PARIS | changes).items() if value is not None}
    info = read_info(tagged(gps=gps), LIMITS, NOW)
    assert (info.latitude is None) == (info.longitude is None) == (expected is None)
    if expected is not None:
        assert info.latitude == pytest.approx(expected[0], abs=1e-5) and info.longitude == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize(("reference", "metres", "expected"), [
    (b"\0", 8848.0, 8848.0), (b"\x01", 430.0, -430.0), (None, 12.5, 12.5), (b"\x07", 12.5, None), (b"\0", NOTHING, None),
    (b"\0", 4e6, None), (b"\x01", 20_000.0, None), (b"\0", 0.0, 0.0), (b"\x03", 5.0, -5.0),
])  # fmt: skip
def test_altitudes(reference: bytes | None, metres: object, expected: float | None) -> None:
    gps = {6: metres} if reference is None else {5: reference, 6: metres}
    assert read_info(tagged(gps=gps), LIMITS, NOW).altitude_m == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("make", "model", "expected"), [
    ("Apple", "iPhone 15", "Apple iPhone 15"),
    ("Canon", "Canon EOS R5", "Canon EOS R5"),
    ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
    (None, "E-M10", "E-M10"),
    ("samsung", None, "samsung"),
    ("SONY\0\0\0garbage", " ILCE-7M4  ", "SONY ILCE-7M4"),
    ("\x01\x02", "\x1b[31mred\x7f", "[31mred"),
    ("----", "....", None),
    ("", "", None),
    ("小米", "2312DRA50G", "小米 2312DRA50G"),
    ("M" * 5000, "x", "M" * MAX_NAME_CHARACTERS),
    ("a\u202eb", "c\nd", "ab c d"),
])  # fmt: skip
def test_cameras(make: str | None, model: str | None, expected: str | None) -> None:
    main: dict[int, object] = {
        tag: value.encode() if not value.isascii() else value
        for tag, value in ((0x010F, make), (0x0110, model))
        if value is not None
    }
    assert read_info(tagged(main=main), LIMITS, NOW).camera == expected


def with_exif(block: bytes) -> bytes:
    """A JPEG around any bytes as EXIF."""
    plain = encoded("JPEG")
    segment = b"Exif\0\0" + block
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "block", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 50, b"MM\0*\0\0\0\x08\0\x01"]
)
def test_damaged_metadata_leaves_a_picture(block: bytes) -> None:
    info = read_info(with_exif(block), LIMITS, NOW)
    assert (info.width_px, info.height_px, info.camera) == (64, 48, None)


LONG = 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("field_type", [*range(14), 99])
def test_values_of_wrong_types_are_nothing(field_type: int) -> None:
    """Every tag that is read, as each of the types there are: eight of it, from anywhere."""
    tags = (0x010F, 0x0110, 0x0132, 0x9003, 0x9011, 0xA434)
    gps = (1, 2, 3, 4, 5, 6, 7, 29)
    filler = bytes(range(200, 256)) * 4
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    place = start + 2 + 12 * len(gps) + 4
    entries = [struct.pack("<HHII", tag, field_type, 8, place) for tag in tags] + [struct.pack("<HHII", GPS, LONG, 1, start)]
    main = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    places = [struct.pack("<HHII", tag, field_type, 8, place) for tag in gps]
    info = read_info(
        with_exif(b"II*\0\x08\0\0\0" + main + struct.pack("<H", len(gps)) + b"".join(places) + bytes(4) + filler), LIMITS, NOW
    )
    assert {info.taken_local, info.taken_offset_min, info.latitude, info.longitude, info.altitude_m} == {None}


@pytest.mark.filterwarnings("ignore")
def test_one_damaged_directory_leaves_the_others() -> None:
    block = bytearray(exif_of({0x010F: "Canon", 0x0110: "R5"}, {0x9003: "2020:05:06 07:08:09"}, PARIS).tobytes())
    where = block.index(struct.pack(">HHI", GPS, LONG, 1))
    block[where + 8 : where + 12] = b"\x7f\xff\xff\xf0"
    info = read_info(with_exif(bytes(block[6:])), LIMITS, NOW)
    assert (info.camera, info.taken_local, info.latitude) == ("Canon R5", datetime(2020, 5, 6, 7, 8, 9), None)


@pytest.mark.filterwarnings("ignore")
@given(st.binary(max_size=300), st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b""]))
@settings(max_examples=300, deadline=None)
def test_hostile_metadata_never_raises(tail: bytes, magic: bytes) -> None:
    info = read_info(with_exif(magic + tail), LIMITS, NOW)
    assert {info.width_px, info.height_px} == {64, 48}


FULL = exif_of(
    {0x010F: "Canon", 0x0110: "R5", 0x0112: 1, 0x0132: "2022:01:01 00:00:00"},
    {0x9003: "2020:05:06 07:08:09", 0x9011: "+02:00", 0xA434: "50mm"},
    PARIS | {5: b"\0", 6: 30.0, 7: (5.0, 8.0, 9.0), 29: "2020:05:06"},
).tobytes()[6:]


@pytest.mark.filterwarnings("ignore")
@given(st.lists(st.tuples(st.integers(0, len(FULL) - 1), st.integers(0, 255)), max_size=6))
@settings(max_examples=300, deadline=None)
def test_damaged_values_are_within_bounds_or_missing(changes: list[tuple[int, int]]) -> None:
    block = bytearray(FULL)
    for place, value in changes:
        block[place] = value
    info = read_info(with_exif(bytes(block)), LIMITS, NOW)
    assert (info.latitude is None) == (info.longitude is None)
    assert info.latitude is None or -90 <= info.latitude <= 90
    assert info.longitude is None or -180 <= info.longitude <= 180
    assert info.taken_offset_min is None or -720 <= info.taken_offset_min <= 840
    assert info.taken_local is None or 1826 <= info.taken_local.year <= 2026
    for name in (info.camera, info.lens):
        assert name is None or (name.isprintable() and 1 <= len(name) <= MAX_NAME_CHARACTERS)


@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, 2**31), st.integers(0, 255), st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "AVIF"]))
@settings(max_examples=200, deadline=None)
def test_flipped_bytes_only_raise_image_errors(position: int, value: int, image_format: str) -> None:
    damaged = bytearray(encoded(image_format, exif=b"Exif\0\0" + FULL))
    damaged[position % len(damaged)] = value
    try:
        read_info(bytes(damaged), ImageLimits(1 << 20, 1_000_000), NOW)
    except ImageError:
        pass


def test_what_cannot_be_shown_is_refused() -> None:
    whole = tagged(exif={0x9003: "2020:05:06 07:08:09"})
    with pytest.raises(InvalidImage):
        read_info(whole[: len(whole) // 2], LIMITS)
    with pytest.raises(ImageTooLarge):
        read_info(png_header(60_000, 60_000), LIMITS)
    with pytest.raises(ImageTooLarge):
        read_info(whole, ImageLimits(1 << 20, 100))


def test_real_photos_of_each_format_and_orientation() -> None:
    paths = [path for folder in ("exif", "formats") for path in sorted(data.require(data.PHOTOS / folder).iterdir())]
    for path in paths:
        info = read_info(path.read_bytes(), LIMITS)
        assert info.width_px and info.height_px, path.name
    turned = [read_info(data.read(f"exif/face_orient{number}.jpg"), LIMITS) for number in range(1, 9)]
    assert [info.orientation for info in turned] == list(range(1, 9))
    assert len({(info.width_px, info.height_px) for info in turned}) == 1


def test_a_real_photo_of_a_phone() -> None:
    info = read_info(data.read("formats/immich_IMG_2682.heic"), LIMITS)
    assert info.camera is not None and info.camera.startswith("Apple iPhone")
    assert info.lens is not None and "iPhone" in info.lens
    assert info.taken_local is not None and (info.width_px, info.height_px) == (4032, 3024)


@pytest.mark.parametrize("day", ["9999:12:31", "0001:01:01"])
def test_the_ends_of_the_calendar_are_no_zone_and_no_error(day: str) -> None:
    data = tagged(exif={0x9003: "2020:05:06 07:08:09"}, gps={7: (23.0, 59.0, 60.0), 29: day})
    info = read_info(data, LIMITS, NOW)
    assert info.taken_local is not None and info.taken_offset_min is None


XMP = WRITTEN_XMP.encode()


@pytest.mark.parametrize("image_format", FORMATS)
def test_what_was_written_into_it(image_format: str) -> None:
    options: dict[str, object] = {"xmp": XMP}
    if image_format == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())  # type: ignore[attr-defined]
    if image_format == "TIFF":
        options = {"tiffinfo": {700: XMP}}
    if image_format == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    texts = read_info(encoded(image_format, None, **options), LIMITS).texts
    assert texts.title == "Forum & Kolosseum" and texts.keywords == ("ruins", "sun")
    assert (texts.sublocation, texts.city, texts.state, texts.country) == ("Via Sacra", "Roma", None, "Italia")


def with_iptc(iim: bytes) -> bytes:
    segment = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iim)) + iim + b"\0" * (len(iim) % 2)
    plain = encoded("JPEG")
    return plain[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]


def test_iptc_of_a_jpeg() -> None:
    records = [(5, b"Br\xc3\xbccke"), (25, b"a"), (25, b"b"), (90, b"Z\xfcrich")]
    iim = b"".join(b"\x1c\x02" + bytes([data_set]) + struct.pack(">H", len(value)) + value for data_set, value in records)
    texts = read_info(with_iptc(iim), LIMITS).texts
    assert (texts.title, texts.keywords, texts.city) == ("Brücke", ("a", "b"), "Zürich")
    for end in range(1, len(iim)):
        # Records that are cut never make a picture unreadable, nor do lengths that lie.
        for damaged in (iim[:end], iim[:end] + b"\xff\xff" + iim[end + 2 :]):
            assert read_info(with_iptc(damaged), LIMITS).width_px == 64


def test_exif_says_what_nothing_else_does() -> None:
    wide = "Strand; Köln".encode("utf-16-le") + b"\0\0"
    data = tagged(main={0x010E: "Am Strand", 0x9C9B: "Titel".encode("utf-16-le"), 0x9C9E: wide})
    texts = read_info(data, LIMITS).texts
    assert texts == PictureTexts(title="Titel", caption="Am Strand", keywords=("Strand", "Köln"))
