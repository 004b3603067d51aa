"""Enrolment through the API, on a real database and object store."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from serve_app.errors import ObjectStoreUnavailable, Overloaded
from serve_app.storage.objects import ObjectStore
from tests.api.conftest import image
from tests.storage.conftest import StoredWorld
from tests.storage.conftest import stored_everywhere as stored  # noqa: F401  every test on every object store
from tests.storage.test_search_api import W, X, Y, between


async def enrol(world: StoredWorld, collection: str, person: str, *pictures: bytes, **fields: str) -> httpx.Response:
    return await world.client.post(
        f"{collection}/persons/{person}/faces",
        files=[("files", (f"{index}.jpg", data)) for index, data in enumerate(pictures)],
        data=fields,
    )


async def test_a_picture_becomes_a_durable_face_that_is_found(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection, name="Anna")
    response = await enrol(stored, collection, person, image(identity=1), taken_at="2020-02-03T04:05:06+02:00")
    body = response.json()
    assert response.status_code == 201, body
    (face,) = body["faces"]
    assert body["refused"] == [] and face["warnings"] == [] and face["index"] == 0
    assert face["taken_at"] == "2020-02-03T02:05:06Z" and face["quality"]["occlusion"] == "NONE"
    found = (await stored.client.post(f"{collection}/search", files={"file": image(identity=1)})).json()
    best = found["results"][0]["candidates"][0]
    assert best["face_id"] == face["id"] and best["similarity"] == pytest.approx(1, abs=1e-3)
    # Object before row, and only these two.
    rows = await stored.rows("SELECT i.object_key, f.crop_key FROM faces f JOIN images i ON i.id = f.image_id")
    assert await stored.object_keys() == {rows[0]["object_key"], rows[0]["crop_key"]}
    assert await stored.gallery.objects.get(rows[0]["object_key"]) == image(identity=1)
    # Keys hold nothing of the client's.
    assert "people" not in rows[0]["object_key"] and "Anna" not in rows[0]["object_key"]


async def test_picture_and_crop_can_be_fetched(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    picture = image(identity=1) + bytes(range(256)) * 10
    face = (await enrol(stored, collection, person, picture)).json()["faces"][0]
    path = f"{collection}/faces/{face['id']}"
    whole = await stored.client.get(f"{path}/image")
    assert whole.status_code == 200 and whole.content == picture and whole.headers["accept-ranges"] == "bytes"
    part = await stored.client.get(f"{path}/image", headers={"range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == picture[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(picture)}"
    crop = await stored.client.get(f"{path}/crop")
    assert crop.content.startswith(b"\x89PNG") and crop.headers["content-type"] == "image/png"
    detail = (await stored.client.get(path)).json()
    del stored.client.headers["authorization"]
    assert (await stored.client.get(f"{path}/image")).status_code == 401
    async with httpx.AsyncClient() as elsewhere:
        for url, content in ((detail["image_url"], picture), (detail["crop_url"], crop.content)):
            # The local store's addresses are ours; a server's are its own.
            client = stored.client if url.startswith("/") else elsewhere
            assert (await client.get(url)).content == content
            tampered = "00" if url[-2:] != "00" else "11"
            assert (await client.get(url[:-2] + tampered)).status_code in (403, 404)
            longer = url.replace("expires=", "expires=9").replace("X-Amz-Expires=", "X-Amz-Expires=9")
            assert longer != url and (await client.get(longer)).status_code in (400, 403, 404)
    assert (await stored.client.get("/api/v1/objects/../api_key?expires=1&signature=x")).status_code == 404
    assert (
        await stored.client.get("/api/v1/objects/%2e%2e%2fapi_key?expires=9999999999&signature=" + "0" * 64)
    ).status_code == 404


async def test_many_pictures_at_once_with_some_refused(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    response = await enrol(
        stored, collection, person, image(identity=0), image(faces=0), image(faces=2, identity=1), image()[:5] + b"broken",
        image(identity=0), b"no picture", face="only",
    )  # fmt: skip
    body = response.json()
    assert response.status_code == 201, body
    assert [face["index"] for face in body["faces"]] == [0]
    assert {one["index"]: one["problem"]["code"] for one in body["refused"]} == {
        1: "no_face_detected",
        2: "multiple_faces",
        3: "invalid_image",
        4: "duplicate_face",
        5: "unsupported_image",
    }
    assert len(await stored.object_keys()) == 2
    largest = await enrol(stored, collection, person, image(faces=2, identity=1), face="largest")
    assert largest.status_code == 201


async def test_when_all_are_refused_the_first_reason_is_the_answer(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    response = await enrol(stored, collection, person, image(faces=0), b"no picture")
    assert response.status_code == 422 and response.json()["code"] == "no_face_detected"
    assert [one["code"] for one in response.json()["details"]["refused"]] == ["no_face_detected", "unsupported_image"]
    assert await stored.object_keys() == set() and await stored.rows("SELECT 1 FROM faces") == []


async def test_json_bodies_with_base64_and_vectors(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    encoded = base64.b64encode(image(identity=2)).decode()
    response = await stored.client.post(
        f"{collection}/persons/{person}/faces", json={"images": [encoded], "embeddings": [Y], "model": "fake-model"}
    )
    assert response.status_code == 201, response.text
    faces = response.json()["faces"]
    assert [face["index"] for face in faces] == [0, 1]
    vector = faces[1]
    assert vector["bbox"] is vector["image_id"] is vector["quality"] is None
    assert (await stored.client.get(f"{collection}/faces/{vector['id']}/crop")).status_code == 404


async def test_a_bare_picture_is_a_body(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    response = await stored.client.post(
        f"{collection}/persons/{person}/faces", content=image(), headers={"content-type": "image/jpeg"}
    )
    assert response.status_code == 201, response.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"embeddings": [X]}, "invalid_request"),
        ({"embeddings": [X], "model": "other"}, "embedding_model_mismatch"),
        ({"embeddings": [[1.0]], "model": "fake-model"}, "invalid_embedding"),
        ({"embeddings": [[0.0] * 4], "model": "fake-model"}, "invalid_embedding"),
        ({"images": ["%%%"]}, "invalid_image"),
        ({"images": ["%%%", "data:x"]}, "invalid_image"),
        ({"images": ["AAAA"] * 101}, "invalid_request"),
        ({"image_urls": ["http://127.0.0.1/x.jpg"]}, "image_url_refused"),
        ({"embeddings": [X], "model": "fake-model", "taken_at": "yesterday"}, "invalid_request"),
        ({"embeddings": [X], "model": "fake-model", "colour": "red"}, "invalid_request"),
    ],
)
async def test_bad_enrolments_are_refused(stored: StoredWorld, body: dict[str, object], code: str) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    response = await stored.client.post(f"{collection}/persons/{person}/faces", json=body)
    assert response.json()["code"] == code, response.text
    assert await stored.rows("SELECT 1 FROM faces") == []


async def test_a_bad_face_is_refused_with_metric_value_and_limit(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    stored.detector.quality = replace(stored.detector.quality, size_px=9.0, sharpness=0.0)
    response = await enrol(stored, collection, person, image())
    assert response.status_code == 422 and response.json()["code"] == "low_quality_face"
    reasons = {one["metric"]: one for one in response.json()["details"]["reasons"]}
    assert reasons["size_px"]["value"] == 9.0 and reasons["size_px"]["limit"] > 9 and "9" in reasons["size_px"]["message"]
    assert "sharpness" in reasons
    anyway = await enrol(stored, collection, person, image(), review="false")
    assert anyway.status_code == 201
    assert [warning["code"] for warning in anyway.json()["faces"][0]["warnings"]] == ["low_quality_face"]


async def test_the_same_picture_and_nearly_the_same_face_are_refused(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    first = (await enrol(stored, collection, person, image())).json()["faces"][0]
    calls = len(stored.detector.calls)
    same = await enrol(stored, collection, person, image())
    assert same.status_code == 422 and same.json()["code"] == "duplicate_face"
    assert len(stored.detector.calls) == calls, "a known picture asks no model"
    near = (await enrol(stored, collection, person, image() + b"another file")).json()
    assert near["code"] == "duplicate_face" and near["details"]["face_id"] == first["id"]
    assert near["details"]["value"] > near["details"]["limit"]
    assert (await enrol(stored, collection, person, image() + b"another file", review="false")).status_code == 201


async def test_a_face_more_like_somebody_else_is_refused(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna, bob = await stored.person(collection), await stored.person(collection)
    await stored.enrol_vector(collection, anna, X)
    await stored.enrol_vector(collection, bob, Y)
    path = f"{collection}/persons/{bob}/faces"
    probe = between(X, Y, 0.8)
    refused = await stored.client.post(path, json={"embeddings": [probe], "model": "fake-model"})
    details = refused.json()["details"]
    assert refused.json()["code"] == "resembles_another" and details["person_id"] == anna
    assert details["value"] == pytest.approx(0.8, abs=1e-3) and details["limit"] == pytest.approx(0.6, abs=1e-3)
    own = await stored.client.post(path, json={"embeddings": [between(Y, X, 0.8)], "model": "fake-model"})
    assert own.status_code == 201


async def test_a_first_face_like_somebody_elses_is_enrolled_with_a_warning(stored: StoredWorld) -> None:
    """Among many persons somebody is always alike; only a person's own faces can say that a face is not its."""
    collection = await stored.collection()
    anna, bob, carl = [await stored.person(collection) for _ in range(3)]
    await stored.enrol_vector(collection, anna, X)
    path = f"{collection}/persons/{bob}/faces"
    first = (await stored.client.post(path, json={"embeddings": [between(X, Y, 0.5)], "model": "fake-model"})).json()
    (warning,) = first["faces"][0]["warnings"]
    assert warning["code"] == "resembles_another" and warning["details"]["person_id"] == anna
    stranger = await stored.client.post(path, json={"embeddings": [[-value for value in X]], "model": "fake-model"})
    assert [warning["code"] for warning in stranger.json()["faces"][0]["warnings"]] == ["unlike_person"]
    # Faces that come together speak for each other.
    together = await stored.client.post(
        f"{collection}/persons/{carl}/faces",
        json={"embeddings": [between(W, X, 0.8), between(W, X, 0.6), X], "model": "fake-model"},
    )
    assert [face["index"] for face in together.json()["faces"]] == [0, 1], together.text
    assert together.json()["refused"][0]["problem"]["code"] == "resembles_another"


async def test_faces_are_listed_moved_and_found_under_their_new_person(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna, bob = await stored.person(collection, name="Anna"), await stored.person(collection, name="Bob")
    first, second = await stored.enrol_vector(collection, anna, X, Y)
    listed = (await stored.client.get(f"{collection}/persons/{anna}/faces", params={"limit": 1})).json()
    assert [face["id"] for face in listed["items"]] == [first] and listed["next_cursor"]
    rest = (
        await stored.client.get(f"{collection}/persons/{anna}/faces", params={"limit": 1, "cursor": listed["next_cursor"]})
    ).json()
    assert [face["id"] for face in rest["items"]] == [second] and rest["next_cursor"] is None
    moved = await stored.client.post(f"{collection}/faces/{second}/move", json={"person_id": bob})
    assert moved.json()["person_id"] == bob
    found = (await stored.client.post(f"{collection}/search", json={"model": "fake-model", "embedding": Y, "top_k": 1})).json()
    assert found["results"][0]["candidates"][0]["person"]["name"] == "Bob"
    templates = await stored.rows("SELECT person_id::text, face_count FROM templates ORDER BY person_id")
    assert {row["person_id"] for row in templates} == {anna, bob}
    missing = await stored.client.post(f"{collection}/faces/{second}/move", json={"person_id": str(uuid4())})
    assert missing.status_code == 404
    assert len((await stored.client.get(f"{collection}/faces")).json()["items"]) == 2


async def test_overload_while_enrolling_waits_for_a_place(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    stored.detector.error = Overloaded("full", retry_after_s=0.05)

    async def recover() -> None:
        await asyncio.sleep(0.2)
        stored.detector.error = None

    response, _ = await asyncio.gather(enrol(stored, collection, person, image()), recover())
    assert response.status_code == 201


class FailingStore:
    """A real store that fails where a test says so."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.fail_put = self.fail_delete = False

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        if self.fail_put and key.endswith(".png"):
            raise ObjectStoreUnavailable("down", retry_after_s=1)
        await self._inner.put(key, data, content_type)

    async def delete_many(self, keys: Sequence[str]) -> None:
        if self.fail_delete:
            raise ObjectStoreUnavailable("down", retry_after_s=1)
        await self._inner.delete_many(keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_without_the_object_store_nothing_is_enrolled(stored: StoredWorld, make_stored: Any) -> None:
    store = FailingStore(stored.gallery.objects)
    world = make_stored(objects=store)
    collection = await world.collection()
    person = await world.person(collection)
    store.fail_put = True
    response = await enrol(world, collection, person, image())
    assert response.status_code == 503 and response.json()["code"] == "object_store_unavailable"
    assert await world.rows("SELECT 1 FROM faces UNION ALL SELECT 1 FROM images") == []
    store.fail_put = False
    assert (await enrol(world, collection, person, image())).status_code == 201


async def test_a_refusal_under_the_lock_leaves_no_object_behind(stored: StoredWorld) -> None:
    """Two requests with one picture: both look before either writes."""
    collection = await stored.collection()
    person = await stored.person(collection)
    stored.detector.delay_s = 0.1
    answers = await asyncio.gather(*(enrol(stored, collection, person, image()) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 422, 422, 422]
    assert len(await stored.rows("SELECT 1 FROM faces")) == 1
    await stored.gallery.housekeeping.once()
    assert len(await stored.object_keys()) == 2


async def test_bulk_enrolment_by_folder_names_is_repeatable(stored: StoredWorld) -> None:
    collection = await stored.collection()
    files = [
        ("files", ("anna/1.jpg", image(identity=0))),
        ("files", ("bob/1.jpg", image(identity=1))),
        ("files", ("anna/2.jpg", image(faces=0))),
        ("files", ("3.jpg", image(identity=2))),
        ("files", ("photos\\carl\\1.jpg", image(identity=2))),
    ]
    body = (await stored.client.post(f"{collection}/faces:batch", files=files)).json()
    assert [item["status"] for item in body["results"]] == ["enrolled", "enrolled", "refused", "refused", "enrolled"]
    assert [item["external_id"] for item in body["results"]] == ["anna", "bob", "anna", None, "carl"]
    assert body["enrolled"] == 3 and body["refused"] == 2
    persons = (await stored.client.get(f"{collection}/persons")).json()["items"]
    assert {person["external_id"]: person["face_count"] for person in persons} == {"anna": 1, "bob": 1, "carl": 1}
    calls = len(stored.detector.calls)
    again = (await stored.client.post(f"{collection}/faces:batch", files=[files[0], files[1], files[4]])).json()
    assert [item["status"] for item in again["results"]] == ["exists"] * 3 and len(stored.detector.calls) == calls
    assert len(await stored.rows("SELECT 1 FROM faces")) == 3


async def test_bulk_enrolment_with_a_list_and_by_json(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna = await stored.person(collection, name="Anna")
    items = [
        {"person_id": anna},
        {"external_id": "b", "name": "Bob", "metadata": {"a": 1}, "taken_at": "2001-01-01"},
    ]
    body = (
        await stored.client.post(
            f"{collection}/faces:batch",
            data={"items": json.dumps(items)},
            files=[("files", ("x", image(identity=index))) for index in range(3)],
        )
    ).json()
    assert [item["status"] for item in body["results"]] == ["enrolled", "enrolled", "refused"], body
    assert body["results"][0]["person_id"] == anna
    bob = (await stored.client.get(f"{collection}/persons", params={"external_id": "b"})).json()["items"][0]
    assert bob["name"] == "Bob" and bob["metadata"] == {"a": 1}
    by_json = await stored.client.post(
        f"{collection}/faces:batch",
        json={
            "items": [
                {"external_id": "c", "image": base64.b64encode(image(identity=2)).decode()},
                {"external_id": "d", "embedding": W},
                {"person_id": str(uuid4()), "embedding": W},
            ],
            "model": "fake-model",
        },
    )
    assert [item["status"] for item in by_json.json()["results"]] == ["enrolled", "enrolled", "refused"], by_json.text
    assert by_json.json()["results"][2]["problem"]["code"] in ("not_found", "resembles_another")
    unfit: list[dict[str, object]] = [{"items": []}, {"items": [{"external_id": "x"}]}, {"items": [{"embedding": W}]}]
    for bad in unfit:
        assert (await stored.client.post(f"{collection}/faces:batch", json=bad)).status_code == 422
    missing = await stored.client.post(
        "/api/v1/collections/none/faces:batch", json={"items": [{"external_id": "x", "embedding": W}]}
    )
    assert missing.status_code == 404


async def test_bulk_enrolment_with_a_key_answers_as_the_first_time(stored: StoredWorld) -> None:
    collection = await stored.collection()
    items: list[dict[str, object]] = [
        {"external_id": "a", "embedding": X},
        {"external_id": "b", "image": base64.b64encode(image(identity=1)).decode()},
        {"external_id": "c", "image": base64.b64encode(image(faces=0)).decode()},
    ]
    send = {"json": {"items": items, "model": "fake-model", "review": False}, "headers": {"idempotency-key": "bulk"}}
    first = await stored.client.post(f"{collection}/faces:batch", **send)  # type: ignore[arg-type]
    second = await stored.client.post(f"{collection}/faces:batch", **send)  # type: ignore[arg-type]
    assert first.json()["results"][:2] == second.json()["results"][:2] and first.json()["enrolled"] == 2
    assert len(await stored.rows("SELECT 1 FROM faces")) == 2
    items[0]["embedding"] = Y
    third = (await stored.client.post(f"{collection}/faces:batch", **send)).json()  # type: ignore[arg-type]
    assert third["results"][0]["problem"]["code"] == "idempotency_key_reused"


async def test_templates_follow_their_faces(stored: StoredWorld) -> None:
    collection = await stored.collection()
    person = await stored.person(collection)
    faces = await stored.enrol_vector(collection, person, X, between(X, Y, 0.9), [-value for value in X])
    rows = await stored.rows("SELECT face_count FROM templates ORDER BY ordinal")
    assert sorted(row["face_count"] for row in rows) == [1, 2]
    await stored.client.delete(f"{collection}/faces/{faces[2]}")
    rows = await stored.rows("SELECT face_count, embedding::text AS embedding FROM templates")
    assert [row["face_count"] for row in rows] == [2]
    mean = np.array(X) + np.array(between(X, Y, 0.9))
    stored_mean = np.array(json.loads(rows[0]["embedding"]))
    assert stored_mean == pytest.approx(mean / np.linalg.norm(mean), abs=1e-3)
