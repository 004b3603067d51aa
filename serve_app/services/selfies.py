"""Who a selfie shows, for a search: looked at and forgotten. It is never kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.faces import Decision, FloatArray, OperatingPoint
from serve_app.identity.people import Candidate, Collection, SearchFilter
from serve_app.services.pipeline import ExtractOptions, FaceChoice
from serve_app.services.search import Identification, PersonSearch
from serve_app.services.verification import GivenEmbedding
from serve_app.storage import faces, photo_search
from serve_app.storage.database import Connection, Database

MARGIN = 0.05
"""By how much the best person must lead the second, as identify has it."""
_MAX_SIMILAR = 500
"""Photos that may show somebody who is not known."""


@dataclass(frozen=True, slots=True)
class Selfie:
    """An encoded picture, whose largest face is meant; or a face of the library."""

    image: bytes | None = field(default=None, repr=False)
    face_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """`decision`: None where no threshold is known. `best`, `second`: the nearest persons, whoever they are. `person_id`: who
    it is, for a match. `face_count`: in the picture. `embedding`: (D,) float32, of unit norm, to compare faces with; those of
    `persons`, and of nobody where it is not known who it is."""

    decision: Decision | None
    best: Candidate | None
    second: Candidate | None
    margin: float | None
    point: OperatingPoint | None
    face_count: int | None
    embedding: FloatArray = field(repr=False)
    persons: tuple[UUID, ...] = ()
    person_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class MatchedFace:
    """Of a photo, the face that is most like the selfie. `decision`: on these two alone."""

    face_id: UUID
    similarity: float
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class NotSeen(Seen):
    """It cannot be told who it is. `photos`: that may show the same face, and the similarity of their best: of faces that
    nobody has, and where it is ambiguous, of the two nearest persons; the best first."""

    photos: Mapping[UUID, float] = field(default_factory=dict)


class Selfies:
    def __init__(self, database: Database, persons: PersonSearch) -> None:
        self._database = database
        self._persons = persons

    async def look(self, collection: Collection, selfie: Selfie) -> Seen:
        """Raises NotFound for a face that is not there, and what PersonSearch.identify raises."""
        embedding = None
        if selfie.face_id is not None:
            async with self._database.connection() as connection:
                embedding = await photo_search.embedding_of(connection, collection, selfie.face_id)
                if embedding is None:
                    raise faces.missing(selfie.face_id)
        probe = selfie.image if embedding is None else GivenEmbedding(embedding.tolist(), None)
        if probe is None:
            raise NotFound("There is no face to look for.")
        answer = await self._persons.identify(
            collection.id,
            probe,
            ExtractOptions(face=FaceChoice.LARGEST),
            SearchFilter(hidden=False),
            threshold=None,
            margin=MARGIN,
        )
        found = answer.results[0]
        face_count = None if answer.extraction is None else len(answer.extraction.detections)
        vector = found.face.embedding if found.face is not None else embedding
        assert vector is not None
        told = found.decision, found.best, found.second, found.margin, answer.point, face_count, vector
        if found.decision is Decision.MATCH and found.best is not None:
            return Seen(*told, persons=(found.best.person_id,), person_id=found.best.person_id)
        if found.best is None and await self._persons.withholds(collection.id, vector):
            return NotSeen(*told, persons=())
        least = answer.point.suggest_threshold if answer.point is not None else 0.0
        nearest = self._maybe(found)
        async with self._database.connection() as connection:
            photos = await photo_search.similar_faces(connection, collection, vector, nearest, least, _MAX_SIMILAR)
        return NotSeen(*told, persons=nearest, photos=photos)

    async def matched(
        self, connection: Connection, collection: Collection, seen: Seen, photo_ids: Sequence[UUID]
    ) -> dict[UUID, MatchedFace]:
        """By which face each of the photos was found."""
        nobody = seen.person_id is None
        found = await photo_search.most_alike(connection, collection, seen.embedding, photo_ids, seen.persons, nobody=nobody)
        decide = seen.point.decide if seen.point is not None else None
        return {
            photo_id: MatchedFace(face_id, similarity, None if decide is None else decide(similarity))
            for photo_id, (face_id, similarity) in found.items()
        }

    @staticmethod
    def _maybe(found: Identification) -> tuple[UUID, ...]:
        if found.decision is not Decision.AMBIGUOUS:
            return ()
        return tuple(one.person_id for one in (found.best, found.second) if one is not None)
