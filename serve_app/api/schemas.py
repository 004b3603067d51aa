"""The shapes on the wire."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serve_app.api.attribute_schemas import (
    DEFAULT_ACTIONS,
    Actions,
    AttributesAnswer,
    UnavailableList,
    analyze_options,
    attributes_at,
)
from serve_app.api.semantic_schemas import SemanticAnswer
from serve_app.attributes import Attribute
from serve_app.faces import DetectedFace, Detections, EmbeddedFace, FloatArray, RGBImage
from serve_app.imaging.images import encode_png
from serve_app.services.analysis import Analyzed, AnalyzeOptions
from serve_app.services.pipeline import FaceChoice

_EXAMPLE_BBOX = [301.2, 86.4, 498.7, 350.1]
_EXAMPLE_LANDMARKS = [[352.1, 190.3], [444.8, 188.9], [399.5, 245.2], [361.0, 290.6], [438.3, 289.4]]


class RequestModel(BaseModel):
    """Unknown fields are refused: a misspelt option must not pass for its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


Upload = Annotated[bytes, Field(strict=True, json_schema_extra={"format": "binary"})]


MOST_IMAGES = 10_000
"""Of one body: what MAX_BATCH_IMAGES may be set to."""


def json_text(value: object) -> object:
    """Forms carry numbers as text: an embedding is then a JSON array."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def bounded_list(most: int) -> Callable[[object], object]:
    """Counts before pydantic looks at each element."""

    def check(value: object) -> object:
        if isinstance(value, list) and len(value) > most:
            raise ValueError(f"at most {most} entries are accepted, not {len(value)}")
        return value

    return check


GivenEmbeddingField = Annotated[
    list[float], Field(max_length=8192, fail_fast=True), BeforeValidator(bounded_list(8192)), BeforeValidator(json_text)
]


class DetectionFields(RequestModel):
    """Options of every endpoint that looks for faces."""

    detection_threshold: float | None = Field(
        None, gt=0, lt=1, description="Lowest detection_score reported. Default: FACE_DET_THRESH or the pack's own."
    )
    max_faces: int | None = Field(None, ge=1, le=1000, description="Keep the largest so many faces. Default: all.")


class CropFields(RequestModel):
    return_crops: bool = Field(False, description="Add each face's aligned 112 x 112 crop as base64 PNG.")


class MinProbabilityFields(RequestModel):
    min_probability: float | None = Field(
        None, ge=0, le=1, description="Abstain from a class less probable than this. Default: the model's own limit."
    )


class AnalyzeFields(MinProbabilityFields):
    analyze: Actions = Field(
        (), description="Also say of each face: any of age, gender, emotion, race, quality, separated by commas."
    )

    def analyze_options(self) -> AnalyzeOptions:
        return analyze_options(self.analyze, self.min_probability)


class ImageFields(DetectionFields):
    """One picture: an upload in `file`, `image` as base64 or data URI, or `image_url` where the operator allows it."""

    file: Upload | None = Field(None, description="The encoded picture.")
    image: str | None = Field(None, description="The picture as base64 or data URI.")
    image_url: str | None = Field(None, max_length=2048, description="Where to fetch the picture (ALLOW_IMAGE_URLS).")


class VerifyFaceFields(ImageFields, CropFields, AnalyzeFields):
    pass


class AnalyzeFaceFields(ImageFields, CropFields, MinProbabilityFields):
    actions: Actions = Field(
        DEFAULT_ACTIONS, min_length=1, description="What to say: any of age, gender, emotion, race, quality."
    )

    def analyze_options(self) -> AnalyzeOptions:
        return analyze_options(self.actions, self.min_probability)


class ExtractFields(ImageFields, CropFields, AnalyzeFields):
    face: FaceChoice = Field(
        FaceChoice.LARGEST, description="Which faces to embed; `only` refuses a picture with more than one face."
    )


class BatchFields(DetectionFields, CropFields, AnalyzeFields):
    face: FaceChoice = Field(FaceChoice.LARGEST, description="Which faces to embed in each picture.")


class BatchJsonFields(BatchFields):
    images: Annotated[
        list[str],
        Field(min_length=1, fail_fast=True, description="Pictures as base64 or data URI."),
        BeforeValidator(bounded_list(MOST_IMAGES)),
    ]


class CompareFields(DetectionFields, CropFields, AnalyzeFields):
    """Two sides; each is a picture (upload, base64 or URL) or an embedding."""

    image_a: Upload | str | None = Field(None, description="First picture: upload, base64 or data URI.")
    image_b: Upload | str | None = Field(None, description="Second picture.")
    image_url_a: str | None = Field(None, max_length=2048)
    image_url_b: str | None = Field(None, max_length=2048)
    embedding_a: GivenEmbeddingField | None = Field(None, description="First embedding, as extract-embedding returned it.")
    embedding_b: GivenEmbeddingField | None = None
    model: str | None = Field(None, max_length=128, description="Embedding model the given embeddings come from.")
    face: Literal["largest", "only"] = Field("largest", description="Which face of a picture is compared.")


class Image(Answer):
    """The picture as displayed: EXIF orientation applied."""

    width_px: int
    height_px: int
    format: str = Field(examples=["JPEG"])
    rotation_deg: int = Field(
        0, description="Faces were found only after turning the picture clockwise by so much; boxes are unturned."
    )


class Face(Answer):
    bbox: list[float] = Field(description="x1, y1, x2, y2 in pixels of the picture as displayed.", examples=[_EXAMPLE_BBOX])
    landmarks: list[list[float]] = Field(
        description="Left eye, right eye, nose, left and right mouth corner, as seen in the picture.",
        examples=[_EXAMPLE_LANDMARKS],
    )
    detection_score: float = Field(examples=[0.93])
    crop: str | None = Field(None, description="Aligned 112 x 112 crop, base64 PNG (return_crops).")
    attributes: AttributesAnswer | None = Field(
        None, description="What was asked for; null where nothing was, and beyond the 100 largest faces."
    )


class FaceWithEmbedding(Face):
    embedding: list[float] = Field(description="Unit L2 norm.", examples=[[0.0131, -0.0542, 0.0917]])


class VerifyFaceAnswer(Answer):
    face_detected: bool
    confidence: float = Field(description="The highest detection_score; 0 without a face.", examples=[0.93])
    face_count: int
    faces: list[Face] = Field(description="Largest first.")
    image: Image
    model: str = Field(description="The model pack.", examples=["opencv"])
    unavailable: UnavailableList


class AnalyzeFaceAnswer(VerifyFaceAnswer):
    models: dict[str, str] = Field(
        description="Which model of config/attributes.toml said it.", examples=[{"age": "dlib_age", "gender": "dlib_gender"}]
    )


class ExtractAnswer(Answer):
    face_detected: Literal[True] = True
    embedding: list[float] = Field(description="Of the largest face; unit L2 norm.", examples=[[0.0131, -0.0542, 0.0917]])
    bbox: list[float] = Field(examples=[_EXAMPLE_BBOX])
    confidence: float = Field(description="detection_score of that face.", examples=[0.93])
    landmarks: list[list[float]] = Field(examples=[_EXAMPLE_LANDMARKS])
    dim: int = Field(description="Length of an embedding.", examples=[128])
    model: str = Field(description="The embedding model; compare embeddings of one model only.", examples=["sface_2021dec"])
    face_count: int = Field(description="Faces found in the picture.")
    faces: list[FaceWithEmbedding] = Field(description="The embedded faces, largest first.")
    image: Image
    unavailable: UnavailableList


class OperatingPointAnswer(Answer):
    data_set: str
    far: float | None = Field(description="False accept rate at `threshold`; null where nobody measured.")
    frr: float | None = Field(description="False reject rate at `threshold`.")


class CompareAnswer(Answer):
    similarity: float = Field(description="Cosine, -1 to 1.", examples=[0.7434])
    threshold: float | None = Field(description="At or above it the two match.", examples=[0.36])
    suggest_threshold: float | None = Field(description="At or above it, below `threshold`: ambiguous.", examples=[0.3])
    decision: Literal["match", "ambiguous", "unknown"] | None = Field(
        description="null where the model has no operating point and MATCH_THRESHOLD is not set."
    )
    operating_point: OperatingPointAnswer | None
    face_a: Face | None = Field(description="The face compared, where the side was a picture.")
    face_b: Face | None
    dim: int = Field(examples=[128])
    model: str = Field(examples=["sface_2021dec"])
    unavailable: UnavailableList


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field("about:blank", examples=["urn:kinlens:error:no_face_detected"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["no_face_detected"])
    request_id: str
    details: dict[str, object] = Field(default_factory=dict)


class BatchItem(Answer):
    """One picture of a batch: `problem` is null exactly where the other fields are set."""

    index: int = Field(description="Position in the request, from 0.")
    filename: str | None
    face_detected: bool
    confidence: float
    embedding: list[float] | None
    bbox: list[float] | None
    landmarks: list[list[float]] | None
    face_count: int
    faces: list[FaceWithEmbedding]
    image: Image | None
    unavailable: UnavailableList
    problem: Problem | None


class BatchAnswer(Answer):
    """`results` in the order of the request."""

    model: str = Field(examples=["sface_2021dec"])
    dim: int = Field(examples=[128])
    results: list[BatchItem]
    succeeded: int
    failed: int


class ModelFile(Answer):
    family: str = Field(examples=["yunet"])
    file: str
    sha256: str
    preprocessing: str


class ModelThresholds(Answer):
    detection: float
    match: float | None
    suggest: float | None


class ModelAccuracy(Answer):
    data_set: str
    far: float | None = Field(description="False accept rate at thresholds.match.", examples=[0.0004])
    frr: float | None = Field(description="False reject rate at thresholds.match.", examples=[0.0121])
    lfw_accuracy: float | None = Field(description="10-fold verification accuracy on LFW.", examples=[0.986])


class AttributeModelAnswer(Answer):
    name: str = Field(description="In config/attributes.toml.", examples=["dlib_age"])
    file: str
    sha256: str
    preprocessing: str
    title: str
    licence: str
    commercial_use: bool | None = Field(description="null where the licence does not say.")
    classes: list[str] = Field(description="What its probabilities are of; empty for age.")
    abstain_below: float | None = Field(description="Probability of the top class under which it abstains; null for age.")


class LoadedModel(Answer):
    pack: str = Field(examples=["opencv"])
    title: str
    licence: str
    commercial_use: bool | None = Field(description="null where the licence of the files is not known.")
    embedding_model: str
    dim: int
    device: str
    detector: ModelFile
    recognizer: ModelFile
    thresholds: ModelThresholds
    accuracy: ModelAccuracy | None = Field(description="null for a model nobody has measured.")
    attributes: dict[Attribute, AttributeModelAnswer] = Field(description="What answers each attribute.")
    unavailable: UnavailableList


class ModelsAnswer(Answer):
    loaded: LoadedModel
    available_packs: list[str]
    semantic: SemanticAnswer = Field(description="The image-text model, for photos by what they show.")


class HealthAnswer(Answer):
    status: Literal["ok"] = "ok"
    version: str
    model: str = Field(description="The model pack.", examples=["opencv"])
    uptime_s: float


class ReadyAnswer(Answer):
    database: Literal["ok", "unavailable"]
    object_store: Literal["ok", "unavailable"]


def numbers(vector: FloatArray) -> list[float]:
    values: list[float] = vector.tolist()
    return values


def points(array: FloatArray) -> list[list[float]]:
    values: list[list[float]] = array.tolist()
    return values


def crop_text(crop: RGBImage | None) -> str | None:
    return None if crop is None else base64.b64encode(encode_png(crop)).decode("ascii")


def image_of(detections: Detections) -> Image:
    return Image(
        width_px=detections.width_px,
        height_px=detections.height_px,
        format=detections.format,
        rotation_deg=detections.rotation_deg,
    )


def face_of(face: DetectedFace, crop: RGBImage | None, attributes: AttributesAnswer | None = None) -> Face:
    return Face(
        bbox=numbers(face.bbox),
        landmarks=points(face.landmarks),
        detection_score=face.detection_score,
        crop=crop_text(crop),
        attributes=attributes,
    )


async def embedded_faces(
    faces: list[EmbeddedFace], with_crops: bool, analyzed: Analyzed | None = None
) -> list[FaceWithEmbedding]:
    """Crops are encoded on a thread: a millisecond of PNG a face would hold up everybody else's requests."""

    def answers() -> list[FaceWithEmbedding]:
        return [embedded_face_of(face, with_crops, attributes_at(analyzed, index)) for index, face in enumerate(faces)]

    return await asyncio.to_thread(answers) if with_crops else answers()


def embedded_face_of(embedded: EmbeddedFace, with_crop: bool, attributes: AttributesAnswer | None = None) -> FaceWithEmbedding:
    return FaceWithEmbedding(
        bbox=numbers(embedded.face.bbox),
        landmarks=points(embedded.face.landmarks),
        detection_score=embedded.face.detection_score,
        crop=crop_text(embedded.crop) if with_crop else None,
        attributes=attributes,
        embedding=numbers(embedded.embedding),
    )
