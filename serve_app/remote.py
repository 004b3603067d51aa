"""Handles to the model deployments, behind the Protocols of the services.

Inference has no side effects, so a call lost with its replica is made once more on another; nothing else is retried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Generic, ParamSpec, TypeVar

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from serve_app.attributes import Asked, AttributeOutputs, split_outputs
from serve_app.coalescing import Coalescer
from serve_app.errors import RETRY_AFTER_S, ImageError, ModelUnavailable, Overloaded
from serve_app.faces import Chips, Crops, DetectionOptions, Detections, FloatArray, face_count, merge_chips
from serve_app.images import ImageLimits, check_size, sniff
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.services.pictures import STORED_LIMITS

logger = logging.getLogger("ray.serve")

ArgsP = ParamSpec("ArgsP")
ResultT = TypeVar("ResultT")


class _RemoteMethod(Generic[ArgsP, ResultT]):
    """One method of a deployment. Translates Serve's errors into ours."""

    def __init__(self, handle: DeploymentHandle, deployment: str, method: str) -> None:
        # Plain pickle: the arguments are bytes, arrays and module-level dataclasses, and cloudpickle's pure Python
        # dispatch is measurable at this size.
        self._method = handle.options(method_name=method, request_serialization="pickle", response_serialization="pickle")
        self._deployment = deployment

    async def __call__(self, *args: ArgsP.args, **kwargs: ArgsP.kwargs) -> ResultT:
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

    async def _once(self, *args: ArgsP.args, **kwargs: ArgsP.kwargs) -> ResultT:
        result: ResultT = await self._method.remote(*args, **kwargs)
        return result


class RemoteDetector:
    """The Detection deployment as a services.pipeline.Detector."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._detect: _RemoteMethod[[bytes, DetectionOptions], Detections | ImageError] = _RemoteMethod(
            handle, "Detection", "detect"
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

    def __init__(self, handle: DeploymentHandle, limits: ImageLimits) -> None:
        self._limits = limits
        self._inspect: _RemoteMethod[[bytes], PictureInfo | ImageError] = _RemoteMethod(handle, "Detection", "inspect")
        self._thumbnail: _RemoteMethod[[bytes, int, ThumbnailFormat], bytes | ImageError] = _RemoteMethod(
            handle, "Detection", "thumbnail"
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


class RemoteEmbedder:
    """The Embedding deployment as a services.pipeline.Embedder."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._embed: _RemoteMethod[[Crops], FloatArray] = _RemoteMethod(handle, "Embedding", "embed")

    async def embed(self, crops: Crops) -> FloatArray:
        return await self._embed(crops)


_FACES_A_CALL = 16
"""Of Analysis. A hop costs as much as one face's age and gender; among sixteen it is 8 % (docs/performance.md)."""


class RemoteAnalyzer:
    """The Analysis deployment as a services.analysis.Analyzer. Faces of concurrent requests travel together."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._analyze: _RemoteMethod[[Chips, Asked], AttributeOutputs] = _RemoteMethod(handle, "Analysis", "analyze")
        self._together: Coalescer[Asked, Chips, AttributeOutputs] = Coalescer(
            self._call, weight=face_count, full=_FACES_A_CALL
        )

    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        try:
            return await self._together.submit(asked, chips)
        except RayTaskError as error:
            # A model that fails on a face must not take the rest of the answer with it.
            logger.exception("Analysis failed")
            raise ModelUnavailable("Analysis failed for a reason that is ours; it is logged.") from error

    async def _call(self, asked: Asked, parts: Sequence[Chips]) -> list[AttributeOutputs]:
        outputs = await self._analyze(merge_chips(parts), asked)
        return split_outputs(outputs, [face_count(part) for part in parts])
