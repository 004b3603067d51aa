"""Is this the same person? The questions about the whole library, through the API on a real database."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.api.deps import PREFIX
from tests.storage.conftest import StoredWorld
from tests.storage.people_world import People, open_people


@pytest.fixture
async def people(stored: StoredWorld) -> People:
    return await open_people(stored)


async def asked(people: People, limit: int = 200) -> list[dict[str, Any]]:
    """All of them, page by page."""
    found: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(100):
        page = await people.get(f"/review?limit={limit}{cursor}")
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        assert len(page["items"]) <= limit
        cursor = f"&cursor={page['next_cursor']}"
    raise AssertionError("it never ends")


def pairs(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [((one["group"] or one["face"])["id"], one["person"]["id"]) for one in found]


async def test_before_there_is_a_library(stored: StoredWorld) -> None:
    assert (await stored.client.get(f"{PREFIX}/review")).json() == {"items": [], "next_cursor": None}


async def test_nothing_to_ask(people: People) -> None:
    await people.group(2, 0, "Anna")
    await people.group(2, 1)
    await people.nobodys(2, 2)
    assert await asked(people) == []


async def test_groups_and_faces(people: People) -> None:
    anna, hers = await people.group(3, 0, "Anna")
    other, _ = await people.group(2, 1, "Berta")
    group, _ = await people.group(2, 0)
    (face,) = await people.nobodys(1, 1)
    found = await asked(people)
    assert pairs(found) == [(group, anna), (face, other)]
    first, second = found
    assert first["face"] is None and second["group"] is None
    assert first["face_id"] in hers and first["decision"] == "match" and 0.9 < first["similarity"] <= 1
    assert second["face"]["thumbnail_url"] and second["person"]["name"] == "Berta"


async def test_two_groups_are_asked_about_once(people: People) -> None:
    older, _ = await people.group(2, 0)
    younger, _ = await people.group(3, 0)
    assert pairs(await asked(people)) == [(younger, older)]


async def test_each_answer_ends_its_question_and_undoing_brings_it_back(people: People) -> None:
    # The face is hers exactly: which of the two is the nearer one is not left to chance.
    anna, _ = await people.group(3, 0, "Anna", noise=0)
    group, faces = await people.group(2, 0)
    (face,) = await people.nobodys(1, 0, noise=0)
    everything = [(group, anna), (face, anna)]
    assert pairs(await asked(people)) == everything
    for path, body, left in (
        (f"/persons/{anna}/merge", {"source_person_id": group}, [(face, anna)]),
        # Then the group is the next like it.
        (f"/persons/{group}/not-same", {"person_id": anna}, [(face, anna)]),
        ("/faces/hide", {"face_ids": faces}, [(face, anna)]),
        (f"/faces/{face}/assign-person", {"person_id": anna}, [(group, anna)]),
        (f"/faces/{face}/reject-person", {"person_id": anna}, [(group, anna), (face, group)]),
        (f"/faces/{face}/hide", {}, [(group, anna)]),
        (f"/persons/{anna}", {"hidden": True}, [(face, group)]),
    ):
        method = "PUT" if "hidden" in body else "POST"
        done = await people.ok(method, path, body)
        assert pairs(await asked(people)) == left, path
        await people.undo(done["journal_id"])
        assert pairs(await asked(people)) == everything, path
    await people.check()


async def test_what_is_not_asked(people: People) -> None:
    anna, hers = await people.group(2, 0, "Anna")
    (apart,), (beside,) = await people.nobodys(1, 0), await people.nobodys(1, 0)
    await people.post(f"/faces/{apart}/unassign")
    await people.world.rows(
        "UPDATE faces SET image_id = (SELECT image_id FROM faces WHERE id = $1) WHERE id = $2 RETURNING 1", hers[0], beside
    )
    await people.group(2, 0, "Berta")
    known, _ = await people.group(2, 0)
    await people.ok("PUT", f"/persons/{known}", {"external_id": "77"})
    found = pairs(await asked(people))
    assert (beside, anna) not in found
    assert {subject for subject, _ in found} <= {beside}, "only what nobody has said anything of"


async def test_pages(people: People) -> None:
    """Whatever is looked at for a page, each once; and in a page the most similar first."""
    await people.group(3, 0, "Anna")
    groups = [(await people.group(2, 0))[0] for _ in range(5)]
    faces = await people.nobodys(6, 0)
    whole = await asked(people)
    assert {subject for subject, _ in pairs(whole[:5])} == set(groups) and {subject for subject, _ in pairs(whole[5:])} == {
        *faces
    }
    for kind in (whole[:5], whole[5:]):
        alike = [one["similarity"] for one in kind]
        assert alike == sorted(alike, reverse=True)
    assert await asked(people) == whole
    for limit in (1, 2, 4):
        assert sorted(pairs(await asked(people, limit))) == sorted(pairs(whole))


async def test_a_cursor_while_questions_are_answered(people: People) -> None:
    """Each answer makes the others more similar; none is passed over."""
    anna, _ = await people.group(3, 0, "Anna")
    faces = await people.nobodys(6, 0)
    shown = []
    cursor = ""
    while True:
        page = await people.get(f"/review?limit=2{cursor}")
        shown += [one["face"]["id"] for one in page["items"]]
        for one in page["items"][:1]:
            await people.post(f"/faces/{one['face']['id']}/assign-person", person_id=anna)
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert sorted(shown) == sorted(faces)


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "cursor=x", "cursor=", "lmit=3", "limit=x"])
async def test_what_is_refused(people: People, query: str) -> None:
    assert (await people.refused("GET", f"/review?{query}"))[0] == 422


async def test_other_collections_have_no_part_in_it(people: People) -> None:
    await people.nobodys(1, 0)
    elsewhere = await people.world.collection("elsewhere")
    foreign = await people.world.person(elsewhere, name="Eve")
    await people.world.enrol_vector(elsewhere, foreign, [1.0, 0, 0, 0])
    assert await asked(people) == []
