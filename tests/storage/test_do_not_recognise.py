"""Persons who must not be recognised: nobody is told of them, by no way."""

from __future__ import annotations

import uuid

import numpy as np

from serve_app.grouping.group_plans import Move
from serve_app.storage import clustering, collections
from tests.api.conftest import image
from tests.storage.conftest import StoredWorld

EVA, NEAR, FAR = [1.0, 0.0, 0.0, 0.0], [0.97, 0.2431, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]


def probe(vector: list[float], **fields: object) -> dict[str, object]:
    return {"embedding": vector, "model": "fake-model", **fields}


async def listed(world: StoredWorld, collection: str, person_id: str, method: str = "PUT") -> None:
    response = await world.client.request(method, f"{collection}/do-not-recognise/{person_id}")
    assert response.status_code == 200, response.text


async def test_no_search_tells_of_them(stored: StoredWorld) -> None:
    people = await stored.collection()
    eva, near, far = [await stored.person(people, name=name) for name in ("Eva", "Near", "Far")]
    for person_id, vector in ((eva, EVA), (near, NEAR), (far, FAR)):
        await stored.enrol_vector(people, person_id, vector)
    before = (await stored.client.post(f"{people}/identify", json=probe(EVA))).json()
    assert before["decision"] in ("match", "ambiguous") and before["person"]["id"] == eva
    await listed(stored, people, eva)
    told = []
    for body in (probe(EVA), probe(NEAR), probe(EVA, person_ids=[eva]), probe(EVA, threshold=-1.0)):
        for route in ("search", "identify"):
            response = await stored.client.post(f"{people}/{route}", json=body)
            told.append(response.text)
            if route == "identify" and response.status_code == 200:
                # Not the next best one either: that would be another's name for her face.
                assert response.json()["decision"] == "unknown" and response.json()["person"] is None
    verified = (await stored.client.post(f"{people}/persons/{eva}/verify", json=probe(EVA))).json()
    assert verified["decision"] == "unknown" and verified["similarity"] is None and verified["face_id"] is None
    assert not [text for text in told if eva in text or "Eva" in text]
    # Whoever is not like her is found as before.
    found = (await stored.client.post(f"{people}/search", json=probe(FAR, top_k=3))).json()["results"][0]["candidates"]
    assert found[0]["person"]["id"] == far and eva not in str(found)
    assert (await stored.client.get(f"{people}/do-not-recognise")).json() == {"person_ids": [eva], "next_cursor": None}
    await listed(stored, people, eva, "DELETE")
    again = (await stored.client.post(f"{people}/search", json=probe(EVA))).json()
    assert again["results"][0]["candidates"][0]["person"]["id"] == eva


async def test_their_face_is_not_enrolled_for_somebody_else(stored: StoredWorld) -> None:
    people = await stored.collection()
    eva, other = await stored.person(people, name="Eva"), await stored.person(people, name="Other")
    await stored.enrol_vector(people, eva, EVA)
    await listed(stored, people, eva)
    for review in (True, False):
        body = {"embeddings": [EVA], "model": "fake-model", "review": review}
        response = await stored.client.post(f"{people}/persons/{other}/faces", json=body)
        assert eva not in response.text and "Eva" not in response.text
        assert "resembles_another" in response.text
    assert (await stored.client.get(f"{people}/persons/{other}")).json()["face_count"] == 0
    # For herself it is.
    own = await stored.client.post(
        f"{people}/persons/{eva}/faces", json={"embeddings": [NEAR], "model": "fake-model", "review": False}
    )
    assert own.status_code == 201, own.text


async def test_erasing_them_takes_them_off(stored: StoredWorld) -> None:
    people = await stored.collection()
    eva = await stored.person(people, name="Eva")
    await stored.enrol_vector(people, eva, EVA)
    await listed(stored, people, eva)
    assert (await stored.client.delete(f"{people}/persons/{eva}")).status_code == 200
    assert (await stored.client.get(f"{people}/do-not-recognise")).json()["person_ids"] == []
    assert (await stored.client.put(f"{people}/do-not-recognise/{eva}")).status_code == 404


async def test_the_list_is_paged_and_of_one_collection(stored: StoredWorld) -> None:
    people, others = await stored.collection("people"), await stored.collection("others")
    ids = sorted([await stored.person(people) for _ in range(3)])
    for person_id in ids:
        await listed(stored, people, person_id)
    assert (await stored.client.put(f"{others}/do-not-recognise/{ids[0]}")).status_code == 404
    first = (await stored.client.get(f"{people}/do-not-recognise?limit=2")).json()
    rest = await stored.client.get(f"{people}/do-not-recognise", params={"cursor": first["next_cursor"]})
    assert first["person_ids"] + rest.json()["person_ids"] == ids
    assert (await stored.client.get(f"{others}/do-not-recognise")).json()["person_ids"] == []
    wrong = await stored.client.get(f"{others}/do-not-recognise", params={"cursor": first["next_cursor"]})
    assert wrong.status_code == 422


async def test_a_selfie_of_theirs_finds_no_photos(stored: StoredWorld) -> None:
    library = await stored.collection("library")
    eva = await stored.person(library, name="Eva")
    picture = image(1, 0)
    # The fake embedder's direction of identity 0.
    await stored.enrol_vector(library, eva, np.eye(4)[0].tolist())
    uploaded = await stored.client.post("/api/v1/photos/upload", files={"files": ("a.jpg", picture, "image/jpeg")})
    photo = uploaded.json()["results"][0]["photo"]["id"]
    await put_face(stored, photo)
    found = await stored.client.post("/api/v1/search/photos", files={"file": ("s.jpg", image(1, 0), "image/jpeg")})
    assert found.status_code == 200, found.text
    await listed(stored, library, eva)
    hidden = (await stored.client.post("/api/v1/search/photos", files={"file": ("s.jpg", image(1, 0), "image/jpeg")})).json()
    assert hidden["items"] == [] and eva not in str(hidden)


async def put_face(world: StoredWorld, photo_id: str) -> None:
    """One of nobody, that is like theirs."""
    await world.rows(
        "INSERT INTO faces (id, collection_key, image_id, taken_at, found_by, decided_by, bbox)"
        " SELECT '00000000-0000-4000-8000-000000000001', collection_key, image_id, taken_at, 'indexing', 'machine', '{0,0,50,50}'"
        " FROM photos WHERE id = $1::text::uuid",
        photo_id,
    )
    await world.rows(
        "INSERT INTO embeddings (face_id, person_id, embedding) VALUES ('00000000-0000-4000-8000-000000000001', NULL, '[1,0,0,0]')"
    )


async def test_nobody_is_asked_or_told_whether_it_is_them(stored: StoredWorld) -> None:
    """Suggestions for a face and for a person, and the review queue."""
    library = await stored.collection("library")
    eva = await stored.person(library, name="Eva")
    await stored.enrol_vector(library, eva, EVA)
    await stored.client.post("/api/v1/photos/upload", files={"files": ("a.jpg", image(1, 0), "image/jpeg")})
    await put_face(stored, (await stored.client.get("/api/v1/photos")).json()["items"][0]["id"])
    face = "00000000-0000-4000-8000-000000000001"
    paths = (f"/api/v1/faces/{face}/suggestions", f"/api/v1/persons/{eva}/suggestions", "/api/v1/review")
    before = [(await stored.client.get(path)).text for path in paths]
    assert eva in before[0] and face in before[1] and eva in before[2]
    await listed(stored, library, eva)
    after = [(await stored.client.get(path)).text for path in paths]
    assert eva not in after[0] and face not in after[1] and eva not in after[2]


async def test_grouping_gives_them_no_more_faces(stored: StoredWorld) -> None:
    await stored.client.post("/api/v1/photos/upload", files={"files": ("a.jpg", image(1, 0), "image/jpeg")})
    photo = (await stored.client.get("/api/v1/photos")).json()["items"][0]["id"]
    library = "/api/v1/collections/library"
    eva, other = await stored.person(library, name="Eva"), await stored.person(library, name="Other")
    await put_face(stored, photo)
    await listed(stored, library, eva)
    (row,) = await stored.rows("SELECT id FROM faces")
    async with stored.gallery.database.transaction() as tx:
        collection = await collections.lock(tx, "library")
        assert (
            await clustering.give(tx, collection, [Move(row["id"], None, uuid.UUID(eva))], frozenset(), frozenset()) == set()
        )
        given = await clustering.give(tx, collection, [Move(row["id"], None, uuid.UUID(other))], frozenset(), frozenset())
        assert given == {row["id"]}


async def test_a_decision_does_not_take_them_off(stored: StoredWorld) -> None:
    """Merged away or dissolved, and undone, they would be back as somebody whom everybody may recognise."""
    library = await stored.collection("library")
    eva, other = [await stored.person(library, name=name) for name in ("Eva", "Other")]
    await stored.enrol_vector(library, eva, EVA)
    await stored.enrol_vector(library, other, FAR)
    await listed(stored, library, eva)
    persons = "/api/v1/persons"
    refused = [
        await stored.client.post(f"{persons}/{other}/merge", json={"source_person_ids": [eva]}),
        await stored.client.delete(f"{persons}/{eva}"),
    ]
    for response in refused:
        assert response.status_code == 409 and response.json()["code"] == "must_not_be_recognised", response.text
        assert response.json()["details"]["person_id"] == eva
    assert (await stored.client.get(f"{library}/do-not-recognise")).json()["person_ids"] == [eva]
    # The other way round they stay on it, with the faces of both.
    merged = await stored.client.post(f"{persons}/{eva}/merge", json={"source_person_ids": [other]})
    assert merged.status_code == 200, merged.text
    assert (await stored.client.get(f"{library}/do-not-recognise")).json()["person_ids"] == [eva]
    found = (await stored.client.post(f"{library}/identify", json=probe(FAR))).json()
    assert found["decision"] == "unknown" and found["person"] is None
    undone = await stored.client.post(f"/api/v1/journal/{merged.json()['journal_id']}/undo")
    assert undone.status_code == 200, undone.text
    assert (await stored.client.get(f"{library}/do-not-recognise")).json()["person_ids"] == [eva]
