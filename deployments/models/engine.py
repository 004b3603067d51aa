"""What a replica runs on a batch: pictures to detections, crops to embeddings. Synchronous, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.models.detector import FaceDetector, RawFaces
from deployments.models.recognizer import Recognizer
from serve_app.errors import ImageError
from serve_app.faces import ALL_FACES, Crops, DetectionOptions, Detections, FloatArray
from serve_app.images import DecodedImage, ImageLimits, align, decode, rotate, unrotate_points
from serve_app.quality import measure_quality

_ROTATIONS_DEG = (90, 180, 270)


@dataclass(frozen=True, slots=True)
class DetectionRequest:
    """`image`: encoded bytes."""

    image: bytes
    options: DetectionOptions


class DetectionEngine:
    """Decodes, detects and aligns. Safe to call from several threads.

    `threshold`: lowest detection_score where a request names none.
    """

    def __init__(self, detector: FaceDetector, limits: ImageLimits, threshold: float) -> None:
        self._detector = detector
        self._limits = limits
        self._threshold = threshold

    def run(self, requests: Sequence[DetectionRequest]) -> list[Detections | ImageError]:
        """One answer a request, in order; a picture that cannot be read is an ImageError in its place."""
        answers: list[Detections | ImageError | None] = []
        decoded: list[tuple[int, DecodedImage]] = []
        for index, request in enumerate(requests):
            try:
                decoded.append((index, decode(request.image, self._limits)))
                answers.append(None)
            except ImageError as error:
                answers.append(error)
        thresholds = [self._threshold_of(requests[index]) for index, _ in decoded]
        found = self._detector.detect([image.pixels for _, image in decoded], thresholds) if decoded else []
        for (index, image), faces, threshold in zip(decoded, found, thresholds, strict=True):
            options, rotation_deg = requests[index].options, 0
            if not len(faces) and options.try_rotations:
                faces, rotation_deg = self._try_rotations(image, threshold)
            answers[index] = _assemble(image, faces, options, rotation_deg)
        return [answer for answer in answers if answer is not None]

    def _threshold_of(self, request: DetectionRequest) -> float:
        return self._threshold if request.options.threshold is None else request.options.threshold

    def _try_rotations(self, image: DecodedImage, threshold: float) -> tuple[RawFaces, int]:
        """The turn under which the faces found add up to the highest score, its faces in upright coordinates."""
        height, width = image.pixels.shape[:2]
        turned = [rotate(image.pixels, degrees) for degrees in _ROTATIONS_DEG]
        found = self._detector.detect(turned, [threshold] * len(turned))
        best = max(range(len(found)), key=lambda i: float(found[i].scores.sum()))
        faces, degrees = found[best], _ROTATIONS_DEG[best]
        if not len(faces):
            return faces, 0
        corners = unrotate_points(faces.bboxes.reshape(-1, 2, 2), degrees, width, height)
        bboxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        return RawFaces(bboxes, unrotate_points(faces.landmarks, degrees, width, height), faces.scores), degrees


def _assemble(image: DecodedImage, faces: RawFaces, options: DetectionOptions, rotation_deg: int) -> Detections:
    """Largest first, clipped to the picture, with the crops and qualities asked for."""
    height, width = image.pixels.shape[:2]
    sizes = faces.bboxes[:, 2:] - faces.bboxes[:, :2]
    order = np.argsort(-(sizes[:, 0] * sizes[:, 1]), kind="stable")[: options.max_faces]
    landmarks = np.ascontiguousarray(faces.landmarks[order], dtype=np.float32)
    bboxes = np.clip(faces.bboxes[order], 0, [width, height, width, height]).astype(np.float32)
    wanted = len(order) if options.crops == ALL_FACES else options.crops
    crops = align(image.pixels, landmarks[:wanted])
    return Detections(
        bboxes=bboxes,
        landmarks=landmarks,
        detection_scores=faces.scores[order].astype(np.float32),
        crops=crops,
        width_px=width,
        height_px=height,
        format=image.format.value,
        rotation_deg=rotation_deg,
        # Of the faces with crops alone: the other lists may be longer.
        qualities=tuple(map(measure_quality, crops, bboxes, landmarks)) if options.quality else (),
    )


class EmbeddingEngine:
    """Embeds the crops of several requests in one forward pass."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer

    def run(self, requests: Sequence[Crops]) -> list[FloatArray]:
        """Each request's (N, 112, 112, 3) crops to its (N, D) embeddings."""
        crops = requests[0] if len(requests) == 1 else np.concatenate(requests)
        embeddings = self._recognizer.embed(crops)
        ends = np.cumsum([len(request) for request in requests])
        return np.split(embeddings, ends[:-1])
