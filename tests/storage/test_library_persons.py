"""Persons of the library and what users decide of them and of faces, through the API on a real database."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from serve_app.api.deps import PREFIX
from serve_app.identity.people import new_id
from tests.storage.conftest import StoredWorld
from tests.storage.people_world import People, open_people


@pytest.fixture
async def people(stored: StoredWorld) -> People:
    return await open_people(stored)


class TestListing:
    async def test_before_there_is_a_library(self, stored: StoredWorld) -> None:
        assert (await stored.client.get(f"{PREFIX}/persons")).json() == {"items": [], "next_cursor": None}
        for path in (f"persons/{uuid4()}", f"persons/{uuid4()}/faces", f"faces/{uuid4()}/suggestions", f"journal/{uuid4()}"):
            assert (await stored.client.get(f"{PREFIX}/{path}")).status_code == 404
        assert (await stored.client.get(f"{PREFIX}/journal")).json()["items"] == []
        made = await stored.client.post(f"{PREFIX}/persons", json={"name": "Anna"})
        assert made.status_code == 201 and made.json()["name"] == "Anna"

    async def test_a_person(self, people: People) -> None:
        person, faces = await people.group(3)
        found = await people.get(f"/persons/{person}")
        assert (found["face_count"], found["photo_count"], found["founded_by"], found["hidden"]) == (3, 3, "machine", False)
        assert found["cover_face_id"] in faces
        listed = (await people.client.get(f"/api/persons/{person}/faces?limit=2")).json()
        assert [one["id"] for one in listed["items"]] == sorted(faces)[:2]
        rest = (await people.client.get(f"/api/persons/{person}/faces?limit=2&cursor={listed['next_cursor']}")).json()
        assert [one["id"] for one in rest["items"]] == sorted(faces)[2:] and rest["next_cursor"] is None

    async def test_orders_and_filters(self, people: People) -> None:
        one, _ = await people.group(1, 0, "berta")
        two, _ = await people.group(3, 1, "Anna")
        three, _ = await people.group(2, 2)
        four = (await people.post("/persons", name="Änne"))["id"]
        five = (await people.post("/persons", name="Zoe", hidden=True))["id"]

        async def listed(query: str) -> list[str]:
            found: list[str] = []
            cursor = ""
            while True:
                page = await people.get(f"/persons?limit=1{query}{cursor}")
                found += [entry["id"] for entry in page["items"]]
                if page["next_cursor"] is None:
                    return found
                cursor = f"&cursor={page['next_cursor']}"

        assert await listed("") == [two, three, one, four]
        assert await listed("&sort=name") == [two, one, four, three]
        assert await listed("&sort=recent") == [four, three, two, one]
        assert await listed("&named=false") == [three]
        assert await listed("&named=true&sort=name") == [two, one, four]
        assert await listed("&name=AN") == [two]
        assert await listed("&name=%C3%A4NN&sort=name") == [four]
        assert await listed("&hidden=true&sort=name") == [five]
        assert set(await listed("&hidden=all&sort=recent")) == {one, two, three, four, five}

    @pytest.mark.parametrize(
        "query", ["sort=id", "hidden=maybe", "limit=0", "limit=501", "cursor=x", "nmae=x", "name=a%00b", "named=2"]
    )
    async def test_what_is_refused(self, people: People, query: str) -> None:
        assert (await people.refused("GET", f"/persons?{query}"))[0] == 422


class TestPersons:
    async def test_make_change_take_away(self, people: People) -> None:
        made = await people.ok("POST", "/persons", {"name": " Anna ", "external_id": "x", "metadata": {"a": 1}}, status=201)
        assert (made["name"], made["external_id"], made["founded_by"], made["face_count"]) == ("Anna", "x", "user", 0)
        changed = await people.ok("PUT", f"/persons/{made['id']}", {"name": "Berta", "external_id": None})
        assert (changed["name"], changed["external_id"], changed["metadata"]) == ("Berta", None, {"a": 1})
        same = await people.ok("PUT", f"/persons/{made['id']}", {"name": "Berta"})
        assert same["journal_id"] is None
        entries = (await people.get("/journal"))["items"]
        assert [one["action"] for one in entries] == ["rename_person", "create_person"]
        assert entries[0]["actor"] == "bootstrap"
        assert entries[0]["persons"] == [
            {
                "person_id": made["id"],
                "before": {"name": "Anna", "external_id": "x"},
                "after": {"name": "Berta", "external_id": None},
            }
        ]

    async def test_external_ids_are_unique(self, people: People) -> None:
        await people.post("/persons", name="Anna", external_id="x")
        other = (await people.post("/persons", name="Berta"))["id"]
        assert await people.refused("POST", "/persons", {"external_id": "x"}) == (409, "already_exists")
        assert await people.refused("PUT", f"/persons/{other}", {"external_id": "x"}) == (409, "already_exists")
        assert len((await people.get("/journal"))["items"]) == 2

    async def test_the_cover(self, people: People) -> None:
        person, faces = await people.group(3)
        other, (foreign,) = await people.group(1, 1)
        assert await people.refused("PUT", f"/persons/{person}", {"cover_face_id": foreign}) == (404, "not_found")
        changed = await people.ok("PUT", f"/persons/{person}", {"cover_face_id": faces[2]})
        assert changed["cover_face_id"] == faces[2]
        # Who leaves is no cover any more; who comes back is again.
        moved = await people.post(f"/faces/{faces[2]}/assign-person", person_id=other)
        assert (await people.get(f"/persons/{person}"))["cover_face_id"] in faces[:2]
        await people.undo(moved["journal_id"])
        assert (await people.get(f"/persons/{person}"))["cover_face_id"] == faces[2]
        await people.ok("PUT", f"/persons/{person}", {"cover_face_id": None})
        assert (await people.world.rows("SELECT cover_face_id FROM persons WHERE id = $1", person))[0][0] is None

    async def test_dissolve(self, people: People) -> None:
        person, faces = await people.group(2, 0, "Anna")
        deleted = await people.ok("DELETE", f"/persons/{person}")
        assert await people.whose(*faces) == [(None, "user")] * 2
        assert (await people.client.get(f"{PREFIX}/persons/{person}")).status_code == 404
        face = await people.get(f"/faces/{faces[0]}")
        assert face["unassigned"]["code"] == "person_deleted"
        await people.check()
        undone = await people.undo(deleted["journal_id"])
        assert undone["face_count"] == 2 and undone["kept"] == [] and undone["person_ids"] == [person]
        assert (await people.get(f"/persons/{person}"))["name"] == "Anna"
        assert await people.whose(*faces) == [(person, "machine")] * 2
        await people.check()

    async def test_hidden_persons_are_not_suggested(self, people: People) -> None:
        person, _ = await people.group(2, 0)
        (face,) = await people.nobodys(1, 0)
        assert [one["person"]["id"] for one in (await people.get(f"/faces/{face}/suggestions"))["persons"]] == [person]
        hidden = await people.ok("PUT", f"/persons/{person}", {"hidden": True})
        assert (await people.get(f"/faces/{face}/suggestions"))["persons"] == []
        assert (await people.get("/journal?action=hide_person"))["items"][0]["id"] == hidden["journal_id"]


class TestMerge:
    @pytest.mark.parametrize("plural", [True, False])
    async def test_all_faces_are_one_persons(self, people: People, plural: bool) -> None:
        target, its = await people.group(2, 0)
        source, others = await people.group(3, 1, "Anna")
        body = {"source_person_ids": [source]} if plural else {"source_person_id": source}
        merged = await people.post(f"/persons/{target}/merge", **body)
        assert (merged["id"], merged["face_count"], merged["name"]) == (target, 5, "Anna")
        assert await people.whose(*its, *others) == [(target, "user")] * 5
        assert (await people.client.get(f"{PREFIX}/persons/{source}")).status_code == 404
        await people.check()

    async def test_what_was_said_of_them(self, people: People) -> None:
        target, _ = await people.group(2, 0, "Anna")
        source, (theirs, _) = await people.group(2, 1, "Berta")
        third, (foreign,) = await people.group(1, 2)
        await people.post(f"/faces/{foreign}/reject-person", person_id=source)
        await people.post(f"/faces/{theirs}/reject-person", person_id=target)
        await people.post(f"/persons/{source}/not-same", person_id=third)
        await people.post(f"/persons/{source}/not-same", person_id=target)
        before = await people.state()
        merged = await people.post(f"/persons/{target}/merge", source_person_ids=[source])
        after = await people.state()
        assert [tuple(map(str, one)) for one in after["rejections"]] == [(foreign, target)]
        assert [set(map(str, one)) for one in after["distinctions"]] == [{target, third}]
        assert merged["name"] == "Anna"
        await people.undo(merged["journal_id"])
        assert await people.state() == before

    async def test_the_target_takes_what_it_has_not(self, people: People) -> None:
        target = (await people.post("/persons", metadata={"a": 1}))["id"]
        one = (await people.post("/persons", name="Anna", external_id="x", metadata={"b": 1}))["id"]
        two = (await people.post("/persons", name="Berta", external_id="y"))["id"]
        before = await people.state()
        merged = await people.post(f"/persons/{target}/merge", source_person_ids=[one, two])
        assert (merged["name"], merged["external_id"], merged["metadata"]) == ("Anna", "x", {"a": 1})
        undone = await people.undo(merged["journal_id"])
        assert await people.state() == before
        await people.undo(undone["journal_id"])
        assert (await people.get(f"/persons/{target}"))["external_id"] == "x"

    async def test_what_is_refused(self, people: People) -> None:
        target, _ = await people.group(1)
        path = f"/persons/{target}/merge"
        assert await people.refused("POST", path, {"source_person_id": target}) == (422, "invalid_request")
        assert await people.refused("POST", path, {"source_person_id": str(uuid4())}) == (404, "not_found")
        assert await people.refused("POST", path, {}) == (422, "invalid_request")
        assert await people.refused("POST", path, {"source_person_ids": []}) == (422, "invalid_request")
        both = {"source_person_ids": [str(uuid4())], "source_person_id": str(uuid4())}
        assert await people.refused("POST", path, both) == (422, "invalid_request")
        many = {"source_person_ids": [str(new_id()) for _ in range(1001)]}
        assert await people.refused("POST", path, many) == (422, "invalid_request")

    async def test_two_that_cross(self, people: People) -> None:
        one, its = await people.group(3, 0, "Anna")
        two, theirs = await people.group(3, 1, "Berta")
        answers = await asyncio.gather(
            people.client.post(f"{PREFIX}/persons/{one}/merge", json={"source_person_id": two}),
            people.client.post(f"{PREFIX}/persons/{two}/merge", json={"source_person_id": one}),
        )
        assert sorted(answer.status_code for answer in answers) == [200, 404]
        left = {owner for owner, _ in await people.whose(*its, *theirs)}
        assert len(left) == 1
        await people.check()

    async def test_with_assignments_at_the_same_time(self, people: People) -> None:
        target, _ = await people.group(2, 0)
        source, _ = await people.group(4, 1)
        waiting = await people.nobodys(6, 1)
        answers = await asyncio.gather(
            *(people.client.post(f"{PREFIX}/faces/{face}/assign-person", json={"person_id": source}) for face in waiting[:3]),
            people.client.post(f"{PREFIX}/persons/{target}/merge", json={"source_person_id": source}),
            *(people.client.post(f"{PREFIX}/faces/{face}/assign-person", json={"person_id": source}) for face in waiting[3:]),
        )
        assert {answer.status_code for answer in answers} <= {200, 404}
        assert {owner for owner, _ in await people.whose(*waiting)} <= {target, None}
        assigned = sum(answer.status_code == 200 for answer in answers) - 1
        assert (await people.get(f"/persons/{target}"))["face_count"] == 6 + assigned
        await people.check()


class TestFaces:
    async def test_assign(self, people: People) -> None:
        person, (face, *_) = await people.group(2, 0)
        other, _ = await people.group(1, 1)
        assigned = await people.post(f"/faces/{face}/assign-person", person_id=other)
        assert (assigned["person_id"], assigned["decided_by"], assigned["unassigned"]) == (other, "user", None)
        again = await people.post(f"/faces/{face}/assign-person", person_id=other)
        assert again["journal_id"] is None
        await people.check()
        await people.undo(assigned["journal_id"])
        assert await people.whose(face) == [(person, "machine")]
        await people.check()

    async def test_by_name(self, people: People) -> None:
        faces = await people.nobodys(4)
        made = await people.post("/faces/assign-person", face_ids=faces[:2], name="Anna")
        (person,) = {one["person_id"] for one in made["faces"]}
        assert [one["id"] for one in made["faces"]] == faces[:2]
        more = await people.post(f"/faces/{faces[2]}/assign-person", name="Anna")
        assert more["person_id"] == person and more["person_name"] == "Anna"
        other = await people.post(f"/faces/{faces[3]}/assign-person", name="anna")
        assert other["person_id"] != person
        await people.post("/persons", name="Anna")
        response = await people.client.post(f"{PREFIX}/faces/{faces[3]}/assign-person", json={"name": "Anna"})
        assert response.status_code == 409 and response.json()["code"] == "ambiguous_name"
        assert len(response.json()["details"]["person_ids"]) == 2
        # Taken back, the new person is gone as well.
        await people.undo(more["journal_id"])
        await people.undo(made["journal_id"])
        assert (await people.client.get(f"{PREFIX}/persons/{person}")).status_code == 404
        await people.check()

    async def test_one_name_at_the_same_time_is_one_person(self, people: People) -> None:
        faces = await people.nobodys(6)
        answers = await asyncio.gather(*(people.post(f"/faces/{face}/assign-person", name="Anna") for face in faces))
        assert len({answer["person_id"] for answer in answers}) == 1
        await people.check()

    async def test_a_group_without_faces_is_gone_and_comes_back(self, people: People) -> None:
        group, (face,) = await people.group(1, 0)
        named, (other,) = await people.group(1, 1, "Anna")
        target, _ = await people.group(1, 2)
        moved = await people.post("/faces/assign-person", face_ids=[face, other], person_id=target)
        assert (await people.client.get(f"{PREFIX}/persons/{group}")).status_code == 404
        assert (await people.get(f"/persons/{named}"))["face_count"] == 0
        await people.undo(moved["journal_id"])
        assert await people.whose(face, other) == [(group, "machine"), (named, "machine")]
        await people.check()

    async def test_unassign_and_release(self, people: People) -> None:
        person, (one, two, _) = await people.group(3)
        taken = await people.post(f"/faces/{one}/unassign")
        assert (taken["person_id"], taken["decided_by"]) == (None, "user")
        assert taken["unassigned"]["code"] == "unassigned_by_user"
        released = await people.post("/faces/unassign", face_ids=[one, two], release=True)
        assert {(one["person_id"], one["decided_by"], one["unassigned"]) for one in released["faces"]} == {
            (None, "machine", None)
        }
        await people.check()
        await people.undo(released["journal_id"])
        assert await people.whose(one, two) == [(None, "user"), (person, "machine")]

    async def test_reject(self, people: People) -> None:
        person, (face, *_) = await people.group(3)
        rejected = await people.post(f"/faces/{face}/reject-person")
        assert (rejected["person_id"], rejected["decided_by"], rejected["unassigned"]) == (None, "machine", None)
        assert (await people.get(f"/faces/{face}/suggestions"))["persons"] == []
        assert (await people.get(f"/persons/{person}/suggestions"))["faces"] == []
        assert await people.refused("POST", f"/faces/{face}/reject-person", {}) == (422, "invalid_request")
        # Said anew, it is taken back.
        await people.post(f"/faces/{face}/assign-person", person_id=person)
        assert (await people.state())["rejections"] == []
        await people.check()

    async def test_hide(self, people: People) -> None:
        person, (face, other) = await people.group(2)
        hidden = await people.client.post(f"{PREFIX}/faces/{face}/hide")
        assert hidden.status_code == 200 and hidden.json()["hidden"] and hidden.json()["person_id"] is None
        assert (await people.get(f"/persons/{person}/suggestions"))["faces"] == []
        await people.check()
        shown = await people.post("/faces/unhide", face_ids=[face, other])
        assert [(one["hidden"], one["person_id"]) for one in shown["faces"]] == [(False, None), (False, person)]
        await people.undo(shown["journal_id"])
        await people.undo(hidden.json()["journal_id"])
        assert await people.whose(face) == [(person, "machine")]

    async def test_why_the_machine_left_a_face_survives_hiding(self, people: People) -> None:
        (face,) = await people.nobodys(1)
        why = '{"code": "too_small", "metric": "size_px", "value": 20, "limit": 40}'
        await people.world.rows("UPDATE faces SET unassigned = $2::jsonb WHERE id = $1 RETURNING 1", face, why)
        assert (await people.post(f"/faces/{face}/hide"))["unassigned"]["code"] == "hidden"
        shown = await people.post(f"/faces/{face}/unhide")
        assert (shown["decided_by"], shown["unassigned"]["code"], shown["unassigned"]["limit"]) == ("machine", "too_small", 40)

    async def test_an_erased_person_is_no_reason_any_more(self, people: People) -> None:
        """Faces of others, shown and hidden, and the journal, do not name whoever was nearest once that person is erased."""
        erased, _ = await people.group(2, 0)
        kept, _ = await people.group(2, 1)
        faces = await people.nobodys(3)
        for face, nearest in zip(faces, (erased, erased, kept), strict=True):
            why = f'{{"code": "not_core", "metric": "similarity", "value": 0.3, "limit": 0.4, "person_id": "{nearest}"}}'
            await people.world.rows("UPDATE faces SET unassigned = $2::jsonb WHERE id = $1 RETURNING 1", face, why)
        await people.post(f"/faces/{faces[1]}/hide")
        gone = await people.client.delete(f"/api/v1/collections/library/persons/{erased}")
        assert gone.status_code == 200
        left = await people.world.rows("SELECT unassigned::text AS said FROM faces UNION ALL SELECT faces::text FROM journal")
        assert erased not in "".join(row["said"] or "" for row in left)
        assert [(await people.get(f"/faces/{face}"))["unassigned"]["code"] for face in faces] == [
            "not_core",
            "hidden",
            "not_core",
        ]
        assert (await people.get(f"/faces/{faces[2]}"))["unassigned"]["person_id"] == kept

    async def test_split(self, people: People) -> None:
        person, faces = await people.group(4, 0, "Anna")
        split = await people.ok("POST", f"/persons/{person}/split", {"face_ids": faces[:2], "name": "Berta"}, status=201)
        assert (split["name"], split["face_count"]) == ("Berta", 2)
        assert await people.whose(*faces) == [(split["id"], "user")] * 2 + [(person, "machine")] * 2
        assert [set(map(str, one)) for one in (await people.state())["distinctions"]] == [{person, split["id"]}]
        assert (await people.get(f"/persons/{person}/suggestions"))["persons"] == []
        assert (await people.refused("POST", f"/persons/{person}/split", {"face_ids": faces[:1]}))[0] == 404
        await people.check()
        await people.undo(split["journal_id"])
        assert await people.whose(*faces) == [(person, "machine")] * 4

    async def test_moving_by_the_collection_is_the_same(self, people: People) -> None:
        person, (face, *_) = await people.group(2, 0)
        other, _ = await people.group(1, 1)
        moved = await people.post(f"/collections/library/faces/{face}/move", person_id=other)
        assert moved["person_id"] == other
        (entry,) = (await people.get("/journal"))["items"]
        assert entry["action"] == "assign_faces" and await people.whose(face) == [(other, "user")]
        await people.ok("PATCH", f"/collections/library/persons/{other}", {"name": "Anna"})
        assert (await people.get("/journal"))["items"][0]["action"] == "rename_person"
        await people.undo(entry["id"])
        assert await people.whose(face) == [(person, "machine")]
        await people.check()

    async def test_suggestions(self, people: People) -> None:
        person, _ = await people.group(2, 0, "Anna")
        group, _ = await people.group(2, 0)
        named, _ = await people.group(2, 0, "Berta")
        near, far = (await people.nobodys(1, 0))[0], (await people.nobodys(1, 1))[0]
        found = await people.get(f"/persons/{person}/suggestions")
        assert [one["face"]["id"] for one in found["faces"]] == [near, far]
        assert [one["decision"] for one in found["faces"]] == ["match", "unknown"]
        # Not the one who has another name.
        assert [one["person"]["id"] for one in found["persons"]] == [group]
        of_face = (await people.get(f"/faces/{near}/suggestions"))["persons"]
        assert {one["person"]["id"] for one in of_face} == {person, group, named}
        await people.post(f"/persons/{group}/not-same", person_id=person)
        assert (await people.get(f"/persons/{person}/suggestions"))["persons"] == []
        # Of a photo that it is in already, no second face.
        await people.world.rows("UPDATE faces SET image_id = (SELECT image_id FROM faces WHERE person_id = $1 LIMIT 1)"
                                " WHERE id = $2 RETURNING 1", person, near)  # fmt: skip
        assert [one["face"]["id"] for one in (await people.get(f"/persons/{person}/suggestions"))["faces"]] == [far]


class TestStrangers:
    """Whoever sends what does not belong here."""

    async def test_ids_of_other_collections(self, people: People) -> None:
        mine, (face, *_) = await people.group(2)
        collection = await people.world.collection("elsewhere")
        foreign = await people.world.person(collection, name="Eve")
        (vector,) = await people.world.enrol_vector(collection, foreign, [1.0, 0, 0, 0])
        before = await people.state()
        for path, body in (
            (f"/faces/{face}/assign-person", {"person_id": foreign}),
            (f"/faces/{vector}/assign-person", {"person_id": mine}),
            (f"/faces/{vector}/hide", {}),
            (f"/faces/{vector}/unassign", {}),
            (f"/faces/{face}/reject-person", {"person_id": foreign}),
            (f"/persons/{mine}/merge", {"source_person_id": foreign}),
            (f"/persons/{foreign}/merge", {"source_person_id": mine}),
            (f"/persons/{mine}/split", {"face_ids": [vector]}),
            (f"/persons/{mine}/not-same", {"person_id": foreign}),
            ("/faces/assign-person", {"face_ids": [face, vector], "person_id": mine}),
        ):
            assert await people.refused("POST", path, body) == (404, "not_found"), path
        for path in (f"/persons/{foreign}", f"/persons/{foreign}/faces", f"/persons/{foreign}/suggestions",
                     f"/faces/{vector}/suggestions"):  # fmt: skip
            assert await people.refused("GET", path) == (404, "not_found")
        assert await people.refused("DELETE", f"/persons/{foreign}") == (404, "not_found")
        assert await people.refused("PUT", f"/persons/{foreign}", {"name": "x"}) == (404, "not_found")
        assert await people.state() == before and (await people.get("/journal"))["items"] == []

    async def test_bodies(self, people: People) -> None:
        person, (face,) = await people.group(1)
        many = [str(new_id()) for _ in range(10_000)]
        for path, body in (
            ("/persons", {"name": "a\0b"}),
            ("/persons", {"name": "a" * 201}),
            ("/persons", {"name": 5}),
            ("/persons", {"nmae": "x"}),
            ("/persons", {"metadata": {"a\0": 1}}),
            (f"/faces/{face}/assign-person", {}),
            (f"/faces/{face}/assign-person", {"name": ""}),
            (f"/faces/{face}/assign-person", {"name": "a", "person_id": person}),
            (f"/faces/{face}/assign-person", {"person_id": "x"}),
            (f"/faces/{face}/assign-person", {"person_id": None}),
            ("/faces/hide", {"face_ids": many[:1001]}),
            ("/faces/hide", {"face_ids": []}),
            ("/faces/assign-person", {"face_ids": many[:5], "person_id": person, "x": 1}),
            (f"/faces/{face}/hide", {"x": 1}),
            (f"/persons/{person}/not-same", {"person_id": person}),
            ("/faces/nonsense/hide", {}),
        ):
            assert await people.refused("POST", path, body) == (422, "invalid_request"), (path, body)
        headers = {"Content-Type": "application/json"}
        response = await people.client.post(f"{PREFIX}/persons", content=b'{"name": "\\ud800"}', headers=headers)
        assert response.status_code == 422
        response = await people.client.post(f"{PREFIX}/faces/hide", json={"face_ids": many})
        assert response.status_code in (413, 422)

    async def test_the_key(self, people: People) -> None:
        for method, path in (("GET", "/persons"), ("POST", "/persons"), ("GET", "/journal"),
                             ("POST", f"/journal/{uuid4()}/undo"), ("POST", f"/faces/{uuid4()}/hide")):  # fmt: skip
            for prefix in (PREFIX, "/api"):
                headers = {"Authorization": "Bearer wrong"}
                response = await people.client.request(method, f"{prefix}{path}", headers=headers)
                assert response.status_code == 401

    async def test_a_repetition_is_answered_as_before(self, people: People) -> None:
        person, _ = await people.group(1, 0)
        other, _ = await people.group(1, 1)
        headers = {"Idempotency-Key": "once"}
        body = {"source_person_id": other}
        answers = [
            await people.client.post(f"{prefix}/persons/{person}/merge", json=body, headers=headers)
            for prefix in (PREFIX, "/api")
        ]
        assert answers[0].json() == answers[1].json() and answers[1].headers["Idempotent-Replayed"] == "true"
        assert len((await people.get("/journal"))["items"]) == 1
