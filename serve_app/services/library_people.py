"""Persons of the photo library, as its pages show them, and who else they might be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.faces import Decision, OperatingPoint
from serve_app.identity.library_faces import FaceFilter, FacePosition, FaceQuery, FaceSort, LibraryFace
from serve_app.identity.people import Collection
from serve_app.storage import collections, faces, library_faces, library_persons, persons, suggestions
from serve_app.storage.database import Connection, Database
from serve_app.storage.library_persons import LibraryPerson, PersonPosition, PersonsWanted


@dataclass(frozen=True, slots=True)
class SuggestedFace:
    """`decision`: match, ambiguous or unknown by the thresholds in force; None without any."""

    face: LibraryFace
    similarity: float
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class SuggestedPerson:
    """`face_id`: the face that is most alike."""

    person: LibraryPerson
    face_id: UUID
    similarity: float
    decision: Decision | None


def decide(point: OperatingPoint | None, collection: Collection, similarity: float) -> Decision | None:
    """None as well where another model than the loaded one made the embeddings: its thresholds say nothing of them."""
    if point is None or point.embedding_model != collection.contract.model:
        return None
    return point.decide(similarity)


class LibraryPeople:
    """Every method raises DatabaseUnavailable and Overloaded, and NotFound for a person or a face that is not there."""

    def __init__(self, database: Database, point: OperatingPoint | None, collection_id: str) -> None:
        self._database = database
        self._point = point
        self.collection_id = collection_id

    async def page(self, wanted: PersonsWanted, after: PersonPosition | None, limit: int) -> list[LibraryPerson]:
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                return []
            return await library_persons.page(connection, collection, wanted, after, limit)

    async def get(self, person_id: UUID) -> LibraryPerson:
        async with self._of_person(person_id) as (connection, collection):
            return await library_persons.get(connection, collection, person_id)

    async def faces(self, person_id: UUID, after: UUID | None, limit: int) -> list[LibraryFace]:
        async with self._of_person(person_id) as (connection, collection):
            position = None if after is None else FacePosition(None, after)
            query = FaceQuery(FaceFilter(person_id), FaceSort.FOUND, False, position, limit)
            return await library_faces.page(connection, collection, query)

    async def suggested_faces(self, person_id: UUID, limit: int) -> list[SuggestedFace]:
        """Faces of nobody that are most like the person. Not those that are said not to be, nor of photos it is in."""
        async with self._of_person(person_id) as (connection, collection):
            found = await suggestions.faces_for(connection, collection, person_id, limit)
            shown = await library_faces.some(connection, collection, [face_id for face_id, _ in found])
        return [
            SuggestedFace(shown[one], alike, decide(self._point, collection, alike)) for one, alike in found if one in shown
        ]

    async def suggested_persons(self, person_id: UUID, limit: int) -> list[SuggestedPerson]:
        """Persons who may be the same. Not those that are said not to be, nor hidden ones, nor two that both have names."""
        async with self._of_person(person_id) as (connection, collection):
            found = await suggestions.persons_for(connection, collection, person_id, limit)
            return await self._persons(connection, collection, found)

    async def persons_of_face(self, face_id: UUID, limit: int) -> list[SuggestedPerson]:
        """Whose the face may be. Not who it is said not to be, nor who has it."""
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                raise faces.missing(face_id) from None
            await faces.get(connection, collection, face_id)
            found = await suggestions.persons_for_face(connection, collection, face_id, limit)
            return await self._persons(connection, collection, found)

    async def _persons(
        self, connection: Connection, collection: Collection, found: list[tuple[UUID, UUID, float]]
    ) -> list[SuggestedPerson]:
        shown = await library_persons.some(connection, collection, [person_id for person_id, _, _ in found])
        return [
            SuggestedPerson(shown[one], face_id, alike, decide(self._point, collection, alike))
            for one, face_id, alike in found
            if one in shown
        ]

    @asynccontextmanager
    async def _of_person(self, person_id: UUID) -> AsyncIterator[tuple[Connection, Collection]]:
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                raise persons.missing(person_id) from None
            await persons.get(connection, collection, person_id)
            yield connection, collection
