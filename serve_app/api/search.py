"""Who is this? Search, identify, verify."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from serve_app.api.attribute_schemas import UnavailableAnswer, attributes_at, unavailable_of
from serve_app.api.deps import ServicesDep, admitted, answer, bounded, read_request, tell_results
from serve_app.api.openapi import problems, request_body
from serve_app.api.person_answers import (
    CandidateAnswer,
    CandidatePerson,
    IdentifyResponse,
    IdentityAnswer,
    ProbeResultAnswer,
    SearchResponse,
    VerifyPersonAnswer,
)
from serve_app.api.person_fields import (
    MAX_FACES_SEARCHED,
    FilterFields,
    IdentifyFields,
    ProbeFields,
    SearchFields,
    VerifyFields,
)
from serve_app.api.pictures import probe_of
from serve_app.api.schemas import Face, Image, OperatingPointAnswer, face_of, image_of
from serve_app.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    EmbeddingModelMismatch,
    ImageTooLarge,
    ImageUrlFailed,
    ImageUrlRefused,
    InternalError,
    InvalidEmbedding,
    InvalidImage,
    InvalidRequest,
    ModelUnavailable,
    MultipleFaces,
    NoFaceDetected,
    NotFound,
    Overloaded,
    PayloadError,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedImage,
    UnsupportedMedia,
)
from serve_app.faces import Decision, EmbeddedFace, OperatingPoint
from serve_app.identity.people import Candidate, SearchFilter
from serve_app.services.pipeline import Extraction, ExtractOptions, FaceChoice
from serve_app.services.search import Identification, SearchOptions

router = APIRouter(prefix="/collections/{collection_id}", tags=["search"])

_ERRORS = (
    Unauthorized, PayloadError, PayloadTooLarge, UnsupportedMedia, InvalidRequest, InvalidEmbedding, NotFound,
    EmbeddingModelMismatch, InvalidImage, ImageTooLarge, UnsupportedImage, ImageUrlRefused, ImageUrlFailed, NoFaceDetected,
    MultipleFaces, Overloaded, ModelUnavailable, DatabaseUnavailable, DeadlineExceeded, InternalError,
)  # fmt: skip
_FILES = frozenset({"file"})
_placed = [Depends(admitted)]


@router.post(
    "/search",
    response_model=SearchResponse,
    summary="Find the most similar persons",
    dependencies=_placed,
    responses=problems(*_ERRORS),
    openapi_extra=request_body(SearchFields, files=("file",), raw=True, json_example={"image": "/9j/4AAQ...", "top_k": 5}),
)
async def search(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """By picture, for each face in it, or by `embedding`. Each person comes once, by its best face."""
    fields = await read_request(request, services, SearchFields, files=_FILES, raw_file="file")

    async def work() -> Response:
        options = SearchOptions(_extract(fields, fields.face), fields.top_k, fields.threshold, _filter(fields.filter))
        found = await services.gallery.search.search(collection_id, await probe_of(fields, services), options)
        tell_results(request, sum(len(result.candidates) for result in found.results))
        return answer(
            SearchResponse(
                results=[
                    ProbeResultAnswer(
                        face=_face(result.face, found.extraction, index),
                        candidates=[_candidate(one.candidate, one.decision) for one in result.candidates],
                    )
                    for index, result in enumerate(found.results)
                ],
                face_count=_face_count(found.extraction),
                threshold=found.point.threshold if found.point else None,
                suggest_threshold=found.point.suggest_threshold if found.point else None,
                image=_image(found.extraction),
                model=services.model.embedding_model,
                unavailable=_unavailable(found.extraction),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


@router.post(
    "/identify",
    response_model=IdentifyResponse,
    summary="Decide who it is",
    dependencies=_placed,
    responses=problems(*_ERRORS),
    openapi_extra=request_body(IdentifyFields, files=("file",), raw=True, json_example={"image": "/9j/4AAQ..."}),
)
async def identify(collection_id: str, request: Request, services: ServicesDep) -> Response:
    """`match`: the best person reaches the threshold and leads the second by `margin`. `ambiguous`: it might be. `unknown`:
    it is nobody here, which is an answer and not an error."""
    fields = await read_request(request, services, IdentifyFields, files=_FILES, raw_file="file")

    async def work() -> Response:
        found = await services.gallery.search.identify(
            collection_id,
            await probe_of(fields, services),
            _extract(fields, fields.face),
            _filter(fields.filter),
            threshold=fields.threshold,
            margin=fields.margin,
        )
        tell_results(request, sum(one.best is not None for one in found.results))
        results = [
            _identity(one, found.point, _face(one.face, found.extraction, index)) for index, one in enumerate(found.results)
        ]
        return answer(
            IdentifyResponse(
                **dict(results[0]),
                results=results,
                required_margin=fields.margin,
                threshold=found.point.threshold if found.point else None,
                suggest_threshold=found.point.suggest_threshold if found.point else None,
                operating_point=_point(found.point),
                face_count=_face_count(found.extraction),
                image=_image(found.extraction),
                model=services.model.embedding_model,
                unavailable=_unavailable(found.extraction),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


@router.post(
    "/persons/{person_id}/verify",
    response_model=VerifyPersonAnswer,
    summary="Is it this person?",
    dependencies=_placed,
    responses=problems(*_ERRORS),
    openapi_extra=request_body(VerifyFields, files=("file",), raw=True, json_example={"image": "/9j/4AAQ..."}),
)
async def verify(collection_id: str, person_id: UUID, request: Request, services: ServicesDep) -> Response:
    """By the most similar of the person's faces."""
    fields = await read_request(request, services, VerifyFields, files=_FILES, raw_file="file")

    async def work() -> Response:
        probe = await probe_of(fields, services)
        extract = _extract(fields, FaceChoice(fields.face))
        found = await services.gallery.search.verify(collection_id, person_id, probe, extract, fields.threshold)
        tell_results(request, int(found.candidate is not None))
        return answer(
            VerifyPersonAnswer(
                decision=_word(found.decision),
                similarity=found.candidate.similarity if found.candidate else None,
                face_id=found.candidate.face_id if found.candidate else None,
                threshold=found.point.threshold if found.point else None,
                suggest_threshold=found.point.suggest_threshold if found.point else None,
                operating_point=_point(found.point),
                face=_face(found.face, found.extraction, 0),
                model=services.model.embedding_model,
                unavailable=_unavailable(found.extraction),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


def _extract(fields: ProbeFields, face: FaceChoice) -> ExtractOptions:
    max_faces = fields.faces_searched if isinstance(fields, SearchFields) else fields.max_faces
    return ExtractOptions(
        face=face,
        max_faces=max_faces or MAX_FACES_SEARCHED,
        threshold=fields.detection_threshold,
        analyze=fields.analyze_options(),
    )


def _filter(fields: FilterFields) -> SearchFilter:
    return SearchFilter(
        person_ids=None if fields.person_ids is None else tuple(fields.person_ids),
        exclude_person_ids=tuple(fields.exclude_person_ids),
        metadata=fields.metadata,
        taken_from=fields.taken_from,
        taken_to=fields.taken_to,
    )


def _candidate(candidate: Candidate, decision: Decision | None) -> CandidateAnswer:
    return CandidateAnswer(
        person=_person(candidate),
        face_id=candidate.face_id,
        similarity=candidate.similarity,
        decision=_word(decision),
    )


def _identity(found: Identification, point: OperatingPoint | None, face: Face | None) -> IdentityAnswer:
    best, second = found.best, found.second
    return IdentityAnswer(
        decision=_word(found.decision),
        person=_person(best) if best else None,
        face_id=best.face_id if best else None,
        similarity=best.similarity if best else None,
        second=_candidate(second, point.decide(second.similarity) if point else None) if second else None,
        margin=found.margin,
        face=face,
    )


def _person(candidate: Candidate) -> CandidatePerson:
    return CandidatePerson(
        id=candidate.person_id,
        external_id=candidate.external_id,
        name=candidate.name,
        metadata=dict(candidate.metadata),
    )


def _face(face: EmbeddedFace | None, extraction: Extraction | None, index: int) -> Face | None:
    """`index`: the face's place in `extraction`."""
    if face is None or extraction is None:
        return None
    return face_of(face.face, None, attributes_at(extraction.analyzed, index))


def _unavailable(extraction: Extraction | None) -> list[UnavailableAnswer]:
    return unavailable_of(extraction.analyzed if extraction else None)


def _image(extraction: Extraction | None) -> Image | None:
    return None if extraction is None else image_of(extraction.detections)


def _face_count(extraction: Extraction | None) -> int | None:
    return None if extraction is None else len(extraction.detections)


def _point(point: OperatingPoint | None) -> OperatingPointAnswer | None:
    return None if point is None else OperatingPointAnswer(data_set=point.data_set, far=point.far, frr=point.frr)


def _word(decision: Decision | None) -> Literal["match", "ambiguous", "unknown"] | None:
    return None if decision is None else decision.value
