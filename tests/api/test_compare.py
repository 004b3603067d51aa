from __future__ import annotations

import base64
import json

import pytest

from tests.api.conftest import MakeWorld, World, image
from tests.api.test_face import problem

COMPARE = "/api/v1/compare/compare-faces"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_two_pictures(world: World) -> None:
    response = await world.client.post(COMPARE, files={"image_a": image(2, 1), "image_b": image(1, 1)})
    body = response.json()
    assert response.status_code == 200 and body["similarity"] == pytest.approx(1) and body["decision"] == "match"
    assert body["threshold"] == 0.36 and body["suggest_threshold"] == 0.3
    assert body["operating_point"] == {"data_set": "made up", "far": 0.001, "frr": 0.02}
    assert body["face_a"]["bbox"][2] == 20 and body["face_b"]["bbox"][2] == 10
    assert world.embedder.faces == 2


@pytest.mark.parametrize(("other", "decision"), [(1, "match"), (101, "ambiguous"), (2, "unknown")])
async def test_decisions(world: World, other: int, decision: str) -> None:
    body = (await world.client.post(COMPARE, files={"image_a": image(1, 1), "image_b": image(1, other)})).json()
    assert body["decision"] == decision


async def test_every_mix_of_sides(world: World) -> None:
    vector = [0.0, 5.0, 0.0, 0.0]
    answers = [
        await world.client.post(COMPARE, json={"embedding_a": vector, "embedding_b": vector}),
        await world.client.post(COMPARE, json={"image_a": text(image(1, 1)), "embedding_b": vector}),
        await world.client.post(COMPARE, json={"embedding_a": vector, "image_b": text(image(1, 1))}),
        await world.client.post(COMPARE, files={"image_a": image(1, 1)}, data={"embedding_b": json.dumps(vector)}),
        await world.client.post(COMPARE, files={"image_a": image(1, 1), "image_b": (None, text(image(1, 1)))}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5, [answer.text for answer in answers]
    assert all(answer.json()["similarity"] == pytest.approx(1) for answer in answers)


@pytest.mark.parametrize(
    ("vector", "code"),
    [
        ([1, 2, 3], "invalid_embedding"),
        ([0, 0, 0, 0], "invalid_embedding"),
        (["NaN", 1, 1, 1], "invalid_embedding"),
        ([1e400, 1, 1, 1], "invalid_embedding"),
        (["x", 1, 1, 1], "invalid_request"),
        ("[1, 2", "invalid_request"),
        ([[1], 1, 1, 1], "invalid_request"),
        ([], "invalid_embedding"),
        ([1] * 9000, "invalid_request"),
    ],
)
async def test_bad_embeddings(world: World, vector: object, code: str) -> None:
    body = json.dumps({"embedding_a": vector, "image_b": text(image())})
    response = await world.client.post(COMPARE, content=body, headers={"content-type": "application/json"})
    found = problem(response, 422, code)
    if code == "invalid_embedding":
        assert found["details"]["side"] == "a"  # type: ignore[index]
    assert world.detector.calls == [], "a malformed embedding costs no model time"


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
async def test_bare_nan_in_json(world: World, literal: str) -> None:
    body = f'{{"embedding_a": [{literal},1,1,1], "embedding_b": [1,1,1,1]}}'
    response = await world.client.post(COMPARE, content=body, headers={"content-type": "application/json"})
    problem(response, 422, "invalid_embedding")


async def test_embeddings_of_another_model_are_a_conflict(world: World) -> None:
    fields = {"embedding_a": [1, 0, 0, 0], "embedding_b": [1, 0, 0, 0]}
    problem(await world.client.post(COMPARE, json={**fields, "model": "other"}), 409, "embedding_model_mismatch")
    assert (await world.client.post(COMPARE, json={**fields, "model": "fake-model"})).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [{}, {"embedding_a": [1, 0, 0, 0]}, {"embedding_a": [1, 0, 0, 0], "image_a": "aGk=", "embedding_b": [1, 0, 0, 0]}],
)
async def test_each_side_exactly_once(world: World, fields: dict[str, object]) -> None:
    body = problem(await world.client.post(COMPARE, json=fields), 422, "invalid_request")
    assert body["details"]["side"] in ("a", "b")  # type: ignore[index]


async def test_errors_name_their_side(world: World) -> None:
    for side, files in (("a", (image(0), image(1))), ("b", (image(1), image(0)))):
        response = await world.client.post(COMPARE, files={"image_a": files[0], "image_b": files[1]})
        assert problem(response, 422, "no_face_detected")["details"]["side"] == side  # type: ignore[index]


async def test_only_one_face_a_side(world: World) -> None:
    response = await world.client.post(COMPARE + "?face=only", files={"image_a": image(2), "image_b": image(1)})
    problem(response, 422, "multiple_faces")
    problem(
        await world.client.post(COMPARE + "?face=all", files={"image_a": image(), "image_b": image()}), 422, "invalid_request"
    )


async def test_without_an_operating_point_there_is_no_decision(make_world: MakeWorld) -> None:
    world = make_world(point=False)
    body = (await world.client.post(COMPARE, files={"image_a": image(), "image_b": image()})).json()
    assert body["similarity"] == pytest.approx(1)
    assert body["decision"] is None and body["threshold"] is None and body["operating_point"] is None
