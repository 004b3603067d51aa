"""Many pictures in one call, in bounded memory: read, work and answer overlap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from serve_app.api.deps import Services, deadline_exceeded
from serve_app.api.forms import (
    FieldValue,
    FormLimits,
    decode_base64,
    iter_parts,
    media_type,
    query_fields,
    read_json,
    validate,
)
from serve_app.api.problems import problem
from serve_app.api.schemas import (
    BatchFields,
    BatchItem,
    BatchJsonFields,
    Problem,
    embedded_faces,
    image_of,
    numbers,
    points,
)
from serve_app.errors import (
    ImageTooLarge,
    InvalidRequest,
    KinlensError,
    NoFaceDetected,
    Overloaded,
    PayloadTooLarge,
    UnsupportedMedia,
)
from serve_app.services.pipeline import ExtractOptions

_FILE_FIELDS = frozenset({"files", "file"})


@dataclass(frozen=True, slots=True)
class _Source:
    """A picture as it came: bytes, base64 text, or an error found while reading it."""

    filename: str | None
    data: bytes | str | KinlensError


class _Batch:
    """Runs at most `max_workers` pictures at once; `add` waits while all are taken, which slows the sender down."""

    def __init__(self, services: Services, fields: BatchFields, request_id: str) -> None:
        self._services = services
        self._fields = fields
        self._request_id = request_id
        self._places = asyncio.Semaphore(services.settings.max_workers)
        self._tasks: list[asyncio.Task[BatchItem]] = []

    async def add(self, source: _Source) -> None:
        await self._places.acquire()
        task = asyncio.create_task(self._work(len(self._tasks), source))
        task.add_done_callback(lambda _: self._places.release())
        self._tasks.append(task)

    def __len__(self) -> int:
        return len(self._tasks)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def stream(self) -> AsyncIterator[bytes]:
        """The BatchAnswer, each result as soon as it and all before it are there."""
        failed = 0
        model = self._services.model
        try:
            head = f'{{"model":{json.dumps(model.embedding_model)},"dim":{model.dim},"results":['
            yield head.encode()
            for index, task in enumerate(self._tasks):
                item = await task
                failed += item.problem is not None
                yield (b"," if index else b"") + item.model_dump_json().encode()
            yield f'],"succeeded":{len(self._tasks) - failed},"failed":{failed}}}'.encode()
        finally:
            self.cancel()

    async def _work(self, index: int, source: _Source) -> BatchItem:
        timeout_s = self._services.settings.worker_timeout
        try:
            async with asyncio.timeout(timeout_s):
                return await self._extract(index, source)
        except TimeoutError:
            return self._failed(index, source, deadline_exceeded(timeout_s))
        except KinlensError as error:
            return self._failed(index, source, error)

    async def _extract(self, index: int, source: _Source) -> BatchItem:
        if isinstance(source.data, KinlensError):
            raise source.data
        image = source.data if isinstance(source.data, bytes) else await decode_base64(source.data)
        options = ExtractOptions(
            face=self._fields.face, max_faces=self._fields.max_faces, threshold=self._fields.detection_threshold
        )
        while True:
            try:
                extraction = await self._services.pipeline.extract(image, options)
                break
            except Overloaded as error:
                # One call for many pictures would otherwise fail for being one call; the time limit ends this.
                await asyncio.sleep(_seconds(error))
        first = extraction.faces[0]
        faces = await embedded_faces(extraction.faces, self._fields.return_crops)
        return BatchItem(
            index=index,
            filename=source.filename,
            face_detected=True,
            confidence=first.face.detection_score,
            embedding=numbers(first.embedding),
            bbox=numbers(first.face.bbox),
            landmarks=points(first.face.landmarks),
            face_count=len(extraction.detections),
            faces=faces,
            image=image_of(extraction.detections),
            problem=None,
        )

    def _failed(self, index: int, source: _Source, error: KinlensError) -> BatchItem:
        found = error.details.get("face_count", 0)
        return BatchItem(
            index=index,
            filename=source.filename,
            face_detected=not isinstance(error, NoFaceDetected) and bool(found),
            confidence=0.0,
            embedding=None,
            bbox=None,
            landmarks=None,
            face_count=found if isinstance(found, int) else 0,
            faces=[],
            image=None,
            problem=Problem.model_validate(problem(error, self._request_id)),
        )


async def batch_response(request: Request, services: Services) -> Response:
    """Reads and starts all pictures, then streams the answer.

    Raises, before any of it is sent: PayloadError, PayloadTooLarge, UnsupportedMedia, InvalidRequest.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        batch = await _from_form(request, services)
    elif kind == "application/json":
        batch = await _from_json(request, services)
    else:
        raise UnsupportedMedia(
            "Send multipart/form-data with `files`, or application/json with `images`.",
            accepted=["multipart/form-data", "application/json"],
        )
    return StreamingResponse(batch.stream(), media_type="application/json")


async def _from_form(request: Request, services: Services) -> _Batch:
    settings = services.settings
    limits = FormLimits(settings.max_image_bytes, settings.max_batch_bytes, settings.max_batch_images)
    fields: dict[str, FieldValue] = query_fields(request)
    batch: _Batch | None = None
    try:
        async for part in iter_parts(request, limits):
            if part.name in _FILE_FIELDS:
                if batch is None:
                    batch = _Batch(services, validate(BatchFields, fields), request.state.request_id)
                too_large = ImageTooLarge(
                    f"The image has {part.size_bytes} bytes; the limit is {limits.max_file_bytes}.",
                    bytes=part.size_bytes,
                    max_bytes=limits.max_file_bytes,
                )
                await batch.add(_Source(part.filename, too_large if part.data is None else part.data))
            elif batch is not None or part.is_file:
                raise InvalidRequest("Pictures go into `files`; options into the query, or into fields before the first file.")
            else:
                fields[part.name] = (part.data or b"").decode("utf-8", "replace")
        if batch is None:
            raise InvalidRequest("The form has no `files`.")
        return batch
    except BaseException:
        if batch is not None:
            batch.cancel()
        raise


async def _from_json(request: Request, services: Services) -> _Batch:
    settings = services.settings
    fields = validate(BatchJsonFields, {**query_fields(request), **await read_json(request, settings.max_json_bytes)})
    if len(fields.images) > settings.max_batch_images:
        raise PayloadTooLarge("The batch has too many images.", max_files=settings.max_batch_images)
    batch = _Batch(services, fields, request.state.request_id)
    try:
        for image in fields.images:
            await batch.add(_Source(None, image))
    except BaseException:
        batch.cancel()
        raise
    return batch


def _seconds(error: Overloaded) -> float:
    value = error.details.get("retry_after_s", 1)
    return float(value) if isinstance(value, int | float) else 1.0
