from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.faces import FaceQuality, Occlusion
from serve_app.services.review import Reason, ReviewLimits, review_quality

GOOD = FaceQuality(
    size_px=150.0,
    sharpness=0.19,
    yaw_deg=-6.0,
    pitch_deg=4.0,
    roll_deg=2.0,
    brightness=0.5,
    contrast=0.15,
    overexposed=0.0,
    underexposed=0.01,
    occlusion=Occlusion.NONE,
    occlusion_score=0.02,
)
LIMITS = ReviewLimits()


def review(detection_score: float = 0.92, limits: ReviewLimits = LIMITS, **changes: object) -> list[Reason]:
    return review_quality(replace(GOOD, **changes), detection_score, limits)  # type: ignore[arg-type]


def test_a_good_face_is_accepted() -> None:
    assert review() == []


CASES = [
    ("size_px", 31.4, 40.0, "The face is 31 px wide; at least 40 px are needed."),
    ("sharpness", 0.0996, 0.10, "The face is blurred: sharpness 0.09; 0.10 is needed."),
    ("yaw_deg", -40.2, 40.0, "The face is turned 41 degrees to the side; 40 are accepted."),
    ("yaw_deg", 77.0, 40.0, "The face is turned 77 degrees to the side; 40 are accepted."),
    ("pitch_deg", -36.0, 35.0, "The face looks 36 degrees up or down; 35 are accepted."),
    ("brightness", 0.05, 0.08, "The face is too dark: brightness 0.05; 0.08 is needed."),
    ("brightness", 0.93, 0.85, "The face is too bright: brightness 0.93; 0.85 is accepted."),
    ("contrast", 0.02, 0.025, "The face has too little contrast: 0.020; 0.025 is needed."),
    ("overexposed", 0.5, 0.40, "50 % of the face is burnt out; 40 % are accepted."),
    ("underexposed", 0.6, 0.35, "60 % of the face is black; 35 % are accepted."),
]


@pytest.mark.parametrize(("metric", "value", "limit", "message"), CASES)
def test_one_reason_each(metric: str, value: float, limit: float, message: str) -> None:
    changes: dict[str, object] = {metric: value}
    assert review_quality(replace(GOOD, **changes), 0.92, LIMITS) == [  # type: ignore[arg-type]
        Reason(metric, value, limit, message)
    ]


def test_a_face_the_detector_doubts() -> None:
    message = "The detector gives the face a score of 0.51; at least 0.65 is needed."
    assert review(0.512) == [Reason("detection_score", 0.512, 0.65, message)]


@pytest.mark.parametrize("level", [Occlusion.MEDIUM, Occlusion.HIGH])
def test_a_covered_face(level: Occlusion) -> None:
    (reason,) = review(occlusion=level, occlusion_score=0.9)
    assert (reason.metric, reason.value, reason.limit) == ("occlusion", level.value, "LOW")
    assert f"occlusion is {level.value}; LOW is accepted." in reason.message
    assert type(reason.value) is str


def test_levels_are_ordered_by_cover() -> None:
    assert review(occlusion=Occlusion.LOW) == []
    assert review(occlusion=Occlusion.HIGH, limits=replace(LIMITS, max_occlusion=Occlusion.HIGH)) == []
    assert len(review(occlusion=Occlusion.LOW, limits=replace(LIMITS, max_occlusion=Occlusion.NONE))) == 1


def test_a_tilt_is_accepted_unless_a_limit_is_set() -> None:
    assert review(roll_deg=-179.0) == []
    (reason,) = review(roll_deg=-50.0, limits=replace(LIMITS, max_roll_deg=45.0))
    assert (reason.metric, reason.value, reason.message) == (
        "roll_deg", -50.0, "The face is tilted by 50 degrees; 45 are accepted.",
    )  # fmt: skip


def test_the_limits_themselves_are_good() -> None:
    assert review(
        LIMITS.min_detection_score,
        size_px=LIMITS.min_size_px,
        sharpness=LIMITS.min_sharpness,
        yaw_deg=-LIMITS.max_yaw_deg,
        pitch_deg=LIMITS.max_pitch_deg,
        brightness=LIMITS.min_brightness,
        contrast=LIMITS.min_contrast,
        overexposed=LIMITS.max_overexposed,
        underexposed=LIMITS.max_underexposed,
    ) == []  # fmt: skip


def test_all_reasons_are_given() -> None:
    reasons = review(0.3, size_px=12.0, sharpness=0.0, occlusion=Occlusion.HIGH, yaw_deg=80.0, brightness=0.01)
    assert [reason.metric for reason in reasons] == [
        "size_px", "detection_score", "occlusion", "yaw_deg", "sharpness", "brightness",
    ]  # fmt: skip


def test_limits_of_a_detector() -> None:
    assert LIMITS.for_detector("yunet").min_detection_score == 0.85
    assert LIMITS.for_detector("scrfd").min_detection_score == 0.65
    assert LIMITS.for_detector("another") == LIMITS
    assert replace(LIMITS, min_size_px=99).for_detector("yunet").min_size_px == 99


@given(st.floats(0, 39.999), st.floats(0, 0.0999), st.floats(40.001, 180))
def test_a_message_never_shows_the_limit_as_the_value(size_px: float, sharpness: float, yaw_deg: float) -> None:
    small, turned, blurred = review(size_px=size_px, sharpness=sharpness, yaw_deg=yaw_deg)
    assert "is 40 px" not in small.message and "turned 40" not in turned.message and "sharpness 0.10" not in blurred.message
