"""The one way from a picture to faces and embeddings. Every caller comes through here; nothing else asks a model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, TypeVar

from serve_app.errors import RETRY_AFTER_S, MultipleFaces, NoFaceDetected, Overloaded
from serve_app.faces import ALL_FACES, Crops, DetectionOptions, Detections, EmbeddedFace, FloatArray, blank_crop
from serve_app.imaging.images import ImageLimits, check_size, sniff
from serve_app.services.analysis import Analyzed, AnalyzeOptions, FaceAnalysis, analyzed_faces

ResultT = TypeVar("ResultT")


class Detector(Protocol):
    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        """Raises ImageError for a picture that cannot be read, CapacityError or PartUnavailable."""
        ...


class Embedder(Protocol):
    async def embed(self, crops: Crops) -> FloatArray:
        """(N, 112, 112, 3) crops to (N, D) unit embeddings. Raises CapacityError or PartUnavailable."""
        ...


class FaceChoice(StrEnum):
    """Which faces of a picture are meant."""

    LARGEST = "largest"
    ALL = "all"
    ONLY = "only"
    """The only one: more than one face is an error."""


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """`face`: which faces are embedded. `max_faces`: at most so many, the largest. `threshold`: see DetectionOptions.
    `quality`: measure that of every embedded face. `analyze`: what else to say of them. `info`: see DetectionOptions."""

    face: FaceChoice = FaceChoice.LARGEST
    max_faces: int | None = None
    threshold: float | None = None
    quality: bool = False
    analyze: AnalyzeOptions = field(default_factory=AnalyzeOptions)
    info: bool = False


@dataclass(frozen=True, slots=True)
class Extraction:
    """`faces`: the embedded ones, largest first. `detections`: all that were found. `analyzed`: None where nothing was asked
    for."""

    detections: Detections
    faces: list[EmbeddedFace]
    analyzed: Analyzed | None = None


class FacePipeline:
    """Sniff and limit here, decode, detect and align in the detector, embed and analyze only what is asked for."""

    def __init__(self, detector: Detector, embedder: Embedder, analysis: FaceAnalysis, limits: ImageLimits) -> None:
        self._detector = detector
        self._embedder = embedder
        self._analysis = analysis
        self._limits = limits

    async def check(self) -> None:
        """Whether faces can be embedded just now. Raises CapacityError, PartUnavailable."""
        await self._embedder.embed(blank_crop())

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        """All faces of a picture. No face is an empty answer. Raises ImageError, CapacityError, PartUnavailable."""
        # Bytes that are no picture never travel to a replica.
        check_size(image, self._limits)
        sniff(image)
        return await self._detector.detect(image, options)

    async def analyze(
        self, image: bytes, options: DetectionOptions, analyze: AnalyzeOptions
    ) -> tuple[Detections, Analyzed | None]:
        """All faces, and of the largest what `analyze` asks for; None where that is nothing. Raises what `detect` raises."""
        detections = await self.detect(image, self._preparing(options, analyze, ALL_FACES))
        return detections, await self._analyzed(detections, analyze, ALL_FACES)

    def check_analyzable(self, analyze: AnalyzeOptions) -> None:
        """Raises ModelUnavailable when nothing of what is asked for can be answered."""
        self._analysis.check(analyze)

    async def extract(self, image: bytes, options: ExtractOptions) -> Extraction:
        """Faces with embeddings; at least one. Raises NoFaceDetected, MultipleFaces (`FaceChoice.ONLY`) and what `detect`
        raises."""
        detections = await self._detect_for(image, options)
        if not len(detections):
            raise NoFaceDetected(
                "No face was detected, upright or turned by 90, 180 and 270 degrees.",
                width_px=detections.width_px,
                height_px=detections.height_px,
            )
        if options.face is FaceChoice.ONLY and len(detections) > 1:
            raise MultipleFaces(
                f"{len(detections)} faces were detected where exactly one is expected.", face_count=len(detections)
            )
        return await self._extraction(detections, options)

    async def find(self, image: bytes, options: ExtractOptions) -> Extraction:
        """As `extract`, for one of many pictures (see `extract_when_free`) that may well show nobody. Raises what `detect`
        raises."""
        detections = await when_free(lambda: self._detect_for(image, options))
        return await when_free(lambda: self._extraction(detections, options))

    async def _detect_for(self, image: bytes, options: ExtractOptions) -> Detections:
        crops = _crops(options)
        plain = DetectionOptions(
            threshold=options.threshold,
            max_faces=options.max_faces,
            crops=crops,
            qualities=crops if options.quality else 0,
            info=options.info,
        )
        return await self.detect(image, self._preparing(plain, options.analyze, crops))

    async def _extraction(self, detections: Detections, options: ExtractOptions) -> Extraction:
        if not len(detections):
            return Extraction(detections, [])
        analysis = asyncio.create_task(self._analyzed(detections, options.analyze, _crops(options)))
        try:
            embeddings = await self._embedder.embed(detections.crops)
            analyzed = await analysis
        finally:
            # Nobody waits for it where the embedding failed or the caller is gone.
            analysis.cancel()
        qualities = detections.qualities if options.quality else (None,) * len(detections.crops)
        faces = [
            EmbeddedFace(detections.face(index), embedding, crop, quality)
            for index, (embedding, crop, quality) in enumerate(zip(embeddings, detections.crops, qualities, strict=True))
        ]
        return Extraction(detections, faces, analyzed)

    def _preparing(self, options: DetectionOptions, analyze: AnalyzeOptions, faces: int) -> DetectionOptions:
        """`options`, with what `analyze` needs of the largest `faces` faces."""
        if not analyze:
            return options
        count = analyzed_faces(faces)
        more_qualities = analyze.quality and options.qualities != ALL_FACES
        return replace(
            options,
            chips=self._analysis.chips(analyze),
            chip_faces=count,
            qualities=max(options.qualities, count) if more_qualities else options.qualities,
        )

    async def _analyzed(self, detections: Detections, analyze: AnalyzeOptions, faces: int) -> Analyzed | None:
        return await self._analysis.run(detections, analyze, analyzed_faces(faces)) if analyze else None

    async def extract_when_free(self, image: bytes, options: ExtractOptions) -> Extraction:
        """`extract` for one of many pictures of a call, which would otherwise fail for being one call: it waits while the
        models are overloaded. The caller's time limit ends that."""
        return await when_free(lambda: self.extract(image, options))


def _crops(options: ExtractOptions) -> int:
    return ALL_FACES if options.face is FaceChoice.ALL else 1


async def when_free(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """What `call` returns, made again as long as it raises Overloaded. The caller's time limit ends that."""
    while True:
        try:
            return await call()
        except Overloaded as error:
            wait_s = error.details.get("retry_after_s", RETRY_AFTER_S)
            await asyncio.sleep(float(wait_s) if isinstance(wait_s, int | float) else RETRY_AFTER_S)
