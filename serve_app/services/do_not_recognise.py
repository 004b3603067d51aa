"""The list of those who must not be recognised."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from serve_app.identity.people import Person
from serve_app.services.writing import Once
from serve_app.storage import collections, do_not_recognise
from serve_app.storage.database import Connection, Database


@dataclass(frozen=True, slots=True)
class DoNotRecognise:
    """Every method raises NotFound, DatabaseUnavailable and Overloaded."""

    database: Database

    async def put(self, collection_id: str, person_id: UUID, listed: bool, once: Once[Person]) -> Person:
        """Puts a person on the list, or takes it off; from the commit on."""

        async def work(tx: Connection) -> Person:
            collection = await collections.lock(tx, collection_id)
            return await do_not_recognise.put(tx, collection, person_id, listed)

        return await once.run(self.database, work)

    async def page(self, collection_id: str, after: UUID | None, limit: int) -> list[UUID]:
        async with self.database.connection() as connection:
            return await do_not_recognise.page(connection, await collections.get(connection, collection_id), after, limit)
