"""Bulk enrolment: many pictures of many persons in one call, in bounded memory, each on its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from serve_app.access import Scope
from serve_app.api.batch import Batch, Source, add_all, batch_response, picture
from serve_app.api.deps import Services, ServicesDep, admitted, caller_of
from serve_app.api.faces import ENROL_ERRORS
from serve_app.api.forms import validate
from serve_app.api.openapi import problems, request_body
from serve_app.api.person_answers import EnrolBatchAnswer, EnrolBatchItem
from serve_app.api.person_fields import BatchItemFields, BatchPersonFields, EnrolBatchFields, EnrolBatchJsonFields
from serve_app.api.writes import WRITE_ERRORS, idempotency_header, once_per_item
from serve_app.errors import DuplicateFace, InvalidRequest, JsonValue, KinlensError
from serve_app.services.enrolment import Enrolled, ExternalPerson, PersonRef
from serve_app.services.enrolment_review import EnrolOptions, Item
from serve_app.services.pipeline import FaceChoice
from serve_app.services.verification import GivenEmbedding
from serve_app.storage.idempotency import Replayed

router = APIRouter(prefix="/collections/{collection_id}", tags=["faces"])


class EnrolBatch(Batch[EnrolBatchItem, BatchPersonFields]):
    """Each item is a transaction of its own: what was answered `enrolled` is durable, whatever becomes of the rest."""

    def __init__(
        self,
        services: Services,
        request: Request,
        collection_id: str,
        fields: EnrolBatchFields | EnrolBatchJsonFields,
    ) -> None:
        super().__init__(services, request.state.request_id)
        self._request = request
        self._persons: defaultdict[UUID | str | None, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._collection_id = collection_id
        self._fields = fields
        self._options = EnrolOptions(
            FaceChoice(fields.face), fields.detection_threshold, fields.review, caller_of(request).may(Scope.READ)
        )

    async def run(self, index: int, source: Source[BatchPersonFields]) -> EnrolBatchItem:
        entry = self._entry(index, source)
        given = entry.embedding if isinstance(entry, BatchItemFields) else None
        if given is None:
            item = Item(await picture(source), entry.taken_at)
        else:
            model = self._fields.model if isinstance(self._fields, EnrolBatchJsonFields) else None
            item = Item(GivenEmbedding(given, model), entry.taken_at)

        def render(enrolled: Enrolled) -> EnrolBatchItem:
            return EnrolBatchItem(
                index=index,
                filename=source.filename,
                status="enrolled",
                person_id=enrolled.person_id,
                external_id=entry.external_id,
                face_id=enrolled.faces[0].face.id,
                warnings=[self.problem(warning) for warning in enrolled.faces[0].warnings],
                problem=None,
            )

        def content() -> bytes:
            source = item.source if isinstance(item.source, bytes) else json.dumps(given).encode()
            return hashlib.sha256(source).digest() + entry.model_dump_json(exclude={"image", "embedding"}).encode()

        write = once_per_item(self._request, self._services, index, content, render)
        enrolment = self._services.gallery.enrolment
        try:
            # One at a time of each person: the review compares a face with those that came before it.
            async with self._persons[entry.person_id or entry.external_id]:
                enrolled = await enrolment.enrol(self._collection_id, _person(entry), [item], self._options, write)
            return render(enrolled)
        except Replayed as replayed:
            return EnrolBatchItem.model_validate_json(replayed.response)

    def failed(self, index: int, source: Source[BatchPersonFields], error: KinlensError) -> EnrolBatchItem:
        try:
            entry: BatchPersonFields | None = self._entry(index, source)
        except InvalidRequest:
            entry = None
        exists = isinstance(error, DuplicateFace) and "sha256" in error.details
        return EnrolBatchItem(
            index=index,
            filename=source.filename,
            status="exists" if exists else "failed" if error.status >= 500 else "refused",
            person_id=entry.person_id if entry else None,
            external_id=entry.external_id if entry else None,
            face_id=None,
            warnings=[],
            problem=self.problem(error),
        )

    def head(self) -> dict[str, JsonValue]:
        return {}

    def tail(self, items: Sequence[EnrolBatchItem]) -> dict[str, JsonValue]:
        statuses = ("enrolled", "exists", "refused", "failed")
        return {status: sum(item.status == status for item in items) for status in statuses}

    def _entry(self, index: int, source: Source[BatchPersonFields]) -> BatchPersonFields:
        """Whose face the item is. Raises InvalidRequest when nothing says so."""
        if source.entry is not None:
            return source.entry
        fields = self._fields
        assert isinstance(fields, EnrolBatchFields)
        if fields.items is not None:
            if index >= len(fields.items):
                raise InvalidRequest(f"There is no entry {index} in `items`.")
            return fields.items[index]
        if fields.person_id is not None:
            return BatchPersonFields(person_id=fields.person_id)
        folder = PurePosixPath((source.filename or "").replace("\\", "/")).parent.name
        if not folder:
            raise InvalidRequest("Say whose face it is: `items`, `person_id`, or the person's folder in the file name.")
        return validate(BatchPersonFields, {"external_id": folder, "name": folder})


def _person(entry: BatchPersonFields) -> PersonRef:
    if isinstance(entry.person_id, UUID):
        return entry.person_id
    assert entry.external_id is not None
    return ExternalPerson(entry.external_id, entry.name, entry.metadata)


@router.post(
    "/faces:batch",
    response_model=EnrolBatchAnswer,
    summary="Enrol many faces of many persons",
    dependencies=[Depends(admitted), Depends(idempotency_header)],
    responses=problems(*WRITE_ERRORS, *ENROL_ERRORS),
    openapi_extra=request_body(EnrolBatchFields, files=("files",), many=True, json_model=EnrolBatchJsonFields),
)
async def enrol_batch(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """Results in order, a status and a problem for each, status 200. Sending the same pictures again changes nothing: those
    that are there are answered `exists`, before any model looks at them. So a call that broke off is simply repeated. With an
    Idempotency-Key the items that were enrolled are answered as they were the first time, vectors too.
    """

    def begin(fields: EnrolBatchFields) -> EnrolBatch:
        return EnrolBatch(services, request, collection_id, fields)

    async def from_json(fields: EnrolBatchJsonFields) -> EnrolBatch:
        batch = EnrolBatch(services, request, collection_id, fields)
        sources: list[Source[BatchPersonFields]] = [Source(None, item.image or "", item) for item in fields.items]
        await add_all(batch, services, sources)
        return batch

    # Before the body: a collection that is not there is a 404, not a list of them.
    await services.gallery.collections.require(collection_id)
    return await batch_response(request, services, EnrolBatchFields, begin, EnrolBatchJsonFields, from_json)
