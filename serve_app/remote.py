"""Handles to the model deployments, behind the Protocols of the services.

Inference has no side effects, so a call lost with its replica is made once more on another; nothing else is retried.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Generic, ParamSpec, TypeVar

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from serve_app.attributes import Asked, AttributeOutputs, split_outputs
from serve_app.coalescing import Coalescer
from serve_app.errors import RETRY_AFTER_S, ImageError, InternalError, ModelUnavailable, Overloaded
from serve_app.faces import Chips, Crops, DetectionOptions, Detections, FloatArray, face_count, merge_chips
from serve_app.imaging.images import ImageLimits, check_size, sniff
from serve_app.imaging.regions import Region
from serve_app.observing.spans import Spans
from serve_app.observing.stages import Stage, Timed, collecting, note, spans_now, stage
from serve_app.observing.telemetry import Calls
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.services.pictures import STORED_LIMITS

logger = logging.getLogger("ray.serve")

ArgsP = ParamSpec("ArgsP")
ResultT = TypeVar("ResultT")


class _RemoteMethod(Generic[ArgsP, ResultT]):
    """One method of a deployment. Translates Serve's errors into ours, and notes where the time of a call went."""

    def __init__(self, handle: DeploymentHandle, deployment: str, method: str, calls: Calls | None = None) -> None:
        # Plain pickle: the arguments are bytes, arrays and module-level dataclasses, and cloudpickle's pure Python
        # dispatch is measurable at this size.
        self._method = handle.options(method_name=method, request_serialization="pickle", response_serialization="pickle")
        self._deployment = deployment
        self._name = f"{deployment}.{method}"
        self._calls = calls or Calls()

    async def __call__(self, *args: ArgsP.args, **kwargs: ArgsP.kwargs) -> ResultT:
        self._calls.change(self._deployment, 1)
        try:
            try:
                return await self._once(*args, **kwargs)
            except RayActorError as error:
                logger.warning("%s lost a replica in mid-call (%s); trying once more", self._deployment, type(error).__name__)
                return await self._once(*args, **kwargs)
        except BackPressureError as error:
            raise Overloaded(
                f"The queue of {self._deployment} is full.", retry_after_s=RETRY_AFTER_S, deployment=self._deployment
            ) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ModelUnavailable(
                f"{self._deployment} has no replica that answers.", retry_after_s=RETRY_AFTER_S, deployment=self._deployment
            ) from error
        except RequestCancelledError as error:
            raise asyncio.CancelledError from error
        finally:
            self._calls.change(self._deployment, -1)

    async def _once(self, *args: ArgsP.args, **kwargs: ArgsP.kwargs) -> ResultT:
        started, there_s = time.perf_counter(), 0.0
        calls: Spans = tuple(call for call in (span.call(self._name) for span in spans_now()) if call is not None)
        try:
            # Only where somebody traces: it makes the call larger.
            traced = {"traces": tuple(call.header for call in calls)} if calls else {}
            result: Timed[ResultT] = await self._method.remote(*args, **kwargs, **traced)
            for which, seconds in result.seconds.items():
                note(which, seconds)
                there_s += seconds
            return result.value
        except BaseException as error:
            for call in calls:
                call.fail(type(error).__name__)
            raise
        finally:
            for call in calls:
                call.end()
            note(Stage.TRANSPORT, max(0.0, time.perf_counter() - started - there_s))


class RemoteDetector:
    """The Detection deployment as a services.pipeline.Detector."""

    def __init__(self, handle: DeploymentHandle, calls: Calls | None = None) -> None:
        self._detect: _RemoteMethod[[bytes, DetectionOptions], Detections | ImageError] = _RemoteMethod(
            handle, "Detection", "detect", calls
        )

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        answer = await self._detect(image, options)
        if isinstance(answer, ImageError):
            raise answer
        return answer


class RemotePictures:
    """The Detection deployment as a services.pictures.PictureReader. Bytes that are no picture never travel to a replica.

    `limits`: of uploads.
    """

    def __init__(self, handle: DeploymentHandle, limits: ImageLimits, calls: Calls | None = None) -> None:
        self._limits = limits
        self._inspect: _RemoteMethod[[bytes], PictureInfo | ImageError] = _RemoteMethod(handle, "Detection", "inspect", calls)
        self._thumbnail: _RemoteMethod[[bytes, int, ThumbnailFormat], bytes | ImageError] = _RemoteMethod(
            handle, "Detection", "thumbnail", calls
        )
        self._cut: _RemoteMethod[[bytes, Region, int, ThumbnailFormat], bytes | ImageError] = _RemoteMethod(
            handle, "Detection", "cut", calls
        )

    async def inspect(self, image: bytes) -> PictureInfo:
        check_size(image, self._limits)
        sniff(image)
        answer = await self._inspect(image)
        if isinstance(answer, ImageError):
            raise answer
        return answer

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes:
        check_size(image, STORED_LIMITS)
        sniff(image)
        answer = await self._thumbnail(image, side_px, image_format)
        if isinstance(answer, ImageError):
            raise answer
        return answer

    async def cut(self, image: bytes, region: Region, side_px: int, image_format: ThumbnailFormat) -> bytes:
        check_size(image, STORED_LIMITS)
        sniff(image)
        answer = await self._cut(image, region, side_px, image_format)
        if isinstance(answer, ImageError):
            raise answer
        return answer


class RemoteEmbedder:
    """The Embedding deployment as a services.pipeline.Embedder."""

    def __init__(self, handle: DeploymentHandle, calls: Calls | None = None) -> None:
        self._embed: _RemoteMethod[[Crops], FloatArray] = _RemoteMethod(handle, "Embedding", "embed", calls)

    async def embed(self, crops: Crops) -> FloatArray:
        return await self._embed(crops)


class RemoteSemantic:
    """The Semantic deployment as a services.semantic.SemanticEncoder."""

    def __init__(self, handle: DeploymentHandle, calls: Calls | None = None) -> None:
        self._image: _RemoteMethod[[bytes], FloatArray | ImageError] = _RemoteMethod(handle, "Semantic", "encode_image", calls)
        self._text: _RemoteMethod[[str], FloatArray | ImageError] = _RemoteMethod(handle, "Semantic", "encode_text", calls)

    async def encode_image(self, image: bytes) -> FloatArray:
        check_size(image, STORED_LIMITS)
        sniff(image)
        try:
            answer = await self._image(image)
        except RayTaskError as error:
            # Not ModelUnavailable: the next picture may do, and this one would be tried again for ever.
            logger.exception("Semantic failed on a picture")
            raise InternalError("The image-text model failed on this picture; the reason is logged.") from error
        if isinstance(answer, ImageError):
            raise answer
        return answer

    async def encode_text(self, text: str) -> FloatArray:
        try:
            answer = await self._text(text)
        except RayTaskError as error:
            # The rest of a search must not go with it.
            logger.exception("Semantic failed on a text")
            raise ModelUnavailable("The image-text model failed for a reason that is ours; it is logged.") from error
        if isinstance(answer, ImageError):
            raise answer
        return answer


_FACES_A_CALL = 16
"""Of Analysis. A hop costs as much as one face's age and gender; among sixteen it is 8 % (docs/performance.md)."""


class RemoteAnalyzer:
    """The Analysis deployment as a services.analysis.Analyzer. Faces of concurrent requests travel together."""

    def __init__(self, handle: DeploymentHandle, calls: Calls | None = None) -> None:
        self._analyze: _RemoteMethod[[Chips, Asked], AttributeOutputs] = _RemoteMethod(handle, "Analysis", "analyze", calls)
        self._together: Coalescer[Asked, tuple[Chips, Spans], AttributeOutputs] = Coalescer(
            self._call, weight=lambda part: face_count(part[0]), full=_FACES_A_CALL
        )

    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        try:
            # As a whole: a call carries faces of several requests, and belongs to none of them.
            with stage(Stage.ANALYZE):
                return await self._together.submit(asked, (chips, spans_now()))
        except RayTaskError as error:
            # A model that fails on a face must not take the rest of the answer with it.
            logger.exception("Analysis failed")
            raise ModelUnavailable("Analysis failed for a reason that is ours; it is logged.") from error

    async def _call(self, asked: Asked, parts: Sequence[tuple[Chips, Spans]]) -> list[AttributeOutputs]:
        # The call is in the trace of each whose faces it carries.
        with collecting(*(span for _, spans in parts for span in spans)):
            outputs = await self._analyze(merge_chips([chips for chips, _ in parts]), asked)
        return split_outputs(outputs, [face_count(chips) for chips, _ in parts])
