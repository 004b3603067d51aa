"""What a face looks like: age, gender, emotion, race. The values, and how a model's numbers become an answer. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from serve_app.faces import ChipSpec, FaceQuality, FloatArray


class Attribute(StrEnum):
    AGE = "age"
    GENDER = "gender"
    EMOTION = "emotion"
    RACE = "race"


Asked: TypeAlias = tuple[tuple[Attribute, str], ...]
"""Attributes, each with the name of the model that is to answer it: another's numbers would be read wrongly."""

AttributeOutputs: TypeAlias = Mapping[Attribute, FloatArray]
"""One row a face. AGE: (N, 2), years and their standard deviation, NaN where the model has none. The others: (N, C)
probabilities in the order of `AttributeModel.classes`."""


@dataclass(frozen=True, slots=True)
class AgeInterval:
    """Between years - `below` * w and years + `above` * w, w = standard deviation + `floor_years`, lies the true age in
    `level` of all faces. Measured (docs/accuracy.md): a network's own spread is far too narrow."""

    level: float
    below: float
    above: float
    floor_years: float


@dataclass(frozen=True, slots=True)
class AttributeModel:
    """The model that answers one attribute.

    `classes`: names of its probabilities; empty for age. `abstain_below`: probability of the top class under which the
    answer abstains. `interval`: None where nobody measured the errors of an age model. `commercial_use`: None where the
    licence does not say.
    """

    attribute: Attribute
    name: str
    chip: ChipSpec
    classes: tuple[str, ...]
    abstain_below: float
    interval: AgeInterval | None
    title: str
    licence: str
    commercial_use: bool | None
    file: str
    sha256: str
    preprocessing: str


@dataclass(frozen=True, slots=True)
class AgeEstimate:
    """`low` and `high` hold the true age in `level` of all faces; None where nobody measured that."""

    years: float
    low: float | None
    high: float | None
    level: float | None


@dataclass(frozen=True, slots=True)
class ClassEstimate:
    """`probabilities`: of every class, the most probable first; `top` is the first. `abstained`: it is not probable enough to
    be an answer."""

    top: str
    probability: float
    abstained: bool
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class FaceAttributes:
    """Of one face; None for what was not asked for or is not available."""

    age: AgeEstimate | None = None
    gender: ClassEstimate | None = None
    emotion: ClassEstimate | None = None
    race: ClassEstimate | None = None
    quality: FaceQuality | None = None


def split_outputs(outputs: AttributeOutputs, counts: Sequence[int]) -> list[AttributeOutputs]:
    """The rows of several pictures with `counts` faces each, apart again."""
    ends = list(itertools.accumulate(counts))
    return [
        {attribute: rows[end - count : end] for attribute, rows in outputs.items()}
        for count, end in zip(counts, ends, strict=True)
    ]


def estimate_age(row: Sequence[float], model: AttributeModel) -> AgeEstimate:
    """`row`: years and standard deviation (NaN: unknown)."""
    years, deviation = max(0.0, row[0]), row[1]
    interval = model.interval
    if interval is None or math.isnan(deviation):
        return AgeEstimate(years, None, None, None)
    width = deviation + interval.floor_years
    return AgeEstimate(years, max(0.0, years - interval.below * width), years + interval.above * width, interval.level)


def estimate_class(row: Sequence[float], model: AttributeModel, min_probability: float | None) -> ClassEstimate:
    """`row`: probabilities in the order of `model.classes`. `min_probability` takes the place of `model.abstain_below`."""
    ranked = sorted(zip(model.classes, row, strict=True), key=lambda entry: -entry[1])
    top, probability = ranked[0]
    needed = model.abstain_below if min_probability is None else min_probability
    return ClassEstimate(top, probability, probability < needed, dict(ranked))
