"""Who must not be recognised. Their faces stay where they are: without them nobody could tell whom not to recognise."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from serve_app.errors import MustNotBeRecognised
from serve_app.identity.people import Collection, Person
from serve_app.storage import persons
from serve_app.storage.database import Connection


async def put(tx: Connection, collection: Collection, person_id: UUID, listed: bool) -> Person:
    """Puts a person on the list or takes it off. Raises NotFound."""
    await persons.lock_one(tx, collection, person_id)
    # By the clock, not by when the transaction began: it may have waited for a decision.
    await tx.execute(
        "UPDATE persons SET do_not_recognise = $2, not_recognised_since = CASE WHEN NOT $2 THEN NULL"
        " WHEN do_not_recognise THEN not_recognised_since ELSE clock_timestamp() END WHERE id = $1",
        person_id,
        listed,
    )
    return await persons.get(tx, collection, person_id)


async def page(connection: Connection, collection: Collection, after: UUID | None, limit: int) -> list[UUID]:
    """Those on the list, by id."""
    rows = await connection.fetch(
        "SELECT id FROM persons WHERE collection_key = $1 AND do_not_recognise AND id > $2 ORDER BY id LIMIT $3",
        collection.key,
        after or UUID(int=0),
        limit,
    )
    return [row["id"] for row in rows]


async def among(connection: Connection, person_ids: Iterable[UUID]) -> set[UUID]:
    """Those of the persons who are on the list."""
    rows = await connection.fetch("SELECT id FROM persons WHERE id = ANY($1::uuid[]) AND do_not_recognise", sorted(person_ids))
    return {row["id"] for row in rows}


async def keep(tx: Connection, person_ids: Iterable[UUID], undoing: datetime | None = None) -> None:
    """Before something is taken from the persons, who are locked: from one on the list nothing is. Else it would be somebody's
    whom everybody may recognise. `undoing`: a decision of then; what came to somebody on the list may go back.

    Raises MustNotBeRecognised.
    """
    found = await tx.fetchval(
        "SELECT id FROM persons WHERE id = ANY($1::uuid[]) AND do_not_recognise"
        " AND ($2::timestamptz IS NULL OR coalesce(not_recognised_since, 'infinity') >= $2) ORDER BY id LIMIT 1",
        sorted(person_ids),
        undoing,
    )
    if found is not None:
        raise MustNotBeRecognised(
            "A person who must not be recognised keeps their faces, and can be merged into, not merged away or dissolved."
            " Erase them or their faces, or take them off the list first.",
            person_id=str(found),
        )
