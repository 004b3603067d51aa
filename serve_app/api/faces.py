"""Faces of persons: enrol, list, look at, move, erase."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse

from serve_app.access import Scope
from serve_app.api.collections import receipt_answer
from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import CallerDep, Services, ServicesDep, admitted, answer, bounded, caller_of, read_request
from serve_app.api.forms import decode_base64
from serve_app.api.openapi import json_body, problems, request_body
from serve_app.api.person_answers import (
    EnrolAnswer,
    EnrolledFaceAnswer,
    FaceDetailAnswer,
    FacePage,
    ReceiptAnswer,
    RefusedItemAnswer,
    StoredFaceAnswer,
)
from serve_app.api.person_fields import EnrolFields, FaceIdsFields, MoveFields
from serve_app.api.problems import problem
from serve_app.api.schemas import Problem
from serve_app.api.streams import URL_EXPIRES_S, signed_url, stream_object
from serve_app.api.writes import READ_ERRORS, WRITE_ERRORS, idempotency_header, once
from serve_app.errors import (
    DuplicateFace,
    EmbeddingModelMismatch,
    ImageTooLarge,
    ImageUrlFailed,
    ImageUrlRefused,
    InvalidCursor,
    InvalidEmbedding,
    InvalidImage,
    KinlensError,
    LowQualityFace,
    ModelUnavailable,
    MultipleFaces,
    MustNotBeRecognised,
    NoFaceDetected,
    NotFound,
    ObjectStoreUnavailable,
    ResemblesAnother,
    UnlikePerson,
    UnsupportedImage,
)
from serve_app.identity.people import StoredFace
from serve_app.services.enrolment import ITEM_ERRORS, Enrolled
from serve_app.services.enrolment_review import EnrolOptions, Item
from serve_app.services.pipeline import FaceChoice
from serve_app.services.verification import GivenEmbedding
from serve_app.storage.objects import ObjectMissing

router = APIRouter(prefix="/collections/{collection_id}", tags=["faces"])
_write = [Depends(idempotency_header)]

ENROL_ERRORS = (
    InvalidImage,
    ImageTooLarge,
    UnsupportedImage,
    ImageUrlRefused,
    ImageUrlFailed,
    NoFaceDetected,
    MultipleFaces,
    LowQualityFace,
    DuplicateFace,
    ResemblesAnother,
    UnlikePerson,
    InvalidEmbedding,
    EmbeddingModelMismatch,
    ModelUnavailable,
    ObjectStoreUnavailable,
)


@router.post(
    "/persons/{person_id}/faces",
    status_code=201,
    response_model=EnrolAnswer,
    summary="Enrol faces of a person",
    dependencies=[Depends(admitted), *_write],
    responses=problems(*WRITE_ERRORS, *ENROL_ERRORS),
    openapi_extra=request_body(EnrolFields, files=("files",), raw=True, many=True),
)
async def enrol(collection_id: str, person_id: UUID, request: Request, services: ServicesDep) -> Response:
    """From one or many pictures or vectors. Each is reviewed: size, sharpness, pose, exposure, occlusion, and whether the
    person has it already or it is more like somebody else. A refusal says metric, value and limit.

    201 means that picture and row are durable and the face can be found. Of several, those refused are listed; when all are,
    the answer is the first one's problem.
    """
    fields = await read_request(request, services, EnrolFields, files=frozenset({"files"}), raw_file="files", many="files")

    def render(enrolled: Enrolled) -> EnrolAnswer:
        return enrol_answer(enrolled, services.model.embedding_model, request.state.request_id)

    async def work() -> Response:
        options = EnrolOptions(
            FaceChoice(fields.face), fields.detection_threshold, fields.review, caller_of(request).may(Scope.READ)
        )
        write = once(request, services, fields, render, 201)
        enrolled = await services.gallery.enrolment.enrol(
            collection_id, person_id, await _items(fields, services), options, write
        )
        return answer(render(enrolled), 201)

    return await bounded(request, work(), services.settings.worker_timeout)


async def _items(fields: EnrolFields, services: Services) -> list[Item]:
    sources: list[bytes | GivenEmbedding | KinlensError] = [*fields.files]
    sources += [await _or_error(decode_base64(text)) for text in fields.images]
    sources += await asyncio.gather(*(_or_error(services.fetcher.fetch(url)) for url in fields.image_urls))
    sources += [GivenEmbedding(values, fields.model) for values in fields.embeddings]
    return [Item(source, fields.taken_at) for source in sources]


async def _or_error(reading: Awaitable[bytes]) -> bytes | KinlensError:
    """One picture that cannot be read is refused for itself."""
    try:
        return await reading
    except ITEM_ERRORS as error:
        return error


@router.get(
    "/persons/{person_id}/faces",
    response_model=FacePage,
    summary="List the faces of a person",
    responses=problems(*READ_ERRORS, InvalidCursor),
)
async def list_faces_of_person(
    collection_id: str,
    person_id: UUID,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> Response:
    """In the order they were enrolled."""
    return await _page(collection_id, person_id, services, limit, cursor)


@router.get("/faces", response_model=FacePage, summary="List all faces", responses=problems(*READ_ERRORS, InvalidCursor))
async def list_faces(
    collection_id: str,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> Response:
    """Of every person of the collection, in the order they were enrolled."""
    return await _page(collection_id, None, services, limit, cursor)


async def _page(collection_id: str, person_id: UUID | None, services: Services, limit: int, cursor: str | None) -> Response:
    key, listing = services.secrets.cursors, f"faces {collection_id} {person_id}"
    after = None if cursor is None else UUID(decode_cursor(key, listing, cursor))
    found = await services.gallery.people.faces(collection_id, person_id, after, limit + 1)
    items, more = found[:limit], len(found) > limit
    return answer(
        FacePage(
            items=[face_answer(one) for one in items],
            next_cursor=encode_cursor(key, listing, str(items[-1].id)) if more else None,
        )
    )


@router.get("/faces/{face_id}", response_model=FaceDetailAnswer, summary="A face", responses=problems(*READ_ERRORS))
async def get_face(collection_id: str, face_id: UUID, services: ServicesDep) -> Response:
    """With addresses of its crop and of the picture it came from, which expire."""
    face = await services.gallery.people.face(collection_id, face_id)
    urls = [await signed_url(key, services) for key in (face.crop_key, face.image_key)]
    return answer(
        FaceDetailAnswer.model_validate(
            _values(face)
            | {
                "crop_url": urls[0],
                "image_url": urls[1],
                "urls_expire_at": datetime.fromtimestamp(int(time.time()) + URL_EXPIRES_S, UTC),
            }
        )
    )


@router.get(
    "/faces/{face_id}/crop",
    response_class=Response,
    summary="The crop of a face",
    responses=problems(*READ_ERRORS, ObjectStoreUnavailable) | {200: {"content": {"image/png": {}}}},
)
async def get_crop(collection_id: str, face_id: UUID, services: ServicesDep) -> Response:
    """The aligned 112 x 112 crop, PNG."""
    face = await services.gallery.people.face(collection_id, face_id)
    if face.crop_key is None:
        raise NotFound("The face came as a vector and has no crop.", face_id=str(face_id))
    try:
        data = await services.gallery.objects.get(face.crop_key)
    except ObjectMissing as error:
        raise NotFound("The crop is gone.", face_id=str(face_id)) from error
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/faces/{face_id}/image",
    response_class=Response,
    summary="The picture a face came from",
    responses=problems(*READ_ERRORS, ObjectStoreUnavailable) | {200: {"content": {"image/*": {}}}},
)
async def get_image(
    collection_id: str,
    face_id: UUID,
    request: Request,
    services: ServicesDep,
    redirect: Annotated[bool, Query(description="Answer with a redirect to the object store.")] = False,
) -> Response:
    """As it was sent, byte for byte. Answers range requests."""
    face = await services.gallery.people.face(collection_id, face_id)
    if face.image_key is None:
        raise NotFound("The face came as a vector and has no picture.", face_id=str(face_id))
    if redirect:
        return RedirectResponse(await signed_url(face.image_key, services) or "", 307)
    return await stream_object(face.image_key, request, services)


@router.post(
    "/faces/{face_id}/move",
    response_model=StoredFaceAnswer,
    summary="Move a face to another person",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS, MustNotBeRecognised),
    openapi_extra=json_body(MoveFields, {"person_id": "01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"}),
)
async def move_face(collection_id: str, face_id: UUID, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Of the same collection. From then on the face is found under its new person. In the photo library it is a decision like
    `POST /faces/{face_id}/assign-person`, in the journal and to be undone."""
    fields = await read_request(request, services, MoveFields)
    write = once(request, services, fields, face_answer, 200)
    if collection_id == services.settings.library_collection:
        moved = await services.gallery.deciding.move(face_id, fields.person_id, caller.actor, write)
    else:
        moved = await services.gallery.people.move_face(collection_id, face_id, fields.person_id, write)
    return answer(face_answer(moved))


@router.delete(
    "/faces/{face_id}",
    response_model=ReceiptAnswer,
    summary="Erase a face",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
)
async def delete_face(collection_id: str, face_id: UUID, request: Request, services: ServicesDep) -> Response:
    """With its vector, its crop, and its picture unless another face comes from it."""
    write = once(request, services, None, receipt_answer, 200)
    receipt = await services.gallery.people.delete_faces(collection_id, [face_id], write, must_exist=True)
    return answer(receipt_answer(receipt))


@router.post(
    "/faces:delete",
    response_model=ReceiptAnswer,
    summary="Erase many faces",
    dependencies=_write,
    responses=problems(*WRITE_ERRORS),
    openapi_extra=json_body(FaceIdsFields, {"face_ids": ["01936f2e-7c1a-7d43-9a51-6f0c2b8e4d17"]}),
)
async def delete_faces(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """All of them or none; one receipt. Faces that are not there count as gone."""
    fields = await read_request(request, services, FaceIdsFields)
    ids = sorted(set(fields.face_ids))
    write = once(request, services, fields, receipt_answer, 200)
    return answer(receipt_answer(await services.gallery.people.delete_faces(collection_id, ids, write, must_exist=False)))


def face_answer(face: StoredFace) -> StoredFaceAnswer:
    return StoredFaceAnswer.model_validate(_values(face))


def enrol_answer(enrolled: Enrolled, model: str, request_id: str) -> EnrolAnswer:
    return EnrolAnswer(
        person_id=enrolled.person_id,
        faces=[
            EnrolledFaceAnswer.model_validate(
                _values(one.face)
                | {
                    "index": one.index,
                    "warnings": [Problem.model_validate(problem(warning, request_id)) for warning in one.warnings],
                }
            )
            for one in enrolled.faces
        ],
        refused=[
            RefusedItemAnswer(index=one.index, problem=Problem.model_validate(problem(one.error, request_id)))
            for one in enrolled.refused
        ],
        model=model,
    )


def _values(face: StoredFace) -> dict[str, object]:
    return {
        "id": face.id,
        "person_id": face.person_id,
        "image_id": face.image_id,
        "bbox": face.bbox,
        "landmarks": face.landmarks,
        "detection_score": face.detection_score,
        "quality": face.quality,
        "taken_at": face.taken_at,
        "created_at": face.created_at,
    }
