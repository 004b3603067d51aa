"""What an image-text model is, to everybody who does not run it. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SemanticModel:
    """The model that is set and found. `embedding_model`: the name its embeddings are kept under, by what the files and the
    preparation of pictures are: equal names make comparable embeddings. `commercial_use`: None where the licence is unknown.
    `files`: path inside the model's folder to sha256."""

    name: str
    title: str
    licence: str
    commercial_use: bool | None
    embedding_model: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class NoSemanticModel:
    """Why there is none: `reason` is for every client, `remedy`, with its paths, for the operator."""

    reason: str
    remedy: str = ""


HOW_TO = (
    "The operator sets SEMANTIC_MODEL to a model of `kinlens models list`, or to a folder with one, gets its files with"
    " `kinlens models pull`, and restarts (docs/operations.md, Semantic search)."
)
"""For clients: no path of the server is in it."""

NOT_SET = NoSemanticModel("No image-text model is set up, so photos cannot be found by what they show.", HOW_TO)
