"""1:1 verification: are these two the same person?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from serve_app.errors import EmbeddingModelMismatch, KinlensError
from serve_app.faces import (
    Decision,
    FloatArray,
    OperatingPoint,
    cosine_similarity,
    parse_embedding,
)
from serve_app.services.pipeline import Extraction, ExtractOptions, FacePipeline


@dataclass(frozen=True, slots=True)
class GivenEmbedding:
    """A client's own embedding; `model`: the embedding model it says it came from, None where it does not say."""

    values: list[float]
    model: str | None = None


Side = bytes | GivenEmbedding
"""One side of a comparison: an encoded picture or an embedding."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`decision` is None where nobody measured the model's errors and no threshold was set.

    `a`, `b`: where the side was a picture; its first face was compared.
    """

    similarity: float
    decision: Decision | None
    point: OperatingPoint | None
    a: Extraction | None
    b: Extraction | None


class Verification:
    def __init__(self, pipeline: FacePipeline, embedding_model: str, dim: int, point: OperatingPoint | None) -> None:
        self._pipeline = pipeline
        self._model = embedding_model
        self._dim = dim
        self._point = point

    async def compare(self, a: Side, b: Side, options: ExtractOptions) -> Comparison:
        """Raises EmbeddingModelMismatch, InvalidEmbedding, and for pictures what FacePipeline.extract raises.

        `details["side"]` of an error says which of the two it is about.
        """
        sides = {"a": a, "b": b}
        # Given embeddings first: a malformed one costs no model time.
        embeddings = {name: self._parse(side, name) for name, side in sides.items() if isinstance(side, GivenEmbedding)}
        tasks = {
            name: asyncio.create_task(self._extract(side, name, options))
            for name, side in sides.items()
            if isinstance(side, bytes)
        }
        try:
            extractions = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        finally:
            for task in tasks.values():
                task.cancel()
        embeddings |= {name: found.faces[0].embedding for name, found in extractions.items()}
        similarity = cosine_similarity(embeddings["a"], embeddings["b"])
        decision = self._point.decide(similarity) if self._point else None
        return Comparison(similarity, decision, self._point, extractions.get("a"), extractions.get("b"))

    def _parse(self, given: GivenEmbedding, side: str) -> FloatArray:
        if given.model is not None and given.model != self._model:
            raise EmbeddingModelMismatch(
                f"The embedding of side {side} comes from {given.model!r}; {self._model!r} is loaded.",
                side=side,
                model=given.model,
                loaded_model=self._model,
            )
        try:
            return parse_embedding(given.values, self._dim)
        except KinlensError as error:
            error.details["side"] = side
            raise

    async def _extract(self, image: bytes, side: str, options: ExtractOptions) -> Extraction:
        try:
            return await self._pipeline.extract(image, options)
        except KinlensError as error:
            error.details["side"] = side
            raise
