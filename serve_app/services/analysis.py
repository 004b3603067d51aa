"""What a caller wants to know of each face, what the loaded models can say of it, and the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from serve_app.attributes import (
    Asked,
    Attribute,
    AttributeModel,
    AttributeOutputs,
    FaceAttributes,
    estimate_age,
    estimate_class,
)
from serve_app.errors import CapacityError, JsonValue, ModelUnavailable, PartUnavailable
from serve_app.faces import ALL_FACES, Chips, ChipSpec, Detections

MAX_ANALYZED_FACES = 100
"""Of one picture, the largest. A chip of 224 pixels is 150 kB, and all of a picture's travel in one message."""


class Analyzer(Protocol):
    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        """One row a face for each attribute of `asked` that can be answered. Raises CapacityError or PartUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class AnalyzeOptions:
    """What is asked for. `min_probability`: below it a class is no answer; None takes the model's own limit."""

    attributes: tuple[Attribute, ...] = ()
    quality: bool = False
    min_probability: float | None = None

    def __bool__(self) -> bool:
        return bool(self.attributes) or self.quality


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An attribute that was asked for and cannot be had, and why."""

    attribute: Attribute
    reason: str


@dataclass(frozen=True, slots=True)
class Analyzed:
    """`faces`: of the largest faces, at most MAX_ANALYZED_FACES. `error`: why nothing was computed, where the deployment did
    not answer."""

    faces: list[FaceAttributes]
    unavailable: list[Unavailable]
    error: CapacityError | PartUnavailable | None = None


class FaceAnalysis:
    """`models`: what answers each attribute. `missing`: why there is none for the others."""

    def __init__(
        self, analyzer: Analyzer, models: Mapping[Attribute, AttributeModel], missing: Mapping[Attribute, str]
    ) -> None:
        self._analyzer = analyzer
        self._models = models
        self._missing = missing

    def check(self, options: AnalyzeOptions) -> None:
        """Raises ModelUnavailable when nothing of what is asked for can be answered."""
        if options.attributes and not options.quality and not self._available(options):
            raise _nothing_left(self._unavailable(options))

    def chips(self, options: AnalyzeOptions) -> tuple[ChipSpec, ...]:
        """What detection must cut for `options`."""
        return tuple(dict.fromkeys(self._models[attribute].chip for attribute in self._available(options)))

    async def run(self, detections: Detections, options: AnalyzeOptions, faces: int) -> Analyzed:
        """Of the largest `faces` faces, which `detections` has chips and qualities of.

        A deployment that does not answer, or has no room, is named in `unavailable` like a model that is not there: what the
        caller is about may not need it.
        """
        attributes, unavailable = self._available(options), self._unavailable(options)
        count = min(len(detections), faces)
        outputs: AttributeOutputs = {}
        failure: CapacityError | PartUnavailable | None = None
        if attributes and count:
            chips = {spec: detections.chips[spec][:count] for spec in self.chips(options)}
            try:
                outputs = await self._analyzer.analyze(chips, self._asked(attributes))
            except (CapacityError, PartUnavailable) as error:
                failure = error
            reason = failure.detail if failure else "Its model is being changed; ask again."
            unavailable += [Unavailable(attribute, reason) for attribute in attributes if attribute not in outputs]
        rows = [_numbers(outputs, index) for index in range(count)]
        unavailable += [
            Unavailable(attribute, "The model could make nothing of a face.")
            for attribute in outputs
            if any(attribute not in row for row in rows)
        ]
        analyzed = [self._face(row, index, detections, options) for index, row in enumerate(rows)]
        return Analyzed(analyzed, unavailable, failure)

    def _asked(self, attributes: Iterable[Attribute]) -> Asked:
        return tuple((attribute, self._models[attribute].name) for attribute in attributes)

    def _available(self, options: AnalyzeOptions) -> tuple[Attribute, ...]:
        return tuple(attribute for attribute in options.attributes if attribute in self._models)

    def _unavailable(self, options: AnalyzeOptions) -> list[Unavailable]:
        return [
            Unavailable(attribute, self._missing.get(attribute, "No model of the pack answers it."))
            for attribute in options.attributes
            if attribute not in self._models
        ]

    def _face(
        self, rows: dict[Attribute, list[float]], index: int, detections: Detections, options: AnalyzeOptions
    ) -> FaceAttributes:
        age = rows.pop(Attribute.AGE, None)
        classes = {name: estimate_class(row, self._models[name], options.min_probability) for name, row in rows.items()}
        return FaceAttributes(
            age=None if age is None else estimate_age(age, self._models[Attribute.AGE]),
            gender=classes.get(Attribute.GENDER),
            emotion=classes.get(Attribute.EMOTION),
            race=classes.get(Attribute.RACE),
            quality=detections.qualities[index] if options.quality else None,
        )


def _numbers(outputs: AttributeOutputs, index: int) -> dict[Attribute, list[float]]:
    """The rows of one face, without those that are no numbers. The deviation of an age may be unknown."""
    rows: dict[Attribute, list[float]] = {attribute: output[index].tolist() for attribute, output in outputs.items()}
    return {
        attribute: row
        for attribute, row in rows.items()
        if all(map(math.isfinite, row[:1] if attribute is Attribute.AGE else row))
    }


def require_answer(analyzed: Analyzed, options: AnalyzeOptions) -> None:
    """Raises Overloaded when there was no room, and ModelUnavailable when everything that was asked for is unavailable."""
    if isinstance(analyzed.error, CapacityError):
        raise analyzed.error
    if not options.quality and len(analyzed.unavailable) == len(options.attributes) > 0:
        refusal = _nothing_left(analyzed.unavailable)
        if analyzed.error is not None and "retry_after_s" in analyzed.error.details:
            refusal.details["retry_after_s"] = analyzed.error.details["retry_after_s"]
        raise refusal


def _nothing_left(unavailable: list[Unavailable]) -> ModelUnavailable:
    reasons: dict[str, JsonValue] = {entry.attribute.value: entry.reason for entry in unavailable}
    return ModelUnavailable("Nothing of what was asked for can be answered.", unavailable=reasons)


def analyzed_faces(faces: int) -> int:
    """How many faces are analyzed where a caller means `faces` of them, ALL_FACES for all."""
    return MAX_ANALYZED_FACES if faces == ALL_FACES else min(faces, MAX_ANALYZED_FACES)
