"""Chips: where a face lies in them, and what becomes of detail, borders and nonsense."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from serve_app.faces import CROP_SIZE_PX, ChipSpec, FloatArray, Frame, RGBImage
from serve_app.imaging.chips import cut_chips
from serve_app.imaging.images import ARCFACE_TEMPLATE_PX, align, rotate, similarity_transforms, unrotate_points

ARCFACE = ChipSpec(Frame.ARCFACE, CROP_SIZE_PX)
BOX = ChipSpec(Frame.BOX, 96)
DLIB = ChipSpec(Frame.DLIB, 64)
NO_BOX: FloatArray = np.zeros((1, 4), dtype=np.float32)
NO_LANDMARKS: FloatArray = np.zeros((1, 5, 2), dtype=np.float32)
SEED = 7


def smooth_picture(height: int, width: int) -> RGBImage:
    """Blurred noise: no two places are alike, and neighbours differ by little."""
    noise = np.random.default_rng(SEED).integers(0, 256, (height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 6)
    return np.asarray(cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX), dtype=np.uint8)  # type: ignore[call-overload]


def landmarks(scale: float = 1.0) -> FloatArray:
    return np.asarray(ARCFACE_TEMPLATE_PX[None] * scale, dtype=np.float32)


def boxes(*rows: tuple[float, float, float, float]) -> FloatArray:
    return np.array(rows, dtype=np.float32)


class TestIdentity:
    def test_landmarks_where_the_template_has_them(self) -> None:
        pixels = smooth_picture(CROP_SIZE_PX, CROP_SIZE_PX)
        assert (cut_chips(pixels, landmarks(), NO_BOX, ARCFACE)[0] == pixels).all()

    def test_a_box_two_thirds_of_the_picture(self) -> None:
        pixels = smooth_picture(96, 96)
        assert (cut_chips(pixels, NO_LANDMARKS, boxes((16, 16, 80, 80)), BOX)[0] == pixels).all()

    def test_arcface_chips_are_the_crops_of_the_embeddings(self) -> None:
        pixels = smooth_picture(400, 300)
        turned = landmarks(1.2) @ np.array([[0.9, 0.3], [-0.3, 0.9]], dtype=np.float32) + np.float32(60)
        np.testing.assert_array_equal(cut_chips(pixels, turned, NO_BOX, ARCFACE), align(pixels, turned))


class TestAntialiasing:
    @pytest.mark.parametrize("spec", [DLIB, ARCFACE])
    def test_detail_that_does_not_fit_is_averaged(self, spec: ChipSpec) -> None:
        rows, columns = np.indices((2000, 2000))
        checkers = np.repeat((((rows + columns) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
        points = landmarks(9.7) + np.float32(450.3)
        bare = cv2.warpAffine(checkers, similarity_transforms(points)[0], (CROP_SIZE_PX, CROP_SIZE_PX))
        assert bare.std() > 20, "pixels picked here and there"
        chip = cut_chips(checkers, points, NO_BOX, spec)[0]
        assert abs(float(chip.mean()) - 127.5) < 2 and chip.std() < 6

    @pytest.mark.parametrize("scale", [1.0, 1.9, 3.0, 4.0, 7.5, 12.0])
    def test_averaging_moves_nothing(self, scale: float) -> None:
        size = round(CROP_SIZE_PX * scale)
        ramp = np.tile(np.linspace(20, 235, size), (size, 1)).round().astype(np.uint8)[..., None].repeat(3, axis=2)
        # The middle of pixel u of the chip is u * scale of the picture.
        expected = np.interp(np.arange(CROP_SIZE_PX) * scale, np.arange(size), np.linspace(20, 235, size))
        up, down = (cut_chips(values, landmarks(scale), NO_BOX, ARCFACE)[0].astype(float) for values in (ramp, 255 - ramp))
        inside = slice(3, -3)
        # Rounding has the same sign in both and cancels; a shift by half a pixel of the chip is a level.
        difference = ((up + 255 - down) / 2).mean(axis=2)[inside, inside] - expected[inside]
        assert abs(difference.mean()) < 0.1 and np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "box",
    [(100, 80, 200, 220), (0, 0, 50, 40), (-30, -10, 90, 140), (250, 150, 420, 330), (10.4, 20.7, 33.1, 44.9), (5, 5, 8, 9)],
)
def test_box_chips_are_those_of_insightface(box: tuple[float, float, float, float]) -> None:
    from insightface.utils import face_align

    pixels = smooth_picture(300, 400)
    x1, y1, x2, y2 = box
    scale = 96 / (max(x2 - x1, y2 - y1) * 1.5)
    expected, _ = face_align.transform(pixels, ((x1 + x2) / 2, (y1 + y2) / 2), 96, scale, 0)
    chip = cut_chips(pixels, NO_LANDMARKS, boxes(box), BOX)[0]
    assert np.abs(chip.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_box_chips_of_a_picture_on_its_side_stand_upright(degrees: int) -> None:
    upright = smooth_picture(200, 300)
    lying = rotate(upright, 360 - degrees)
    box = boxes((120, 60, 180, 130))
    corners = unrotate_points(box.reshape(-1, 2, 2), degrees, lying.shape[1], lying.shape[0])
    turned = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    expected = cut_chips(upright, NO_LANDMARKS, box, BOX)[0].astype(int)
    chip = cut_chips(lying, NO_LANDMARKS, turned, BOX, degrees)[0].astype(int)
    unturned = cut_chips(lying, NO_LANDMARKS, turned, BOX)[0].astype(int)
    # InsightFace puts a box's centre half a pixel beside the chip's, so what is turned lies up to a pixel beside.
    assert np.abs(chip - expected).mean() < 6 < 20 < np.abs(unturned - expected).mean()


def test_landmarks_say_themselves_how_a_face_is_turned() -> None:
    pixels = smooth_picture(300, 300)
    for spec in (DLIB, ARCFACE):
        given = cut_chips(pixels, landmarks(2), NO_BOX, spec, 90)
        np.testing.assert_array_equal(given, cut_chips(pixels, landmarks(2), NO_BOX, spec))


@pytest.mark.parametrize("spec", [DLIB, ARCFACE, BOX])
def test_no_faces_no_chips(spec: ChipSpec) -> None:
    for rotation_deg in (0, 90):
        chips = cut_chips(smooth_picture(50, 50), NO_LANDMARKS[:0], NO_BOX[:0], spec, rotation_deg)
        assert chips.shape == (0, spec.size_px, spec.size_px, 3) and chips.dtype == np.uint8


def test_several_faces_keep_their_order() -> None:
    pixels = smooth_picture(300, 300)
    points = np.concatenate([landmarks(), landmarks(2), landmarks(0.5)])
    together = cut_chips(pixels, points, np.zeros((3, 4), np.float32), DLIB)
    alone = [cut_chips(pixels, points[i : i + 1], NO_BOX, DLIB)[0] for i in range(3)]
    np.testing.assert_array_equal(together, np.stack(alone))


class TestOutsideThePicture:
    WHITE = np.full((100, 100, 3), 255, dtype=np.uint8)

    def test_a_box_around_a_corner(self) -> None:
        chip = cut_chips(self.WHITE, NO_LANDMARKS, boxes((-32, -32, 32, 32)), BOX)[0]
        assert (chip[:48] == 0).all() and (chip[:, :48] == 0).all() and (chip[48:, 48:] == 255).all()

    def test_a_face_that_leaves_at_the_left(self) -> None:
        points = landmarks() - np.array([56, 0], dtype=np.float32)
        chip = cut_chips(self.WHITE, points, NO_BOX, ARCFACE)[0]
        assert (chip[:, :55] == 0).all() and (chip[2:98, 58:110] == 255).all()

    def test_a_face_that_is_elsewhere(self) -> None:
        assert (cut_chips(self.WHITE, landmarks() + np.float32(5000), NO_BOX, DLIB) == 0).all()


@pytest.mark.parametrize(
    "points",
    [
        np.full((1, 5, 2), 20.0),
        np.linspace([10.0, 10.0], [60.0, 10.0], 5)[None],
        landmarks(1e-6),
        landmarks(1e6),
        landmarks()[:, ::-1],
    ],
    ids=["one point", "one line", "tiny", "huge", "upside down"],
)
@pytest.mark.parametrize("spec", [DLIB, ARCFACE])
def test_landmarks_of_no_face(points: FloatArray, spec: ChipSpec) -> None:
    chips = cut_chips(smooth_picture(80, 80), points.astype(np.float32), NO_BOX, spec)
    assert chips.shape == (1, spec.size_px, spec.size_px, 3)


def test_boxes_without_an_inside() -> None:
    chips = cut_chips(smooth_picture(80, 80), NO_LANDMARKS, boxes((20, 20, 20, 20), (30, 30, 10, 10)), BOX)
    assert chips.shape == (2, 96, 96, 3)
