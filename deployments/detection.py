"""The Detection deployment: encoded pictures in; boxes, landmarks and aligned crops out, or metadata, or thumbnails."""

from __future__ import annotations

from ray import serve

from deployments.batching import BatchConfig, Batcher
from deployments.models.engine import DetectionEngine, DetectionRequest
from deployments.models.loading import load_detector
from deployments.models.packs import PackLocation, resolve
from deployments.models.pictures import InspectRequest, PictureEngine, ThumbnailRequest
from deployments.process import tune_process
from serve_app.errors import ImageError
from serve_app.faces import DetectionOptions, Detections
from serve_app.images import ImageLimits
from serve_app.photos import PictureInfo, ThumbnailFormat


@serve.deployment
class Detection:
    """Decoding happens here and nowhere else: a picture that kills a decoder kills one of these replicas."""

    def __init__(self, location: PackLocation, limits: ImageLimits, threshold: float | None, intra_op_threads: int) -> None:
        tune_process()
        pack = resolve(location)
        detector = load_detector(pack, location.device, intra_op_threads)
        engine = DetectionEngine(detector, limits, pack.spec.detector.threshold if threshold is None else threshold)
        self._batcher: Batcher[DetectionRequest, Detections | ImageError] = Batcher(
            engine.run, BatchConfig(), default_batch_size=location.device.batch_size
        )
        # A thread of its own: a thumbnail does not wait behind detections, which take ten times as long.
        self._pictures: Batcher[InspectRequest | ThumbnailRequest, PictureInfo | bytes | ImageError] = Batcher(
            PictureEngine(limits).run, BatchConfig(max_batch_size=1)
        )

    def reconfigure(self, user_config: dict[str, object]) -> None:
        self._batcher.configure(BatchConfig.model_validate(user_config))

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections | ImageError:
        """A picture that cannot be read is an answer, not a failure of the replica: it comes back as a value."""
        return await self._batcher.submit(DetectionRequest(image, options))

    async def inspect(self, image: bytes) -> PictureInfo | ImageError:
        """What the picture says of itself; it has been decoded."""
        answer = await self._pictures.submit(InspectRequest(image))
        assert not isinstance(answer, bytes)
        return answer

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes | ImageError:
        """The picture encoded anew, its longer side at most `side_px`."""
        answer = await self._pictures.submit(ThumbnailRequest(image, side_px, image_format))
        assert not isinstance(answer, PictureInfo)
        return answer

    async def batching(self) -> BatchConfig:
        """The batching in force on this replica."""
        return self._batcher.config
