"""Persons of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from serve_app.errors import AlreadyExists, NotFound
from serve_app.identity.people import Collection, Metadata, Person
from serve_app.storage import vectors
from serve_app.storage.database import Connection, Row
from serve_app.storage.vectors import VectorTables

_COLUMNS = """
    SELECT p.id, p.external_id, p.name, p.metadata, p.created_at, p.updated_at,
           (SELECT count(*) FROM faces f WHERE f.person_id = p.id) AS face_count
    FROM persons p
"""


@dataclass(frozen=True, slots=True)
class PersonChange:
    """What is None stays as it is."""

    name: str | None = None
    metadata: Metadata | None = None
    external_id: str | None = None


async def create(tx: Connection, collection: Collection, person_id: UUID, change: PersonChange) -> Person:
    """Raises AlreadyExists for an external id that is taken in the collection."""
    try:
        await tx.execute(
            "INSERT INTO persons (id, collection_key, external_id, name, metadata) VALUES ($1, $2, $3, $4, $5)",
            person_id, collection.key, change.external_id, change.name or "", change.metadata or {},
        )  # fmt: skip
    except asyncpg.UniqueViolationError as error:
        raise _taken(change.external_id) from error
    return await get(tx, collection, person_id)


async def find_or_create(tx: Connection, collection: Collection, person_id: UUID, change: PersonChange) -> UUID:
    """The person with `change.external_id`, made as `person_id` if there is none."""
    found: UUID = await tx.fetchval(
        "INSERT INTO persons (id, collection_key, external_id, name, metadata) VALUES ($1, $2, $3, $4, $5)"
        # An update that changes nothing returns the row of whoever came first.
        " ON CONFLICT (collection_key, external_id) DO UPDATE SET external_id = excluded.external_id RETURNING id",
        person_id, collection.key, change.external_id, change.name or "", change.metadata or {},
    )  # fmt: skip
    return found


async def get(connection: Connection, collection: Collection, person_id: UUID) -> Person:
    """Raises NotFound."""
    row = await connection.fetchrow(_COLUMNS + " WHERE p.id = $1 AND p.collection_key = $2", person_id, collection.key)
    if row is None:
        raise missing(person_id)
    return _person(row)


async def lock(tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> list[UUID]:
    """Those of the persons that exist, kept from every other writer until the transaction ends."""
    rows = await tx.fetch(
        # In one order always, or two transactions would wait for each other.
        "SELECT id FROM persons WHERE id = ANY($1::uuid[]) AND collection_key = $2 ORDER BY id FOR UPDATE",
        list(person_ids),
        collection.key,
    )
    return [row["id"] for row in rows]


async def lock_one(tx: Connection, collection: Collection, person_id: UUID) -> None:
    """Raises NotFound."""
    if not await lock(tx, collection, [person_id]):
        raise missing(person_id)


async def page(
    connection: Connection,
    collection: Collection,
    after: UUID | None,
    limit: int,
    *,
    name: str | None = None,
    external_id: str | None = None,
    metadata: Metadata | None = None,
) -> list[Person]:
    """In the order they were made. `name`: a part of it, whatever its case. `metadata`: must be contained."""
    conditions = ["p.collection_key = $1", "p.id > $2"]
    values: list[object] = [collection.key, after or UUID(int=0)]
    if name is not None:
        values.append(name)
        conditions.append(f"strpos(lower(p.name), lower(${len(values)})) > 0")
    if external_id is not None:
        values.append(external_id)
        conditions.append(f"p.external_id = ${len(values)}")
    if metadata is not None:
        values.append(metadata)
        conditions.append(f"p.metadata @> ${len(values)}")
    values.append(limit)
    rows = await connection.fetch(f"{_COLUMNS} WHERE {' AND '.join(conditions)} ORDER BY p.id LIMIT ${len(values)}", *values)
    return [_person(row) for row in rows]


async def update(tx: Connection, collection: Collection, person_id: UUID, change: PersonChange) -> Person:
    """Raises NotFound, AlreadyExists."""
    try:
        await tx.execute(
            "UPDATE persons SET name = coalesce($3, name), metadata = coalesce($4, metadata),"
            " external_id = coalesce($5, external_id), updated_at = now() WHERE id = $1 AND collection_key = $2",
            person_id, collection.key, change.name, change.metadata, change.external_id,
        )  # fmt: skip
    except asyncpg.UniqueViolationError as error:
        raise _taken(change.external_id) from error
    return await get(tx, collection, person_id)


async def delete(tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> int:
    """Their faces must be gone already."""
    await vectors.forget_elsewhere(tx, collection, person_ids)
    status = await tx.execute(
        "DELETE FROM persons WHERE id = ANY($1::uuid[]) AND collection_key = $2", list(person_ids), collection.key
    )
    return int(status.rpartition(" ")[2])


async def remaining_rows(connection: Connection, collection: Collection, person_ids: Sequence[UUID]) -> int:
    """Rows of the persons, their faces, embeddings and templates that are still there."""
    tables = VectorTables.of(collection)
    return int(
        await connection.fetchval(
            "SELECT (SELECT count(*) FROM persons WHERE id = ANY($1::uuid[]))"
            " + (SELECT count(*) FROM faces WHERE person_id = ANY($1::uuid[]))"
            f" + (SELECT count(*) FROM {tables.embeddings} WHERE person_id = ANY($1::uuid[]))"
            f" + (SELECT count(*) FROM {tables.templates} WHERE person_id = ANY($1::uuid[]))",
            list(person_ids),
        )
    )


async def by_external_ids(connection: Connection, collection: Collection, external_ids: Sequence[str]) -> dict[str, UUID]:
    rows = await connection.fetch(
        "SELECT external_id, id FROM persons WHERE collection_key = $1 AND external_id = ANY($2::text[])",
        collection.key,
        list(external_ids),
    )
    return {row["external_id"]: row["id"] for row in rows}


def missing(person_id: UUID) -> NotFound:
    return NotFound(f"There is no person {person_id} in this collection.", person_id=str(person_id))


def _taken(external_id: str | None) -> AlreadyExists:
    return AlreadyExists("Another person of this collection has this external_id.", external_id=external_id)


def _person(row: Row) -> Person:
    return Person(
        row["id"],
        row["external_id"],
        row["name"],
        row["metadata"],
        row["face_count"],
        row["created_at"],
        row["updated_at"],
    )
