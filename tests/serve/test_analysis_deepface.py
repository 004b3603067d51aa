"""DeepFace's models behind the API, in an instance of its own: the weights that are there answer, the others are named."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from deployments.models.deepface_models import DeepFaceEngine
from serve_app.attributes import Attribute
from tests import data
from tests.accuracy.test_deepface import require
from tests.serve.conftest import start, stop

ANSWERED = (Attribute.AGE, Attribute.GENDER, Attribute.EMOTION)
MODELS = {name.value: f"deepface_{name}" for name in ANSWERED}


def test_deepface_answers_what_its_weights_allow(tmp_path: Path) -> None:
    require(DeepFaceEngine.ONNX, *ANSWERED)
    photo = data.read("fr/obama_obama.jpg")
    process, served = start(
        tmp_path,
        DEEPFACE_HOME=str(data.DEEPFACE_HOME),
        ATTRIBUTE_MODELS=",".join(f"{attribute}={model}" for attribute, model in [*MODELS.items(), ("race", "deepface_race")]),
    )
    try:
        with served.client() as client:
            _check(client, photo)
    finally:
        stop(process)
    output = served.output.read_text()
    assert "race_model_single_batch.onnx" in output and str(data.DEEPFACE_HOME) in output


def _check(client: httpx.Client, photo: bytes) -> None:
    answer = client.post(
        "/api/v1/face/analyze-face-advanced", files={"file": photo}, data={"actions": "age,gender,emotion,race"}
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["models"] == MODELS
    (lost,) = body["unavailable"]
    assert lost["attribute"] == "race" and "race_model_single_batch.onnx" in lost["reason"]
    attributes = body["faces"][0]["attributes"]
    assert attributes["race"] is None and attributes["age"]["years"] >= 0
    for attribute, classes in (("gender", 2), ("emotion", 7)):
        probabilities = attributes[attribute]["probabilities"]
        assert len(probabilities) == classes and sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
