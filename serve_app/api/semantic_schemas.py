"""The image-text model on the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from serve_app.semantic import HOW_TO, NOT_SET, NoSemanticModel, SemanticModel


class SemanticModelAnswer(BaseModel):
    """The image-text model that finds photos by what they show."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["clip_vit_b32"])
    title: str
    licence: str
    commercial_use: bool | None = Field(description="null where the licence of the files is not known.")
    embedding_model: str = Field(
        description="What its embeddings are kept under: by its files and how they are fed.",
        examples=["clip-3f2a9c0d1e4b5a67"],
    )
    files: dict[str, str] = Field(description="The sha256 of each file.")


class SemanticAnswer(BaseModel):
    """Either the model, or why there is none and what the operator can do."""

    model_config = ConfigDict(frozen=True)

    loaded: SemanticModelAnswer | None
    unavailable: str | None = Field(description="null where a model is loaded.", examples=[f"{NOT_SET.reason} {HOW_TO}"])


def semantic_answer(model: SemanticModel | NoSemanticModel) -> SemanticAnswer:
    if isinstance(model, NoSemanticModel):
        return SemanticAnswer(loaded=None, unavailable=f"{model.reason} {HOW_TO}")
    loaded = SemanticModelAnswer(
        name=model.name,
        title=model.title,
        licence=model.licence,
        commercial_use=model.commercial_use,
        embedding_model=model.embedding_model,
        files=model.files,
    )
    return SemanticAnswer(loaded=loaded, unavailable=None)
