"""YuNet, the OpenCV zoo's face detector (Wu et al. 2023, DOI 10.1007/s11633-023-1423-y).

Decoded as cv2.FaceDetectorYN does, but batched (tests/accuracy/test_parity.py compares the two)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deployments.models.detector import Letterbox, LetterboxDetector, RawFaces, non_maximum_suppression, place
from deployments.models.session import Session
from serve_app.faces import RGBImage

_STRIDES = (8, 16, 32)
_MAX_IOU = 0.3
"""cv2.FaceDetectorYN's default nms_threshold."""


class YuNet(LetterboxDetector):
    """Longest side at most `input_sides_px`, never enlarged: enlarging tight crops costs accuracy.

    `border`: black margin on each side, as a share of the picture's width and height; faces that fill the picture are
    found only with it.
    """

    def __init__(self, session: Session, input_sides_px: Sequence[int], border: float) -> None:
        super().__init__(input_sides_px)
        self._session = session
        self._border = border
        self._input = session.get_inputs()[0].name
        self._outputs = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in _STRIDES]

    def letterbox(self, image: RGBImage, side_px: int) -> Letterbox:
        height, width = image.shape[:2]
        grown = 1 + 2 * self._border
        scale = min(1.0, side_px / (max(width, height) * grown))
        scaled_width, scaled_height = max(1, round(width * scale)), max(1, round(height * scale))
        x, y = int(scaled_width * self._border), int(scaled_height * self._border)
        canvas_hw = (_up_to_32(scaled_height + 2 * y), _up_to_32(scaled_width + 2 * x))
        return Letterbox(place(image, scaled_width, scaled_height, canvas_hw, (x, y)), scale, (x, y))

    def forward(self, canvases: npt.NDArray[np.uint8], thresholds: Sequence[float]) -> list[RawFaces]:
        # BGR, 0-255, NCHW.
        blob = np.ascontiguousarray(canvases[..., ::-1].transpose(0, 3, 1, 2), dtype=np.float32)
        outputs = self._session.run(self._outputs, {self._input: blob})
        levels = len(_STRIDES)
        return [
            _decode([output[index] for output in outputs], levels, canvases.shape[2], threshold)
            for index, threshold in enumerate(thresholds)
        ]

    def suppress(self, faces: RawFaces) -> list[int]:
        # FaceDetectorYN suppresses on whole pixels: corner and size truncated.
        corner = np.trunc(faces.bboxes[:, :2])
        size = np.trunc(faces.bboxes[:, 2:] - faces.bboxes[:, :2])
        return non_maximum_suppression(np.concatenate([corner, corner + size], axis=1), _MAX_IOU, pixel=0)


def _up_to_32(length_px: int) -> int:
    return -(-length_px // 32) * 32


def _decode(outputs: list[npt.NDArray[np.float32]], levels: int, width_px: int, threshold: float) -> RawFaces:
    """Anchors without a prior box: a cell (row, column) of a stride predicts centre, log size and landmarks."""
    bboxes, landmarks, scores = [], [], []
    for level, stride in enumerate(_STRIDES):
        cls, obj, box, points = (outputs[kind * levels + level] for kind in range(4))
        score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        kept = np.flatnonzero(score >= threshold)
        columns = width_px // stride
        cell = np.stack([kept % columns, kept // columns], axis=1).astype(np.float32)
        centre = (cell + box[kept, :2]) * stride
        half = np.exp(box[kept, 2:]) * (stride / 2)
        bboxes.append(np.concatenate([centre - half, centre + half], axis=1))
        landmarks.append((points[kept].reshape(-1, 5, 2) + cell[:, None]) * stride)
        scores.append(score[kept])
    return RawFaces(
        np.concatenate(bboxes).astype(np.float32),
        np.concatenate(landmarks).astype(np.float32),
        np.concatenate(scores).astype(np.float32),
    )
