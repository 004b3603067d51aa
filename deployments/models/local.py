"""Models in this very process, behind the Protocols of the services: for a worker that asks no deployment."""

from __future__ import annotations

from deployments.batching import BatchConfig, Batcher
from deployments.models.engine import DetectionEngine, DetectionRequest, EmbeddingEngine
from deployments.models.loading import load_detector, load_recognizer
from deployments.models.packs import PackLocation, resolve
from deployments.models.pictures import CutRequest, InspectRequest, PictureEngine, PictureRequest, ThumbnailRequest
from serve_app.errors import ImageError
from serve_app.faces import Crops, DetectionOptions, Detections, FloatArray
from serve_app.imaging.images import ImageLimits
from serve_app.imaging.regions import Region
from serve_app.photos import PictureInfo, ThumbnailFormat

_PICTURES, _FACES = 4, 8
"""A batch at least. The model is not faster for it on a CPU, but the threads hand over to each other less often."""


class LocalModels:
    """What the Detection and Embedding deployments load, one thread each: a Detector, an Embedder and a PictureReader. All
    methods belong to one event loop. Raises ConfigurationError where the pack or the device is not there."""

    def __init__(self, location: PackLocation, limits: ImageLimits, threshold: float | None) -> None:
        pack = resolve(location)
        detection = DetectionEngine(
            load_detector(pack, location.device, 1), limits, pack.spec.detector.threshold if threshold is None else threshold
        )
        embedding = EmbeddingEngine(load_recognizer(pack, location.device, 1))
        pictures, faces = max(_PICTURES, location.device.batch_size), max(_FACES, location.device.batch_size)
        self._detection: Batcher[DetectionRequest, Detections | ImageError] = Batcher(
            detection.run, BatchConfig(), default_batch_size=pictures
        )
        self._embedding: Batcher[Crops, FloatArray] = Batcher(
            embedding.run, BatchConfig(), weight=len, default_batch_size=faces
        )
        self._pictures: Batcher[PictureRequest, PictureInfo | bytes | ImageError] = Batcher(
            PictureEngine(limits).run, BatchConfig(max_batch_size=1)
        )

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        answer = await self._detection.submit(DetectionRequest(image, options))
        if isinstance(answer, ImageError):
            raise answer
        return answer

    async def embed(self, crops: Crops) -> FloatArray:
        return await self._embedding.submit(crops)

    async def inspect(self, image: bytes) -> PictureInfo:
        answer = await self._picture(InspectRequest(image))
        assert isinstance(answer, PictureInfo)
        return answer

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes:
        answer = await self._picture(ThumbnailRequest(image, side_px, image_format))
        assert isinstance(answer, bytes)
        return answer

    async def cut(self, image: bytes, region: Region, side_px: int, image_format: ThumbnailFormat) -> bytes:
        answer = await self._picture(CutRequest(image, region, side_px, image_format))
        assert isinstance(answer, bytes)
        return answer

    async def _picture(self, request: PictureRequest) -> PictureInfo | bytes:
        answer = await self._pictures.submit(request)
        if isinstance(answer, ImageError):
            raise answer
        return answer
