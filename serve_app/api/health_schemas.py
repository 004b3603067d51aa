"""How the parts of the service are, in an answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serve_app.api.schemas import Answer


class ModelsHealthAnswer(Answer):
    """`busy`: it takes no more work just now, or did not answer in time."""

    pack: str = Field(examples=["opencv"])
    detection: Literal["ok", "busy", "unavailable"]
    embedding: Literal["ok", "busy", "unavailable"]


class QueueAnswer(Answer):
    waiting: int = Field(description="Items of jobs that are still to be done.")
    kinds: dict[str, int] = Field(description="The same, by kind of job.", examples=[{"faces": 812}])


class PartsAnswer(Answer):
    status: Literal["ok", "degraded"] = Field(description="`degraded`: a part is unavailable.")
    version: str
    database: Literal["ok", "unavailable"]
    object_store: Literal["ok", "unavailable"]
    models: ModelsHealthAnswer
    queue: QueueAnswer | None = Field(description="null while the database does not answer.")
