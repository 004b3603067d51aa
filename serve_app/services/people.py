"""Persons and the faces they have: read, change, move, erase."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.identity.people import Collection, Metadata, Person, StoredFace, new_id
from serve_app.services.erasure import Eraser, Receipt
from serve_app.services.writing import Once
from serve_app.storage import (
    clustering,
    collections,
    do_not_recognise,
    faces,
    idempotency,
    images,
    journal,
    persons,
    vectors,
)
from serve_app.storage.database import Connection, Database
from serve_app.storage.persons import PersonChange


@dataclass(frozen=True, slots=True)
class PersonQuery:
    """`name`: a part of it. `metadata`: must be contained. `after`: the last person of the page before."""

    after: UUID | None
    limit: int
    name: str | None = None
    external_id: str | None = None
    metadata: Metadata | None = None


class People:
    """Every method raises NotFound, DatabaseUnavailable and Overloaded."""

    def __init__(self, database: Database, eraser: Eraser) -> None:
        self._database = database
        self._eraser = eraser

    async def create(self, collection_id: str, change: PersonChange, once: Once[Person]) -> Person:
        """Raises AlreadyExists for an external id that is taken."""

        async def work(tx: Connection) -> Person:
            collection = await collections.lock(tx, collection_id)
            return await persons.create(tx, collection, new_id(), change)

        return await once.run(self._database, work)

    async def get(self, collection_id: str, person_id: UUID) -> Person:
        async with self._database.connection() as connection:
            return await persons.get(connection, await collections.get(connection, collection_id), person_id)

    async def page(self, collection_id: str, query: PersonQuery) -> list[Person]:
        async with self._database.connection() as connection:
            return await persons.page(
                connection,
                await collections.get(connection, collection_id),
                query.after,
                query.limit,
                name=query.name,
                external_id=query.external_id,
                metadata=query.metadata,
            )

    async def update(self, collection_id: str, person_id: UUID, change: PersonChange, once: Once[Person]) -> Person:
        """Raises AlreadyExists."""

        async def work(tx: Connection) -> Person:
            collection = await collections.lock(tx, collection_id)
            return await persons.update(tx, collection, person_id, change)

        return await once.run(self._database, work)

    async def delete(
        self, collection_id: str, person_ids: Sequence[UUID], once: Once[Receipt], *, must_exist: bool
    ) -> Receipt:
        """Persons with all their faces. Those that are not there count as gone unless they `must_exist`."""

        async def work(tx: Connection) -> Receipt:
            collection = await collections.lock(tx, collection_id)
            found = await persons.lock(tx, collection, person_ids)
            if must_exist:
                _require(person_ids, found, persons.missing)
            face_ids = await faces.ids_of_persons(tx, found)
            erased = await faces.delete(tx, collection, face_ids)
            templates = await self._refresh(tx, collection, found)
            removed = await persons.delete(tx, collection, found)
            # Also of those that are not there: whoever was merged or dissolved may still be named.
            await faces.forget_nearest(tx, collection, person_ids)
            # Their faces as well: one that was moved stands in the answer of another person's enrolment.
            await idempotency.erase_subjects(tx, [*found, *face_ids])
            # Those that are not there, too: the journal may know who was merged or dissolved.
            await journal.erase_subjects(tx, collection, [*person_ids, *face_ids])
            remaining = await persons.remaining_rows(tx, collection, found)
            return Receipt.of(replace(erased, persons=removed, templates=templates), remaining)

        return await self._eraser.finish(await once.run(self._database, work), once)

    async def face(self, collection_id: str, face_id: UUID) -> StoredFace:
        async with self._database.connection() as connection:
            return await faces.get(connection, await collections.get(connection, collection_id), face_id)

    async def faces(self, collection_id: str, person_id: UUID | None, after: UUID | None, limit: int) -> list[StoredFace]:
        """Of one person, who must exist, or of all."""
        async with self._database.connection() as connection:
            collection = await collections.get(connection, collection_id)
            if person_id is not None:
                await persons.get(connection, collection, person_id)
            return await faces.page(connection, collection, person_id, after, limit)

    async def delete_faces(
        self, collection_id: str, face_ids: Sequence[UUID], once: Once[Receipt], *, must_exist: bool
    ) -> Receipt:
        """Faces that are not there count as gone unless they `must_exist`."""

        async def work(tx: Connection) -> Receipt:
            collection = await collections.lock(tx, collection_id)
            owners = await self._lock_owners(tx, collection, face_ids)
            if must_exist:
                _require(face_ids, owners, faces.missing)
            erased = await faces.delete(tx, collection, list(owners))
            templates = await self._refresh(tx, collection, _persons(owners))
            groups = await clustering.remove_empty(tx, collection, _persons(owners))
            await idempotency.erase_subjects(tx, list(owners))
            await journal.erase_subjects(tx, collection, face_ids)
            remaining = len(await faces.owners(tx, collection, face_ids))
            return Receipt.of(replace(erased, persons=groups, templates=templates), remaining)

        return await self._eraser.finish(await once.run(self._database, work), once)

    async def move_face(self, collection_id: str, face_id: UUID, person_id: UUID, once: Once[StoredFace]) -> StoredFace:
        """To another person of the same collection. Raises MustNotBeRecognised."""

        async def work(tx: Connection) -> StoredFace:
            collection = await collections.lock(tx, collection_id)
            owners = await self._lock_owners(tx, collection, [face_id], also=[person_id])
            await persons.lock_one(tx, collection, person_id)
            if face_id not in owners:
                raise faces.missing(face_id)
            await do_not_recognise.keep(tx, set(_persons(owners)) - {person_id})
            moved = await faces.move(tx, collection, face_id, person_id)
            await self._refresh(tx, collection, sorted({*_persons(owners), person_id}))
            return moved

        return await once.run(self._database, work)

    async def _lock_owners(
        self, tx: Connection, collection: Collection, face_ids: Sequence[UUID], also: Sequence[UUID] = ()
    ) -> dict[UUID, UUID | None]:
        """The faces that exist and their persons, who are locked. A face that was moved while we waited is looked up again."""
        owners = await faces.owners(tx, collection, face_ids)
        while True:
            await persons.lock(tx, collection, sorted({*_persons(owners), *also}))
            # Before the faces, as whoever indexes or erases a photo does.
            await images.lock(tx, await faces.images_of(tx, collection, face_ids))
            now = await faces.owners(tx, collection, face_ids, lock=True)
            if set(_persons(now)) <= {*_persons(owners), *also}:
                return now
            owners = now

    async def _refresh(self, tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> int:
        return sum([await vectors.refresh_templates(tx, collection, one) for one in person_ids])


def _persons(owners: Mapping[UUID, UUID | None]) -> list[UUID]:
    """In order, without those of faces that nobody has."""
    return sorted({owner for owner in owners.values() if owner is not None})


def _require(wanted: Sequence[UUID], found: Container[UUID], error: Callable[[UUID], NotFound]) -> None:
    for one in wanted:
        if one not in found:
            raise error(one)
