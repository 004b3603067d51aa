"""What a replica runs on a batch: pictures to detections, crops to embeddings. Synchronous, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from deployments.models.attribute_models import AttributePredictor
from deployments.models.detector import FaceDetector, RawFaces
from deployments.models.recognizer import Recognizer
from serve_app.attributes import Asked, Attribute, AttributeOutputs
from serve_app.errors import ImageError
from serve_app.faces import (
    ALL_FACES,
    ChipArray,
    Chips,
    ChipSpec,
    Crops,
    DetectionOptions,
    Detections,
    FloatArray,
    face_count,
)
from serve_app.imaging.chips import cut_chips
from serve_app.imaging.exif import info_of
from serve_app.imaging.images import DecodedImage, ImageLimits, align, decode, rotate, unrotate_points
from serve_app.imaging.quality import measure_quality
from serve_app.observing.stages import Stage, stage
from serve_app.photos import PictureInfo

ScalarT = TypeVar("ScalarT", bound=np.generic)

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
                with stage(Stage.DECODE):
                    decoded.append((index, decode(request.image, self._limits)))
                answers.append(None)
            except ImageError as error:
                answers.append(error)
        thresholds = [self._threshold_of(requests[index]) for index, _ in decoded]
        with stage(Stage.DETECT):
            found = self._detector.detect([image.pixels for _, image in decoded], thresholds) if decoded else []
        for (index, image), faces, threshold in zip(decoded, found, thresholds, strict=True):
            options, rotation_deg = requests[index].options, 0
            if not len(faces) and options.try_rotations:
                with stage(Stage.DETECT):
                    faces, rotation_deg = self._try_rotations(image, threshold)
            with stage(Stage.ALIGN):
                info = info_of(image, requests[index].image) if options.info else None
                answers[index] = _assemble(image, faces, options, rotation_deg, info)
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


def _assemble(
    image: DecodedImage, faces: RawFaces, options: DetectionOptions, rotation_deg: int, info: PictureInfo | None
) -> Detections:
    """Largest first, clipped to the picture, with the crops, qualities and chips asked for."""
    pixels = image.pixels
    height, width = pixels.shape[:2]
    sizes = faces.bboxes[:, 2:] - faces.bboxes[:, :2]
    order = np.argsort(-(sizes[:, 0] * sizes[:, 1]), kind="stable")[: options.max_faces]
    landmarks = np.ascontiguousarray(faces.landmarks[order], dtype=np.float32)
    whole_boxes = faces.bboxes[order]
    bboxes = np.clip(whole_boxes, 0, [width, height, width, height]).astype(np.float32)
    crops, qualities, chips = (
        len(order) if count == ALL_FACES else min(count, len(order))
        for count in (options.crops, options.qualities, options.chip_faces)
    )
    aligned = align(pixels, landmarks[: max(crops, qualities)])
    return Detections(
        bboxes=bboxes,
        landmarks=landmarks,
        detection_scores=faces.scores[order].astype(np.float32),
        crops=aligned[:crops],
        width_px=width,
        height_px=height,
        format=image.format.value,
        rotation_deg=rotation_deg,
        qualities=tuple(map(measure_quality, aligned[:qualities], bboxes, landmarks)),
        chips={spec: cut_chips(pixels, landmarks[:chips], whole_boxes[:chips], spec, rotation_deg) for spec in options.chips},
        info=info,
    )


class EmbeddingEngine:
    """Embeds the crops of several requests in one forward pass."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer

    def run(self, requests: Sequence[Crops]) -> list[FloatArray]:
        """Each request's (N, 112, 112, 3) crops to its (N, D) embeddings."""
        crops = requests[0] if len(requests) == 1 else np.concatenate(requests)
        with stage(Stage.EMBED):
            embeddings = self._recognizer.embed(crops)
        ends = np.cumsum([len(request) for request in requests])
        return np.split(embeddings, ends[:-1])


@dataclass(frozen=True, slots=True)
class AnalysisRequest:
    """`chips`: of the same faces in every spec that the models of `asked` need."""

    chips: Chips
    asked: Asked

    def __len__(self) -> int:
        """Faces."""
        return face_count(self.chips)


@dataclass(frozen=True, slots=True)
class LoadedAttributeModel:
    """`attributes`: those it answers here."""

    name: str
    predictor: AttributePredictor
    chip: ChipSpec
    attributes: tuple[Attribute, ...]


class AnalysisEngine:
    """Attributes of the faces of several requests; each model sees those of its requests together, `max_faces` at a time."""

    def __init__(self, models: Sequence[LoadedAttributeModel], max_faces: int = 32) -> None:
        self._models = models
        self.max_faces = max_faces

    def run(self, requests: Sequence[AnalysisRequest]) -> list[AttributeOutputs]:
        """One answer a request, in order: a row a face for each attribute it asks for.

        What cannot be answered is left out: another model is asked for than the one that is loaded, while a change of
        configuration is on its way.
        """
        answers: list[dict[Attribute, FloatArray]] = [{} for _ in requests]
        for model in self._models:
            own = {(attribute, model.name) for attribute in model.attributes}
            asking = [i for i, one in enumerate(requests) if len(one) and own & set(one.asked) and model.chip in one.chips]
            if not asking:
                continue
            with stage(Stage.ANALYZE):
                outputs = self._predict(model, _concatenated([requests[index].chips[model.chip] for index in asking]))
            ends = np.cumsum([len(requests[index]) for index in asking])
            for attribute in model.attributes:
                for index, rows in zip(asking, np.split(outputs[attribute], ends[:-1]), strict=True):
                    if (attribute, model.name) in requests[index].asked:
                        answers[index][attribute] = rows
        return list(answers)

    def warm_up(self) -> None:
        """One face, then two, through every model: what is slow the first time must not be a client's first answer."""
        for model in self._models:
            for faces in (1, 2):
                self._predict(model, np.zeros((faces, model.chip.size_px, model.chip.size_px, 3), dtype=np.uint8))

    def _predict(self, model: LoadedAttributeModel, chips: ChipArray) -> AttributeOutputs:
        starts = range(0, len(chips), self.max_faces)
        parts = [model.predictor.predict(chips[start : start + self.max_faces]) for start in starts]
        return {attribute: _concatenated([part[attribute] for part in parts]) for attribute in model.attributes}


def _concatenated(parts: Sequence[npt.NDArray[ScalarT]]) -> npt.NDArray[ScalarT]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
