"""From a model's numbers to an answer, and the engine that asks several models for several requests at once."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from deployments.models.attribute_models import (
    AgeDistribution,
    Classifier,
    GenderAge,
    Network,
    NetworkInput,
    class_years,
    softmax,
)
from deployments.models.engine import AnalysisEngine, AnalysisRequest, LoadedAttributeModel
from deployments.models.session import TensorInfo
from serve_app.attributes import (
    AgeEstimate,
    AgeInterval,
    Attribute,
    AttributeModel,
    AttributeOutputs,
    estimate_age,
    estimate_class,
)
from serve_app.faces import ChipArray, ChipSpec, FloatArray, Frame

SMALL, LARGE = ChipSpec(Frame.DLIB, 4), ChipSpec(Frame.BOX, 6)


def attribute_model(
    attribute: Attribute,
    classes: tuple[str, ...] = (),
    abstain_below: float = 0.0,
    interval: AgeInterval | None = None,
) -> AttributeModel:
    return AttributeModel(attribute, "m", SMALL, classes, abstain_below, interval, "", "", None, "", "", "")


class TestAge:
    MODEL = attribute_model(Attribute.AGE, interval=AgeInterval(0.8, below=0.5, above=2.0, floor_years=3.0))

    def test_the_interval_by_hand(self) -> None:
        assert estimate_age([30.0, 1.0], self.MODEL) == AgeEstimate(30.0, 28.0, 38.0, 0.8)

    def test_nobody_is_younger_than_born(self) -> None:
        assert estimate_age([1.0, 2.0], self.MODEL) == AgeEstimate(1.0, 0.0, 11.0, 0.8)

    def test_no_interval_that_nobody_measured(self) -> None:
        assert estimate_age([30.0, math.nan], self.MODEL) == AgeEstimate(30.0, None, None, None)
        assert estimate_age([30.0, 1.0], attribute_model(Attribute.AGE)) == AgeEstimate(30.0, None, None, None)


class TestClass:
    MODEL = attribute_model(Attribute.EMOTION, ("anger", "fear", "neutral"), abstain_below=0.5)

    def test_classes_are_ranked(self) -> None:
        found = estimate_class([0.2, 0.7, 0.1], self.MODEL, None)
        assert (found.top, found.probability, found.abstained) == ("fear", 0.7, False)
        assert list(found.probabilities.items()) == [("fear", 0.7), ("anger", 0.2), ("neutral", 0.1)]

    @pytest.mark.parametrize(
        ("top", "limit", "abstained"),
        [(0.49, None, True), (0.5, None, False), (0.6, 0.61, True), (0.4, 0.0, False), (0.4, 0.4, False)],
    )
    def test_below_the_limit_it_abstains(self, top: float, limit: float | None, abstained: bool) -> None:
        found = estimate_class([0.3, top, 0.7 - top], self.MODEL, limit)
        assert found.abstained is abstained and found.top == "fear"

    def test_as_many_probabilities_as_classes(self) -> None:
        with pytest.raises(ValueError):
            estimate_class([0.5, 0.5], self.MODEL, None)


class _Info:
    name = "x"

    def __init__(self, shape: list[int | str | None]) -> None:
        self.shape = shape


class FakeSession:
    """Answers `outputs`, whatever comes in, and keeps what came in."""

    def __init__(self, outputs: npt.ArrayLike) -> None:
        self.outputs = np.asarray(outputs, dtype=np.float32)
        self.seen: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    def run(
        self, output_names: list[str] | None, input_feed: dict[str, npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        self.seen = input_feed["x"]
        return [self.outputs]

    def get_inputs(self) -> list[TensorInfo]:
        return [_Info(["n", 3, 2, 2])]

    def get_outputs(self) -> list[TensorInfo]:
        return [_Info(["n", self.outputs.shape[1]])]


CHIPS = np.array([10, 20, 40], dtype=np.uint8) * np.ones((2, 2, 2, 1), dtype=np.uint8)
"""Two chips of one colour: red 10, green 20, blue 40."""


class TestModels:
    def test_an_age_is_the_expectation_of_its_distribution(self) -> None:
        session = FakeSession([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
        model = AgeDistribution(Network(session, NetworkInput("rgb", (0.0,), 1.0), logits=False), class_years(3, 0.25))
        rows = model.predict(CHIPS)[Attribute.AGE]
        # 0.5 * 0.25 + 0.25 * 1 + 0.25 * 2, and the root of 0.5 * 0.625^2 + 0.25 * 0.125^2 + 0.25 * 1.125^2
        np.testing.assert_allclose(rows, [[0.875, math.sqrt(0.515625)], [2.0, 0.0]], atol=1e-6)

    @pytest.mark.parametrize(
        ("order", "mean", "expected"),
        [
            ("rgb", (1.0, 2.0, 4.0), [[4.5], [9.0], [18.0]]),
            ("bgr", (4.0,), [[18.0], [8.0], [3.0]]),
            ("grey", (1.0,), [[9.5]]),
        ],
    )
    def test_what_a_network_sees(self, order: str, mean: tuple[float, ...], expected: list[list[float]]) -> None:
        session = FakeSession([[0.5, 0.5]] * 2)
        Network(session, NetworkInput(order, mean, 2.0), logits=False).run(CHIPS)
        assert session.seen.shape == (2, len(expected), 2, 2) and session.seen.flags["C_CONTIGUOUS"]
        # 0.299 * 10 + 0.587 * 20 + 0.114 * 40 = 19.3, in whole grey levels 19.
        np.testing.assert_allclose(
            session.seen[1].reshape(len(expected), -1)[:, :1], np.array(expected) - (order == "grey") * 0.5
        )

    def test_logits_become_probabilities(self) -> None:
        network = Network(FakeSession([[0.0, math.log(3)], [1000.0, -1000.0]]), NetworkInput("rgb", (0.0,), 1.0), logits=True)
        rows = Classifier(network, Attribute.RACE).predict(CHIPS)[Attribute.RACE]
        np.testing.assert_allclose(rows, [[0.25, 0.75], [1.0, 0.0]], atol=1e-6)
        np.testing.assert_allclose(softmax(np.array([[-1e4, -1e4]], dtype=np.float32)), [[0.5, 0.5]])

    def test_two_in_one(self) -> None:
        session = FakeSession([[0.0, math.log(3), 0.31], [2.0, 2.0, 0.05]])
        found = GenderAge(session, 127.5, 128.0).predict(CHIPS)
        np.testing.assert_allclose(found[Attribute.AGE], [[31, math.nan], [5, math.nan]], rtol=1e-5)
        np.testing.assert_allclose(found[Attribute.GENDER], [[0.25, 0.75], [0.5, 0.5]], atol=1e-6)
        np.testing.assert_allclose(session.seen[0, :, 0, 0], (np.array([10, 20, 40]) - 127.5) / 128, rtol=1e-6)

    def test_the_first_year(self) -> None:
        assert class_years(4, 0.25).tolist() == [0.25, 1.0, 2.0, 3.0]


class FakePredictor:
    """One row a face: the first pixel of its chip, in each attribute. Keeps the sizes of its batches."""

    def __init__(self, *attributes: Attribute) -> None:
        self.attributes = attributes
        self.batches: list[int] = []

    def predict(self, chips: ChipArray) -> AttributeOutputs:
        self.batches.append(len(chips))
        rows: FloatArray = chips[:, 0, 0, :1].astype(np.float32)
        return {attribute: rows + index for index, attribute in enumerate(self.attributes)}


MODEL_OF = {Attribute.AGE: "both", Attribute.GENDER: "both", Attribute.EMOTION: "emotion", Attribute.RACE: "nobody"}


def request(first: int, faces: int, *attributes: Attribute) -> AnalysisRequest:
    """Faces numbered from `first` in small chips, from 100 + `first` in large ones."""
    numbers = np.arange(first, first + faces, dtype=np.uint8)[:, None, None, None]
    return AnalysisRequest(
        {spec: np.tile(numbers + offset, (1, spec.size_px, spec.size_px, 3)) for spec, offset in ((SMALL, 0), (LARGE, 100))},
        tuple((attribute, MODEL_OF[attribute]) for attribute in attributes),
    )


class TestEngine:
    def engine(self, max_faces: int = 32) -> tuple[AnalysisEngine, FakePredictor, FakePredictor]:
        both, emotion = FakePredictor(Attribute.AGE, Attribute.GENDER), FakePredictor(Attribute.EMOTION)
        models = [
            LoadedAttributeModel("both", both, SMALL, (Attribute.AGE, Attribute.GENDER)),
            LoadedAttributeModel("emotion", emotion, LARGE, (Attribute.EMOTION,)),
        ]
        return AnalysisEngine(models, max_faces), both, emotion

    def test_each_request_gets_its_own_faces_and_what_it_asked_for(self) -> None:
        engine, both, emotion = self.engine()
        answers = engine.run(
            [
                request(1, 2, Attribute.AGE),
                request(10, 1, Attribute.EMOTION),
                request(20, 3, Attribute.GENDER, Attribute.EMOTION, Attribute.AGE),
            ]
        )
        found = [{name: rows[:, 0].tolist() for name, rows in answer.items()} for answer in answers]
        assert found == [
            {Attribute.AGE: [1, 2]},
            {Attribute.EMOTION: [110]},
            {Attribute.AGE: [20, 21, 22], Attribute.GENDER: [21, 22, 23], Attribute.EMOTION: [120, 121, 122]},
        ]
        assert both.batches == [5] and emotion.batches == [4]

    def test_a_request_without_faces_among_others(self) -> None:
        engine, both, _ = self.engine()
        answers = engine.run([request(1, 0, Attribute.AGE), request(5, 1, Attribute.AGE)])
        assert answers[0] == {} and len(answers[1][Attribute.AGE]) == 1 and both.batches == [1]

    def test_another_model_is_not_taken_for_the_one_asked_for(self) -> None:
        """While a change of configuration is on its way, ingress and replica may disagree."""
        engine, both, _ = self.engine()
        old = AnalysisRequest(request(1, 2, Attribute.AGE).chips, ((Attribute.AGE, "another"),))
        without_chip = AnalysisRequest({LARGE: request(1, 2).chips[LARGE]}, ((Attribute.AGE, "both"),))
        assert engine.run([old, without_chip]) == [{}, {}] and both.batches == []

    def test_a_model_that_nobody_asks_is_not_run(self) -> None:
        engine, both, emotion = self.engine()
        assert engine.run([request(1, 2), request(1, 2, Attribute.RACE)]) == [{}, {}]
        assert both.batches == emotion.batches == []

    def test_an_attribute_another_model_answers_is_not_taken_from_this_one(self) -> None:
        both = FakePredictor(Attribute.AGE, Attribute.GENDER)
        engine = AnalysisEngine([LoadedAttributeModel("both", both, SMALL, (Attribute.GENDER,))])
        (answer,) = engine.run([request(1, 2, Attribute.AGE, Attribute.GENDER)])
        assert set(answer) == {Attribute.GENDER}

    @pytest.mark.parametrize(("faces", "batches"), [(3, [3]), (7, [3, 3, 1])])
    def test_no_more_faces_at_a_time_than_set(self, faces: int, batches: list[int]) -> None:
        engine, both, _ = self.engine(max_faces=3)
        (answer,) = engine.run([request(0, faces, Attribute.AGE)])
        assert answer[Attribute.AGE][:, 0].tolist() == list(range(faces)) and both.batches == batches

    def test_warm_up_runs_every_model(self) -> None:
        engine, both, emotion = self.engine()
        engine.warm_up()
        assert 1 in both.batches and both.batches == emotion.batches

    def test_the_weight_of_a_request_is_its_faces(self) -> None:
        assert len(request(0, 5, Attribute.AGE)) == 5 and len(AnalysisRequest({}, ())) == 0
