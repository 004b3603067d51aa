"""The shapes of the library's faces in answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from serve_app.api.deps import PREFIX
from serve_app.api.photo_schemas import PhotoAnswer
from serve_app.api.schemas import Answer
from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.library_faces import LibraryFace

_EXAMPLE_ID = "01a2016f-e451-7e79-a29b-b57179f56dd8"


class UnassignedAnswer(Answer):
    """Why nobody has the face: what was measured, and the limit it did not keep to."""

    code: str = Field(examples=["too_small"])
    metric: str | None = Field(examples=["size_px"])
    value: float | None = Field(examples=[27.5])
    limit: float | None = Field(examples=[40.0])
    person_id: UUID | None = Field(description="The person who would have been nearest, where there is one.")
    message: str = Field(examples=["The face is 28 px wide; at least 40 px are needed to tell whose it is."])


class LibraryFaceAnswer(Answer):
    id: UUID = Field(examples=[_EXAMPLE_ID])
    photo_id: UUID | None = Field(description="null for a face that was enrolled without a photo of the library.")
    person_id: UUID | None
    person_name: str | None
    bbox: list[float] | None = Field(description="x1, y1, x2, y2 in pixels of the photo as displayed.")
    landmarks: list[list[float]] | None = Field(
        description="Left eye, right eye, nose, left and right mouth corner, as seen in the photo."
    )
    detection_score: float | None
    quality: dict[str, Any] | None
    found_by: Literal["enrolment", "indexing"]
    decided_by: Literal["user", "machine"] = Field(description="Who said whose the face is, or that it is nobody's.")
    hidden: bool
    unassigned: UnassignedAnswer | None = Field(
        description="Why nobody has it; null where somebody has, and until it has been looked at."
    )
    thumbnail_url: str | None = Field(description="A path of this API; asks for the API key.")
    taken_at: datetime
    created_at: datetime


class LibraryFacePage(Answer):
    items: list[LibraryFaceAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class PhotoFacesAnswer(Answer):
    photo_id: UUID
    faces: list[LibraryFaceAnswer] = Field(description="Hidden ones too; largest first.")


class PhotoDetailAnswer(PhotoAnswer):
    faces: list[LibraryFaceAnswer] = Field(description="Hidden ones too; largest first.")


def library_face_answer(face: LibraryFace) -> LibraryFaceAnswer:
    shown = face.photo_id is not None and face.bbox is not None
    return LibraryFaceAnswer.model_validate(
        {
            "id": face.id,
            "photo_id": face.photo_id,
            "person_id": face.person_id,
            "person_name": face.person_name,
            "bbox": face.bbox,
            "landmarks": face.landmarks,
            "detection_score": face.detection_score,
            "quality": face.quality,
            "found_by": face.found_by,
            "decided_by": face.decided_by,
            "hidden": face.hidden,
            "unassigned": None if face.unassigned is None else _unassigned(face.unassigned),
            "thumbnail_url": f"{PREFIX}/faces/{face.id}/thumbnail" if shown else None,
            "taken_at": face.taken_at,
            "created_at": face.created_at,
        }
    )


def _unassigned(reason: Unassigned) -> UnassignedAnswer:
    return UnassignedAnswer(
        code=reason.code,
        metric=reason.metric,
        value=reason.value,
        limit=reason.limit,
        person_id=reason.person_id,
        message=reason.message,
    )
