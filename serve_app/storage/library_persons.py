"""Persons of the library as a page shows them: with how many faces and photos they have, and the face that stands for them.

Faces are counted by the templates, which say how many each stands for and are a fraction of the faces: a page by falling
number of faces reads them once and not every face.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from serve_app.identity.people import Collection, Metadata
from serve_app.storage import persons
from serve_app.storage.database import Connection, Row
from serve_app.storage.vectors import VectorTables

_COVERS_LOOKED_AT = 16
"""Of a person without a chosen cover: the largest of so many faces stands for it."""


class PersonSort(StrEnum):
    NAME = "name"
    FACES = "face_count"
    RECENT = "recent"


@dataclass(frozen=True, slots=True)
class LibraryPerson:
    """`cover_face_id`: the chosen face, else a large one; None without faces. `photo_count`: of the library's photos."""

    id: UUID
    external_id: str | None
    name: str
    metadata: Metadata
    hidden: bool
    founded_by: str
    face_count: int
    photo_count: int
    cover_face_id: UUID | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class PersonsWanted:
    """`name`: a part of it, whatever its case. `named`, `hidden`: None for both kinds."""

    sort: PersonSort = PersonSort.FACES
    name: str | None = None
    named: bool | None = None
    hidden: bool | None = False


@dataclass(frozen=True, slots=True)
class PersonPosition:
    """Where a page ended: what it is sorted by (nothing for the newest first), and the person."""

    value: str | int | None
    person_id: UUID


def _columns(collection: Collection) -> str:
    return f"""
    SELECT p.id, p.external_id, p.name, p.metadata, p.hidden, p.founded_by, p.created_at, p.updated_at,
           (SELECT coalesce(sum(t.face_count), 0) FROM {VectorTables.of(collection).templates} t WHERE t.person_id = p.id)
               AS face_count,
           (SELECT s.pictures - CASE WHEN s.enrolled = 0 THEN 0 ELSE (
                SELECT count(DISTINCT f.image_id) FROM faces f WHERE f.person_id = p.id
                AND NOT EXISTS (SELECT 1 FROM photos q WHERE q.image_id = f.image_id)) END
            FROM (SELECT count(DISTINCT f.image_id) AS pictures, count(*) FILTER (WHERE f.found_by = 'enrolment') AS enrolled
                  FROM faces f WHERE f.person_id = p.id) s)
               AS photo_count,
           coalesce(
               (SELECT f.id FROM faces f WHERE f.id = p.cover_face_id AND f.person_id = p.id),
               (SELECT s.id FROM (SELECT f.id, f.quality, f.crop_key FROM faces f WHERE f.person_id = p.id ORDER BY f.id
                                  LIMIT {_COVERS_LOOKED_AT:d}) s
                ORDER BY s.crop_key IS NULL, (s.quality ->> 'size_px')::real DESC NULLS LAST, s.id LIMIT 1)
           ) AS cover_face_id
    """


async def get(connection: Connection, collection: Collection, person_id: UUID) -> LibraryPerson:
    """Raises NotFound."""
    row = await connection.fetchrow(
        f"{_columns(collection)} FROM persons p WHERE p.id = $1 AND p.collection_key = $2", person_id, collection.key
    )
    if row is None:
        raise persons.missing(person_id)
    return _person(row)


async def some(connection: Connection, collection: Collection, person_ids: list[UUID]) -> dict[UUID, LibraryPerson]:
    """Those that are there."""
    rows = await connection.fetch(
        f"{_columns(collection)} FROM persons p WHERE p.id = ANY($1::uuid[]) AND p.collection_key = $2",
        person_ids,
        collection.key,
    )
    return {row["id"]: _person(row) for row in rows}


async def page(
    connection: Connection, collection: Collection, wanted: PersonsWanted, after: PersonPosition | None, limit: int
) -> list[LibraryPerson]:
    """By name (those without one last), falling number of faces, or the newest first."""
    values: list[object] = [collection.key]

    def bind(value: object) -> str:
        values.append(value)
        return f"${len(values)}"

    conditions = ["p.collection_key = $1"]
    if wanted.name is not None:
        conditions.append(f"strpos(lower(p.name), lower({bind(wanted.name)})) > 0")
    if wanted.named is not None:
        conditions.append("p.name <> ''" if wanted.named else "p.name = ''")
    if wanted.hidden is not None:
        conditions.append("p.hidden" if wanted.hidden else "NOT p.hidden")
    table, order = "persons p", ""
    if wanted.sort is PersonSort.RECENT:
        order = "p.id DESC"
        if after is not None:
            conditions.append(f"p.id < {bind(after.person_id)}")
    elif wanted.sort is PersonSort.FACES:
        table += (
            f" LEFT JOIN (SELECT person_id, sum(face_count) AS n FROM {VectorTables.of(collection).templates}"
            " GROUP BY person_id) c ON c.person_id = p.id"
        )
        order = "coalesce(c.n, 0) DESC, p.id DESC"
        if after is not None:
            conditions.append(f"(coalesce(c.n, 0), p.id) < ({bind(after.value)}::bigint, {bind(after.person_id)}::uuid)")
    else:
        return await _by_name(connection, collection, conditions, values, after, limit)
    return await _page(connection, collection, table, conditions, order, values, limit)


async def _by_name(
    connection: Connection,
    collection: Collection,
    conditions: list[str],
    values: list[object],
    after: PersonPosition | None,
    limit: int,
) -> list[LibraryPerson]:
    """Two walks of one index: those with a name, then those without."""
    found: list[LibraryPerson] = []
    order = "lower(p.name), p.id"
    if after is None or after.value:
        more, arguments = ["p.name <> ''"], [*values]
        if after is not None:
            arguments += [after.value, after.person_id]
            more.append(f"(lower(p.name), p.id) > (lower(${len(values) + 1}::text), ${len(values) + 2}::uuid)")
        found = await _page(connection, collection, "persons p", [*conditions, *more], order, arguments, limit)
    if len(found) < limit:
        more, arguments = ["lower(p.name) = ''"], [*values]
        if after is not None and not after.value:
            arguments.append(after.person_id)
            more.append(f"p.id > ${len(arguments)}")
        rest = limit - len(found)
        found += await _page(connection, collection, "persons p", [*conditions, *more], order, arguments, rest)
    return found


async def _page(
    connection: Connection,
    collection: Collection,
    table: str,
    conditions: list[str],
    order: str,
    values: list[object],
    limit: int,
) -> list[LibraryPerson]:
    # The page is chosen first: what stands beside a person is looked up of its persons only.
    rows = await connection.fetch(
        f"WITH chosen AS MATERIALIZED (SELECT p.id, row_number() OVER () AS place FROM (SELECT p.id FROM {table}"
        f" WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT {limit:d}) p)"
        f" {_columns(collection)} FROM chosen JOIN persons p ON p.id = chosen.id ORDER BY chosen.place",
        *values,
    )
    return [_person(row) for row in rows]


async def named(connection: Connection, collection: Collection, name: str) -> list[UUID]:
    """Persons of exactly this name who are not hidden."""
    rows = await connection.fetch(
        "SELECT id FROM persons WHERE collection_key = $1 AND lower(name) = lower($2) AND name = $2 AND NOT hidden"
        " ORDER BY id",
        collection.key,
        name,
    )
    return [row["id"] for row in rows]


async def one_at_a_time(tx: Connection, collection: Collection, name: str) -> None:
    """Keeps others from making a person of this name until the transaction ends."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, $2))", name, collection.key)


def _person(row: Row) -> LibraryPerson:
    return LibraryPerson(
        row["id"],
        row["external_id"],
        row["name"],
        row["metadata"],
        row["hidden"],
        row["founded_by"],
        row["face_count"],
        row["photo_count"],
        row["cover_face_id"],
        row["created_at"],
        row["updated_at"],
    )
