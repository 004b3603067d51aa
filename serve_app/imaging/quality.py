"""How well a face shows who it is: size, sharpness, pose, exposure, occlusion. Pure; about 0.3 ms a face.

No model: formulas on the pixels of the aligned crop and on the five landmarks, with a handful of measured constants.
`serve_app.services.review` says from where a figure speaks against a face; docs/accuracy.md, "Enrolment review", has the
measurements.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from serve_app.faces import FaceQuality, FloatArray, Occlusion, RGBImage
from serve_app.imaging.images import ARCFACE_TEMPLATE_PX, similarity_transforms

_Plane = npt.NDArray[np.float32]
_Points = npt.NDArray[np.float64]

_FACE = (slice(24, 104), slice(24, 88))
"""Rows and columns of a crop that lie on the face, brow to chin; hair, ears and background stay outside."""

_MIN_STD = 3.0
"""In luma levels. Below it a region is noise, and ratios to its deviation mean nothing."""

_BURNT, _BLACK = 250, 8
"""Luma from which, and up to which, a pixel holds no detail; JPEG rings some levels around 255 and 0."""

_EYES_TO_NOSE = 1.7
"""Distance of the eyes over how far the nose tip stands out before them. The ratio that agrees best with the head pose of
MediaPipe's face mesh (0.10.14) on 753 faces: 1.66 for YuNet's landmarks, 1.70 for SCRFD's."""

_HEIGHT_TO_NOSE, _LEVEL_NOSE = 1.6, 0.485
"""The same for pitch: distance from eyes to mouth over the nose tip's, and where between eyes and mouth the nose tip of a
level face lies (0: eyes, 1: mouth). Fitted likewise: 1.70 and 0.49 for YuNet, 1.55 and 0.48 for SCRFD."""

# Occlusion. Fitted by logistic regression to 732 faces of the test photos as they are and with masks drawn on them, then
# shifted so that 1 or 2 in 100 of the uncovered ones score above 0.5; docs/accuracy.md has what that finds.
_NO_MOUTH, _LINE_WEIGHT, _DETAIL_WEIGHT = 10.05, 8.0, 100.0
_REDNESS_LOSS, _REDNESS_WEIGHT = 8.0, 0.6
_EYE_DETAIL, _EYE_WEIGHT = 0.20, 25.0
_OCCLUSION_FROM = ((0.8, Occlusion.HIGH), (0.5, Occlusion.MEDIUM), (0.2, Occlusion.LOW), (0.0, Occlusion.NONE))


def measure_quality(crop: RGBImage, bbox: FloatArray, landmarks: FloatArray) -> FaceQuality:
    """The quality of one face.

    `crop`: (112, 112, 3) uint8 RGB, aligned by `landmarks`. `bbox`: (4,) xyxy and `landmarks`: (5, 2), in source pixels.
    Defined for every input: landmarks that are no face give some pose, never NaN.
    """
    found = landmarks if np.isfinite(landmarks).all() else ARCFACE_TEMPLATE_PX
    transform = similarity_transforms(found[None])[0]
    points = found.astype(np.float64) @ transform[:, :2].T + transform[:, 2]
    ycrcb = np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2YCrCb), dtype=np.uint8)
    luma = np.asarray(ycrcb[:, :, 0], dtype=np.float32)
    face = luma[_FACE]
    mean, std = float(face.mean()), float(face.std())
    yaw_deg, pitch_deg = _yaw_and_pitch(points)
    occlusion_score = max(_lower_occlusion(ycrcb, luma, points, std), _eye_occlusion(luma, points, std))
    return FaceQuality(
        size_px=max(0.0, min(float(bbox[2]) - float(bbox[0]), float(bbox[3]) - float(bbox[1]))),
        sharpness=_sharpness(luma, std),
        yaw_deg=yaw_deg,
        pitch_deg=pitch_deg,
        roll_deg=math.degrees(math.atan2(-transform[1, 0], transform[0, 0])),
        brightness=mean / 255.0,
        contrast=std / 255.0,
        overexposed=float(np.count_nonzero(face >= _BURNT)) / face.size,
        underexposed=float(np.count_nonzero(face <= _BLACK)) / face.size,
        occlusion=next(level for start, level in _OCCLUSION_FROM if occlusion_score >= start),
        occlusion_score=occlusion_score,
    )


def _yaw_and_pitch(points: _Points) -> tuple[float, float]:
    """Degrees, of landmarks (5, 2) turned upright; each in [-90, 90].

    Eyes and mouth lie about in one plane, the nose tip stands out of it by d. In weak perspective a turn by yaw moves the
    tip sideways by d sin(yaw), while the eyes, w apart, are seen w cos(yaw) apart: tan(yaw) = (w / d) (shift / eyes). So
    with pitch and the height from eyes to mouth (after Gee and Cipolla, "Determining the gaze of faces in images", 1994).

    Against MediaPipe's face mesh, up to 45 degrees: yaw is off by 3 degrees on average and by 9 in one face of 20 (SCRFD's
    landmarks: 2.5 and 6.4); a full profile may read as little as 40, because its far eye is guessed. Pitch is off by 7 and
    17 (SCRFD: 5 and 12): noses differ from person to person, so it only tells the extremes apart.
    """
    eyes, mouth = (points[0] + points[1]) / 2, (points[3] + points[4]) / 2
    height = math.dist(eyes, mouth)
    down_x, down_y = ((mouth - eyes) / height).tolist() if height > 1e-6 else (0.0, 1.0)
    nose_x, nose_y = (points[2] - eyes).tolist()
    eye_x, eye_y = (points[1] - points[0]).tolist()
    # Along the line of the eyes, at right angles to the one from eyes to mouth.
    shift, span = nose_x * down_y - nose_y * down_x, eye_x * down_y - eye_y * down_x
    fall = nose_x * down_x + nose_y * down_y
    yaw = math.atan2(_EYES_TO_NOSE * shift, max(span, 1e-6))
    pitch = math.atan2(_HEIGHT_TO_NOSE * (_LEVEL_NOSE * height - fall), max(height, 1e-6))
    return math.degrees(yaw), math.degrees(pitch)


def _sharpness(luma: _Plane, std: float) -> float:
    """Detail finer than a twelfth of the crop in the direction that has less of it, over the deviation of luma; [0, 1].

    The least of the two directions, because motion blurs only one. The 3 x 3 mean before takes sensor noise and JPEG
    blocks out, which would otherwise pass for detail; the division, exposure. About 0.19 for a sharp face, 0.15 for one
    of 32 px (enlarged to the crop it has no finer detail), 0.10 after a Gaussian of 2.5 % of the face's width.
    """
    smooth = cv2.blur(luma, (3, 3))
    energy = min(
        float(np.square((smooth - cv2.blur(smooth, (9, 1)))[_FACE]).mean()),
        float(np.square((smooth - cv2.blur(smooth, (1, 9)))[_FACE]).mean()),
    )
    return min(1.0, math.sqrt(energy) / max(std, _MIN_STD))


def _lower_occlusion(ycrcb: npt.NDArray[np.uint8], luma: _Plane, points: _Points, std: float) -> float:
    """How much the face lacks a mouth, in [0, 1]: a proxy for masks, hands and things before it.

    Lips, open or closed, shaven or not, draw a dark line where the landmarks expect it; and with the corners of the mouth
    and the nostrils they change brightness from left to right, where cloth does not, nor its pleats. A lower face that is
    much less red than the upper is not skin (colour pictures only).
    """
    x = _clamped((points[3, 0] + points[4, 0]) / 2, 34, 78)
    y = _clamped((points[3, 1] + points[4, 1]) / 2, 80, 98)
    rows = cv2.blur(luma[:, x - 8 : x + 8].mean(axis=1)[:, None], (1, 3))[:, 0]
    line = float(((rows[y - 12 : y + 5] + rows[y - 4 : y + 13]) / 2 - rows[y - 8 : y + 9]).max())
    mouth = cv2.blur(luma, (5, 5))[y - 14 : y + 10, x - 22 : x + 22]
    detail = float(np.abs(np.diff(mouth, axis=1)).mean())
    red = ycrcb[:, :, 1]
    above = (float(red[56:68, 28:44].mean()) + float(red[56:68, 68:84].mean()) + float(red[24:36, 40:72].mean())) / 3
    redness_loss = above - float(red[80:104, 40:72].mean())
    return _logistic(
        _NO_MOUTH
        - (_LINE_WEIGHT * line + _DETAIL_WEIGHT * detail) / max(std, _MIN_STD)
        + _REDNESS_WEIGHT * max(0.0, redness_loss - _REDNESS_LOSS)
    )


def _eye_occlusion(luma: _Plane, points: _Points, std: float) -> float:
    """How much the face lacks eyes, in [0, 1]: a proxy for sunglasses, which show no lids, iris and white."""
    detail = 0.0
    for point in points[:2]:
        x, y = _clamped(point[0], 20, 91), _clamped(point[1], 40, 64)
        eye = luma[y - 4 : y + 5, x - 6 : x + 7]
        detail += float(np.abs(np.diff(eye, axis=0)).mean()) + float(np.abs(np.diff(eye, axis=1)).mean())
    return _logistic(_EYE_WEIGHT * (_EYE_DETAIL - detail / 2 / max(std, _MIN_STD)))


def _clamped(value: float, low: int, high: int) -> int:
    return round(min(max(float(value), low), high))


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(value, -50.0), 50.0)))
