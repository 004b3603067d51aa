"""SCRFD, InsightFace's face detector (Guo et al. 2021, arXiv:2105.04714), loaded by insightface's model zoo.

The zoo recognises the file and reads its normalisation, strides and anchors; the pass here is the batched form of its
`SCRFD.detect`, with the same results (tests/accuracy/test_parity.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from deployments.models.detector import Letterbox, LetterboxDetector, RawFaces, non_maximum_suppression, place
from deployments.models.session import Runner
from serve_app.faces import FloatArray, RGBImage

_MAX_IOU = 0.4
"""insightface's SCRFD.nms_thresh."""


@dataclass(frozen=True, slots=True)
class ScrfdContract:
    """What the model zoo found out about the file."""

    input_name: str
    output_names: list[str]
    mean: float
    std: float
    strides: tuple[int, ...]
    anchors: int
    batched: bool
    """Outputs carry a leading batch axis; else the file takes one picture a pass."""
    fixed_side_px: int | None
    """The square input the file was exported with; None where it takes any."""


class Scrfd(LetterboxDetector):
    """A square canvas of `input_sides_px`, the picture scaled to fill it (also enlarged) from the top left corner."""

    def __init__(self, runner: Runner, contract: ScrfdContract, input_sides_px: Sequence[int]) -> None:
        super().__init__([contract.fixed_side_px] if contract.fixed_side_px else input_sides_px)
        self._runner = runner
        self._contract = contract

    def letterbox(self, image: RGBImage, side_px: int) -> Letterbox:
        # The same arithmetic as insightface, truncation included: half a pixel here is a pixel in the answer.
        height, width = image.shape[:2]
        if height > width:
            new_height, new_width = side_px, max(1, int(side_px / (height / width)))
        else:
            new_height, new_width = max(1, int(side_px * (height / width))), side_px
        canvas = place(image, new_width, new_height, (side_px, side_px), (0, 0))
        return Letterbox(canvas, new_height / height)

    def forward(self, canvases: npt.NDArray[np.uint8], thresholds: Sequence[float]) -> list[RawFaces]:
        contract = self._contract
        if len(canvases) > 1 and not contract.batched:
            return [self.forward(canvases[i : i + 1], thresholds[i : i + 1])[0] for i in range(len(canvases))]
        blob = cv2.dnn.blobFromImages(list(canvases), 1.0 / contract.std, mean=(contract.mean,) * 3).astype(
            np.float32, copy=False
        )
        outputs = self._runner.run(contract.output_names, {contract.input_name: blob})
        if not contract.batched:
            outputs = [output[None] for output in outputs]
        return [
            self._decode([output[index] for output in outputs], canvases.shape[1:3], threshold)
            for index, threshold in enumerate(thresholds)
        ]

    def suppress(self, faces: RawFaces) -> list[int]:
        return non_maximum_suppression(faces.bboxes, _MAX_IOU, pixel=1)

    def _decode(self, outputs: list[npt.NDArray[np.float32]], canvas_hw: tuple[int, ...], threshold: float) -> RawFaces:
        """Distances from anchor centres, in strides, to the four sides and the five landmarks."""
        levels = len(self._contract.strides)
        bboxes, landmarks, scores = [], [], []
        for level, stride in enumerate(self._contract.strides):
            score, box, points = (outputs[kind * levels + level] for kind in range(3))
            kept = np.flatnonzero(score[:, 0] >= threshold)
            centres = self._centres(kept, canvas_hw[1] // stride, stride)
            distances = box[kept] * stride
            bboxes.append(np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1))
            landmarks.append(centres[:, None] + (points[kept] * stride).reshape(-1, 5, 2))
            scores.append(score[kept, 0])
        return RawFaces(np.concatenate(bboxes), np.concatenate(landmarks), np.concatenate(scores))

    def _centres(self, kept: npt.NDArray[np.intp], columns: int, stride: int) -> FloatArray:
        cell = kept // self._contract.anchors
        return np.stack([cell % columns, cell // columns], axis=1).astype(np.float32) * stride
