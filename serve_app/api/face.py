"""Faces of one picture: find them, embed them. And of many pictures in one call."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from serve_app.api.attribute_schemas import attributes_at, unavailable_of
from serve_app.api.batch import extract_batch
from serve_app.api.deps import Services, ServicesDep, answer, bounded, read_request
from serve_app.api.openapi import problems, request_body
from serve_app.api.pictures import one_image
from serve_app.api.schemas import (
    AnalyzeFaceAnswer,
    AnalyzeFaceFields,
    BatchAnswer,
    BatchFields,
    BatchJsonFields,
    ExtractAnswer,
    ExtractFields,
    Face,
    VerifyFaceAnswer,
    VerifyFaceFields,
    embedded_faces,
    face_of,
    image_of,
    numbers,
    points,
)
from serve_app.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    ImageUrlFailed,
    ImageUrlRefused,
    InternalError,
    InvalidImage,
    InvalidRequest,
    ModelUnavailable,
    MultipleFaces,
    NoFaceDetected,
    Overloaded,
    PayloadError,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedImage,
    UnsupportedMedia,
)
from serve_app.faces import ALL_FACES, DetectionOptions, Detections
from serve_app.services.analysis import Analyzed, AnalyzeOptions, require_answer
from serve_app.services.pipeline import ExtractOptions
from serve_app.services.review import ReviewLimits, review_quality

router = APIRouter(prefix="/face", tags=["face"])

BODY_ERRORS = (Unauthorized, PayloadError, PayloadTooLarge, UnsupportedMedia, InvalidRequest)
IMAGE_ERRORS = (InvalidImage, ImageTooLarge, UnsupportedImage, ImageUrlRefused, ImageUrlFailed)
CAPACITY_ERRORS = (Overloaded, ModelUnavailable, DeadlineExceeded, InternalError)
_FILES = frozenset({"file"})


@router.post(
    "/verify-face",
    response_model=VerifyFaceAnswer,
    summary="Is there a face? Where?",
    responses=problems(*BODY_ERRORS, *IMAGE_ERRORS, *CAPACITY_ERRORS),
    openapi_extra=request_body(
        VerifyFaceFields, files=("file",), raw=True, json_example={"image": "/9j/4AAQSkZJRgABAQAAAQABAAD..."}
    ),
)
async def verify_face(request: Request, services: ServicesDep) -> Response:
    """Boxes, five landmarks and scores of all faces, largest first. No face is an answer, not an error."""
    fields = await read_request(request, services, VerifyFaceFields, files=_FILES, raw_file="file")

    async def work() -> Response:
        found, _ = await _find(fields, services, fields.analyze_options())
        return answer(found)

    return await bounded(request, work(), services.settings.worker_timeout)


@router.post(
    "/analyze-face-advanced",
    response_model=AnalyzeFaceAnswer,
    summary="Age, gender, emotion, race, pose and quality of every face",
    responses=problems(*BODY_ERRORS, *IMAGE_ERRORS, *CAPACITY_ERRORS),
    openapi_extra=request_body(
        AnalyzeFaceFields,
        files=("file",),
        raw=True,
        json_example={"image": "/9j/4AAQSkZJRgABAQAAAQABAAD...", "actions": ["age", "gender"]},
    ),
)
async def analyze_face_advanced(request: Request, services: ServicesDep) -> Response:
    """Every face, largest first. `actions` limits the work; emotion and race only when asked for.

    What no model can answer is named in `unavailable`; a 503 only where that is all that was asked for.
    """
    fields = await read_request(request, services, AnalyzeFaceFields, files=_FILES, raw_file="file")
    wanted = fields.analyze_options()
    services.pipeline.check_analyzable(wanted)

    async def work() -> Response:
        found, analyzed = await _find(fields, services, wanted)
        assert analyzed is not None
        require_answer(analyzed, wanted)
        lost = {entry.attribute for entry in analyzed.unavailable}
        models = services.model.attribute_models
        named = {attribute.value: models[attribute].name for attribute in wanted.attributes if attribute not in lost}
        return answer(AnalyzeFaceAnswer(**dict(found), models=named))

    return await bounded(request, work(), services.settings.worker_timeout)


@router.post(
    "/extract-embedding",
    response_model=ExtractAnswer,
    summary="The embedding of a face",
    responses=problems(*BODY_ERRORS, *IMAGE_ERRORS, NoFaceDetected, MultipleFaces, *CAPACITY_ERRORS),
    openapi_extra=request_body(
        ExtractFields, files=("file",), raw=True, json_example={"image": "/9j/4AAQSkZJRgABAQAAAQABAAD...", "face": "all"}
    ),
)
async def extract_embedding(request: Request, services: ServicesDep) -> Response:
    """Of the largest face, or of all with `face=all`. Only the faces asked for are embedded."""
    fields = await read_request(request, services, ExtractFields, files=_FILES, raw_file="file")

    async def work() -> Response:
        image = await one_image(fields, services)
        options = ExtractOptions(
            face=fields.face,
            max_faces=fields.max_faces,
            threshold=fields.detection_threshold,
            analyze=fields.analyze_options(),
        )
        extraction = await services.pipeline.extract(image, options)
        first = extraction.faces[0]
        faces = await embedded_faces(extraction.faces, fields.return_crops, extraction.analyzed)
        return answer(
            ExtractAnswer(
                embedding=numbers(first.embedding),
                bbox=numbers(first.face.bbox),
                confidence=first.face.detection_score,
                landmarks=points(first.face.landmarks),
                dim=services.model.dim,
                model=services.model.embedding_model,
                face_count=len(extraction.detections),
                faces=faces,
                image=image_of(extraction.detections),
                unavailable=unavailable_of(extraction.analyzed),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


@router.post(
    "/batch-extract",
    response_model=BatchAnswer,
    summary="Embeddings of many pictures",
    responses=problems(*BODY_ERRORS, *CAPACITY_ERRORS),
    openapi_extra=request_body(BatchFields, files=("files",), many=True, json_model=BatchJsonFields),
)
async def batch_extract(request: Request, services: ServicesDep) -> Response:
    """Many pictures in one call: results in order, a problem in place of each that failed, status 200.

    Pictures of a form are worked on while the rest still arrives and are never held all at once. Options go into the query,
    or into fields before the first file.
    """
    return await extract_batch(request, services)


async def _find(
    fields: VerifyFaceFields | AnalyzeFaceFields, services: Services, wanted: AnalyzeOptions
) -> tuple[VerifyFaceAnswer, Analyzed | None]:
    """All faces of the picture, and what `wanted` asks for of the largest."""
    image = await one_image(fields, services)
    options = DetectionOptions(
        threshold=fields.detection_threshold,
        max_faces=fields.max_faces,
        crops=ALL_FACES if fields.return_crops else 0,
    )
    found, analyzed = await services.pipeline.analyze(image, options, wanted)
    limits = ReviewLimits().for_detector(services.model.detector.family)
    faces = await _faces(found, analyzed, fields.return_crops, limits)
    answered = VerifyFaceAnswer(
        face_detected=bool(faces),
        confidence=max((face.detection_score for face in faces), default=0.0),
        face_count=len(faces),
        faces=faces,
        image=image_of(found),
        model=services.model.pack,
        unavailable=unavailable_of(analyzed),
    )
    return answered, analyzed


async def _faces(found: Detections, analyzed: Analyzed | None, with_crops: bool, limits: ReviewLimits) -> list[Face]:
    def answer_of(index: int) -> Face:
        face = found.face(index)
        attributes = attributes_at(analyzed, index, lambda quality: review_quality(quality, face.detection_score, limits))
        return face_of(face, found.crops[index] if with_crops else None, attributes)

    def answers() -> list[Face]:
        return [answer_of(index) for index in range(len(found))]

    # A millisecond of PNG a face would hold up everybody else's requests.
    return await asyncio.to_thread(answers) if with_crops else answers()
