"""The journal: every decision can be undone and done again, by one, and erasing a person erases what it says."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.api.deps import PREFIX
from tests.storage.conftest import StoredWorld
from tests.storage.people_world import People, open_people

Step = tuple[str, int, int, int]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("assign", "name", "unassign", "release", "reject", "hide", "unhide", "split", "merge", "merge_two", "rename",
             "external", "hide_person", "cover", "delete", "create", "not_same")
        ),
        *(st.integers(0, 11) for _ in range(3)),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@pytest.fixture
async def people(stored: StoredWorld) -> People:
    return await open_people(stored)


async def step(people: People, what: Step) -> str | None:
    """The entry of the journal; None where it could not be done or changed nothing."""
    action, one, two, three = what
    rows = await people.world.rows("SELECT id, person_id, hidden FROM faces ORDER BY id")
    faces = [str(row["id"]) for row in rows]
    owned = {str(row["id"]): str(row["person_id"]) for row in rows if row["person_id"]}
    persons = [str(row["id"]) for row in await people.world.rows("SELECT id FROM persons ORDER BY id")]
    if not persons:
        # The steps before have taken away all of them.
        return None
    face, other_face = faces[one % len(faces)], faces[two % len(faces)]
    person, other, third = (persons[number % len(persons)] for number in (one, two, three))
    owner = owned.get(face, person)
    both = list(dict.fromkeys((face, other_face)))
    method, path, body = {
        "assign": ("POST", "/faces/assign-person", {"face_ids": both, "person_id": third}),
        "name": ("POST", f"/faces/{face}/assign-person", {"name": f"Name {three % 3}"}),
        "unassign": ("POST", "/faces/unassign", {"face_ids": both}),
        "release": ("POST", "/faces/unassign", {"face_ids": both, "release": True}),
        "reject": ("POST", f"/faces/{face}/reject-person", {"person_id": owner if two % 2 else other}),
        "hide": ("POST", "/faces/hide", {"face_ids": both}),
        "unhide": ("POST", "/faces/unhide", {"face_ids": faces[one % 4 :]}),
        "split": ("POST", f"/persons/{owner}/split", {"face_ids": [face], "name": "New" if two % 2 else ""}),
        "merge": ("POST", f"/persons/{person}/merge", {"source_person_id": other}),
        "merge_two": ("POST", f"/persons/{person}/merge", {"source_person_ids": [other, third]}),
        "rename": ("PUT", f"/persons/{person}", {"name": f"Name {two % 3}", "metadata": {"n": three}}),
        "external": ("PUT", f"/persons/{person}", {"external_id": None if two == 0 else f"x{two % 3}"}),
        "hide_person": ("PUT", f"/persons/{person}", {"hidden": bool(two % 2)}),
        "cover": ("PUT", f"/persons/{owner}", {"cover_face_id": face if two else None}),
        "delete": ("DELETE", f"/persons/{person}", None),
        "create": ("POST", "/persons", {"name": f"Name {two % 3}", "external_id": f"x{three % 3}"}),
        "not_same": ("POST", f"/persons/{person}/not-same", {"person_id": other}),
    }[action]
    response = await people.client.request(method, f"{PREFIX}{path}", json=body)
    if response.status_code >= 400:
        assert response.json()["code"] in ("already_exists", "not_found", "invalid_request", "ambiguous_name"), response.text
        return None
    found: str | None = response.json()["journal_id"]
    return found


async def undo_all(people: People, entries: list[str]) -> list[str]:
    """In reverse; the undoings."""
    undone = []
    for entry in reversed(entries):
        answer = await people.undo(entry)
        assert answer["kept"] == [], answer
        undone.append(answer["journal_id"])
    await people.check()
    return undone


async def furnish(people: People) -> None:
    await people.group(3, 0)
    await people.group(2, 1, "Name 0")
    await people.group(1, 2)
    await people.group(2, 3, "Anna")
    await people.nobodys(2, 1)


class TestProperties:
    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )
    @given(steps=_STEPS)
    async def test_all_undone_is_as_before_and_redone_as_after(self, people: People, steps: list[Step]) -> None:
        if not await people.world.rows("SELECT 1 FROM faces"):
            await furnish(people)
        before = await people.state()
        entries = [entry for one in steps if (entry := await step(people, one))]
        await people.check()
        after = await people.state()
        undone = await undo_all(people, entries)
        assert await people.state() == before
        redone = await undo_all(people, undone)
        assert await people.state() == after
        # For the next example, and once more.
        await undo_all(people, redone)
        assert await people.state() == before

    @settings(
        max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )
    @given(steps=_STEPS, order=st.randoms(use_true_random=False))
    async def test_undone_in_any_order_all_stays_in_step(self, people: People, steps: list[Step], order: Any) -> None:
        if not await people.world.rows("SELECT 1 FROM faces"):
            await furnish(people)
        entries = [entry for one in steps if (entry := await step(people, one))]
        order.shuffle(entries)
        for entry in entries:
            response = await people.client.post(f"{PREFIX}/journal/{entry}/undo")
            assert response.status_code == 200 or response.json()["code"] == "nothing_to_undo", response.text
        await people.check()
        if len(await people.world.rows("SELECT 1 FROM persons")) < 2:
            await people.post("/persons")
            await people.post("/persons")


class TestUndo:
    async def test_once(self, people: People) -> None:
        target, _ = await people.group(2, 0)
        source, _ = await people.group(2, 1)
        merged = (await people.post(f"/persons/{target}/merge", source_person_id=source))["journal_id"]
        answers = await asyncio.gather(*(people.client.post(f"{PREFIX}/journal/{merged}/undo") for _ in range(5)))
        assert sorted(one.status_code for one in answers) == [200, 409, 409, 409, 409]
        assert {one.json()["code"] for one in answers if one.status_code == 409} == {"already_undone"}
        (undone,) = (one.json()["journal_id"] for one in answers if one.status_code == 200)
        entry = await people.get(f"/journal/{merged}")
        assert entry["undone_by"] == undone and (await people.get(f"/journal/{undone}"))["undoes"] == merged
        await people.check()

    async def test_what_was_changed_since_stays(self, people: People) -> None:
        target, _ = await people.group(2, 0)
        source, (one, two) = await people.group(2, 1)
        third, _ = await people.group(1, 2)
        merged = await people.post(f"/persons/{target}/merge", source_person_id=source)
        await people.post(f"/faces/{one}/assign-person", person_id=third)
        undone = await people.undo(merged["journal_id"])
        assert [(kept["reason"], kept["face_id"]) for kept in undone["kept"]] == [("changed_since", one)]
        assert await people.whose(one, two) == [(third, "user"), (source, "machine")]
        await people.check()

    async def test_nobody_comes_back_without_faces(self, people: People) -> None:
        target, _ = await people.group(2, 0)
        source, faces = await people.group(2, 1, "Anna")
        third, _ = await people.group(1, 2)
        merged = await people.post(f"/persons/{target}/merge", source_person_id=source)
        await people.post(f"/persons/{third}/merge", source_person_id=target)
        response = await people.client.post(f"{PREFIX}/journal/{merged['journal_id']}/undo")
        assert response.status_code == 409 and response.json()["code"] == "nothing_to_undo"
        reasons = {kept["reason"] for kept in response.json()["details"]["kept"]}
        assert reasons == {"changed_since", "person_gone"}
        assert await people.whose(*faces) == [(third, "user")] * 2

    async def test_a_rename_since(self, people: People) -> None:
        person = (await people.post("/persons", name="Anna"))["id"]
        first = await people.ok("PUT", f"/persons/{person}", {"name": "Berta", "metadata": {"a": 1}})
        await people.ok("PUT", f"/persons/{person}", {"name": "Clara"})
        undone = await people.undo(first["journal_id"])
        assert [(kept["reason"], kept["field"]) for kept in undone["kept"]] == [("changed_since", "name")]
        found = await people.get(f"/persons/{person}")
        assert (found["name"], found["metadata"]) == ("Clara", {})

    async def test_an_external_id_that_is_taken(self, people: People) -> None:
        person = (await people.post("/persons", name="Anna", external_id="x"))["id"]
        deleted = await people.ok("DELETE", f"/persons/{person}")
        await people.post("/persons", name="Berta", external_id="x")
        undone = await people.undo(deleted["journal_id"])
        assert [(kept["reason"], kept["person_id"]) for kept in undone["kept"]] == [("external_id_taken", person)]
        found = await people.get(f"/persons/{person}")
        assert (found["name"], found["external_id"]) == ("Anna", None)
        # The undoing knows what it did: taken back and done again, it is the same.
        again = await people.undo(undone["journal_id"])
        await people.undo(again["journal_id"])
        assert (await people.get(f"/persons/{person}"))["external_id"] is None

    async def test_a_person_that_has_more_faces_since(self, people: People) -> None:
        person, faces = await people.group(3, 0)
        split = await people.post(f"/persons/{person}/split", face_ids=faces[:1])
        (late,) = await people.nobodys(1)
        await people.post(f"/faces/{late}/assign-person", person_id=split["id"])
        undone = await people.undo(split["journal_id"])
        assert [kept["reason"] for kept in undone["kept"]] == ["has_faces"]
        assert await people.whose(faces[0], late) == [(person, "machine"), (split["id"], "user")]
        await people.check()

    async def test_a_rejection_since(self, people: People) -> None:
        person, (face, *_) = await people.group(2, 0)
        other, _ = await people.group(2, 1)
        moved = await people.post(f"/faces/{face}/assign-person", person_id=other)
        await people.post(f"/faces/{face}/reject-person", person_id=person)
        assert await people.refused("POST", f"/journal/{moved['journal_id']}/undo") == (409, "nothing_to_undo")
        assert await people.whose(face) == [(other, "user")]

    async def test_a_face_that_the_machine_looked_at_since(self, people: People) -> None:
        _, (face, *_) = await people.group(2, 0)
        hidden = await people.post(f"/faces/{face}/hide")
        shown = await people.post(f"/faces/{face}/unhide")
        # A note of the machine's is no decision.
        await people.world.rows('UPDATE faces SET unassigned = \'{"code": "alone"}\' WHERE id = $1 RETURNING 1', face)
        assert (await people.undo(shown["journal_id"]))["kept"] == []
        assert (await people.undo(hidden["journal_id"]))["kept"] == []
        await people.check()

    async def test_with_a_merge_at_the_same_time(self, people: People) -> None:
        for _ in range(4):
            one, (face, *_) = await people.group(3, 0)
            two, _ = await people.group(2, 1)
            three, _ = await people.group(2, 2)
            moved = await people.post(f"/faces/{face}/assign-person", person_id=two)
            answers = await asyncio.gather(
                people.client.post(f"{PREFIX}/persons/{three}/merge", json={"source_person_ids": [two, one]}),
                people.client.post(f"{PREFIX}/journal/{moved['journal_id']}/undo"),
            )
            assert answers[0].status_code == 200 and answers[1].status_code in (200, 409)
            assert await people.whose(face) == [(three, "user")]
            await people.check()

    async def test_a_face_that_is_gone(self, people: People) -> None:
        target, _ = await people.group(2, 0)
        source, (one, two) = await people.group(2, 1)
        merged = await people.post(f"/persons/{target}/merge", source_person_id=source)
        # As indexing removes what it does not find any more: not an erasure, the journal still knows it.
        async with people.world.gallery.database.transaction() as tx:
            await tx.execute("DELETE FROM faces WHERE id = $1", one)
            await tx.execute(f"DELETE FROM embeddings_m1_c{people.collection.key} WHERE face_id = $1", one)
        undone = await people.undo(merged["journal_id"])
        assert [(kept["reason"], kept["face_id"]) for kept in undone["kept"]] == [("face_gone", one)]
        assert await people.whose(two) == [(source, "machine")]

    async def test_of_another_collection_or_nothing(self, people: People) -> None:
        made = (await people.post("/persons", name="Anna"))["journal_id"]
        await people.world.collection("elsewhere")
        # As if it were another collection's.
        await people.world.rows(
            "UPDATE journal SET collection_key = (SELECT key FROM collections WHERE id = 'elsewhere') RETURNING 1"
        )
        assert await people.refused("GET", f"/journal/{made}") == (404, "not_found")
        assert await people.refused("POST", f"/journal/{made}/undo") == (404, "not_found")
        assert (await people.get("/journal"))["items"] == []
        assert await people.refused("POST", f"/journal/{uuid4()}/undo") == (404, "not_found")
        assert await people.refused("POST", "/journal/x/undo") == (422, "invalid_request")
        assert await people.refused("POST", f"/journal/{made}/undo", {"force": True}) == (422, "invalid_request")

    async def test_a_repetition_is_answered_as_before(self, people: People) -> None:
        made = (await people.post("/persons", name="Anna"))["journal_id"]
        headers = {"Idempotency-Key": "once"}
        answers = [await people.client.post(f"{PREFIX}/journal/{made}/undo", headers=headers) for _ in range(2)]
        assert answers[0].json() == answers[1].json() and answers[1].status_code == 200


class TestListing:
    async def test_pages_and_filters(self, people: People) -> None:
        person, (face, *_) = await people.group(2, 0)
        other = await people.post("/persons", name="Anna")
        moved = await people.post(f"/faces/{face}/assign-person", person_id=other["id"])
        hidden = await people.ok("PUT", f"/persons/{other['id']}", {"hidden": True})
        newest_first = [hidden["journal_id"], moved["journal_id"], other["journal_id"]]
        page = await people.get("/journal?limit=2")
        assert [one["id"] for one in page["items"]] == newest_first[:2]
        rest = await people.get(f"/journal?limit=2&cursor={page['next_cursor']}")
        assert [one["id"] for one in rest["items"]] == newest_first[2:]
        for query, wanted in (
            (f"person_id={person}", newest_first[1:2]),
            (f"face_id={face}", newest_first[1:2]),
            (f"person_id={other['id']}", newest_first),
            (f"person_id={other['id']}&face_id={face}", newest_first[1:2]),
            ("action=create_person", newest_first[2:]),
            (f"person_id={uuid4()}", []),
        ):
            assert [one["id"] for one in (await people.get(f"/journal?{query}"))["items"]] == wanted, query
        for query in ("action=x", "limit=0", "limit=201", "person_id=x", "cursor=x", "sort=at"):
            assert (await people.refused("GET", f"/journal?{query}"))[0] == 422

    async def test_a_listing_does_not_grow_with_what_was_decided(self, people: People) -> None:
        metadata = {"note": "x" * 16_000}
        async with people.world.gallery.database.connection() as connection:
            rows = await connection.fetch(
                "INSERT INTO persons (id, collection_key, name, metadata, founded_by)"
                " SELECT gen_random_uuid(), $1, 'person ' || n, $2, 'user' FROM generate_series(1, 150) n RETURNING id",
                people.collection.key,
                metadata,
            )
        target = await people.post("/persons", name="Anna", metadata=metadata)
        merged = await people.post(f"/persons/{target['id']}/merge", source_person_ids=[str(row["id"]) for row in rows])
        undone = await people.undo(merged["journal_id"])
        response = await people.client.get("/api/v1/journal")
        undoing, merging, making = response.json()["items"]
        assert (undoing["id"], merging["id"]) == (undone["journal_id"], merged["journal_id"])
        assert len(undoing["persons"]) == len(merging["persons"]) == 100 and len(response.content) < 300_000
        assert {one["before"]["name"].partition(" ")[0] for one in merging["persons"]} <= {"person", "Anna"}
        assert [one["before"] for one in undoing["persons"]] == [one["after"] for one in merging["persons"]]
        assert making["persons"][0]["after"]["metadata"] == metadata
        entry = await people.get(f"/journal/{merged['journal_id']}")
        assert {one["person_id"] for one in entry["persons"]} >= {str(row["id"]) for row in rows}
        assert sum((one["before"].get("metadata") == metadata) for one in entry["persons"]) == 150

    async def test_an_entry(self, people: People) -> None:
        target, _ = await people.group(1, 0)
        source, faces = await people.group(2, 1, "Anna")
        (other,) = await people.nobodys(1)
        await people.post(f"/faces/{other}/reject-person", person_id=source)
        merged = await people.post(f"/persons/{target}/merge", source_person_id=source)
        entry = await people.get(f"/journal/{merged['journal_id']}")
        assert (entry["actor"], entry["action"], entry["face_count"]) == ("bootstrap", "merge_persons", 4)
        assert set(entry["person_ids"]) == {target, source}
        by_before = {group["before"]["person_id"]: group for group in entry["faces"]}
        assert sorted(by_before[source]["face_ids"]) == sorted(faces)
        assert by_before[source]["after"] == {"person_id": target, "decided_by": "user", "hidden": False, "unassigned": None}
        assert {(one["came"], one["face_id"], *one["person_ids"]) for one in entry["sayings"]} == {
            (False, other, source),
            (True, other, target),
        }
        (gone,) = (one for one in entry["persons"] if one["person_id"] == source)
        assert gone["after"] is None and gone["before"]["name"] == "Anna"


class TestErasure:
    async def told(self, people: People) -> str:
        return " ".join(str(tuple(row)) for row in await people.world.rows("SELECT journal::text FROM journal"))

    async def test_a_person(self, people: People) -> None:
        person, faces = await people.group(2, 0, "Anna Secret")
        other, _ = await people.group(1, 1)
        renamed = await people.ok("PUT", f"/persons/{person}", {"name": "Berta Secret"})
        moved = await people.post(f"/faces/{faces[0]}/assign-person", person_id=other)
        await people.ok("DELETE", f"/collections/library/persons/{person}")
        told = await self.told(people)
        assert "Secret" not in told and person not in told and faces[1] not in told
        # That somebody did something remains, and cannot bring anything back.
        assert [one["action"] for one in (await people.get("/journal"))["items"]] == ["assign_faces", "rename_person"]
        for entry in (renamed, moved):
            path = f"/journal/{entry['journal_id']}/undo"
            assert await people.refused("POST", path) == (409, "nothing_to_undo")
        await people.check()

    async def test_who_was_merged_into_the_person(self, people: People) -> None:
        target, _ = await people.group(2, 0)
        source, faces = await people.group(2, 1, "Anna Secret")
        first, more = await people.group(1, 2, "Clara Secret")
        await people.ok("PUT", f"/persons/{first}", {"name": "Clara M. Secret"})
        await people.post(f"/persons/{source}/merge", source_person_id=first)
        merged = await people.post(f"/persons/{target}/merge", source_person_id=source)
        await people.ok("DELETE", f"/collections/library/persons/{target}")
        told = await self.told(people)
        assert "Secret" not in told and not any(one in told for one in (target, source, first, *faces, *more))
        assert await people.refused("POST", f"/journal/{merged['journal_id']}/undo") == (409, "nothing_to_undo")

    async def test_who_came_back_from_a_merge_stays(self, people: People) -> None:
        target, _ = await people.group(2, 0)
        source, _ = await people.group(2, 1, "Anna")
        renamed = await people.ok("PUT", f"/persons/{source}", {"name": "Berta"})
        merged = await people.post(f"/persons/{target}/merge", source_person_id=source)
        await people.undo(merged["journal_id"])
        await people.ok("DELETE", f"/collections/library/persons/{target}")
        assert target not in await self.told(people)
        await people.undo(renamed["journal_id"])
        assert (await people.get(f"/persons/{source}"))["name"] == "Anna"

    async def test_who_was_dissolved(self, people: People) -> None:
        person, _ = await people.group(1, 0, "Anna Secret")
        deleted = await people.ok("DELETE", f"/persons/{person}")
        await people.post("/collections/library/persons:delete", person_ids=[person])
        told = await self.told(people)
        assert "Secret" not in told and person not in told
        assert await people.refused("POST", f"/journal/{deleted['journal_id']}/undo") == (409, "nothing_to_undo")

    @pytest.mark.parametrize("by", ["face", "photo"])
    async def test_a_face(self, people: People, by: str) -> None:
        person, (one, two) = await people.group(2, 0)
        target, _ = await people.group(1, 1)
        await people.ok("PUT", f"/persons/{person}", {"cover_face_id": one})
        merged = await people.post(f"/persons/{target}/merge", source_person_id=person)
        if by == "face":
            await people.ok("DELETE", f"/collections/library/faces/{one}")
        else:
            photo = (await people.get(f"/faces/{one}"))["photo_id"]
            await people.ok("DELETE", f"/photos/{photo}")
        assert one not in await self.told(people)
        undone = await people.undo(merged["journal_id"])
        assert undone["kept"] == [] and await people.whose(two) == [(person, "machine")]
        assert [row["id"] for row in await people.world.rows("SELECT id FROM faces WHERE id = $1", one)] == []
        await people.check()

    async def test_a_face_of_nobody(self, people: People) -> None:
        person, (one, _) = await people.group(2, 0)
        await people.post(f"/faces/{one}/unassign")
        await people.ok("DELETE", f"/collections/library/faces/{one}")
        assert one not in await self.told(people)
        # Nor that this person had it.
        assert person not in await self.told(people)
        await people.check()

    async def test_at_the_same_time_as_a_merge(self, people: People) -> None:
        for _ in range(4):
            target, _faces = await people.group(2, 0)
            source, (one, _) = await people.group(2, 1)
            _, (foreign,) = await people.group(1, 2)
            await people.post(f"/faces/{foreign}/reject-person", person_id=source)
            photo = (await people.get(f"/faces/{one}"))["photo_id"]
            answers = await asyncio.gather(
                people.client.post(f"{PREFIX}/persons/{target}/merge", json={"source_person_id": source}),
                people.client.delete(f"{PREFIX}/collections/library/faces/{foreign}"),
                people.client.delete(f"{PREFIX}/photos/{photo}"),
            )
            assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
            told = await self.told(people)
            assert foreign not in told and one not in told
            await people.undo(answers[0].json()["journal_id"])
            await people.check()

    async def test_the_library(self, people: People) -> None:
        await people.post("/persons", name="Anna Secret")
        receipt = await people.ok("DELETE", "/collections/library")
        assert receipt["remaining_rows"] == 0 and await self.told(people) == ""

    async def test_its_time(self, people: People) -> None:
        old = await people.post("/persons", name="Anna")
        await people.post("/persons", name="Berta")
        query = "UPDATE journal SET at = now() - $2::interval WHERE id = $1 RETURNING 1"
        await people.world.rows(query, old["journal_id"], timedelta(days=89))
        await people.world.gallery.housekeeping.once()
        assert len((await people.get("/journal"))["items"]) == 2
        await people.world.rows(query, old["journal_id"], timedelta(days=91))
        await people.world.gallery.housekeeping.once()
        assert [one["persons"][0]["after"]["name"] for one in (await people.get("/journal"))["items"]] == ["Berta"]
