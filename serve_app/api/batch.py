"""Many pictures in one call, in bounded memory: read, work and answer overlap."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from serve_app.api.attribute_schemas import unavailable_of
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
    InternalError,
    InvalidRequest,
    JsonValue,
    KinlensError,
    NoFaceDetected,
    PayloadTooLarge,
    UnsupportedMedia,
)
from serve_app.services.pipeline import ExtractOptions

logger = logging.getLogger("ray.serve")

_FILE_FIELDS = frozenset({"files", "file"})
EntryT = TypeVar("EntryT")
JsonFieldsT = TypeVar("JsonFieldsT", bound=BaseModel)
ItemT = TypeVar("ItemT", bound=BaseModel)
FieldsT = TypeVar("FieldsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Source(Generic[EntryT]):
    """A picture as it came: bytes, base64 text, or an error found while reading it. `entry`: what else the request's list
    says of it, where there is a list."""

    filename: str | None
    data: bytes | str | KinlensError
    entry: EntryT | None = None


class Batch(ABC, Generic[ItemT, EntryT]):
    """Runs at most `max_workers` pictures at once; `add` waits while all are taken, which slows the sender down."""

    def __init__(self, services: Services, request_id: str) -> None:
        self._services = services
        self._request_id = request_id
        self._places = asyncio.Semaphore(services.settings.max_workers)
        self._tasks: list[asyncio.Task[ItemT]] = []

    @abstractmethod
    async def run(self, index: int, source: Source[EntryT]) -> ItemT:
        """The result of one picture. Raises KinlensError."""

    @abstractmethod
    def failed(self, index: int, source: Source[EntryT], error: KinlensError) -> ItemT:
        """The result of a picture that failed."""

    @abstractmethod
    def head(self) -> dict[str, JsonValue]:
        """Fields of the answer before `results`."""

    @abstractmethod
    def tail(self, items: Sequence[ItemT]) -> dict[str, JsonValue]:
        """Fields after them."""

    async def add(self, source: Source[EntryT]) -> None:
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
        """The answer, each result as soon as it and all before it are there."""
        items: list[ItemT] = []
        try:
            fields = "".join(f"{json.dumps(name)}:{json.dumps(value)}," for name, value in self.head().items())
            yield f'{{{fields}"results":['.encode()
            for index, task in enumerate(self._tasks):
                items.append(await task)
                yield (b"," if index else b"") + items[-1].model_dump_json().encode()
            fields = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in self.tail(items).items())
            yield f"]{fields}}}".encode()
        finally:
            self.cancel()

    def problem(self, error: KinlensError) -> Problem:
        return Problem.model_validate(problem(error, self._request_id))

    async def _work(self, index: int, source: Source[EntryT]) -> ItemT:
        timeout_s = self._services.settings.worker_timeout
        try:
            async with asyncio.timeout(timeout_s):
                if isinstance(source.data, KinlensError):
                    raise source.data
                return await self.run(index, source)
        except TimeoutError:
            return self.failed(index, source, deadline_exceeded(timeout_s))
        except KinlensError as error:
            return self.failed(index, source, error)
        except Exception:
            # The answer has begun with 200: one item must not cut it off.
            logger.exception("request %s: item %s failed", self._request_id, index)
            return self.failed(index, source, InternalError("The item failed for a reason that is ours; it is logged."))


class ExtractBatch(Batch[BatchItem, str]):
    def __init__(self, services: Services, request_id: str, fields: BatchFields) -> None:
        super().__init__(services, request_id)
        self._fields = fields

    async def run(self, index: int, source: Source[str]) -> BatchItem:
        image = await picture(source)
        options = ExtractOptions(
            face=self._fields.face,
            max_faces=self._fields.max_faces,
            threshold=self._fields.detection_threshold,
            analyze=self._fields.analyze_options(),
        )
        extraction = await self._services.pipeline.extract_when_free(image, options)
        first = extraction.faces[0]
        faces = await embedded_faces(extraction.faces, self._fields.return_crops, extraction.analyzed)
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
            unavailable=unavailable_of(extraction.analyzed),
            problem=None,
        )

    def failed(self, index: int, source: Source[str], error: KinlensError) -> BatchItem:
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
            unavailable=[],
            problem=self.problem(error),
        )

    def head(self) -> dict[str, JsonValue]:
        return {"model": self._services.model.embedding_model, "dim": self._services.model.dim}

    def tail(self, items: Sequence[BatchItem]) -> dict[str, JsonValue]:
        failed = sum(item.problem is not None for item in items)
        return {"succeeded": len(items) - failed, "failed": failed}


async def extract_batch(request: Request, services: Services) -> Response:
    """Reads and starts all pictures, then streams the answer.

    Raises, before any of it is sent: PayloadError, PayloadTooLarge, UnsupportedMedia, InvalidRequest.
    """

    def begin(fields: BatchFields) -> ExtractBatch:
        return ExtractBatch(services, request.state.request_id, fields)

    async def from_json(fields: BatchJsonFields) -> ExtractBatch:
        batch = begin(fields)
        sources: list[Source[str]] = [Source(None, image) for image in fields.images]
        await add_all(batch, services, sources)
        return batch

    return await batch_response(request, services, BatchFields, begin, BatchJsonFields, from_json)


async def batch_response(
    request: Request,
    services: Services,
    form: type[FieldsT],
    begin: Callable[[FieldsT], Batch[ItemT, EntryT]],
    json_form: type[JsonFieldsT],
    from_json: Callable[[JsonFieldsT], Awaitable[Batch[ItemT, EntryT]]],
) -> Response:
    """The streamed answer to a form of files, whose options come before the first file, or to JSON."""
    kind = media_type(request)
    if kind == "multipart/form-data":
        batch = await _from_form(request, services, form, begin)
    elif kind == "application/json":
        given = await read_json(request, services.settings.max_json_bytes)
        batch = await from_json(validate(json_form, {**query_fields(request), **given}))
    else:
        raise UnsupportedMedia(
            "Send multipart/form-data with `files`, or application/json.",
            accepted=["multipart/form-data", "application/json"],
        )
    return StreamingResponse(batch.stream(), media_type="application/json")


async def _from_form(
    request: Request, services: Services, form: type[FieldsT], begin: Callable[[FieldsT], Batch[ItemT, EntryT]]
) -> Batch[ItemT, EntryT]:
    settings = services.settings
    limits = FormLimits(settings.max_image_bytes, settings.max_batch_bytes, settings.max_batch_images)
    fields: dict[str, FieldValue] = query_fields(request)
    batch: Batch[ItemT, EntryT] | None = None
    try:
        async for part in iter_parts(request, limits):
            if part.name in _FILE_FIELDS:
                if batch is None:
                    batch = begin(validate(form, fields))
                too_large = ImageTooLarge(
                    f"The image has {part.size_bytes} bytes; the limit is {limits.max_file_bytes}.",
                    bytes=part.size_bytes,
                    max_bytes=limits.max_file_bytes,
                )
                await batch.add(Source(part.filename, too_large if part.data is None else part.data))
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


async def add_all(batch: Batch[ItemT, EntryT], services: Services, sources: Sequence[Source[EntryT]]) -> None:
    """Raises PayloadTooLarge for too many."""
    if len(sources) > services.settings.max_batch_images:
        raise PayloadTooLarge("The batch has too many images.", max_files=services.settings.max_batch_images)
    try:
        for source in sources:
            await batch.add(source)
    except BaseException:
        batch.cancel()
        raise


async def picture(source: Source[EntryT]) -> bytes:
    """The encoded bytes. Raises InvalidImage."""
    assert not isinstance(source.data, KinlensError)
    return source.data if isinstance(source.data, bytes) else await decode_base64(source.data)
