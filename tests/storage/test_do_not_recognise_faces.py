"""A face of somebody who must not be recognised stays theirs: by no decision does it become somebody's whom everybody may find."""

from __future__ import annotations

import asyncio

import pytest

from tests.storage.conftest import StoredWorld

EVA, OTHER, THIRD = [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]


async def two(world: StoredWorld, name: str = "library") -> tuple[str, str, str, list[str]]:
    """A collection, Eva who is on its list, somebody else, and Eva's faces."""
    address = await world.collection(name)
    eva, other = [await world.person(address, name=one) for one in ("Eva", "Other")]
    faces = await world.enrol_vector(address, eva, EVA, [0.99, 0.1, 0.0, 0.0])
    await world.enrol_vector(address, other, OTHER)
    assert (await world.client.put(f"{address}/do-not-recognise/{eva}")).status_code == 200
    return address, eva, other, faces


async def owners(world: StoredWorld) -> dict[str, str | None]:
    rows = await world.rows(
        "SELECT f.id, f.person_id, e.person_id AS mirrored FROM faces f JOIN embeddings e ON e.face_id = f.id"
    )
    assert all(row["person_id"] == row["mirrored"] for row in rows)
    return {str(row["id"]): None if row["person_id"] is None else str(row["person_id"]) for row in rows}


async def test_no_decision_takes_a_face_from_them(stored: StoredWorld) -> None:
    library, eva, other, faces = await two(stored)
    before = await owners(stored)
    one = faces[0]
    for path, body in (
        (f"/api/v1/faces/{one}/assign-person", {"person_id": other}),
        (f"/api/v1/faces/{one}/assign-person", {"name": "Somebody new"}),
        ("/api/v1/faces/assign-person", {"face_ids": faces, "person_id": other}),
        (f"/api/v1/faces/{one}/unassign", {}),
        (f"/api/v1/faces/{one}/unassign", {"release": True}),
        ("/api/v1/faces/unassign", {"face_ids": faces}),
        (f"/api/v1/faces/{one}/reject-person", {"person_id": eva}),
        (f"/api/v1/faces/{one}/reject-person", {}),
        (f"/api/v1/faces/{one}/hide", None),
        ("/api/v1/faces/hide", {"face_ids": faces}),
        (f"/api/v1/persons/{eva}/split", {"face_ids": [one], "name": "Her"}),
        (f"/api/v1/persons/{other}/merge", {"source_person_ids": [eva]}),
        (f"{library}/faces/{one}/move", {"person_id": other}),
    ):
        response = await stored.client.post(path, json=body)
        assert response.status_code == 409, (path, body, response.text)
        assert response.json()["code"] == "must_not_be_recognised" and response.json()["details"]["person_id"] == eva
    assert await owners(stored) == before
    # Taken off the list they are corrected as anybody's.
    assert (await stored.client.delete(f"{library}/do-not-recognise/{eva}")).status_code == 200
    assert (await stored.client.post(f"/api/v1/faces/{one}/assign-person", json={"person_id": other})).status_code == 200


async def test_nor_in_another_collection(stored: StoredWorld) -> None:
    people, eva, other, faces = await two(stored, "people")
    refused = await stored.client.post(f"{people}/faces/{faces[0]}/move", json={"person_id": other})
    assert refused.status_code == 409 and refused.json()["details"]["person_id"] == eva
    assert (await stored.client.post(f"{people}/faces/{faces[0]}/move", json={"person_id": eva})).status_code == 200
    # Erasing is the other choice.
    assert (await stored.client.delete(f"{people}/faces/{faces[0]}")).status_code == 200


async def test_what_came_to_them_since_may_go_back_and_nothing_older(stored: StoredWorld) -> None:
    library = await stored.collection("library")
    eva, other, third = [await stored.person(library, name=one) for one in ("Eva", "Other", "Third")]
    for person, vector in ((eva, EVA), (other, OTHER), (third, THIRD)):
        await stored.enrol_vector(library, person, vector)
    old = await stored.client.post(f"/api/v1/persons/{eva}/merge", json={"source_person_ids": [other]})
    assert (await stored.client.put(f"{library}/do-not-recognise/{eva}")).status_code == 200
    new = await stored.client.post(f"/api/v1/persons/{eva}/merge", json={"source_person_ids": [third]})
    assert (old.status_code, new.status_code) == (200, 200)
    # To be put on it again changes nothing.
    assert (await stored.client.put(f"{library}/do-not-recognise/{eva}")).status_code == 200
    refused = await stored.client.post(f"/api/v1/journal/{old.json()['journal_id']}/undo")
    assert refused.status_code == 409 and refused.json()["code"] == "must_not_be_recognised"
    undone = await stored.client.post(f"/api/v1/journal/{new.json()['journal_id']}/undo")
    assert undone.status_code == 200, undone.text
    assert sorted(str(one) for one in (await owners(stored)).values()) == sorted([eva, eva, third])
    found = await stored.client.post(f"{library}/identify", json={"embedding": OTHER, "model": "fake-model"})
    assert found.json()["person"] is None


@pytest.mark.parametrize("turn", range(4))
async def test_at_the_same_moment_one_of_both_comes_first(stored: StoredWorld, turn: int) -> None:
    """Whoever is on the list in the end has her faces, or lost them before she was."""
    library = await stored.collection("library")
    eva, other = [await stored.person(library, name=one) for one in ("Eva", "Other")]
    faces = await stored.enrol_vector(library, eva, EVA)
    put = stored.client.put(f"{library}/do-not-recognise/{eva}")
    take = stored.client.post(f"/api/v1/faces/{faces[0]}/assign-person", json={"person_id": other})
    first, second = (put, take) if turn % 2 else (take, put)
    answers = dict(zip(("put", "take") if turn % 2 else ("take", "put"), await asyncio.gather(first, second), strict=True))
    assert answers["put"].status_code == 200
    owner = (await owners(stored))[faces[0]]
    assert (answers["take"].status_code, owner) in ((200, other), (409, eva))
    if owner == other:
        # Taken before: that it was hers then is in the journal, and to undo it gives it back to her.
        undone = await stored.client.post(f"/api/v1/journal/{answers['take'].json()['journal_id']}/undo")
        assert undone.status_code == 200 and (await owners(stored))[faces[0]] == eva
