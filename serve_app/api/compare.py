"""1:1 comparison."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.api.attribute_schemas import attributes_at, unavailable_of
from serve_app.api.batch import extract_batch
from serve_app.api.deps import Services, ServicesDep, answer, bounded, read_request
from serve_app.api.face import BODY_ERRORS, CAPACITY_ERRORS, IMAGE_ERRORS
from serve_app.api.forms import decode_base64
from serve_app.api.openapi import problems, request_body
from serve_app.api.schemas import (
    BatchAnswer,
    BatchFields,
    BatchJsonFields,
    CompareAnswer,
    CompareFields,
    OperatingPointAnswer,
    face_of,
)
from serve_app.errors import (
    EmbeddingModelMismatch,
    InvalidEmbedding,
    InvalidRequest,
    MultipleFaces,
    NoFaceDetected,
)
from serve_app.services.pipeline import ExtractOptions, FaceChoice
from serve_app.services.verification import GivenEmbedding, Side

router = APIRouter(prefix="/compare", tags=["compare"])

_FILES = frozenset({"image_a", "image_b"})


@router.post(
    "/compare-faces",
    response_model=CompareAnswer,
    summary="Are these the same person?",
    responses=problems(
        *BODY_ERRORS,
        *IMAGE_ERRORS,
        InvalidEmbedding,
        NoFaceDetected,
        MultipleFaces,
        EmbeddingModelMismatch,
        *CAPACITY_ERRORS,
    ),
    openapi_extra=request_body(
        CompareFields, files=("image_a", "image_b"), json_example={"image_a": "/9j/4AAQ...", "embedding_b": [0.0131, -0.0542]}
    ),
)
async def compare_faces(request: Request, services: ServicesDep) -> Response:
    """Two sides, each a picture or an embedding, in any mix. `details.side` of an error says which one it is about."""
    fields = await read_request(request, services, CompareFields, files=_FILES)

    if fields.analyze and fields.embedding_a is not None and fields.embedding_b is not None:
        raise InvalidRequest("`analyze` needs a picture; an embedding does not show what a face looks like.")

    async def work() -> Response:
        a = await _side("a", fields.image_a, fields.image_url_a, fields.embedding_a, fields.model, services)
        b = await _side("b", fields.image_b, fields.image_url_b, fields.embedding_b, fields.model, services)
        options = ExtractOptions(
            face=FaceChoice(fields.face),
            max_faces=fields.max_faces,
            threshold=fields.detection_threshold,
            analyze=fields.analyze_options(),
        )
        result = await services.verification.compare(a, b, options)
        point = result.point
        face_a, face_b = (
            face_of(side.faces[0].face, side.faces[0].crop if fields.return_crops else None, attributes_at(side.analyzed, 0))
            if side
            else None
            for side in (result.a, result.b)
        )
        return answer(
            CompareAnswer(
                similarity=result.similarity,
                threshold=point.threshold if point else None,
                suggest_threshold=point.suggest_threshold if point else None,
                decision=result.decision.value if result.decision else None,
                operating_point=(
                    OperatingPointAnswer(data_set=point.data_set, far=point.far, frr=point.frr) if point else None
                ),
                face_a=face_a,
                face_b=face_b,
                dim=services.model.dim,
                model=services.model.embedding_model,
                unavailable=unavailable_of(*(side.analyzed for side in (result.a, result.b) if side)),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


@router.post(
    "/batch-extract",
    response_model=BatchAnswer,
    summary="Embeddings of many pictures (same as /face/batch-extract)",
    responses=problems(*BODY_ERRORS, *CAPACITY_ERRORS),
    openapi_extra=request_body(BatchFields, files=("files",), many=True, json_model=BatchJsonFields),
)
async def batch_extract(request: Request, services: ServicesDep) -> Response:
    """The former service's path; see `POST /face/batch-extract`."""
    return await extract_batch(request, services)


async def _side(
    name: str,
    image: bytes | str | None,
    url: str | None,
    embedding: list[float] | None,
    model: str | None,
    services: Services,
) -> Side:
    """One side of the comparison. Raises InvalidRequest unless it is given exactly once."""
    names = (f"image_{name}", f"image_url_{name}", f"embedding_{name}")
    given = [field for field, value in zip(names, (image, url, embedding), strict=True) if value is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"Send side {name} as one of {', '.join(names)}; {' and '.join(given) or 'none'} came.", side=name, given=[*given]
        )
    if embedding is not None:
        return GivenEmbedding(embedding, model)
    if isinstance(image, bytes):
        return image
    if image is not None:
        return await decode_base64(image)
    return await services.fetcher.fetch(url or "")
