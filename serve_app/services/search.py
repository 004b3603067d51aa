"""1:N: who is this? And 1:1 against a person that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from serve_app.errors import EmbeddingModelMismatch
from serve_app.faces import Decision, EmbeddedFace, FloatArray, OperatingPoint, parse_embedding
from serve_app.identity.people import Candidate, Collection, EmbeddingContract, SearchFilter
from serve_app.observing.stages import Stage, stage
from serve_app.services.collections import check_contract
from serve_app.services.pipeline import Extraction, ExtractOptions, FacePipeline
from serve_app.services.verification import GivenEmbedding
from serve_app.storage import collections, persons, search
from serve_app.storage.database import Connection, Database

Probe = bytes | GivenEmbedding

WITHHELD_MARGIN = 0.05
"""Somebody who must not be recognised, and is so much less like the probe than the nearest person, may still be who it is; as
`identify` has it."""


@dataclass(frozen=True, slots=True)
class RankedCandidate:
    """`decision`: match, ambiguous or unknown by the thresholds in force; None without any."""

    candidate: Candidate
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What was found for one face. `face` is None for a given embedding."""

    face: EmbeddedFace | None
    candidates: list[RankedCandidate]


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    extraction: Extraction | None
    results: list[ProbeResult]
    point: OperatingPoint | None


@dataclass(frozen=True, slots=True)
class Identification:
    """`margin`: similarity of the best person less that of the second; None with fewer than two persons."""

    face: EmbeddedFace | None
    decision: Decision | None
    best: Candidate | None
    second: Candidate | None
    margin: float | None


@dataclass(frozen=True, slots=True)
class IdentifyAnswer:
    extraction: Extraction | None
    results: list[Identification]
    point: OperatingPoint | None


@dataclass(frozen=True, slots=True)
class PersonVerification:
    """`candidate` is None for a person without faces."""

    extraction: Extraction | None
    face: EmbeddedFace | None
    candidate: Candidate | None
    decision: Decision | None
    point: OperatingPoint | None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """`top_k` persons at most, none below `threshold` (cosine; None cuts nothing)."""

    extract: ExtractOptions
    top_k: int
    threshold: float | None
    wanted: SearchFilter


class PersonSearch:
    """Every method raises NotFound, EmbeddingModelMismatch, InvalidEmbedding, what FacePipeline.extract raises,
    DatabaseUnavailable and Overloaded."""

    def __init__(
        self, pipeline: FacePipeline, database: Database, contract: EmbeddingContract, point: OperatingPoint | None
    ) -> None:
        self._pipeline = pipeline
        self._database = database
        self._contract = contract
        self._point = point

    async def search(self, collection_id: str, probe: Probe, options: SearchOptions) -> SearchAnswer:
        """The nearest persons of every face of the probe, each by its best face."""
        extraction, probes = await self._probes(collection_id, probe, options.extract)
        found = await self._nearest(collection_id, [embedding for _, embedding in probes], options.top_k, options.wanted)
        results = [
            ProbeResult(
                face,
                [
                    RankedCandidate(candidate, self._point.decide(candidate.similarity) if self._point else None)
                    for candidate in candidates
                    if options.threshold is None or candidate.similarity >= options.threshold
                ],
            )
            for (face, _), candidates in zip(probes, found, strict=True)
        ]
        return SearchAnswer(extraction, results, self._point)

    async def identify(
        self,
        collection_id: str,
        probe: Probe,
        extract: ExtractOptions,
        wanted: SearchFilter,
        *,
        threshold: float | None,
        margin: float,
    ) -> IdentifyAnswer:
        """Who each face is, or that it is nobody, or that it cannot be told.

        `threshold` replaces the operating point's; `margin`: by how much the best person must lead the second.
        """
        point = self._point_at(threshold)
        extraction, probes = await self._probes(collection_id, probe, extract)
        found = await self._nearest(collection_id, [embedding for _, embedding in probes], 2, wanted)
        results = [
            identification(face, candidates, point, margin) for (face, _), candidates in zip(probes, found, strict=True)
        ]
        return IdentifyAnswer(extraction, results, point)

    async def verify(
        self, collection_id: str, person_id: UUID, probe: Probe, extract: ExtractOptions, threshold: float | None
    ) -> PersonVerification:
        """Is the probe this person? By the person's most similar face."""
        point = self._point_at(threshold)
        async with self._database.connection() as connection:
            collection = await self._open(connection, collection_id)
            await persons.get(connection, collection, person_id)
        extraction, probes = await self._probes(collection_id, probe, extract)
        face, embedding = probes[0]
        async with self._database.connection() as connection:
            with stage(Stage.SEARCH):
                candidate = await search.similarity_to_person(connection, collection, embedding, person_id)
        if candidate is None or candidate.withheld:
            return PersonVerification(extraction, face, None, Decision.UNKNOWN, point)
        decision = point.decide(candidate.similarity) if point else None
        return PersonVerification(extraction, face, candidate, decision, point)

    def _point_at(self, threshold: float | None) -> OperatingPoint | None:
        """The operating point, moved to `threshold`: the errors there were not measured."""
        if threshold is None:
            return self._point
        gap = self._point.threshold - self._point.suggest_threshold if self._point else 0.0
        return OperatingPoint(
            self._contract.model, "threshold of the request", threshold, round(threshold - gap, 6), far=None, frr=None
        )

    async def _open(self, connection: Connection, collection_id: str) -> Collection:
        collection = await collections.get(connection, collection_id)
        check_contract(collection, self._contract)
        return collection

    async def _probes(
        self, collection_id: str, probe: Probe, extract: ExtractOptions
    ) -> tuple[Extraction | None, list[tuple[EmbeddedFace | None, FloatArray]]]:
        if isinstance(probe, GivenEmbedding):
            if probe.model is not None and probe.model != self._contract.model:
                raise EmbeddingModelMismatch(
                    f"The embedding comes from {probe.model!r}; {self._contract.model!r} is loaded.",
                    model=probe.model,
                    loaded_model=self._contract.model,
                )
            return None, [(None, parse_embedding(probe.values, self._contract.dim))]
        async with self._database.connection() as connection:
            # Before the models: a collection that is not there, or not ours to search, costs a look-up.
            await self._open(connection, collection_id)
        extraction = await self._pipeline.extract(probe, extract)
        return extraction, [(face, face.embedding) for face in extraction.faces]

    async def _nearest(
        self, collection_id: str, embeddings: Sequence[FloatArray], top_k: int, wanted: SearchFilter
    ) -> list[list[Candidate]]:
        async with self._database.connection() as connection:
            collection = await self._open(connection, collection_id)
            with stage(Stage.SEARCH):
                return [await self._told(connection, collection, one, top_k, wanted) for one in embeddings]

    async def withholds(self, collection_id: str, embedding: FloatArray) -> bool:
        """Whether the face may be of somebody who must not be recognised."""
        async with self._database.connection() as connection:
            collection = await self._open(connection, collection_id)
            return self._may_be_withheld(await search.nearest(connection, collection, embedding, 2, SearchFilter()))

    def _may_be_withheld(self, found: Sequence[Candidate]) -> bool:
        best = next((one for one in found if one.withheld), None)
        least = self._point.suggest_threshold if self._point else -1.0
        return best is not None and best.similarity >= max(least, found[0].similarity - WITHHELD_MARGIN)

    async def _told(
        self, connection: Connection, collection: Collection, embedding: FloatArray, top_k: int, wanted: SearchFilter
    ) -> list[Candidate]:
        """Without whoever must not be recognised; and nobody at all for a face that may be theirs, whoever else is like it."""
        found = await search.nearest(connection, collection, embedding, top_k, wanted)
        withheld = [one for one in found if one.withheld]
        if not withheld:
            return found
        if self._may_be_withheld(found):
            return []
        more = SearchFilter(
            wanted.person_ids,
            (*wanted.exclude_person_ids, *(one.person_id for one in withheld)),
            wanted.metadata,
            wanted.taken_from,
            wanted.taken_to,
            wanted.hidden,
        )
        return [one for one in await search.nearest(connection, collection, embedding, top_k, more) if not one.withheld]


def identification(
    face: EmbeddedFace | None, candidates: Sequence[Candidate], point: OperatingPoint | None, margin: float
) -> Identification:
    """The decision on the two nearest persons.

    match: the best reaches the threshold and leads the second by `margin`. ambiguous: it does so without that lead, or lies
    between the two thresholds. unknown: neither, or there is nobody. None where no threshold is known.
    """
    best = candidates[0] if candidates else None
    second = candidates[1] if len(candidates) > 1 else None
    lead = best.similarity - second.similarity if best and second else None
    decision: Decision | None
    if best is None:
        decision = Decision.UNKNOWN
    elif point is None:
        decision = None
    else:
        decision = point.decide(best.similarity)
        if decision is Decision.MATCH and lead is not None and lead < margin:
            decision = Decision.AMBIGUOUS
    return Identification(face, decision, best, second, lead)
