"""What the detector families share: letterbox, suppression, and the way back to source pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from serve_app.faces import FloatArray, RGBImage


@dataclass(frozen=True, slots=True)
class RawFaces:
    """Faces of one picture in its own pixels, by falling score. bboxes (N, 4) xyxy, landmarks (N, 5, 2), scores (N,)."""

    bboxes: FloatArray
    landmarks: FloatArray
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A picture scaled onto a black canvas. source = (canvas - offset_px) / scale."""

    canvas: RGBImage
    scale: float
    offset_px: tuple[float, float] = (0.0, 0.0)


class FaceDetector(Protocol):
    """Finds faces in pictures; safe to call from several threads."""

    def detect(self, images: Sequence[RGBImage], thresholds: Sequence[float]) -> list[RawFaces]:
        """One RawFaces a picture, in order. `thresholds`: lowest score kept, one a picture."""
        ...


class LetterboxDetector:
    """A detector that sees letterboxed canvases; canvases of one shape share a forward pass.

    `input_sides_px`: one pass a side; the findings of all passes are suppressed together.
    """

    def __init__(self, input_sides_px: Sequence[int]) -> None:
        self._sides_px = tuple(input_sides_px)

    def letterbox(self, image: RGBImage, side_px: int) -> Letterbox:
        raise NotImplementedError

    def forward(self, canvases: npt.NDArray[np.uint8], thresholds: Sequence[float]) -> list[RawFaces]:
        """(B, H, W, 3) uint8 RGB canvases to candidates in canvas pixels, before suppression, in any order."""
        raise NotImplementedError

    def suppress(self, faces: RawFaces) -> list[int]:
        """Indices to keep, of faces sorted by falling score."""
        raise NotImplementedError

    def detect(self, images: Sequence[RGBImage], thresholds: Sequence[float]) -> list[RawFaces]:
        boxes = [(i, self.letterbox(image, side)) for i, image in enumerate(images) for side in self._sides_px]
        by_shape: dict[tuple[int, ...], list[tuple[int, Letterbox]]] = defaultdict(list)
        for index, box in boxes:
            by_shape[box.canvas.shape].append((index, box))
        candidates: dict[int, list[RawFaces]] = defaultdict(list)
        for group in by_shape.values():
            canvases = np.stack([box.canvas for _, box in group])
            found = self.forward(canvases, [thresholds[index] for index, _ in group])
            for (index, box), faces in zip(group, found, strict=True):
                candidates[index].append(_to_source(faces, box))
        return [self._merge(candidates[index]) for index in range(len(images))]

    def _merge(self, passes: Sequence[RawFaces]) -> RawFaces:
        scores = np.concatenate([faces.scores for faces in passes])
        order = np.argsort(-scores, kind="stable")
        faces = RawFaces(
            np.concatenate([faces.bboxes for faces in passes])[order],
            np.concatenate([faces.landmarks for faces in passes])[order],
            scores[order],
        )
        keep = self.suppress(faces)
        return RawFaces(faces.bboxes[keep], faces.landmarks[keep], faces.scores[keep])


def _to_source(faces: RawFaces, box: Letterbox) -> RawFaces:
    offset = np.asarray(box.offset_px, dtype=np.float32)
    scale = np.float32(box.scale)
    return RawFaces(
        (faces.bboxes - np.tile(offset, 2)) / scale,
        (faces.landmarks - offset) / scale,
        faces.scores,
    )


def place(image: RGBImage, width_px: int, height_px: int, canvas_hw: tuple[int, int], at: tuple[int, int]) -> RGBImage:
    """`image` resized to (width_px, height_px), on a black canvas with its corner at `at` (x, y)."""
    canvas = np.zeros((*canvas_hw, 3), dtype=np.uint8)
    x, y = at
    resized = image if image.shape[:2] == (height_px, width_px) else cv2.resize(image, (width_px, height_px))
    canvas[y : y + height_px, x : x + width_px] = resized
    return canvas


def non_maximum_suppression(boxes: npt.NDArray[np.floating], max_iou: float, pixel: float) -> list[int]:
    """Greedy suppression of boxes (N, 4) xyxy that are sorted by falling score; returns the indices kept.

    `pixel` is added to every side: 1 where boxes are meant to include their last pixel, else 0.
    """
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + pixel) * (y2 - y1 + pixel)
    order = np.arange(len(boxes))
    keep: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        keep.append(int(best))
        width = np.maximum(0, np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + pixel)
        height = np.maximum(0, np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + pixel)
        overlap = width * height
        union = areas[best] + areas[rest] - overlap
        order = rest[overlap <= max_iou * union]
    return keep
