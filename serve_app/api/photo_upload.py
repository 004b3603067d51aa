"""Photos coming in: many files in one call, in bounded memory, each on its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from fastapi import APIRouter, Depends, Request, Response

from serve_app.api.batch import Batch, Source, add_all, batch_response, picture
from serve_app.api.deps import Services, ServicesDep, admitted
from serve_app.api.openapi import problems, request_body
from serve_app.api.photo_schemas import UploadAnswer, UploadFields, UploadItem, UploadJsonFields
from serve_app.api.photos import photo_answer
from serve_app.api.writes import WRITE_ERRORS, idempotency_header, once_per_item
from serve_app.errors import (
    ImageTooLarge,
    InvalidImage,
    JsonValue,
    KinlensError,
    ModelUnavailable,
    ObjectStoreUnavailable,
    UnsupportedImage,
)
from serve_app.services.photos import Upload, Uploaded, unsupported
from serve_app.storage.idempotency import Replayed

router = APIRouter(tags=["photos"])


class UploadBatch(Batch[UploadItem, str]):
    """Each file is a transaction of its own: what was answered `created` is durable, whatever becomes of the rest."""

    def __init__(self, services: Services, request: Request, fields: UploadFields) -> None:
        super().__init__(services, request.state.request_id)
        self._request = request
        self._fields = fields

    async def run(self, index: int, source: Source[str]) -> UploadItem:
        data = await picture(source)
        fields = self._fields
        upload = Upload(data, source.filename, fields.folder, fields.tags, fields.taken_at)

        def render(uploaded: Uploaded) -> UploadItem:
            return UploadItem(
                index=index,
                filename=source.filename,
                status="created" if uploaded.created else "exists",
                photo=photo_answer(uploaded.photo),
                problem=None,
            )

        def content() -> bytes:
            options = [source.filename, fields.folder, fields.tags, str(fields.taken_at)]
            return hashlib.sha256(data).digest() + json.dumps(options).encode()

        library = self._services.gallery.photos
        write = once_per_item(self._request, self._services, index, content, render, library.collection_id)
        try:
            return render(await library.upload(upload, write))
        except Replayed as replayed:
            return UploadItem.model_validate_json(replayed.response)

    def failed(self, index: int, source: Source[str], error: KinlensError) -> UploadItem:
        if isinstance(error, ImageTooLarge):
            # Its bytes were dropped, but a video that is too large is a video first.
            error = unsupported(b"", source.filename) or error
        return UploadItem(
            index=index,
            filename=source.filename,
            status="unsupported" if isinstance(error, UnsupportedImage) else "failed",
            photo=None,
            problem=self.problem(error),
        )

    def head(self) -> dict[str, JsonValue]:
        return {}

    def tail(self, items: Sequence[UploadItem]) -> dict[str, JsonValue]:
        statuses = ("created", "exists", "unsupported", "failed")
        return {status: sum(item.status == status for item in items) for status in statuses}


@router.post(
    "/photos/upload",
    response_model=UploadAnswer,
    summary="Add photos",
    dependencies=[Depends(admitted), Depends(idempotency_header)],
    responses=problems(*WRITE_ERRORS, InvalidImage, ImageTooLarge, UnsupportedImage, ModelUnavailable, ObjectStoreUnavailable),
    openapi_extra=request_body(UploadFields, files=("files",), many=True, json_model=UploadJsonFields),
)
async def upload_photos(request: Request, services: ServicesDep) -> Response:
    """Results in order, a status for each file, status 200. A file the library has is answered `exists` before anything looks
    at it, so a call that broke off is simply repeated. Raw photos and videos are named as `unsupported`.
    """

    def begin(fields: UploadFields) -> UploadBatch:
        return UploadBatch(services, request, fields)

    async def from_json(fields: UploadJsonFields) -> UploadBatch:
        batch = begin(fields)
        sources: list[Source[str]] = [
            Source(None, one) if isinstance(one, str) else Source(one.file_name, one.image) for one in fields.images
        ]
        await add_all(batch, services, sources)
        return batch

    return await batch_response(request, services, UploadFields, begin, UploadJsonFields, from_json)
