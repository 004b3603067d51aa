from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deployments.models.detector import RawFaces
from deployments.models.engine import DetectionEngine, DetectionRequest
from serve_app.attributes import Asked, AttributeOutputs
from serve_app.faces import (
    ALL_FACES,
    Chips,
    Crops,
    DetectionOptions,
    Detections,
    FaceQuality,
    FloatArray,
    Occlusion,
    RGBImage,
    l2_normalize,
)
from serve_app.imaging.images import ARCFACE_TEMPLATE_PX, ImageLimits, align, encode_png
from serve_app.imaging.quality import measure_quality
from serve_app.services.analysis import FaceAnalysis
from serve_app.services.pipeline import ExtractOptions, FaceChoice, FacePipeline
from tests import data

BOX = np.array([10, 20, 110, 150], dtype=np.float32)
LIMITS = ImageLimits(1 << 24, 50_000_000)


@pytest.fixture(scope="module")
def face() -> RGBImage:
    """A face as aligned for recognition, 112 x 112."""
    decoded = cv2.imdecode(np.frombuffer(data.package_image("Tom_Hanks_54745.png"), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    return np.asarray(decoded, dtype=np.uint8)


def measure(crop: RGBImage, landmarks: FloatArray = ARCFACE_TEMPLATE_PX) -> FaceQuality:
    return measure_quality(crop, BOX, landmarks)


def pose_of(landmarks: np.ndarray) -> FaceQuality:
    return measure(np.zeros((112, 112, 3), np.uint8), landmarks.astype(np.float32))


def blurred(face: RGBImage, sigma_px: float) -> RGBImage:
    return np.asarray(cv2.GaussianBlur(face, (0, 0), sigma_px), dtype=np.uint8)


def scaled(face: RGBImage, gain: float) -> RGBImage:
    return np.asarray(np.clip(face * gain, 0, 255), dtype=np.uint8)


def turned(landmarks: np.ndarray, degrees: float) -> np.ndarray:
    """Clockwise as displayed: y points down."""
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.asarray(landmarks @ rotation.T)


def projected(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """The landmarks of a head turned to the right by yaw, then up by pitch, in weak perspective.

    In mm; x right, y down, z away from the camera. Eyes 63 apart, mouth 60 below them, nose tip 37.5 before that plane.
    """
    points = np.array(
        [[-31.5, 0, 0], [31.5, 0, 0], [0, 0.485 * 60, -37.5], [-25, 60, 0], [25, 60, 0]],
    )
    yaw, pitch = math.radians(yaw_deg), math.radians(pitch_deg)
    about_y = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    return np.asarray((points @ about_y.T @ about_x.T)[:, :2] + 500)


def test_a_good_face(face: RGBImage) -> None:
    quality = measure(face)
    assert quality.size_px == 100
    assert quality.sharpness > 0.15 and quality.occlusion is Occlusion.NONE
    assert abs(quality.yaw_deg) < 5 and abs(quality.pitch_deg) < 10 and abs(quality.roll_deg) < 1
    assert 0.2 < quality.brightness < 0.8 and quality.contrast > 0.08
    assert quality.overexposed < 0.05 and quality.underexposed < 0.2


def test_blur_takes_sharpness(face: RGBImage) -> None:
    values = [measure(blurred(face, sigma)).sharpness for sigma in (0.5, 1.5, 2.5, 4.0, 8.0)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.05 < values[0]


@pytest.mark.parametrize("kernel_hw", [(1, 15), (15, 1)])
def test_motion_in_one_direction_takes_sharpness(face: RGBImage, kernel_hw: tuple[int, int]) -> None:
    moved = np.asarray(cv2.blur(face, kernel_hw[::-1]), dtype=np.uint8)
    assert measure(moved).sharpness < 0.6 * measure(face).sharpness


def test_an_enlarged_face_is_blurred(face: RGBImage) -> None:
    small = cv2.resize(face, (20, 20), interpolation=cv2.INTER_AREA)
    enlarged = np.asarray(cv2.resize(small, (112, 112)), dtype=np.uint8)
    assert measure(enlarged).sharpness < 0.75 * measure(face).sharpness


@pytest.mark.parametrize("gain", [0.3, 0.6, 1.1])
def test_sharpness_does_not_depend_on_exposure(face: RGBImage, gain: float) -> None:
    assert measure(scaled(face, gain)).sharpness == pytest.approx(measure(face).sharpness, rel=0.1)


def test_noise_is_not_sharpness(face: RGBImage) -> None:
    rng = np.random.default_rng(0)
    noisy = np.clip(blurred(face, 4.0) + rng.normal(0, 12, face.shape), 0, 255).astype(np.uint8)
    assert measure(noisy).sharpness < 0.75 * measure(face).sharpness


def test_brightness_and_contrast_follow_the_exposure(face: RGBImage) -> None:
    full, half = measure(face), measure(scaled(face, 0.5))
    assert half.brightness == pytest.approx(full.brightness / 2, abs=0.01)
    assert half.contrast == pytest.approx(full.contrast / 2, rel=0.05)


@pytest.mark.parametrize(("level", "over", "under"), [(255, 1, 0), (0, 0, 1), (128, 0, 0)])
def test_flat_pictures(level: int, over: float, under: float) -> None:
    quality = measure(np.full((112, 112, 3), level, dtype=np.uint8))
    assert quality.brightness == pytest.approx(level / 255) and quality.contrast == quality.sharpness == 0
    assert (quality.overexposed, quality.underexposed) == (over, under)
    assert quality.occlusion is Occlusion.HIGH


@pytest.mark.parametrize("yaw", [-60, -30, -10, 0, 20, 45, 75])
def test_yaw_of_a_projected_head(yaw: float) -> None:
    quality = pose_of(projected(yaw, 0))
    assert quality.yaw_deg == pytest.approx(yaw, abs=2.5) and quality.pitch_deg == pytest.approx(0, abs=1)


@pytest.mark.parametrize("pitch", [-40, -15, 0, 15, 40])
def test_pitch_of_a_projected_head(pitch: float) -> None:
    quality = pose_of(projected(0, pitch))
    assert quality.pitch_deg == pytest.approx(pitch, abs=1.5) and quality.yaw_deg == pytest.approx(0, abs=1)


@given(st.floats(-45, 45), st.floats(-25, 25), st.floats(-170, 170), st.floats(0.1, 50))
def test_pose_does_not_depend_on_roll_and_size(yaw: float, pitch: float, roll: float, scale: float) -> None:
    head = projected(yaw, pitch)
    upright, tilted = pose_of(head), pose_of(turned(head, roll) * scale)
    assert tilted.yaw_deg == pytest.approx(upright.yaw_deg, abs=0.5)
    assert tilted.pitch_deg == pytest.approx(upright.pitch_deg, abs=0.5)
    turn = (tilted.roll_deg - upright.roll_deg - roll + 180) % 360 - 180
    assert turn == pytest.approx(0, abs=0.1)


@given(st.floats(-60, 60), st.floats(-30, 30), st.floats(-60, 60))
def test_a_mirrored_head_looks_the_other_way(yaw: float, pitch: float, roll: float) -> None:
    landmarks = turned(projected(yaw, pitch), roll)
    mirrored = (landmarks * [-1, 1])[[1, 0, 2, 4, 3]]
    straight, other = pose_of(landmarks), pose_of(mirrored)
    assert other.yaw_deg == pytest.approx(-straight.yaw_deg, abs=1)
    assert other.roll_deg == pytest.approx(-straight.roll_deg, abs=1)
    assert other.pitch_deg == pytest.approx(straight.pitch_deg, abs=1)


@given(
    hnp.arrays(np.float32, (5, 2), elements=st.floats(width=32)),
    hnp.arrays(np.uint8, (7, 7, 3)),
)
def test_any_landmarks_and_pixels_have_a_finite_quality(landmarks: FloatArray, pixels: RGBImage) -> None:
    quality = measure(np.ascontiguousarray(np.repeat(np.repeat(pixels, 16, 0), 16, 1)), landmarks)
    numbers = [value for value in asdict(quality).values() if isinstance(value, float)]
    assert len(numbers) == 10 and all(map(math.isfinite, numbers))
    assert all(0 <= value <= 1 for value in (quality.sharpness, quality.occlusion_score, quality.brightness))
    assert abs(quality.yaw_deg) <= 90 and abs(quality.pitch_deg) <= 90 and abs(quality.roll_deg) <= 180


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_landmarks_that_are_no_face(face: RGBImage, landmarks: np.ndarray) -> None:
    assert math.isfinite(measure(face, landmarks.astype(np.float32)).yaw_deg)


def test_a_box_turned_inside_out_has_no_size(face: RGBImage) -> None:
    assert measure_quality(face, BOX[[2, 1, 0, 3]], ARCFACE_TEMPLATE_PX).size_px == 0


@pytest.mark.parametrize("colour", [(70, 130, 200), (240, 240, 240), (30, 30, 30), (150, 150, 150)])
def test_a_covered_mouth(face: RGBImage, colour: tuple[int, int, int]) -> None:
    covered = face.copy()
    covered[68:, 14:98] = colour
    assert measure(covered).occlusion in (Occlusion.MEDIUM, Occlusion.HIGH)


def test_dark_glasses(face: RGBImage) -> None:
    covered = face.copy()
    covered[42:62, 20:92] = 25
    assert measure(covered).occlusion in (Occlusion.MEDIUM, Occlusion.HIGH)


def test_a_face_without_colour_is_not_covered(face: RGBImage) -> None:
    grey = cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    assert measure(np.asarray(grey, dtype=np.uint8)).occlusion is Occlusion.NONE


def test_a_quality_travels_and_is_stored(face: RGBImage) -> None:
    quality = measure(face)
    assert pickle.loads(pickle.dumps(quality, 5)) == quality
    stored = json.loads(json.dumps(asdict(quality), allow_nan=False))
    assert stored["occlusion"] == "NONE" and stored["size_px"] == 100
    assert {type(value) for value in asdict(quality).values()} == {float, Occlusion}


class TwoFaces:
    """Finds the same two faces in every picture, the smaller one first."""

    def detect(self, images: Sequence[RGBImage], thresholds: Sequence[float]) -> list[RawFaces]:
        landmarks = np.stack([ARCFACE_TEMPLATE_PX / 2, ARCFACE_TEMPLATE_PX])
        boxes = np.array([[0, 0, 50, 56], [5, 0, 105, 112]], dtype=np.float32)
        return [RawFaces(boxes, landmarks, np.array([0.9, 0.8], np.float32)) for _ in images]


class UnitEmbedder:
    async def embed(self, crops: Crops) -> FloatArray:
        return l2_normalize(np.ones((len(crops), 4)))


class NoAnalyzer:
    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        raise AssertionError("nothing was asked for")


NO_ANALYSIS = FaceAnalysis(NoAnalyzer(), {}, {})


class LocalDetector:
    """The engine without Ray, through pickle as over a handle."""

    engine = DetectionEngine(TwoFaces(), LIMITS, 0.6)

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        (answer,) = self.engine.run([DetectionRequest(image, options)])
        assert isinstance(answer, Detections)
        copy: Detections = pickle.loads(pickle.dumps(answer))
        return copy


@pytest.mark.parametrize(("most", "expected_px"), [(ALL_FACES, [100, 50]), (7, [100, 50]), (1, [100]), (0, [])])
async def test_qualities_of_the_largest_faces_with_or_without_crops(
    face: RGBImage, most: int, expected_px: list[float]
) -> None:
    found = await LocalDetector().detect(encode_png(face), DetectionOptions(crops=0, qualities=most))
    assert [quality.size_px for quality in found.qualities] == expected_px and len(found) == 2 and not len(found.crops)


async def test_no_quality_where_none_is_asked_for(face: RGBImage) -> None:
    assert (await LocalDetector().detect(encode_png(face), DetectionOptions())).qualities == ()


@pytest.mark.parametrize(("choice", "expected_px"), [(FaceChoice.LARGEST, [100]), (FaceChoice.ALL, [100, 50])])
async def test_the_pipeline_passes_quality_on(face: RGBImage, choice: FaceChoice, expected_px: list[float]) -> None:
    pipeline = FacePipeline(LocalDetector(), UnitEmbedder(), NO_ANALYSIS, LIMITS)
    extraction = await pipeline.extract(encode_png(face), ExtractOptions(choice, quality=True))
    assert [embedded.quality and embedded.quality.size_px for embedded in extraction.faces] == expected_px
    assert extraction.faces[0].quality == measure_quality(
        align(face, ARCFACE_TEMPLATE_PX[None])[0], extraction.detections.bboxes[0], ARCFACE_TEMPLATE_PX
    )
    plain = await pipeline.extract(encode_png(face), ExtractOptions(choice))
    assert [embedded.quality for embedded in plain.faces] == [None] * len(expected_px)
