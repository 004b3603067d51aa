"""Is this the same person? Questions about the whole library that only people can answer."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.faces import Decision, OperatingPoint
from serve_app.identity.library_faces import LibraryFace
from serve_app.identity.people import Collection
from serve_app.services.library_people import decide
from serve_app.storage import collections, library_faces, library_persons, review_queue
from serve_app.storage.database import Connection, Database
from serve_app.storage.library_persons import LibraryPerson
from serve_app.storage.review_queue import Kind, Window

_MAX_WINDOWS = 3
"""That are looked through until there is a question; a page may so be empty, and not the last."""
_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a `group` without a name, or a `face` of nobody, is the `person`: one of both. `face_id`: the person's face that
    is most alike."""

    group: LibraryPerson | None
    face: LibraryFace | None
    person: LibraryPerson
    face_id: UUID
    similarity: float
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended: behind this group or face."""

    kind: Kind = Kind.GROUPS
    after: UUID = _FIRST


class ReviewQueue:
    """Every method raises DatabaseUnavailable and Overloaded."""

    def __init__(self, database: Database, point: OperatingPoint | None, collection_id: str) -> None:
        self._database = database
        self._point = point
        self.collection_id = collection_id

    async def page(self, place: Place | None, size: int) -> tuple[list[Question], Place | None]:
        """The questions about the next `size` groups or faces, the most similar first; and where the next page begins. A page
        is not cut at a similarity: while questions are answered, the others become more similar, and would be passed over."""
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                return [], None
            then: Place | None = place or Place()
            found: list[Question] = []
            for _ in range(_MAX_WINDOWS):
                if found or then is None:
                    break
                window = await self._window(connection, collection, then, size)
                if window.last is not None:
                    then = Place(window.kind, window.last)
                else:
                    then = Place(Kind.FACES) if window.kind is Kind.GROUPS else None
                found = await self._questions(connection, collection, window)
            return found, then

    async def _window(self, connection: Connection, collection: Collection, place: Place, size: int) -> Window:
        known = self._point is not None and self._point.embedding_model == collection.contract.model
        least = self._point.suggest_threshold if self._point is not None and known else 0.0
        return await review_queue.window(connection, collection, place.kind, place.after, size, least)

    async def _questions(self, connection: Connection, collection: Collection, window: Window) -> list[Question]:
        if not window.found:
            return []
        subjects = [one.subject_id for one in window.found]
        groups, faces = (subjects, []) if window.kind is Kind.GROUPS else ([], subjects)
        persons = await library_persons.some(connection, collection, [*groups, *(one.person_id for one in window.found)])
        shown = await library_faces.some(connection, collection, faces)
        questions = []
        for one in window.found:
            group, face, person = persons.get(one.subject_id), shown.get(one.subject_id), persons.get(one.person_id)
            if person is None or (group is None and face is None):
                continue  # Gone meanwhile.
            decision = decide(self._point, collection, one.similarity)
            questions.append(Question(group, face, person, one.face_id, one.similarity, decision))
        return questions
