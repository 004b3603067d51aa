"""Enrolment review: is a face good enough to recognise its person by from now on, and if not, why. Pure.

The default limits stand where verification starts to fail, measured by taking good photos and making them smaller, blurred,
darker, brighter, flatter, tilted and masked step by step: docs/accuracy.md has the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from serve_app.faces import FaceQuality, Occlusion


@dataclass(frozen=True, slots=True)
class ReviewLimits:
    """What an enrolled face must keep to; a limit itself is still good. Figures as in FaceQuality.

    `min_detection_score` depends on the detector: `for_detector` knows those that were measured. `max_roll_deg` is off:
    alignment turns the face upright. `max_yaw_deg` and `max_pitch_deg` keep out profiles; how far off the front embeddings
    really hold was not measured, for want of photos. `max_similarity_to_own`: cosine from which a face adds nothing to one
    that its person has. Different photos of one person stay below 0.96, the same photo saved anew is mostly above 0.9.
    """

    min_size_px: float = 40.0
    min_detection_score: float = 0.65
    min_sharpness: float = 0.10
    max_yaw_deg: float = 40.0
    max_pitch_deg: float = 35.0
    max_roll_deg: float = 180.0
    min_brightness: float = 0.08
    max_brightness: float = 0.85
    min_contrast: float = 0.025
    max_overexposed: float = 0.40
    max_underexposed: float = 0.35
    max_occlusion: Occlusion = Occlusion.LOW
    max_similarity_to_own: float = 0.985

    def for_detector(self, family: str) -> ReviewLimits:
        """These limits with the lowest detection_score at which faces of this detector family still verify."""
        return replace(self, min_detection_score=_MIN_DETECTION_SCORES.get(family, self.min_detection_score))


_MIN_DETECTION_SCORES = {"yunet": 0.85, "scrfd": 0.65}
"""Of degraded faces below it more than half no longer verify; of 621 ordinary ones at most one lies below."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a face is refused. `metric`: a field of FaceQuality, or "detection_score". `message`: a sentence for a person."""

    metric: str
    value: float | str
    limit: float | str
    message: str


def review_quality(quality: FaceQuality, detection_score: float, limits: ReviewLimits) -> list[Reason]:
    """Everything that speaks against the face, the plainest first; empty when it is good."""
    return [
        *_low("size_px", quality.size_px, limits.min_size_px, 0, "The face is {} px wide; at least {} px are needed."),
        *_low(
            "detection_score",
            detection_score,
            limits.min_detection_score,
            2,
            "The detector gives the face a score of {}; at least {} is needed.",
        ),
        *_occlusion(quality, limits),
        *_turned(
            "yaw_deg", quality.yaw_deg, limits.max_yaw_deg, "The face is turned {} degrees to the side; {} are accepted."
        ),
        *_turned(
            "pitch_deg", quality.pitch_deg, limits.max_pitch_deg, "The face looks {} degrees up or down; {} are accepted."
        ),
        *_turned("roll_deg", quality.roll_deg, limits.max_roll_deg, "The face is tilted by {} degrees; {} are accepted."),
        *_low("sharpness", quality.sharpness, limits.min_sharpness, 2, "The face is blurred: sharpness {}; {} is needed."),
        *_low(
            "brightness", quality.brightness, limits.min_brightness, 2, "The face is too dark: brightness {}; {} is needed."
        ),
        *_high(
            "brightness",
            quality.brightness,
            limits.max_brightness,
            2,
            "The face is too bright: brightness {}; {} is accepted.",
        ),
        *_low("contrast", quality.contrast, limits.min_contrast, 3, "The face has too little contrast: {}; {} is needed."),
        *_share(
            "overexposed", quality.overexposed, limits.max_overexposed, "{} % of the face is burnt out; {} % are accepted."
        ),
        *_share(
            "underexposed", quality.underexposed, limits.max_underexposed, "{} % of the face is black; {} % are accepted."
        ),
    ]


def _low(metric: str, value: float, limit: float, digits: int, message: str) -> list[Reason]:
    if value >= limit:
        return []
    # Rounded away from the limit: "0.10; at least 0.10 is needed" would explain nothing.
    return [Reason(metric, value, limit, message.format(_floor(value, digits), f"{limit:.{digits}f}"))]


def _high(metric: str, value: float, limit: float, digits: int, message: str) -> list[Reason]:
    if value <= limit:
        return []
    return [Reason(metric, value, limit, message.format(_ceil(value, digits), f"{limit:.{digits}f}"))]


def _turned(metric: str, value_deg: float, limit_deg: float, message: str) -> list[Reason]:
    """Either way. The value keeps its sign."""
    if abs(value_deg) <= limit_deg:
        return []
    return [Reason(metric, value_deg, limit_deg, message.format(_ceil(abs(value_deg), 0), f"{limit_deg:.0f}"))]


def _share(metric: str, value: float, limit: float, message: str) -> list[Reason]:
    if value <= limit:
        return []
    return [Reason(metric, value, limit, message.format(_ceil(value * 100, 0), f"{limit * 100:.0f}"))]


def _occlusion(quality: FaceQuality, limits: ReviewLimits) -> list[Reason]:
    levels = list(Occlusion)
    if levels.index(quality.occlusion) <= levels.index(limits.max_occlusion):
        return []
    message = (
        "Mouth or eyes cannot be made out, as behind a mask, a hand or sunglasses:"
        f" occlusion is {quality.occlusion}; {limits.max_occlusion} is accepted."
    )
    return [Reason("occlusion", quality.occlusion.value, limits.max_occlusion.value, message)]


def _floor(value: float, digits: int) -> str:
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _ceil(value: float, digits: int) -> str:
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
