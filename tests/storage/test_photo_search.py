"""Finding photos through the API, on a real database: ranking, names, dates, what is kept in step, and hostile questions."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from serve_app.errors import KinlensError, ModelUnavailable
from serve_app.photos import PictureInfo, PictureTexts
from tests.api.conftest import image
from tests.storage.conftest import StoredWorld
from tests.storage.photo_library import QUERIES, Shot, build, put_face
from tests.storage.test_photos_api import add, tag, taken

SEARCH = "/api/v1/search/photos"

UNSEARCHABLE = [
    "%",
    "*",
    "_",
    "''",
    "&|!:*",
    "\\",
    "...",
    "\x00",
    "\u202e",
    "",
    " ",
    "a" * 501,
    "x" * 9_999,
    "x " * 200,
    "y" * 10_001,
]
ODD = [
    "'; DROP TABLE photos; --",
    "a:*&b|!c",
    "<->",
    "🎉",
    "👨‍👩‍👧",
    "محمد",
    "שלום",
    "a\x00b",
    "\ud800x".encode("utf-8", "replace").decode(),
    "x " * 16,
    "a'b\"c",
    "1e999",
    "NaN",
    "null",
    "-1",
    "99999999999999999999",
    "٢٠٢٤",
    "²⁰²⁴",
    "0000-00-00",
    "܀܁",
    "á́́́́́́",
    "(((((((((a",
    "@2024",
    "~boat",
    "boat:A",
    "'boat':*",
]
REFUSED: list[tuple[dict[str, Any], int]] = [
    ({}, 422),
    ({"limit": 3}, 422),
    ({"text": "..."}, 422),
    ({"text": "\ud800"}, 422),
    ({"persons": {"all": ["x" * 201]}}, 422),
    ({"persons": {"all": ["x"] * 21}}, 422),
    ({"persons": {"some": ["x"]}}, 422),
    ({"persons": "anna"}, 422),
    ({"persons": {"all": ["Nobody At All"]}}, 404),
    ({"image": "####"}, 422),
    ({"image": "aGVsbG8="}, 415),
    ({"image": "", "face_id": str(uuid4())}, 422),
    ({"text": "a", "limit": 501}, 422),
    ({"text": "a", "nonsense": 1}, 422),
    ({"text": 5}, 422),
]


async def found(world: StoredWorld, q: str, **query: Any) -> dict[str, Any]:
    response = await world.client.get(SEARCH, params={"q": q, **query})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def ids(world: StoredWorld, q: str, **query: Any) -> list[str]:
    return [item["photo"]["id"] for item in (await found(world, q, **query))["items"]]


async def test_people_find_what_they_mean(stored: StoredWorld) -> None:
    library = await build(stored)
    reciprocal, recalls, poor = [], [], []
    for q, relevant in QUERIES:
        expected = {photo_id for photo_id, shot in library.items() if relevant(shot)}
        assert expected, q
        top = (await ids(stored, q, limit=10))[:10]
        first = next((rank for rank, photo_id in enumerate(top, start=1) if photo_id in expected), None)
        reciprocal.append(1 / first if first else 0.0)
        recalls.append(len(expected & set(top)) / min(10, len(expected)))
        if reciprocal[-1] < 1 or recalls[-1] < 1:
            poor.append((q, round(reciprocal[-1], 2), round(recalls[-1], 2), [_shown(library[one]) for one in top[:3]]))
    mrr, recall = sum(reciprocal) / len(reciprocal), sum(recalls) / len(recalls)
    print(f"\n{len(QUERIES)} queries on {len(library)} photos: MRR {mrr:.3f}, recall@10 {recall:.3f}")
    for line in poor:
        print("   ", *line)
    assert mrr >= 0.95 and recall >= 0.95, poor


def _shown(shot: Shot) -> str:
    return f"{shot.folder}/{shot.file_name} {'+'.join(shot.persons)}"


def named(answer: dict[str, Any]) -> list[str]:
    return [item["photo"]["file_name"].partition(".")[0] for item in answer["items"]]


async def vocabulary(world: StoredWorld) -> set[str]:
    return {row["word"] for row in await world.rows("SELECT word FROM photo_vocabulary")}


class TestInStep:
    """What is found is what is there, at once."""

    async def test_upload_tags_and_deletion(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1, taken("2024-08-17T12:00"), folder="Zugspitze", tags='["Gipfelkreuz"]')
        other = await add(stored, 2, folder="Zugspitze")
        assert set(await ids(stored, "zugspitze")) == {photo["id"], other["id"]}
        (hit,) = (await found(stored, "gipfelkreuz"))["items"]
        assert hit["photo"] == photo and hit["complete"]
        assert hit["matches"] == [
            {"term": "gipfelkreuz", "field": "tag", "text": "Gipfelkreuz", "how": "exact", "person_id": None}
        ]
        await tag(stored, photo, tags=["Seilbahn"])
        assert await ids(stored, "gipfelkreuz") == [] and await ids(stored, "seilbahn") == [photo["id"]]
        assert not any("gipfel" in word for word in await vocabulary(stored)), "no photo has it any more"
        assert (await stored.client.delete(f"/api/v1/photos/{photo['id']}")).status_code == 200
        assert await ids(stored, "seilbahn") == [] and await ids(stored, "zugspitze") == [other["id"]]
        words = await vocabulary(stored)
        assert "seilbahn" not in words and "zugspitze" in words
        assert (await stored.client.delete(f"/api/v1/photos/{other['id']}")).status_code == 200
        assert await vocabulary(stored) == set()
        assert await stored.rows("SELECT 1 FROM photo_texts") == []

    async def test_the_whole_collection(self, stored: StoredWorld) -> None:
        await add(stored, 1, folder="Zugspitze")
        receipt = (await stored.client.delete("/api/v1/collections/library")).json()
        assert receipt["remaining_rows"] == 0
        assert await vocabulary(stored) == set() and await stored.rows("SELECT 1 FROM photo_texts") == []
        assert named(await found(stored, "zugspitze")) == []

    async def test_a_word_that_one_removes_while_another_writes_it(self, stored: StoredWorld) -> None:
        """The vocabulary never lacks a word that a photo has."""
        for round_ in range(6):
            old = await add(stored, 100 + round_, tags='["Murmeltier"]')
            await asyncio.gather(
                stored.client.delete(f"/api/v1/photos/{old['id']}"), add(stored, 200 + round_, tags='["Murmeltier"]')
            )
            assert "murmeltier" in await vocabulary(stored)
            (new,) = await ids(stored, "murmeltir")
            assert (await stored.client.delete(f"/api/v1/photos/{new}")).status_code == 200
            assert await vocabulary(stored) == set()

    async def test_photos_of_before_an_upgrade(self, stored: StoredWorld) -> None:
        photos = [await add(stored, number, folder="Zugspitze") for number in range(3)]
        await stored.rows("DELETE FROM photo_texts")
        await stored.rows("DELETE FROM photo_vocabulary")
        await stored.rows("UPDATE photos SET words_version = 0")
        assert (await found(stored, "zugspitze"))["unread_photos"] == 3
        await stored.gallery.housekeeping.once()
        answer = await found(stored, "zugspitze")
        assert {item["photo"]["id"] for item in answer["items"]} == {photo["id"] for photo in photos}
        assert answer["unread_photos"] == 0 and "zugspitze" in await vocabulary(stored)

    async def test_names_are_those_of_now(self, stored: StoredWorld) -> None:
        photo = await add(stored, 1)
        person = await stored.person("/api/v1/collections/library", name="Anna")
        await put_face(stored, photo["id"], person)
        (hit,) = (await found(stored, "anna"))["items"]
        assert hit["matches"] == [{"term": "anna", "field": "person", "text": "Anna", "how": "exact", "person_id": person}]
        await stored.client.patch(f"/api/v1/collections/library/persons/{person}", json={"name": "Beate"})
        assert await ids(stored, "anna") == [] and await ids(stored, "beate") == [photo["id"]]
        await stored.rows("UPDATE persons SET name = 'दीपक'")
        assert await ids(stored, "Deepak") == [photo["id"]], "whoever changed it"
        await stored.rows("UPDATE persons SET hidden = true")
        assert await ids(stored, "Deepak") == [], "hidden persons are nobody's business"


class TestQuestions:
    async def test_what_was_understood(self, stored: StoredWorld) -> None:
        await add(stored, 1, taken("2024-08-17T12:00"), tags='["beach"]')
        answer = await found(stored, "beach qqqqq august 2024")
        assert answer["understood"] == {
            "terms": ["beach", "august 2024"], "ignored": ["qqqqq"], "persons": [],
            "taken_from": "2024-08-01", "taken_to": "2024-09-01",
        }  # fmt: skip
        assert not answer["complete"] and named(answer) == ["1"]
        assert answer["semantic"] == "unavailable" and (await found(stored, "beach", semantic=False))["semantic"] == "off"
        assert (await found(stored, "august 2024"))["semantic"] == "off"

    async def test_all_words_unless_no_photo_has_them(self, stored: StoredWorld) -> None:
        await add(stored, 1, tags='["red"]')
        await add(stored, 2, tags='["red", "car"]')
        await add(stored, 3, tags='["boat"]')
        answer = await found(stored, "red car")
        assert named(answer) == ["2"] and answer["complete"]
        answer = await found(stored, "red boat")
        assert set(named(answer)) == {"1", "2", "3"} and not answer["complete"]
        assert not any(item["complete"] for item in answer["items"])

    async def test_what_says_more_comes_first(self, stored: StoredWorld) -> None:
        await add(stored, 1, folder="Rom")
        await add(stored, 2, PictureInfo("JPEG", 640, 480, texts=PictureTexts(city="Rom")))
        await add(stored, 3, tags='["Rom"]')
        await add(stored, 4, tags='["Romantik"]')
        await add(stored, 5, folder="anderswo")
        answer = await found(stored, "rom")
        assert named(answer) == ["3", "2", "4", "1"]
        scores = [item["text_score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True) and scores[0] == 1.0

    async def test_phrases(self, stored: StoredWorld) -> None:
        await add(stored, 1, folder="New York")
        await add(stored, 2, tags='["york", "new"]')
        assert set(named(await found(stored, "new york"))) == {"1", "2"}
        assert named(await found(stored, '"new york"')) == ["1"]
        assert named(await found(stored, '"york new"')) == []

    async def test_filters_hold(self, stored: StoredWorld) -> None:
        person = None
        for number, (folder, day) in enumerate(
            [("a", "2020-01-01"), ("a/b", "2021-01-01"), ("a/bc", "2022-01-01"), ("ab", "2023-01-01")]
        ):
            photo = await add(stored, number, taken(f"{day}T12:00"), folder=folder, tags='["boat"]')
            person = person or await stored.person("/api/v1/collections/library", name="Zoe")
            if number % 2:
                await put_face(stored, photo["id"], person)
        assert named(await found(stored, "boat")) == ["3", "2", "1", "0"]
        assert named(await found(stored, "boat", folder="a")) == ["0"]
        assert named(await found(stored, "boat", folder="a", subfolders=True)) == ["2", "1", "0"]
        assert named(await found(stored, "boat", taken_from="2021-01-01", taken_to="2023-01-01")) == ["2", "1"]
        assert named(await found(stored, "boat", person_id=person)) == ["3", "1"]
        assert named(await found(stored, "boat", person_id=person, persons="none")) == ["2", "0"]
        assert named(await found(stored, "boat zoe", folder="a", subfolders=True)) == ["1"]
        listed = await stored.client.get("/api/v1/photos", params={"folder": "a", "subfolders": True})
        assert [one["file_name"] for one in listed.json()["items"]] == ["2.jpg", "1.jpg", "0.jpg"]

    async def test_a_name_that_is_also_a_word(self, stored: StoredWorld) -> None:
        in_folder = await add(stored, 1, folder="August")
        in_photo = await add(stored, 2, tags='["boat"]')
        person = await stored.person("/api/v1/collections/library", name="August Meier")
        await put_face(stored, in_photo["id"], person)
        assert set(await ids(stored, "august")) == {in_folder["id"], in_photo["id"]}
        assert await ids(stored, "august boat") == [in_photo["id"]]
        assert await ids(stored, "august meier") == [in_photo["id"]]

    async def test_pages(self, stored: StoredWorld) -> None:
        for number in range(7):
            await add(stored, number, tags='["boat"]')
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = await found(stored, "boat", limit=3, **cursor)
            seen += named(page)
            if page["next_cursor"] is None:
                break
            if not cursor:
                await add(stored, 50, tags='["boat"]')
            cursor = {"cursor": page["next_cursor"]}
        assert seen == ["6", "5", "4", "3", "2", "1", "0"], "the one that came meanwhile moves nobody"
        other = await stored.client.get(SEARCH, params={"q": "boot", "limit": 3, **cursor})
        assert other.status_code == 422 and other.json()["code"] == "invalid_cursor"

    async def test_what_cannot_be_looked_for(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        for q in UNSEARCHABLE:
            response = await stored.client.get(SEARCH, params={"q": q})
            assert response.status_code == 422 and response.json()["code"] == "invalid_request", ascii(q[:50])

    async def test_odd_questions_have_plain_answers(self, stored: StoredWorld) -> None:
        await add(stored, 1, taken("2024-05-05T12:00"), tags='["boat", "🎉"]')
        for q in ODD:
            response = await stored.client.get(SEARCH, params={"q": q})
            assert response.status_code in (200, 422), (ascii(q), response.text)
        assert named(await found(stored, "🎉")) == ["1"]

    async def test_parameters(self, stored: StoredWorld) -> None:
        for query in (
            {},
            {"q": "a", "nonsense": "1"},
            {"q": "a", "limit": "0"},
            {"q": "a", "cursor": "x"},
            {"q": "a", "taken_from": "x"},
        ):
            assert (await stored.client.get(SEARCH, params=query)).status_code == 422, query
        assert (await stored.client.get("/api/search/photos", params={"q": "a"})).status_code == 200
        anonymous = await stored.client.get(SEARCH, params={"q": "a"}, headers={"Authorization": ""})
        assert anonymous.status_code == 401


class TestByPerson:
    async def test_ids_and_names(self, stored: StoredWorld) -> None:
        photos = [await add(stored, number, taken(f"202{number}-01-01T12:00")) for number in range(4)]
        library = "/api/v1/collections/library"
        anna, bob = await stored.person(library, name="Anna Müller"), await stored.person(library, name="Bob")
        for number, people in enumerate([(anna,), (bob,), (anna, bob), ()]):
            for person in people:
                await put_face(stored, photos[number]["id"], person)

        async def by(**query: Any) -> list[str]:
            response = await stored.client.get("/api/v1/search/by-person", params=query)
            assert response.status_code == 200, response.text
            return [one["file_name"].partition(".")[0] for one in response.json()["items"]]

        assert await by(person_id=anna) == await by(name="anna") == await by(name="MUELLER") == ["2", "0"]
        assert await by(name="anna", order="asc") == ["0", "2"]
        assert await by(name=["anna", "Bob"], match="all") == ["2"]
        assert await by(name=["anna"], person_id=bob) == ["2", "1", "0"]
        assert await by(name=["anna", "bob"], match="none") == ["3"]
        assert await by(name="anna", taken_from="2021-01-01") == ["2"]
        first = (await stored.client.get("/api/search/by-person", params={"name": "anna", "limit": 1})).json()
        assert first["persons"] == [{"id": anna, "name": "Anna Müller"}] and first["next_cursor"]
        rest = await stored.client.get(
            "/api/search/by-person", params={"name": "anna", "limit": 1, "cursor": first["next_cursor"]}
        )
        assert [one["file_name"] for one in rest.json()["items"]] == ["0.jpg"] and rest.json()["next_cursor"] is None
        for query, status in (({"name": "Carla"}, 404), ({"person_id": str(uuid4())}, 404), ({}, 422), ({"name": "%"}, 404)):
            assert (await stored.client.get("/api/v1/search/by-person", params=query)).status_code == status, query

    async def test_before_the_first_photo(self, stored: StoredWorld) -> None:
        assert (await stored.client.get("/api/v1/search/by-person", params={"name": "anna"})).status_code == 404
        assert named(await found(stored, "anna")) == []


class TestEverythingAtOnce:
    async def post(self, world: StoredWorld, **body: object) -> dict[str, Any]:
        response = await world.client.post(SEARCH, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def library(self, world: StoredWorld) -> tuple[str, str]:
        """Anna in 0, 1, 2; Bob in 1; somebody unknown, who looks as identity 2 does, in 3."""
        for number in range(5):
            await add(world, number, taken(f"202{number}-06-01T12:00"), tags='["boat"]' if number % 2 else '["car"]')
        photos = {p["file_name"]: p["id"] for p in (await world.client.get("/api/v1/photos")).json()["items"]}
        anna = await world.person("/api/v1/collections/library", name="Anna")
        bob = await world.person("/api/v1/collections/library", name="Bob")
        await world.enrol_vector("/api/v1/collections/library", anna, [1.0, 0, 0, 0])
        await world.enrol_vector("/api/v1/collections/library", bob, [0, 1.0, 0, 0])
        for number in range(3):
            await put_face(world, photos[f"{number}.jpg"], anna)
        await put_face(world, photos["1.jpg"], bob, "[0,1,0,0]")
        await put_face(world, photos["3.jpg"], None, "[0,0,1,0]")
        return anna, bob

    async def test_persons_text_and_dates(self, stored: StoredWorld) -> None:
        anna, bob = await self.library(stored)
        assert named(await self.post(stored, persons={"all": ["Anna"]})) == ["2", "1", "0"]
        assert named(await self.post(stored, persons={"all": [anna], "none": ["bob"]})) == ["2", "0"]
        assert named(await self.post(stored, persons={"all": ["Anna", bob]})) == ["1"]
        assert named(await self.post(stored, persons={"any": ["Anna", "Bob"]}, text="boat")) == ["1"]
        (hit,) = (await self.post(stored, text="car", persons={"none": ["Anna"]}))["items"]
        assert hit["photo"]["file_name"] == "4.jpg" and hit["face_id"] is hit["decision"] is hit["similarity"] is None
        assert named(await self.post(stored, persons={"all": ["Anna"]}, taken_to="2022-01-01", tags=["car"])) == ["0"]
        assert named(await self.post(stored, text="anna 2022", persons={"none": ["Bob"]})) == ["2"]

    async def test_a_selfie_of_somebody_known(self, stored: StoredWorld) -> None:
        anna, _ = await self.library(stored)
        before = await stored.object_keys()
        selfie = base64.b64encode(image(identity=0)).decode()
        answer = await self.post(stored, image=selfie, text="car")
        assert named(answer) == ["2", "0"]
        assert answer["selfie"]["decision"] == "match" and answer["selfie"]["best"]["id"] == anna
        best = answer["selfie"]["best"]
        assert best["similarity"] == pytest.approx(1, abs=1e-3) and answer["selfie"]["face_count"] == 1
        # The exemplar is one of hers, and of each photo the face that is hers.
        hers = await stored.rows("SELECT f.id, q.id AS photo FROM faces f LEFT JOIN photos q ON q.image_id = f.image_id"
                                 " WHERE f.person_id = $1", anna)  # fmt: skip
        assert best["face_id"] in {str(row["id"]) for row in hers}
        in_photo = {str(row["photo"]): str(row["id"]) for row in hers}
        for hit in answer["items"]:
            assert hit["face_id"] == in_photo[hit["photo"]["id"]] and hit["decision"] == "match"
            assert hit["similarity"] == pytest.approx(1, abs=1e-3)
        response = await stored.client.post(
            SEARCH, files={"file": ("me.jpg", image(identity=0))}, data={"persons": '{"all": ["Bob"]}'}
        )
        assert named(response.json()) == ["1"], response.text
        assert await stored.object_keys() == before, "a selfie is not kept"
        assert (await stored.rows("SELECT count(*) AS n FROM faces"))[0]["n"] == 7

    async def test_a_selfie_of_somebody_unknown(self, stored: StoredWorld) -> None:
        await self.library(stored)
        answer = await self.post(stored, image=base64.b64encode(image(identity=2)).decode())
        assert answer["selfie"]["decision"] == "unknown" and named(answer) == ["3"]
        (hit,) = answer["items"]
        (theirs,) = await stored.rows("SELECT id FROM faces WHERE person_id IS NULL")
        assert hit["similarity"] == pytest.approx(1, abs=1e-3)
        assert (hit["face_id"], hit["decision"]) == (str(theirs["id"]), "match")
        assert named(await self.post(stored, image=base64.b64encode(image(identity=2)).decode(), text="boat")) == ["3"]
        assert named(await self.post(stored, image=base64.b64encode(image(identity=2)).decode(), text="car")) == []
        assert named(await self.post(stored, image=base64.b64encode(image(identity=2)).decode(), tags=["car"])) == []
        nobody = await self.post(stored, image=base64.b64encode(image(identity=3)).decode())
        assert nobody["selfie"]["decision"] == "unknown" and named(nobody) == []

    async def test_a_selfie_that_may_be_somebody(self, stored: StoredWorld) -> None:
        await self.library(stored)
        # 0.33 like Anna: between the two thresholds.
        answer = await self.post(stored, image=base64.b64encode(image(identity=100)).decode())
        assert answer["selfie"]["decision"] in ("ambiguous", "match")
        assert answer["items"], answer
        assert all(hit["face_id"] and hit["decision"] in ("ambiguous", "match") for hit in answer["items"])

    @pytest.mark.parametrize("mode", ["exact", "templates"])
    async def test_a_hidden_person_is_not_recognised(self, stored: StoredWorld, mode: str) -> None:
        await self.library(stored)
        # However many others are.
        await stored.rows(
            "INSERT INTO persons (id, collection_key, name, metadata, hidden)"
            " SELECT lpad(to_hex(n), 32, '0')::uuid, (SELECT collection_key FROM persons WHERE name = 'Anna'), '', '{}', true"
            " FROM generate_series(1, 1500) n"
        )
        await stored.rows("UPDATE persons SET hidden = true WHERE name = 'Anna'")
        async with stored.gallery.database.connection() as connection:
            await connection.execute("UPDATE collections SET search_mode = $1", mode)
        answer = await self.post(stored, image=base64.b64encode(image(identity=0)).decode())
        assert answer["selfie"]["decision"] == "unknown" and named(answer) == []

    async def test_a_face_of_the_library(self, stored: StoredWorld) -> None:
        await self.library(stored)
        rows = await stored.rows("SELECT id, person_id FROM faces WHERE image_id IS NOT NULL ORDER BY person_id NULLS LAST")
        answer = await self.post(stored, face_id=str(rows[-1]["id"]))
        assert named(answer) == ["3"] and answer["selfie"]["face_count"] is None
        response = await stored.client.post(SEARCH, json={"face_id": str(uuid4())})
        assert response.status_code == 404

    async def test_refused(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        for body, status in REFUSED:
            response = await stored.client.post(SEARCH, content=json.dumps(body), headers={"Content-Type": "application/json"})
            assert response.status_code == status, (body, response.text)

    async def test_no_face(self, stored: StoredWorld) -> None:
        await add(stored, 1)
        response = await stored.client.post(SEARCH, json={"image": base64.b64encode(image(faces=0)).decode()})
        assert response.status_code == 422 and response.json()["code"] == "no_face_detected"


class Ranker:
    """What a model would say a photo shows, by its file name."""

    def __init__(self, order: list[UUID] | None, error: KinlensError | None = None) -> None:
        self.order, self.error, self.asked = order, error, []  # type: ignore[var-annotated]

    async def rank(self, collection_id: str, text: str, limit: int) -> list[UUID] | None:
        self.asked.append(text)
        if self.error is not None:
            raise self.error
        return None if self.order is None else self.order[:limit]

    async def rank_among(self, collection_id: str, text: str, photo_ids: Sequence[UUID]) -> list[UUID] | None:
        found = await self.rank(collection_id, text, 1000)
        return None if found is None else [one for one in found if one in set(photo_ids)]


async def test_what_photos_show_comes_after_what_is_written(stored: StoredWorld) -> None:
    photos = [
        await add(stored, number, tags='["boat"]' if number == 2 else "[]", folder="x" if number else "y")
        for number in range(4)
    ]
    order = [UUID(photos[number]["id"]) for number in (0, 3, 2)]
    stored.gallery.photo_search._semantic = ranker = Ranker(order)
    answer = await found(stored, "boat")
    assert named(answer) == ["2", "0", "3"] and answer["semantic"] == "used"
    assert [item["semantic_rank"] for item in answer["items"]] == [3, 1, 2]
    assert [item["text_score"] for item in answer["items"]] == [1.0, None, None]
    assert named(await found(stored, "boat", folder="x")) == ["2", "3"]
    assert named(await found(stored, "sunset")) == ["0", "3", "2"], "nothing is written of it"
    assert ranker.asked == ["boat", "boat", "sunset"]
    ranker.error = ModelUnavailable("It is gone.")
    answer = await found(stored, "boat")
    assert named(answer) == ["2"] and answer["semantic"] == "unavailable"
