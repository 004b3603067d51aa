"""What is loaded, under which licence, and how often it errs."""

from __future__ import annotations

from fastapi import APIRouter, Response

from serve_app.api.attribute_schemas import UnavailableAnswer
from serve_app.api.deps import ServicesDep, answer
from serve_app.api.openapi import problems
from serve_app.api.schemas import AttributeModelAnswer, LoadedModel, ModelAccuracy, ModelFile, ModelsAnswer, ModelThresholds
from serve_app.api.semantic_schemas import semantic_answer
from serve_app.attributes import AttributeModel
from serve_app.errors import Unauthorized
from serve_app.services.models import FileInfo

router = APIRouter(tags=["service"])


@router.get("/models", response_model=ModelsAnswer, summary="The loaded model pack", responses=problems(Unauthorized))
async def models(services: ServicesDep) -> Response:
    """Files with their hashes, licence, thresholds and measured error rates."""
    info = services.model
    point = info.point
    accuracy = None
    if point is not None and point.far is not None:
        accuracy = ModelAccuracy(data_set=point.data_set, far=point.far, frr=point.frr, lfw_accuracy=info.lfw_accuracy)
    loaded = LoadedModel(
        pack=info.pack,
        title=info.title,
        licence=info.licence,
        commercial_use=info.commercial_use,
        embedding_model=info.embedding_model,
        dim=info.dim,
        device=info.device,
        detector=_file(info.detector),
        recognizer=_file(info.recognizer),
        thresholds=ModelThresholds(
            detection=info.detection_threshold,
            match=point.threshold if point else None,
            suggest=point.suggest_threshold if point else None,
        ),
        accuracy=accuracy,
        attributes={attribute: _attribute(model) for attribute, model in info.attribute_models.items()},
        unavailable=[
            UnavailableAnswer(attribute=attribute, reason=reason) for attribute, reason in info.missing_attributes.items()
        ],
    )
    semantic = semantic_answer(info.semantic)
    return answer(ModelsAnswer(loaded=loaded, available_packs=list(info.available_packs), semantic=semantic))


def _file(info: FileInfo) -> ModelFile:
    return ModelFile(family=info.family, file=info.file, sha256=info.sha256, preprocessing=info.preprocessing)


def _attribute(model: AttributeModel) -> AttributeModelAnswer:
    return AttributeModelAnswer(
        name=model.name,
        file=model.file,
        sha256=model.sha256,
        preprocessing=model.preprocessing,
        title=model.title,
        licence=model.licence,
        commercial_use=model.commercial_use,
        classes=list(model.classes),
        abstain_below=model.abstain_below if model.classes else None,
    )
