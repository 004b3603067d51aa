"""analyze-face-advanced, and `analyze` on the other calls."""

from __future__ import annotations

import asyncio
import time

import pytest

from serve_app.attributes import Attribute
from serve_app.errors import ModelUnavailable, Overloaded
from serve_app.faces import ALL_FACES
from tests.api.conftest import MISSING, World, image
from tests.api.test_face import EXTRACT, VERIFY, problem

ANALYZE = "/api/v1/face/analyze-face-advanced"
COMPARE = "/api/v1/compare/compare-faces"
BATCH = "/api/v1/face/batch-extract"


async def test_every_face_largest_first_with_age_gender_and_quality(world: World) -> None:
    body = (await world.client.post(ANALYZE, files={"file": image(faces=2, identity=30)})).json()
    assert body["face_count"] == 2 and [face["bbox"][2] for face in body["faces"]] == [20, 10]
    first = body["faces"][0]["attributes"]
    # 3 years of deviation and 1 of floor: 4 below, 8 above.
    assert first["age"] == {"years": 30, "low": 26, "high": 38, "level": 0.8}
    assert first["gender"]["top"] == "male" and first["gender"]["probability"] == pytest.approx(0.6)
    assert list(first["gender"]["probabilities"]) == ["male", "female"] and first["gender"]["abstained"] is True
    assert first["quality"]["pose"] == {"yaw_deg": 2, "pitch_deg": 1, "roll_deg": 0}
    assert first["quality"]["sharpness"] == 0.5 and first["quality"]["occlusion"] == "NONE"
    assert len(body["faces"][1]["landmarks"]) == 5
    assert body["models"] == {"age": "fake_age", "gender": "fake_gender"} and body["unavailable"] == []
    assert world.analyzer.calls == [(2, (Attribute.AGE, Attribute.GENDER))]


async def test_emotion_and_race_only_when_asked_for(world: World) -> None:
    first = (await world.client.post(ANALYZE, files={"file": image()})).json()["faces"][0]["attributes"]
    assert first["emotion"] is None and first["race"] is None
    body = (await world.client.post(ANALYZE, files={"file": image()}, data={"actions": "emotion, race"})).json()
    first = body["faces"][0]["attributes"]
    assert first["emotion"]["top"] == "happiness" and first["emotion"]["abstained"] is False
    assert first["race"] is None and first["age"] is None and first["quality"] is None
    assert body["unavailable"] == [{"attribute": "race", "reason": MISSING[Attribute.RACE]}]
    assert body["models"] == {"emotion": "fake_emotion"}


@pytest.mark.parametrize("actions", ["age", ["age"], '["age"]'])
async def test_actions_limit_the_work(world: World, actions: str | list[str]) -> None:
    await world.client.post(ANALYZE, json={"image": "/9j/4AEA", "actions": actions})
    assert world.analyzer.calls == [(1, (Attribute.AGE,))]
    (options,) = world.detector.calls
    assert options.qualities == 0 and options.crops == 0 and len(options.chips) == 1


async def test_quality_alone_needs_no_model(world: World) -> None:
    body = (await world.client.post(ANALYZE, files={"file": image()}, data={"actions": "quality"})).json()
    assert body["faces"][0]["attributes"]["quality"]["size_px"] == 150 and world.analyzer.calls == []
    assert world.detector.calls[0].chips == ()


async def test_an_unknown_action_or_none_is_refused(world: World) -> None:
    for actions in ("age,wisdom", "", "[]"):
        body = problem(
            await world.client.post(ANALYZE, files={"file": image()}, data={"actions": actions}), 422, "invalid_request"
        )
        assert "actions" in str(body["detail"])
    assert world.detector.calls == []


async def test_only_what_cannot_be_had_is_a_503_before_any_work(world: World) -> None:
    body = problem(await world.client.post(ANALYZE + "?actions=race", files={"file": image()}), 503, "model_unavailable")
    assert body["details"] == {"unavailable": {"race": MISSING[Attribute.RACE]}} and world.detector.calls == []


async def test_a_deployment_that_does_not_answer_is_named_like_a_missing_model(world: World) -> None:
    world.analyzer.error = ModelUnavailable("Analysis has no replica that answers.")
    body = (await world.client.post(ANALYZE, files={"file": image()})).json()
    assert {entry["attribute"] for entry in body["unavailable"]} == {"age", "gender"} and body["models"] == {}
    assert body["faces"][0]["attributes"]["quality"]["size_px"] == 150
    problem(await world.client.post(ANALYZE + "?actions=age", files={"file": image()}), 503, "model_unavailable")


async def test_an_overloaded_deployment_is_a_503_with_retry_after(world: World) -> None:
    world.analyzer.error = Overloaded("The queue of Analysis is full.", retry_after_s=1)
    response = await world.client.post(ANALYZE, files={"file": image()})
    problem(response, 503, "overloaded")
    assert response.headers["retry-after"] == "1"


async def test_elsewhere_an_overloaded_analysis_costs_only_itself(world: World) -> None:
    world.analyzer.error = Overloaded("The queue of Analysis is full.", retry_after_s=1)
    body = (await world.client.post(EXTRACT + "?analyze=age", files={"file": image()})).json()
    assert body["embedding"] and body["unavailable"] == [{"attribute": "age", "reason": "The queue of Analysis is full."}]


async def test_what_the_deployment_leaves_out_is_named(world: World) -> None:
    """While a change of models is on its way."""
    world.analyzer.lost = frozenset({Attribute.GENDER})
    body = (await world.client.post(ANALYZE, files={"file": image()})).json()
    assert [entry["attribute"] for entry in body["unavailable"]] == ["gender"] and body["models"] == {"age": "fake_age"}
    assert body["faces"][0]["attributes"]["gender"] is None and body["faces"][0]["attributes"]["age"]


async def test_a_model_that_makes_no_number_of_a_face_is_named(world: World) -> None:
    world.analyzer.years = float("nan")
    response = await world.client.post(ANALYZE + "?actions=age,quality", files={"file": image()})
    body = response.json()
    assert body["unavailable"][0]["attribute"] == "age" and body["faces"][0]["attributes"]["age"] is None
    world.analyzer.years = -3.0
    body = (await world.client.post(ANALYZE + "?actions=age", files={"file": image()})).json()
    assert body["faces"][0]["attributes"]["age"]["years"] == 0


async def test_a_million_actions_are_refused_without_being_read(world: World) -> None:
    begun = time.process_time()
    for actions in ("x," * 500_000, ["x"] * 500_000):
        problem(await world.client.post(ANALYZE, json={"image": "", "actions": actions}), 422, "invalid_request")
    assert time.process_time() - begun < 5


async def test_a_parameter_given_twice_is_refused(world: World) -> None:
    problem(await world.client.post(ANALYZE + "?actions=age&actions=race", files={"file": image()}), 422, "invalid_request")


async def test_an_unembedded_face_stops_the_analysis_with_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def overloaded(*_: object) -> None:
        await begun.wait()
        raise Overloaded("The queue of Embedding is full.", retry_after_s=1)

    monkeypatch.setattr(world.analyzer, "analyze", slow)
    monkeypatch.setattr(world.embedder, "embed", overloaded)
    problem(await world.client.post(EXTRACT + "?analyze=age", files={"file": image()}), 503, "overloaded")
    await asyncio.wait_for(cancelled.wait(), 60)


async def test_no_face_is_an_answer(world: World) -> None:
    body = (await world.client.post(ANALYZE, files={"file": image(faces=0)})).json()
    assert body["face_detected"] is False and body["faces"] == [] and world.analyzer.calls == []


async def test_min_probability_decides_what_abstains(world: World) -> None:
    for limit, abstained in (("0.5", False), ("0.7", True)):
        data = {"actions": "gender", "min_probability": limit}
        body = (await world.client.post(ANALYZE, files={"file": image()}, data=data)).json()
        assert body["faces"][0]["attributes"]["gender"]["abstained"] is abstained


async def test_at_most_a_hundred_faces_are_analyzed(world: World) -> None:
    body = (await world.client.post(ANALYZE, files={"file": image(faces=120)})).json()
    assert body["face_count"] == 120 and body["faces"][99]["attributes"] and body["faces"][100]["attributes"] is None
    assert world.analyzer.calls[0][0] == 100 and world.detector.calls[0].chip_faces == 100


async def test_verify_face_says_more_when_asked(world: World) -> None:
    plain = (await world.client.post(VERIFY, files={"file": image()})).json()
    assert plain["faces"][0]["attributes"] is None and world.analyzer.calls == []
    asked = (await world.client.post(VERIFY + "?analyze=age,race", files={"file": image(identity=7)})).json()
    assert asked["faces"][0]["attributes"]["age"]["years"] == 7 and asked["unavailable"][0]["attribute"] == "race"


async def test_extract_analyzes_the_faces_it_embeds(world: World) -> None:
    one = (await world.client.post(EXTRACT + "?analyze=age", files={"file": image(faces=5, identity=9)})).json()
    assert one["faces"][0]["attributes"]["age"]["years"] == 9 and world.analyzer.calls == [(1, (Attribute.AGE,))]
    query = "?analyze=age,quality&face=all"
    body = (await world.client.post(EXTRACT + query, files={"file": image(faces=5)})).json()
    assert all(face["attributes"]["quality"]["size_px"] == 150 for face in body["faces"])
    assert world.analyzer.calls[-1][0] == 5 and world.detector.calls[-1].crops == ALL_FACES


async def test_extract_answers_without_the_model(world: World) -> None:
    body = (await world.client.post(EXTRACT + "?analyze=race", files={"file": image()})).json()
    assert body["embedding"] and body["unavailable"][0]["attribute"] == "race"


async def test_compare_analyzes_both_sides(world: World) -> None:
    files = {"image_a": image(identity=20), "image_b": image(identity=40)}
    body = (await world.client.post(COMPARE + "?analyze=age", files=files)).json()
    assert [body[side]["attributes"]["age"]["years"] for side in ("face_a", "face_b")] == [20, 40]


async def test_embeddings_cannot_be_analyzed(world: World) -> None:
    fields = {"embedding_a": [1, 0, 0, 0], "embedding_b": [1, 0, 0, 0], "analyze": "age"}
    problem(await world.client.post(COMPARE, json=fields), 422, "invalid_request")


async def test_each_picture_of_a_batch_is_analyzed(world: World) -> None:
    files = [("files", image(identity=index)) for index in (3, 4)]
    body = (await world.client.post(BATCH + "?analyze=age", files=files)).json()
    assert [item["faces"][0]["attributes"]["age"]["years"] for item in body["results"]] == [3, 4]


async def test_models_names_what_answers_and_what_is_missing(world: World) -> None:
    loaded = (await world.client.get("/api/v1/models")).json()["loaded"]
    assert loaded["attributes"]["gender"]["classes"] == ["female", "male"] and loaded["attributes"]["age"]["licence"] == "MIT"
    assert loaded["unavailable"] == [{"attribute": "race", "reason": MISSING[Attribute.RACE]}]
