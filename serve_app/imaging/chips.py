"""Pictures of faces cut the way attribute models were trained on. Pure."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from serve_app.faces import CROP_SIZE_PX, ChipArray, ChipSpec, FloatArray, Frame, RGBImage
from serve_app.imaging.images import ARCFACE_TEMPLATE_PX, rotate, similarity_transforms

_DLIB_TEMPLATE = np.array(
    [[0.2985, 0.2896], [0.6880, 0.2896], [0.4932, 0.5183], [0.3272, 0.6982], [0.6593, 0.6982]], dtype=np.float32
)
"""Where YuNet's five landmarks lie in the chips that dlib (20.0.1, its five-point model, padding 0.2) cuts of the same faces,
as shares of the chip: medians over 535 photos, made symmetric."""
_BOX_MARGIN = 1.5
"""InsightFace, model_zoo/attribute.py."""
_MAX_OVERSAMPLING = 8
"""A chip is warped larger by a whole factor and averaged down, because a bilinear warp alone skips pixels. Beyond 8 there are
64 samples a pixel, and a larger buffer would show no difference."""


def cut_chips(pixels: RGBImage, landmarks: FloatArray, bboxes: FloatArray, spec: ChipSpec, rotation_deg: int = 0) -> ChipArray:
    """(N, 5, 2) landmarks and (N, 4) xyxy boxes in `pixels` to (N, S, S, 3) chips; black outside the picture.

    `rotation_deg`: clockwise turn of the picture under which the faces stand upright; landmarks say that themselves.
    """
    if spec.frame is Frame.BOX:
        transforms = _box_transforms(bboxes, spec.size_px)
        chips = [_warp(pixels, transform, spec.size_px, factor=1) for transform in transforms]
        return _stack([rotate(chip, rotation_deg) for chip in chips] if rotation_deg else chips, spec)
    template: FloatArray = ARCFACE_TEMPLATE_PX / np.float32(CROP_SIZE_PX) if spec.frame is Frame.ARCFACE else _DLIB_TEMPLATE
    transforms = similarity_transforms(landmarks, template * np.float32(spec.size_px))
    return _stack([_warp(pixels, transform, spec.size_px, _oversampling(transform)) for transform in transforms], spec)


def _stack(chips: list[RGBImage], spec: ChipSpec) -> ChipArray:
    if not chips:
        return np.empty((0, spec.size_px, spec.size_px, 3), dtype=np.uint8)
    return np.stack(chips)


def _oversampling(transform: npt.NDArray[np.float64]) -> int:
    """About as many samples as there are pixels of the picture to one of the chip."""
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    if not scale * _MAX_OVERSAMPLING > 1:
        return _MAX_OVERSAMPLING
    return max(1, round(1 / scale))


def _warp(pixels: RGBImage, transform: npt.NDArray[np.float64], size_px: int, factor: int) -> RGBImage:
    scaled = transform * factor
    # Whole coordinates are pixel centres: the centre of a block of `factor` pixels is the centre of the pixel it becomes.
    scaled[:, 2] += (factor - 1) / 2
    large = cv2.warpAffine(pixels, scaled, (size_px * factor, size_px * factor), borderValue=(0, 0, 0))
    if factor == 1:
        return np.asarray(large, dtype=np.uint8)
    return np.asarray(cv2.resize(large, (size_px, size_px), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _box_transforms(bboxes: FloatArray, size_px: int) -> npt.NDArray[np.float64]:
    """(N, 2, 3): the centre of each box to the middle of the chip, `_BOX_MARGIN` times its longer side to the chip's."""
    boxes = bboxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    scales = size_px / np.maximum(sides.max(axis=1, initial=0.0) * _BOX_MARGIN, 1e-6)
    centres = boxes[:, :2] + sides / 2
    transforms = np.zeros((len(boxes), 2, 3))
    transforms[:, 0, 0] = transforms[:, 1, 1] = scales
    transforms[:, :, 2] = size_px / 2 - scales[:, None] * centres
    return transforms
