"""Collections and persons through the API, on a real database."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.api.conftest import image
from tests.storage.conftest import MakeStoredWorld, StoredWorld

V = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]


async def test_a_collection_pins_the_embedding_contract(stored: StoredWorld) -> None:
    created = await stored.client.post("/api/v1/collections", json={"id": "staff", "name": "Staff", "metadata": {"a": [1]}})
    assert created.status_code == 201
    assert created.json()["embedding"] == {"model": "fake-model", "dim": 4, "preprocessing": "v1"}
    read = (await stored.client.get("/api/v1/collections/staff")).json()
    assert read["name"] == "Staff" and read["metadata"] == {"a": [1]} and read["face_count"] == 0
    again = await stored.client.post("/api/v1/collections", json={"id": "staff"})
    assert again.status_code == 409 and again.json()["code"] == "already_exists"
    other = await stored.client.post("/api/v1/collections", json={"embedding_model": "arcface"})
    assert other.status_code == 409 and other.json()["code"] == "embedding_model_mismatch"
    changed = await stored.client.patch("/api/v1/collections/staff", json={"name": "Everyone"})
    assert changed.json()["name"] == "Everyone" and changed.json()["metadata"] == {"a": [1]}


async def test_a_collection_of_another_model_is_never_searched_or_added_to(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    await stored.rows("UPDATE embedding_models SET name = 'older-model'")
    for path, body in (
        ("search", {"model": "fake-model", "embedding": V[0]}),
        ("identify", {"model": "fake-model", "embedding": V[0]}),
        (f"persons/{person}/verify", {"model": "fake-model", "embedding": V[0]}),
        (f"persons/{person}/faces", {"embeddings": [V[0]], "model": "fake-model"}),
    ):
        response = await stored.client.post(f"{collection}/{path}", json=body)
        assert response.status_code == 409, (path, response.text)
        assert response.json()["code"] == "embedding_model_mismatch"
    assert (await stored.client.get(collection)).status_code == 200


@pytest.mark.parametrize("identifier", ["", "UPPER", "-x", "a b", "a/b", "x" * 64, "ä", "a\x00"])
async def test_bad_collection_ids_are_refused(stored: StoredWorld, identifier: str) -> None:
    response = await stored.client.post("/api/v1/collections", json={"id": identifier})
    assert response.status_code == 422, response.text


async def test_ids_that_cannot_be_are_not_there(stored: StoredWorld) -> None:
    for identifier in ("%00", "a%00b", "x" * 4000, "%ED%A0%80", "A", "..%2f..", "%F0%9F%98%80"):
        for path in ("", "/persons", "/faces"):
            response = await stored.client.get(f"/api/v1/collections/{identifier}{path}")
            assert response.status_code == 404, (identifier, path, response.text)
            assert len(response.content) < 1000
        response = await stored.client.post(
            f"/api/v1/collections/{identifier}/search", json={"model": "fake-model", "embedding": V[0]}
        )
        assert response.status_code == 404, response.text


async def test_collections_that_exist_use_up_no_numbers(stored: StoredWorld) -> None:
    await stored.collection()
    before = (await stored.rows("SELECT last_value FROM embedding_models_key_seq"))[0]["last_value"]
    for _ in range(3):
        assert (await stored.client.post("/api/v1/collections", json={"id": "people"})).status_code == 409
    assert (await stored.rows("SELECT last_value FROM embedding_models_key_seq"))[0]["last_value"] == before


async def test_large_bodies_of_small_endpoints_are_refused(stored: StoredWorld) -> None:
    collection = await stored.collection()
    big = await stored.client.post(f"{collection}/persons", json={f"key{index}": 1 for index in range(40_000)})
    assert big.status_code == 413
    many = await stored.client.post(f"{collection}/search", json={f"key{index}": 1 for index in range(200_000)})
    assert many.status_code == 422 and len(many.content) < 3000
    strings = await stored.client.post(f"{collection}/search", json={"model": "fake-model", "embedding": ["x"] * 8000})
    assert strings.status_code == 422 and len(strings.content) < 3000


async def test_without_a_schema_it_is_a_503_that_says_so(stored: StoredWorld) -> None:
    await stored.rows("DROP TABLE idempotency_keys, object_deletions, faces, images, persons, collections CASCADE")
    response = await stored.client.get("/api/v1/collections")
    assert response.status_code == 503 and "db upgrade" in response.json()["detail"]
    assert (await stored.client.get("/api/v1/ready")).json()["database"] == "unavailable"


async def test_what_is_not_there_is_404(stored: StoredWorld) -> None:
    collection = await stored.collection()
    nobody = uuid4()
    for method, path in (
        ("GET", "/api/v1/collections/none"),
        ("PATCH", "/api/v1/collections/none"),
        ("DELETE", "/api/v1/collections/none"),
        ("GET", "/api/v1/collections/none/persons"),
        ("GET", f"{collection}/persons/{nobody}"),
        ("PATCH", f"{collection}/persons/{nobody}"),
        ("DELETE", f"{collection}/persons/{nobody}"),
        ("GET", f"{collection}/persons/{nobody}/faces"),
        ("GET", f"{collection}/faces/{nobody}"),
        ("GET", f"{collection}/faces/{nobody}/crop"),
        ("DELETE", f"{collection}/faces/{nobody}"),
    ):
        response = await stored.client.request(method, path, json={} if method == "PATCH" else None)
        assert response.status_code == 404 and response.json()["code"] == "not_found", (method, path, response.text)


async def test_persons_are_made_read_changed_and_found(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna = await stored.person(collection, name="Anna Müller", external_id="e-1", metadata={"team": {"name": "x"}, "n": 1})
    await stored.person(collection, name="Bob", metadata={"n": 2})
    taken = await stored.client.post(f"{collection}/persons", json={"external_id": "e-1"})
    assert taken.status_code == 409 and taken.json()["code"] == "already_exists"
    read = (await stored.client.get(f"{collection}/persons/{anna}")).json()
    assert read["metadata"] == {"team": {"name": "x"}, "n": 1} and read["face_count"] == 0
    changed = (await stored.client.patch(f"{collection}/persons/{anna}", json={"name": "Anna Meier"})).json()
    assert changed["name"] == "Anna Meier" and changed["external_id"] == "e-1"
    for query, names in (
        ({"name": "anna m"}, ["Anna Meier"]),
        ({"name": "%"}, []),
        ({"external_id": "e-1"}, ["Anna Meier"]),
        ({"metadata": '{"n": 2}'}, ["Bob"]),
        ({"metadata": '{"team": {"name": "x"}}'}, ["Anna Meier"]),
        ({}, ["Anna Meier", "Bob"]),
    ):
        listed = (await stored.client.get(f"{collection}/persons", params=query)).json()
        assert [person["name"] for person in listed["items"]] == names, query


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a\\u0000b"}',
        b'{"name": "a\\ud800b"}',
        b'{"name": "line\\nbreak"}',
        b'{"name": "' + b"x" * 1_000_000 + b'"}',
        b'{"metadata": {"a": NaN}}',
        b'{"metadata": {"a": Infinity}}',
        b'{"metadata": {"a": 1e999}}',
        b'{"metadata": {"a": "x\\u0000"}}',
        b'{"metadata": {"x\\u0000": 1}}',
        b'{"metadata": {"a": "\\udfff"}}',
        b'{"metadata": {"a": "' + b"x" * 1_000_000 + b'"}}',
        b'{"metadata": {"a": ' + b"[" * 60 + b"]" * 60 + b"}}",
        b'{"metadata": [1]}',
        b'{"metadata": {"a": ' + b"9" * 5000 + b"}}",
        b'{"external_id": ""}',
        b'{"name": 5}',
        b'{"nme": "x"}',
    ],
)
async def test_what_could_not_be_kept_or_listed_is_refused_before_it_is_stored(stored: StoredWorld, body: bytes) -> None:
    collection = await stored.collection()
    response = await stored.client.post(f"{collection}/persons", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 413, 422), response.text
    assert len(response.content) < 4000
    assert (await stored.client.get(f"{collection}/persons")).json()["items"] == []


async def test_unusual_but_storable_text_survives(stored: StoredWorld) -> None:
    collection = await stored.collection()
    metadata = {
        "emoji": "😀",
        "big": 10**30,
        "tiny": 1e-300,
        "null": None,
        "quote": "'\"\\",
        "": "",
        "nested": {"a": [{"b": [True]}]},
    }
    person = await stored.person(collection, name="O'Brien 王 ñ", metadata=metadata)
    read = (await stored.client.get(f"{collection}/persons/{person}")).json()
    assert read["name"] == "O'Brien 王 ñ" and read["metadata"] == metadata


async def test_misspelt_filters_are_refused(stored: StoredWorld) -> None:
    collection = await stored.collection()
    for path in (f"{collection}/persons?nmae=x", f"{collection}/faces?page=2", "/api/v1/collections?limit=1&x=1"):
        response = await stored.client.get(path)
        assert response.status_code == 422 and response.json()["code"] == "invalid_request", path


async def test_kept_answers_are_erased_with_the_person(stored: StoredWorld) -> None:
    collection = await stored.collection()
    create = {"json": {"name": "Gustav Secret"}, "headers": {"idempotency-key": "create"}}
    person = (await stored.client.post(f"{collection}/persons", **create)).json()["id"]  # type: ignore[arg-type]
    path = f"{collection}/persons/{person}"
    await stored.client.patch(path, json={"name": "G. Secret"}, headers={"idempotency-key": "change"})
    erase = {"headers": {"idempotency-key": "erase"}}
    receipt = (await stored.client.delete(path, **erase)).json()  # type: ignore[arg-type]
    kept = await stored.rows("SELECT 1 FROM idempotency_keys WHERE position('Secret'::bytea IN response) > 0")
    assert kept == []
    # Neither made anew nor answered from memory.
    again = await stored.client.post(f"{collection}/persons", **create)  # type: ignore[arg-type]
    assert again.status_code == 404 and (await stored.client.get(f"{collection}/persons")).json()["items"] == []
    assert (await stored.client.delete(path, **erase)).json() == receipt  # type: ignore[arg-type]
    await stored.client.delete(collection)
    assert await stored.rows("SELECT 1 FROM idempotency_keys WHERE response IS NOT NULL AND collection_id IS NULL") == []


async def test_pages_are_stable_while_persons_come_and_go(stored: StoredWorld) -> None:
    collection = await stored.collection()
    ids = [await stored.person(collection, name=f"p{index}") for index in range(7)]
    first = (await stored.client.get(f"{collection}/persons", params={"limit": 3})).json()
    assert [person["id"] for person in first["items"]] == ids[:3]
    await stored.client.delete(f"{collection}/persons/{ids[1]}")
    await stored.client.delete(f"{collection}/persons/{ids[4]}")
    late = await stored.person(collection, name="late")
    seen, cursor = [], first["next_cursor"]
    while cursor:
        page = (await stored.client.get(f"{collection}/persons", params={"limit": 2, "cursor": cursor})).json()
        seen += [person["id"] for person in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [ids[3], ids[5], ids[6], late]


async def test_cursors_cannot_be_made_altered_or_carried_over(stored: StoredWorld) -> None:
    collection = await stored.collection()
    await stored.collection("other")
    for index in range(3):
        await stored.person(collection, name=f"p{index}")
    cursor = (await stored.client.get(f"{collection}/persons", params={"limit": 1})).json()["next_cursor"]
    for path, params in (
        (f"{collection}/persons", {"cursor": cursor[:-2] + "AA"}),
        (f"{collection}/persons", {"cursor": "A" * 40}),
        (f"{collection}/persons", {"cursor": "ü"}),
        (f"{collection}/persons", {"cursor": ""}),
        (f"{collection}/persons", {"cursor": cursor, "name": "p"}),
        ("/api/v1/collections/other/persons", {"cursor": cursor}),
        (f"{collection}/faces", {"cursor": cursor}),
        ("/api/v1/collections", {"cursor": cursor}),
    ):
        response = await stored.client.get(path, params=params)
        assert response.status_code == 422 and response.json()["code"] == "invalid_cursor", (path, params, response.text)


async def test_collections_are_paged(stored: StoredWorld) -> None:
    for name in "cab":
        await stored.collection(name)
    first = (await stored.client.get("/api/v1/collections", params={"limit": 2})).json()
    assert [one["id"] for one in first["items"]] == ["a", "b"]
    second = (await stored.client.get("/api/v1/collections", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [one["id"] for one in second["items"]] == ["c"] and second["next_cursor"] is None


async def test_a_repeated_write_happens_once(stored: StoredWorld) -> None:
    collection = await stored.collection()
    headers = {"idempotency-key": "k1"}
    first = await stored.client.post(f"{collection}/persons", json={"name": "Anna"}, headers=headers)
    second = await stored.client.post(f"{collection}/persons", json={"name": "Anna"}, headers=headers)
    assert first.status_code == second.status_code == 201 and first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true" and "idempotent-replayed" not in first.headers
    other = await stored.client.post(f"{collection}/persons", json={"name": "Bob"}, headers=headers)
    assert other.status_code == 409 and other.json()["code"] == "idempotency_key_reused"
    path = f"{collection}/persons/{first.json()['id']}"
    deleted = await stored.client.delete(path, headers={"idempotency-key": "k2"})
    again = await stored.client.delete(path, headers={"idempotency-key": "k2"})
    assert deleted.status_code == again.status_code == 200 and deleted.json() == again.json()
    assert (await stored.client.delete(path)).status_code == 404


async def test_a_write_repeated_at_once_happens_once(stored: StoredWorld) -> None:
    collection = await stored.collection()
    answers = await asyncio.gather(
        *(
            stored.client.post(f"{collection}/persons", json={"name": "Anna"}, headers={"idempotency-key": "same"})
            for _ in range(8)
        )
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await stored.client.get(f"{collection}/persons")).json()["items"]) == 1


async def test_a_failed_write_leaves_its_key_free(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection, external_id="e")
    headers = {"idempotency-key": "k"}
    assert (await stored.client.post(f"{collection}/persons", json={"external_id": "e"}, headers=headers)).status_code == 409
    await stored.client.delete(f"{collection}/persons/{person}")
    assert (await stored.client.post(f"{collection}/persons", json={"external_id": "e"}, headers=headers)).status_code == 201


async def test_a_repeated_enrolment_asks_no_model_again(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    send = {"files": [("files", ("a.jpg", image()))], "headers": {"idempotency-key": "enrol-1"}}
    first = await stored.client.post(f"{collection}/persons/{person}/faces", **send)  # type: ignore[arg-type]
    calls = len(stored.detector.calls)
    second = await stored.client.post(f"{collection}/persons/{person}/faces", **send)  # type: ignore[arg-type]
    assert first.status_code == second.status_code == 201, first.text
    assert first.json()["faces"][0]["id"] == second.json()["faces"][0]["id"]
    assert len(stored.detector.calls) == calls
    assert len(await stored.rows("SELECT 1 FROM faces")) == 1


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "x" * 256])
async def test_malformed_idempotency_keys_are_refused(stored: StoredWorld, key: str) -> None:
    response = await stored.client.post("/api/v1/collections", json={}, headers=[(b"idempotency-key", key.encode())])
    assert response.status_code == 422


async def test_without_a_database_everything_that_needs_it_is_503_and_the_rest_works(make_stored: MakeStoredWorld) -> None:
    world = make_stored(dsn=lambda: "postgresql://nobody:secret@127.0.0.1:9/none")
    for method, path in (("GET", "/api/v1/collections"), ("DELETE", "/api/v1/collections/x")):
        response = await world.client.request(method, path)
        assert response.status_code == 503 and response.json()["code"] == "database_unavailable", response.text
        assert response.headers["retry-after"] and "secret" not in response.text
    response = await world.client.post("/api/v1/collections/x/search", json={"model": "fake-model", "embedding": V[0]})
    assert response.status_code == 503
    assert (await world.client.get("/api/v1/health")).status_code == 200
    assert (await world.client.post("/api/v1/face/extract-embedding", files={"file": image()})).status_code == 200


async def test_every_route_of_the_gallery_needs_the_key(stored: StoredWorld) -> None:
    collection = await stored.collection()
    del stored.client.headers["authorization"]
    for path, operations in (await stored.client.get("/openapi.json")).json()["paths"].items():
        if not path.startswith("/api/v1/collections"):
            continue
        for method in operations:
            address = (
                path.replace("{collection_id}", "people")
                .replace("{person_id}", str(uuid4()))
                .replace("{face_id}", str(uuid4()))
            )
            assert (await stored.client.request(method, address)).status_code == 401, (method, path)
    assert collection
