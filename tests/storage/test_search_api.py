"""Search, identify and verify through the API, on a real database."""

from __future__ import annotations

import json
import math
from typing import Any
from uuid import uuid4

import pytest

from tests.api.conftest import image
from tests.storage.conftest import StoredWorld

X, Y, Z, W = ([1.0 if i == j else 0.0 for j in range(4)] for i in range(4))


def between(a: list[float], b: list[float], cosine: float) -> list[float]:
    """A unit vector with that cosine to `a`, the rest of it along `b`."""
    rest = math.sqrt(1 - cosine**2)
    return [cosine * p + rest * q for p, q in zip(a, b, strict=True)]


async def gallery(world: StoredWorld) -> tuple[str, dict[str, str]]:
    """Anna at X (and a worse face), Bob at Y, Carl at Z."""
    collection = await world.collection()
    people = {}
    for name, vectors in (("Anna", [X, between(X, W, 0.7)]), ("Bob", [Y]), ("Carl", [Z])):
        people[name] = await world.person(collection, name=name, metadata={"initial": name[0]})
        await world.enrol_vector(collection, people[name], *vectors)
    return collection, people


async def post(world: StoredWorld, path: str, **body: object) -> dict[str, Any]:
    if "embedding" in body:
        body = {"model": "fake-model", **body}
    response = await world.client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_search_by_vector_ranks_persons_by_their_best_face(stored: StoredWorld) -> None:
    collection, people = await gallery(stored)
    found = await post(stored, f"{collection}/search", embedding=between(X, Y, 0.9), top_k=3)
    (result,) = found["results"]
    assert result["face"] is None and found["face_count"] is None
    assert [one["person"]["name"] for one in result["candidates"]] == ["Anna", "Bob", "Carl"]
    best = result["candidates"][0]
    assert best["similarity"] == pytest.approx(0.9, abs=1e-3) and best["decision"] == "match"
    assert best["person"] == {"id": people["Anna"], "external_id": None, "name": "Anna", "metadata": {"initial": "A"}}
    faces = (await stored.client.get(f"{collection}/persons/{people['Anna']}/faces")).json()["items"]
    assert best["face_id"] == faces[0]["id"]
    assert result["candidates"][2]["decision"] == "unknown"


async def test_search_by_picture_answers_for_every_face(stored: StoredWorld) -> None:
    collection, _ = await gallery(stored)
    response = await stored.client.post(f"{collection}/search", files={"file": image(faces=3, identity=1)})
    body = response.json()
    assert response.status_code == 200 and body["face_count"] == 3 and len(body["results"]) == 3
    for result in body["results"]:
        assert result["face"]["bbox"] and result["candidates"][0]["person"]["name"] == "Bob"
    limited = await stored.client.post(
        f"{collection}/search", files={"file": image(3, 1)}, data={"max_faces": "2", "top_k": "1"}
    )
    assert [len(result["candidates"]) for result in limited.json()["results"]] == [1, 1]


async def test_threshold_and_top_k_limit(stored: StoredWorld) -> None:
    collection, _ = await gallery(stored)
    found = await post(stored, f"{collection}/search", embedding=between(X, Y, 0.9), threshold=0.5)
    assert [one["person"]["name"] for one in found["results"][0]["candidates"]] == ["Anna"]
    found = await post(stored, f"{collection}/search", embedding=X, top_k=2)
    assert len(found["results"][0]["candidates"]) == 2


async def test_filters(stored: StoredWorld) -> None:
    collection, people = await gallery(stored)
    old = await stored.person(collection, name="Dora")
    await stored.enrol_vector(collection, old, W, taken_at="2001-05-01T12:00:00Z")
    for wanted, names in (
        ({"person_ids": [people["Bob"], people["Carl"]]}, {"Bob", "Carl"}),
        ({"exclude_person_ids": [people["Anna"], old]}, {"Bob", "Carl"}),
        ({"metadata": {"initial": "C"}}, {"Carl"}),
        ({"taken_to": "2001-06-01"}, {"Dora"}),
        ({"taken_from": "2001-05-01T12:00:00Z", "taken_to": "2001-05-01T12:00:01Z"}, {"Dora"}),
        ({"taken_from": "2001-05-01T12:00:01Z"}, {"Anna", "Bob", "Carl"}),
        ({"person_ids": []}, set()),
        ({"person_ids": [str(uuid4())]}, set()),
    ):
        found = await post(stored, f"{collection}/search", embedding=X, filter=wanted)
        assert {one["person"]["name"] for one in found["results"][0]["candidates"]} == names, wanted
    form = await stored.client.post(
        f"{collection}/search", files={"file": image()}, data={"filter": '{"metadata": {"initial": "B"}}'}
    )
    assert [one["person"]["name"] for one in form.json()["results"][0]["candidates"]] == ["Bob"]


OPPOSITE_W = [-value for value in W]


@pytest.mark.parametrize(
    ("probe", "decision", "best"),
    [
        (X, "match", "Anna"),
        (between(Y, OPPOSITE_W, 0.33), "ambiguous", "Bob"),  # between the two thresholds
        (between(X, Y, math.sqrt(0.5)), "ambiguous", None),  # two persons, equally like
        (OPPOSITE_W, "unknown", None),
    ],
)
async def test_identify_decides(stored: StoredWorld, probe: list[float], decision: str, best: str | None) -> None:
    collection, _ = await gallery(stored)
    found = await post(stored, f"{collection}/identify", embedding=probe)
    assert found["decision"] == decision, found
    if best:
        assert found["person"]["name"] == best
    assert found["threshold"] == 0.36 and found["suggest_threshold"] == 0.3 and found["required_margin"] == 0.05
    assert found["margin"] == pytest.approx(found["similarity"] - found["second"]["similarity"])
    assert found["results"][0]["decision"] == decision


async def test_identify_margin_and_threshold_can_be_asked_for(stored: StoredWorld) -> None:
    collection, _ = await gallery(stored)
    probe = between(X, Y, 0.8)
    assert (await post(stored, f"{collection}/identify", embedding=probe))["decision"] == "match"
    assert (await post(stored, f"{collection}/identify", embedding=probe, margin=0.3))["decision"] == "ambiguous"
    strict = await post(stored, f"{collection}/identify", embedding=probe, threshold=0.95)
    assert strict["decision"] == "unknown" and strict["operating_point"]["far"] is None


async def test_identify_in_an_empty_collection_knows_nobody(stored: StoredWorld) -> None:
    collection = await stored.collection()
    found = await post(stored, f"{collection}/identify", embedding=X)
    assert found["decision"] == "unknown" and found["person"] is None and found["margin"] is None


async def test_verify_compares_with_the_best_face_of_the_person(stored: StoredWorld) -> None:
    collection, people = await gallery(stored)
    path = f"{collection}/persons/{people['Anna']}/verify"
    found = await post(stored, path, embedding=X)
    assert found["decision"] == "match" and found["similarity"] == pytest.approx(1, abs=1e-3) and found["face_id"]
    assert (await post(stored, path, embedding=Y))["decision"] == "unknown"
    by_picture = await stored.client.post(path, files={"file": image(identity=0)})
    assert by_picture.json()["decision"] == "match" and by_picture.json()["face"]["bbox"]
    empty = await stored.person(collection)
    found = await post(stored, f"{collection}/persons/{empty}/verify", embedding=X)
    assert found["decision"] == "unknown" and found["similarity"] is None
    missing = await stored.client.post(f"{collection}/persons/{uuid4()}/verify", json={"model": "fake-model", "embedding": X})
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"embedding": [1.0, 0.0]}, 422, "invalid_embedding"),
        ({"embedding": [0.0] * 4}, 422, "invalid_embedding"),
        ({"embedding": [1e999, 0, 0, 0]}, 422, None),
        ({"embedding": X, "model": None}, 422, "invalid_request"),
        ({"embedding": X, "top_k": 100, "max_faces": 11}, 422, "invalid_request"),
        ({"embedding": X, "filter": {"taken_from": 20240101}}, 422, "invalid_request"),
        ({"embedding": X, "filter": {"taken_from": "20240101"}}, 422, "invalid_request"),
        ({"embedding": X, "filter": {"taken_from": "0001-01-01T00:00:00+14:00"}}, 422, "invalid_request"),
        ({"embedding": X, "filter": {"taken_to": "9999-12-31T23:59:59-14:00"}}, 422, "invalid_request"),
        ({"embedding": X, "model": "other"}, 409, "embedding_model_mismatch"),
        ({"embedding": X, "image": "AAAA"}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
        ({"embedding": X, "top_k": 0}, 422, "invalid_request"),
        ({"embedding": X, "top_k": 101}, 422, "invalid_request"),
        ({"embedding": X, "threshold": 2}, 422, "invalid_request"),
        ({"embedding": X, "filter": {"nobody": 1}}, 422, "invalid_request"),
        ({"embedding": X, "filter": {"person_ids": ["x"]}}, 422, "invalid_request"),
        ({"embedding": X, "filter": {"metadata": {"a": "\0"}}}, 422, "invalid_request"),
    ],
)
async def test_bad_searches_are_refused(stored: StoredWorld, body: dict[str, object], status: int, code: str | None) -> None:
    collection = await stored.collection()
    response = await stored.client.post(
        f"{collection}/search",
        content=json.dumps({"model": "fake-model", **body}),
        headers={"content-type": "application/json"},
    )
    assert response.status_code in (status, 400) and (code is None or response.json()["code"] == code), response.text
