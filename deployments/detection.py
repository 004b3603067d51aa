"""The Detection deployment: encoded pictures in; boxes, landmarks and aligned crops out, or metadata, or thumbnails."""

from __future__ import annotations

from collections.abc import Sequence

from ray import serve

from deployments.batching import BatchConfig, Batcher
from deployments.models.engine import DetectionEngine, DetectionRequest
from deployments.models.loading import load_detector
from deployments.models.packs import PackLocation, resolve
from deployments.models.pictures import CutRequest, InspectRequest, PictureEngine, PictureRequest, ThumbnailRequest
from deployments.process import tune_process
from deployments.routing import BY_WAIT
from serve_app.errors import ImageError
from serve_app.faces import DetectionOptions, Detections
from serve_app.imaging.images import ImageLimits
from serve_app.imaging.regions import Region
from serve_app.observing.outlets import Outlets
from serve_app.observing.stages import Timed
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.replica import observed


@serve.deployment(request_router_config=BY_WAIT)
class Detection:
    """Decoding happens here and nowhere else: a picture that kills a decoder kills one of these replicas."""

    outlets: Outlets

    @observed
    def __init__(self, location: PackLocation, limits: ImageLimits, threshold: float | None, intra_op_threads: int) -> None:
        tune_process()
        pack = resolve(location)
        detector = load_detector(pack, location.device, intra_op_threads)
        engine = DetectionEngine(detector, limits, pack.spec.detector.threshold if threshold is None else threshold)
        self._batcher: Batcher[DetectionRequest, Detections | ImageError] = Batcher(
            engine.run, BatchConfig(), default_batch_size=location.device.batch_size
        )
        # A thread of its own: a thumbnail does not wait behind detections, which take ten times as long.
        self._pictures: Batcher[PictureRequest, PictureInfo | bytes | ImageError] = Batcher(
            PictureEngine(limits).run, BatchConfig(max_batch_size=1)
        )

    def reconfigure(self, user_config: dict[str, object]) -> None:
        self._batcher.configure(BatchConfig.model_validate(user_config))

    # `traces`: W3C traceparents of those who wait for it, where they trace.

    async def detect(
        self, image: bytes, options: DetectionOptions, traces: Sequence[str] = ()
    ) -> Timed[Detections | ImageError]:
        """A picture that cannot be read is an answer, not a failure of the replica: it comes back as a value."""
        with self.outlets.serving("Detection.detect", traces) as spans:
            return await self._batcher.submit_timed(DetectionRequest(image, options), spans)

    async def inspect(self, image: bytes, traces: Sequence[str] = ()) -> Timed[PictureInfo | bytes | ImageError]:
        """PictureInfo: what the picture says of itself; it has been decoded."""
        with self.outlets.serving("Detection.inspect", traces) as spans:
            return await self._pictures.submit_timed(InspectRequest(image), spans)

    async def thumbnail(
        self, image: bytes, side_px: int, image_format: ThumbnailFormat, traces: Sequence[str] = ()
    ) -> Timed[PictureInfo | bytes | ImageError]:
        """Bytes: the picture encoded anew, its longer side at most `side_px`."""
        with self.outlets.serving("Detection.thumbnail", traces) as spans:
            return await self._pictures.submit_timed(ThumbnailRequest(image, side_px, image_format), spans)

    async def cut(
        self, image: bytes, region: Region, side_px: int, image_format: ThumbnailFormat, traces: Sequence[str] = ()
    ) -> Timed[PictureInfo | bytes | ImageError]:
        """Bytes: a square part of the picture encoded anew, its side at most `side_px`."""
        with self.outlets.serving("Detection.cut", traces) as spans:
            return await self._pictures.submit_timed(CutRequest(image, region, side_px, image_format), spans)

    async def batching(self) -> BatchConfig:
        """The batching in force on this replica."""
        return self._batcher.config
