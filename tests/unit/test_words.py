"""How text becomes words, dates and terms: pure."""

from __future__ import annotations

import re
import string
from datetime import UTC, date, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.photos import PictureTexts
from serve_app.text import calendar_words
from serve_app.text.captions import clean, read_xmp, texts_of
from serve_app.text.photo_document import HEARD, MAX_PLACES, MAX_WORDS, PhotoTexts, day_of, document
from serve_app.text.photo_matches import How, Matcher
from serve_app.text.text_queries import MAX_QUERY, MAX_TERMS, Form, parse
from serve_app.text.words import MAX_WORD, chunks, distance, key, keys, sound, typos_allowed

WRITTEN_XMP = """<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?><x:xmpmeta xmlns:x='adobe:ns:meta/'>
    <rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description rdf:about=''
     xmlns:dc='http://purl.org/dc/elements/1.1/' xmlns:photoshop='http://ns.adobe.com/photoshop/1.0/'
     xmlns:c='http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/' photoshop:City='Roma' photoshop:State=' '>
    <dc:title><rdf:Alt><rdf:li xml:lang='x-default'>Forum &amp; Kolosseum</rdf:li></rdf:Alt></dc:title>
    <dc:subject><rdf:Bag><rdf:li>ruins</rdf:li><rdf:li>sun</rdf:li></rdf:Bag></dc:subject>
    <c:Location>Via Sacra</c:Location><photoshop:Country>Italia</photoshop:Country>
    </rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"""
LEXEME = re.compile(r"[@~]?[a-z0-9]+")


def photo(**fields: object) -> PhotoTexts:
    given: dict[str, object] = {
        "file_name": "x.jpg", "folder": "", "tags": (), "camera": None, "lens": None, "texts": PictureTexts(), "day": None,
        "southern": False,
    }  # fmt: skip
    return PhotoTexts(**{**given, **fields})  # type: ignore[arg-type]


class TestKeys:
    @pytest.mark.parametrize(
        "same",
        [
            ("आदित्य", "Āditya", "aditya", "ADITYA"),
            ("München", "Muenchen", "munchen", "MÜNCHEN", "Mu\u0308nchen"),
            ("Straße", "strasse", "STRASSE"),
            ("Łódź", "lodz"),
            ("İstanbul", "istanbul"),
            ("Москва", "Moskva"),
            ("मुंबई", "Mumbai"),
            ("शर्मा", "Sharma"),
            ("कृष्ण", "Krishna"),
            ("ﬁn", "fin"),
            ("Jörg", "Joerg", "jorg"),
        ],
    )
    def test_one_word(self, same: tuple[str, ...]) -> None:
        assert len({key(one) for one in same}) == 1, [key(one) for one in same]

    @pytest.mark.parametrize(
        "alike",
        [("Deepak", "दीपक"), ("Stephanie", "Steffani", "Stefanie"), ("Meyer", "Maier", "Mayer", "Meier"), ("Pooja", "पूजा"),
         ("Laxmi", "लक्ष्मी", "Lakshmi"), ("Aishwarya", "ऐश्वर्या"), ("Nowak", "Novak"), ("Schmidt", "Schmitt")],
    )  # fmt: skip
    def test_one_sound(self, alike: tuple[str, ...]) -> None:
        assert len({sound(key(one)) for one in alike}) == 1, [sound(key(one)) for one in alike]

    def test_others_stay_apart(self) -> None:
        names = ["anna", "hanna", "anne", "bob", "rob", "rom", "roma", "lars", "laura", "lena", "lina", "max", "mia"]
        assert len({key(one) for one in names}) == len(names)
        assert len({sound(key(one)) for one in names}) == len(names)

    @given(st.text(max_size=60))
    def test_keys_are_plain_and_stable(self, text: str) -> None:
        found = key(text)
        assert re.fullmatch(r"[a-z0-9]*", found) and len(found) <= MAX_WORD
        assert key(text.upper().lower()) == key(text.lower()) or not text.isascii()
        heard = sound(found)
        assert heard is None or re.fullmatch(r"[a-z]{2,}", heard)

    @given(st.text(alphabet=string.ascii_letters + "äöüÄÖÜ", min_size=1, max_size=20))
    def test_case_does_not_matter(self, word: str) -> None:
        assert key(word) == key(word.upper()) == key(word.lower())


class TestChunks:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("IMG_20240817_0012.jpg", [[("IMG",), ("20240817",), ("0012",), ("jpg",)]]),
            ("iPhone13 Pro", [[("i", "Phone", "13")], [("Pro",)]]),
            ("JPEGFile", [[("JPEG", "File")]]),
            ("東京タワー", [[("東", "京", "タワー")]]),
            ("Canon EOS R5", [[("Canon",)], [("EOS",)], [("R", "5")]]),
            ("t-shirt", [[("t",), ("shirt",)]]),
            ("...", []),
        ],
    )
    def test_parts(self, text: str, expected: list[list[tuple[str, ...]]]) -> None:
        assert list(chunks(text)) == expected

    @given(st.text(max_size=80))
    def test_nothing_is_lost_and_nothing_is_made_up(self, text: str) -> None:
        letters = "".join(part for chunk in chunks(text) for group in chunk for part in group)
        assert sum(map(str.isalpha, letters)) <= sum(map(str.isalpha, letters + text))
        assert all(part for chunk in chunks(text) for group in chunk for part in group)

    def test_names(self) -> None:
        assert keys("Anna-Lena McDonald", 10) == ["anna", "lena", "mcdonald"]
        assert keys("a b c d", 2) == ["a", "b"]


class TestDistance:
    @pytest.mark.parametrize(
        ("a", "b", "away"),
        [("anna", "anna", 0), ("stefani", "stefanie", 1), ("steffani", "stefanie", 2), ("hochziet", "hochzeit", 1), ("", "ab", 2),
         ("munchn", "munchen", 1)],
    )  # fmt: skip
    def test_known(self, a: str, b: str, away: int) -> None:
        assert distance(a, b, 3) == away == distance(b, a, 3)
        assert away == 0 or distance(a, b, away - 1) is None

    @given(st.text("abc", max_size=8), st.text("abc", max_size=8))
    def test_it_is_a_distance(self, a: str, b: str) -> None:
        away = distance(a, b, 20)
        assert away is not None and away == distance(b, a, 20)
        assert (away == 0) == (a == b)
        assert abs(len(a) - len(b)) <= away <= max(len(a), len(b))

    def test_short_words_and_numbers_are_taken_as_they_are(self) -> None:
        assert [typos_allowed(one) for one in ("rom", "anna", "stefan", "stefanie", "2024", "r2d2")] == [0, 1, 1, 2, 0, 0]


class TestDates:
    @pytest.mark.parametrize(
        ("words", "word", "first", "last", "length"),
        [
            ("august 2024", "@202408", "2024-08-01", "2024-08-31", 2),
            ("aug 2024", "@202408", "2024-08-01", "2024-08-31", 2),
            ("März 2021", "@202103", "2021-03-01", "2021-03-31", 2),
            ("maerz 2021", "@202103", "2021-03-01", "2021-03-31", 2),
            ("2024-08", "@202408", "2024-08-01", "2024-08-31", 1),
            ("2024-08-17", "@20240817", "2024-08-17", "2024-08-17", 1),
            ("20240817", "@20240817", "2024-08-17", "2024-08-17", 1),
            ("17.8.2024", "@20240817", "2024-08-17", "2024-08-17", 1),
            ("17.08.24", "@20240817", "2024-08-17", "2024-08-17", 1),
            ("8/17/2024", "@20240817", "2024-08-17", "2024-08-17", 1),
            ("17. august 2024", "@20240817", "2024-08-17", "2024-08-17", 3),
            ("august 17, 2024", "@20240817", "2024-08-17", "2024-08-17", 3),
            ("17 august", "@m0817", None, None, 2),
            ("17.8.", "@m0817", None, None, 1),
            ("august", "@m08", None, None, 1),
            ("dezember 2023", "@202312", "2023-12-01", "2023-12-31", 2),
            ("1987", "@1987", "1987-01-01", "1987-12-31", 1),
        ],
    )
    def test_read(self, words: str, word: str, first: str | None, last: str | None, length: int) -> None:
        found = calendar_words.read(words.split())
        assert found is not None
        days = [None if one is None else one.isoformat() for one in (found.first, found.last)]
        assert (found.word, *days, found.length) == (word, first, last, length)

    @pytest.mark.parametrize(
        "words", ["anna", "17", "99.99.2024", "2024-13", "2024-02-30", "0042", "3000", "31. februar", "1.2.3.4"]
    )
    def test_no_dates(self, words: str) -> None:
        assert calendar_words.read(words.split()) is None

    @given(st.dates(date(1826, 1, 1), date(2100, 12, 31)))
    def test_every_day_is_found_by_what_it_is_called(self, day: date) -> None:
        names = {one for group in calendar_words.of_day(day) for one in group}
        german = calendar_words.MONTHS[day.month - 1][1 if len(calendar_words.MONTHS[day.month - 1]) > 1 else 0]
        for words in (day.isoformat(), f"{day:%d.%m.%Y}", f"{day:%Y%m%d}", f"{day.day}. {german} {day.year}", f"{day:%Y-%m}",
                      f"{german} {day.year}", f"{day.year}", german, f"{day.day} {german}"):  # fmt: skip
            found = calendar_words.read(words.split())
            assert found is not None and found.word in names, words
            assert found.first is None or (found.last is not None and found.first <= day <= found.last)

    def test_seasons_turn_around(self) -> None:
        july = date(2024, 7, 1)
        assert {"summer", "sommer"} <= {one for group in calendar_words.of_day(july) for one in group}
        assert "winter" in {one for group in calendar_words.of_day(july, southern=True) for one in group}

    def test_the_day_of_a_photo(self) -> None:
        uploaded = datetime(2026, 1, 1, tzinfo=UTC)
        shown = datetime(2024, 8, 17, 23, 30)
        assert day_of("IMG_20200101.jpg", shown, uploaded, uploaded) == date(2024, 8, 17)
        assert day_of("IMG_20240817_0012.jpg", None, uploaded, uploaded) == date(2024, 8, 17)
        assert day_of("2024-08-17 Rom.jpg", None, uploaded, uploaded) == date(2024, 8, 17)
        assert day_of("20249999.jpg", None, uploaded, uploaded) is None, "sorted by its upload, not taken then"
        assert day_of("a.jpg", None, datetime(1999, 5, 1, tzinfo=UTC), uploaded) == date(1999, 5, 1)


class TestDocument:
    def test_words_by_how_much_they_say(self) -> None:
        found = document(photo(file_name="IMG_0042.jpg", folder="Reisen/Rom", tags=("Straße",), camera="Canon EOS R5"))
        letters = {word: {letter for _, letter in places} for word, places in found.places.items()}
        assert letters["strasse"] == {"A"} and letters["rom"] == {"C"} and letters["r5"] == {"C"}
        assert letters["0042"] == letters["42"] == letters["img"] == {"D"}
        assert {"strasse", "reisen", "rom", "canon", HEARD + "strase"} <= found.vocabulary
        assert not [word for word in found.vocabulary if any(map(str.isdigit, word))]

    def test_phrases_stay_within_a_field(self) -> None:
        found = document(photo(tags=("new", "york"), folder="Old New/York"))
        places = {word: sorted(place for place, _ in at) for word, at in found.places.items()}
        # Once only, in the folder.
        assert sum(one + 1 in places["york"] for one in places["new"]) == 1
        assert all(second - first > 1 for first, second in pairwise([places["new"][0], places["york"][0]]))

    @settings(max_examples=60)
    @given(st.text(max_size=300), st.text(max_size=100), st.lists(st.text(max_size=30), max_size=5), st.dates() | st.none())
    def test_always_fit_for_the_database(self, caption: str, folder: str, tags: list[str], day: date | None) -> None:
        found = document(photo(texts=PictureTexts(caption=caption), folder=folder, tags=tuple(tags), day=day))
        assert len(found.places) <= MAX_WORDS
        for word, places in found.places.items():
            assert LEXEME.fullmatch(word) or word.startswith("@m"), word
            assert all(0 < place < 16_383 and letter in "ABCD" for place, letter in places)
        assert found.vocabulary <= set(found.places)

    def test_characters_that_are_many_words_each(self) -> None:
        # U+FDFA stands for a sentence of four words.
        bombs = tuple(chr(0x4E00 + place) + "\ufdfa" * 99 for place in range(100))
        found = document(photo(texts=PictureTexts(caption="\ufdfa" * 2000, keywords=bombs)))
        assert max(place for places in found.places.values() for place, _ in places) <= MAX_PLACES

    def test_why(self) -> None:
        texts = photo(tags=("Stefanie",), folder="Reisen/New York", day=date(2024, 8, 17), file_name="IMG_1.jpg")

        def why(*forms: Form) -> tuple[str, str, How] | None:
            found = Matcher().best(texts, "t", [(How.EXACT, forms), (How.BEGINNING, [])])
            return None if found is None else (found.field, found.text, found.how)

        assert why(Form(("stefanie",))) == ("tag", "Stefanie", How.EXACT)
        assert why(Form(("new", "york"))) == ("folder", "Reisen/New York", How.EXACT)
        assert why(Form(("york", "new"))) is None and why(Form(("rom",))) is None
        assert why(Form(("new", "yo"), prefix=True)) == ("folder", "Reisen/New York", How.EXACT)
        assert why(Form(("reisen", "yo"), prefix=True)) is None and why(Form(("ne", "york"), prefix=True)) is None
        assert why(Form(("@202408",))) == ("date", "2024-08-17", How.EXACT)
        loose = Matcher().best(texts, "t", [(How.BEGINNING, [Form(("ste",), prefix=True), Form((HEARD + "stefani",))])])
        assert loose is not None and loose.how is How.BEGINNING
        heard = Matcher().best(texts, "t", [(How.BEGINNING, [Form((HEARD + "stefani",))])])
        assert heard is not None and heard.how is How.SOUND


class TestQueries:
    def test_terms(self) -> None:
        terms = parse('fotos von Anna und Bob, "New York" im August 2024 IMG_0042')
        assert [term.text for term in terms] == ["Anna", "Bob", "New York", "August 2024", "IMG_0042"]
        assert [term.parted for term in terms] == [False, True, True, False, False]
        assert terms[2].quoted and terms[2].exact == (Form(("new", "york")),) and not terms[2].loose
        assert terms[3].date is not None and terms[3].date.word == "@202408"
        assert Form(("img", "0042")) in terms[4].exact

    def test_words_that_only_join_count_where_there_are_no_others(self) -> None:
        assert [term.text for term in parse("und")] == ["und"]
        assert [term.text for term in parse('"und" rom')] == ["und", "rom"]

    @pytest.mark.parametrize("text", ["", "   ", "%_*", "!!!", "\x00", "\u202e", "()", "&|!:*", "''"])
    def test_without_a_word(self, text: str) -> None:
        with pytest.raises(ValueError, match="no word"):
            parse(text)

    def test_bounds(self) -> None:
        with pytest.raises(ValueError, match="characters"):
            parse("a" * (MAX_QUERY + 1))
        with pytest.raises(ValueError, match="words"):
            parse("xx " * (MAX_TERMS + 1))
        assert len(parse("a" * MAX_QUERY)) == 1
        assert [term.text for term in parse("img anna IMG, Anna")] == ["img", "anna"]

    @settings(max_examples=200)
    @given(st.text(max_size=120))
    def test_whatever_is_typed(self, text: str) -> None:
        try:
            terms = parse(text)
        except ValueError:
            return
        assert 1 <= len(terms) <= MAX_TERMS
        for term in terms:
            assert term.exact
            assert all(LEXEME.fullmatch(w) or w.startswith("@m") for form in (*term.exact, *term.loose) for w in form.words)
            term.text.encode()


class TestCaptions:
    def test_xmp(self) -> None:
        found = texts_of(WRITTEN_XMP.encode() + b"\0", {}, {"title": ["other"], "keywords": ["sun", "EXIF"]})
        assert found == PictureTexts(
            title="Forum & Kolosseum",
            keywords=("ruins", "sun", "EXIF"),
            sublocation="Via Sacra",
            city="Roma",
            country="Italia",
        )

    def test_iptc(self) -> None:
        iptc: dict[tuple[int, int], bytes | list[bytes]] = {
            (2, 5): "Brücke".encode(), (2, 25): [b"a1", "Fluß".encode("latin-1")], (2, 90): b"Z\xfcrich", (2, 101): b"\x00-",
        }  # fmt: skip
        assert texts_of(None, iptc, {}) == PictureTexts(title="Brücke", keywords=("a1", "Fluß"), city="Zürich")

    def test_what_cameras_say_is_no_caption(self) -> None:
        assert texts_of(None, {}, {"caption": ["OLYMPUS DIGITAL CAMERA         "]}) == PictureTexts()
        assert texts_of(None, {}, {"caption": ["At noon"]}).caption == "At noon"

    @pytest.mark.parametrize(
        "packet",
        [
            b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;'>]><x>&b;</x>",
            b"<a" * 1000,
            b"\xff\xfe\x00",
            b"<x><y></x>",
            b"x" * (2 << 20),
            "<x>\ud800</x>",
            b"",
            b"<?xml version='1.0' encoding='klingon'?><x/>",
            b"<?xml version='1.0' encoding='rot13'?><x/>",
        ],
        ids=["entities", "depth", "bytes", "unbalanced", "long", "surrogate", "empty", "encoding", "no encoding of text"],
    )
    def test_hostile(self, packet: bytes | str) -> None:
        assert not any(read_xmp(packet).values())

    @given(st.binary(max_size=300))
    def test_anything(self, packet: bytes) -> None:
        texts_of(b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + packet, {(2, 120): packet, (2, 25): [packet]}, {})

    @given(st.text(max_size=400))
    def test_clean(self, text: str) -> None:
        found = clean(text, 50)
        assert found is None or (len(found) <= 50 and found == found.strip() and "\0" not in found)
