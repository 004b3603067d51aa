"""The shapes on the wire of what a face looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serve_app.attributes import AgeEstimate, Attribute, ClassEstimate, FaceAttributes
from serve_app.faces import FaceQuality
from serve_app.services.analysis import Analyzed, AnalyzeOptions
from serve_app.services.review import Reason


class Action(StrEnum):
    """What can be asked for of a face."""

    AGE = "age"
    GENDER = "gender"
    EMOTION = "emotion"
    RACE = "race"
    QUALITY = "quality"


DEFAULT_ACTIONS = (Action.AGE, Action.GENDER, Action.QUALITY)
"""Emotion and race only when asked for: docs/privacy.md says why."""


_MOST_ACTIONS = 16


def _split(value: object) -> object:
    """Forms and queries carry lists as text: age,emotion, or a JSON array. Counted before pydantic looks at each entry."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    elif isinstance(value, str):
        value = [part.strip() for part in value.split(",", _MOST_ACTIONS + 1) if part.strip()]
    if isinstance(value, list) and len(value) > _MOST_ACTIONS:
        raise ValueError(f"at most {_MOST_ACTIONS} entries are accepted")
    return value


Actions = Annotated[tuple[Action, ...], Field(max_length=_MOST_ACTIONS), BeforeValidator(_split)]


def analyze_options(actions: tuple[Action, ...], min_probability: float | None) -> AnalyzeOptions:
    asked = {action.value for action in actions}
    return AnalyzeOptions(
        attributes=tuple(attribute for attribute in Attribute if attribute.value in asked),
        quality=Action.QUALITY in actions,
        min_probability=min_probability,
    )


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class AgeAnswer(_Answer):
    years: float = Field(description="How old the face looks.", examples=[35.5])
    low: float | None = Field(
        description="From `low` to `high` lies the true age of `level` of all faces; null where nobody measured the model.",
        examples=[26.6],
    )
    high: float | None = Field(examples=[58.4])
    level: float | None = Field(examples=[0.8])


class ClassAnswer(_Answer):
    top: str = Field(description="The most probable class; no answer where `abstained` is true.", examples=["female"])
    probability: float = Field(description="Of that class, by the model's own account.", examples=[0.981])
    abstained: bool = Field(description="The probability is below the model's limit, or below `min_probability`.")
    probabilities: dict[str, float] = Field(
        description="Of every class, the most probable first.", examples=[{"female": 0.981, "male": 0.019}]
    )


class PoseAnswer(_Answer):
    yaw_deg: float = Field(description="> 0 looks to the right of the picture.")
    pitch_deg: float = Field(description="> 0 looks up.")
    roll_deg: float = Field(description="> 0 is turned clockwise.")


class ExposureAnswer(_Answer):
    brightness: float = Field(description="Mean luma of the face, 0 to 1.")
    contrast: float = Field(description="Standard deviation of luma, 0 to 1.")
    overexposed: float = Field(description="Share of burnt-out pixels.")
    underexposed: float = Field(description="Share of black pixels.")


class QualityReasonAnswer(_Answer):
    metric: str = Field(description="What was measured.", examples=["yaw_deg"])
    value: float | str = Field(examples=[49.0])
    limit: float | str = Field(examples=[40.0])
    message: str = Field(examples=["The face is turned 49 degrees to the side; 40 are accepted."])


class QualityAnswer(_Answer):
    """Measured on the aligned face; docs/accuracy.md says how and how well."""

    size_px: float = Field(description="Shorter side of the box.")
    sharpness: float = Field(description="0 without detail, 1 at most.")
    pose: PoseAnswer
    exposure: ExposureAnswer
    occlusion: str = Field(description="NONE, LOW, MEDIUM or HIGH.", examples=["NONE"])
    occlusion_score: float = Field(description="0 to 1.")
    reasons: list[QualityReasonAnswer] | None = Field(
        None,
        description="Why enrolment would refuse the face by its default limits; empty where it would not. null where nobody"
        " asked: only verify-face and analyze-face-advanced tell.",
    )


class AttributesAnswer(_Answer):
    """null: not asked for, or named in `unavailable`."""

    age: AgeAnswer | None = None
    gender: ClassAnswer | None = None
    emotion: ClassAnswer | None = None
    race: ClassAnswer | None = None
    quality: QualityAnswer | None = None


class UnavailableAnswer(_Answer):
    attribute: Attribute
    reason: str = Field(description="Which file or extra is missing, or what does not answer.")


UnavailableList = Annotated[list[UnavailableAnswer], Field(description="What was asked for and cannot be had, and why.")]


Review = Callable[[FaceQuality], list[Reason]]


def attributes_of(face: FaceAttributes, review: Review | None = None) -> AttributesAnswer:
    return AttributesAnswer(
        age=_age_of(face.age),
        gender=_class_of(face.gender),
        emotion=_class_of(face.emotion),
        race=_class_of(face.race),
        quality=_quality_of(face.quality, review),
    )


def attributes_at(analyzed: Analyzed | None, index: int, review: Review | None = None) -> AttributesAnswer | None:
    """Of the face at `index`; None where nothing was asked for, or the face is beyond the analyzed ones."""
    return attributes_of(analyzed.faces[index], review) if analyzed and index < len(analyzed.faces) else None


def unavailable_of(*parts: Analyzed | None) -> list[UnavailableAnswer]:
    """Each attribute once, whichever of the pictures it could not be had for."""
    reasons = {entry.attribute: entry.reason for part in parts if part for entry in part.unavailable}
    return [UnavailableAnswer(attribute=attribute, reason=reason) for attribute, reason in reasons.items()]


def _age_of(age: AgeEstimate | None) -> AgeAnswer | None:
    if age is None:
        return None
    low, high = (None if bound is None else round(bound, 1) for bound in (age.low, age.high))
    return AgeAnswer(years=round(age.years, 1), low=low, high=high, level=age.level)


def _class_of(estimate: ClassEstimate | None) -> ClassAnswer | None:
    if estimate is None:
        return None
    return ClassAnswer(
        top=estimate.top,
        probability=estimate.probability,
        abstained=estimate.abstained,
        probabilities=estimate.probabilities,
    )


def _quality_of(quality: FaceQuality | None, review: Review | None) -> QualityAnswer | None:
    if quality is None:
        return None
    values = asdict(quality)
    return QualityAnswer(
        size_px=quality.size_px,
        sharpness=quality.sharpness,
        pose=PoseAnswer(**{name: values[name] for name in PoseAnswer.model_fields}),
        exposure=ExposureAnswer(**{name: values[name] for name in ExposureAnswer.model_fields}),
        occlusion=quality.occlusion.value,
        occlusion_score=quality.occlusion_score,
        reasons=None
        if review is None
        else [
            QualityReasonAnswer(metric=one.metric, value=one.value, limit=one.limit, message=one.message)
            for one in review(quality)
        ],
    )
