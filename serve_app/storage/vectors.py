"""The tables of embeddings and templates: two of each collection.

Of each collection, because an index over all of them would have to filter out everybody else's faces and come back short.
Tables of their own and not partitions, because dropping a partition locks its parent, and so every other collection, for as
long as the deletion takes.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from pgvector import HalfVector

from serve_app.faces import TEMPLATE_COSINE, FloatArray, templates_of
from serve_app.identity.people import Collection
from serve_app.storage.database import Connection

SAME_TEMPLATE = 0.9995
"""A template that moved by less (cosine) keeps its row: an update in an HNSW index costs 10 ms and leaves a dead tuple,
and every person with many faces has templates that hardly move."""
SAME_EMBEDDING = 0.9999
"""Cosine from which two embeddings of a face differ by rounding only: halves of 128 dimensions keep it to 1e-6."""
_INLINE_FACES = 256
"""Faces of a person above which its templates are computed on a thread."""
_FEW_FACES = 64
"""Of a person, below which a face more may turn a template by more than `SAME_TEMPLATE`."""
_PERSONS_AT_ONCE = 32
"""Whose faces are in memory together."""
_PACKED_FACES = 50_000
"""In one value of a row, which Postgres limits to 1 GB."""


@dataclass(frozen=True, slots=True)
class VectorTables:
    """Names of the two tables of a collection; safe to put into SQL, as they are made of two integers."""

    embeddings: str
    templates: str

    @staticmethod
    def of(collection: Collection) -> VectorTables:
        suffix = f"m{collection.model_key:d}_c{collection.key:d}"
        return VectorTables(f"embeddings_{suffix}", f"templates_{suffix}")

    @property
    def index(self) -> str:
        return f"{self.templates}_hnsw"


async def create_tables(tx: Connection, collection: Collection) -> None:
    await create_embeddings(tx, collection)
    await create_templates(tx, collection)


async def create_embeddings(tx: Connection, collection: Collection) -> None:
    tables, dim = VectorTables.of(collection), collection.contract.dim
    for statement in (
        f"""
        CREATE TABLE {tables.embeddings} (
            face_id uuid NOT NULL PRIMARY KEY,
            person_id uuid,
            embedding halfvec({dim:d}) NOT NULL
        )
        """,
        f"CREATE INDEX {tables.embeddings}_person ON {tables.embeddings} (person_id)",
        # ANALYZE would copy embeddings into the statistics, where they outlive their erasure; the planner has no use for them.
        f"ALTER TABLE {tables.embeddings} ALTER COLUMN embedding SET STATISTICS 0",
    ):
        await tx.execute(statement)


async def create_templates(tx: Connection, collection: Collection) -> None:
    tables, dim = VectorTables.of(collection), collection.contract.dim
    for statement in (
        f"""
        CREATE TABLE {tables.templates} (
            person_id uuid NOT NULL,
            ordinal smallint NOT NULL,
            face_count integer NOT NULL,
            embedding halfvec({dim:d}) NOT NULL,
            PRIMARY KEY (person_id, ordinal)
        ) WITH (fillfactor = 90)
        """,
        # As of the embeddings.
        f"ALTER TABLE {tables.templates} ALTER COLUMN embedding SET STATISTICS 0",
    ):
        await tx.execute(statement)


async def count(tx: Connection, collection: Collection) -> tuple[int, int]:
    """Embeddings and templates."""
    tables = VectorTables.of(collection)
    embeddings = await tx.fetchval(f"SELECT count(*) FROM {tables.embeddings}")
    templates = await tx.fetchval(f"SELECT count(*) FROM {tables.templates}")
    return int(embeddings), int(templates)


async def drop_tables(tx: Connection, collection: Collection) -> None:
    """The last statement of a deletion: it waits for, and holds up, whoever searches or indexes this collection."""
    tables = VectorTables.of(collection)
    await drop(tx, [tables.embeddings, tables.templates, *await others(tx, collection)])


async def drop(tx: Connection, tables: Sequence[str]) -> None:
    """Tables by their names, at least one."""
    # An index build would make it wait for minutes; it has nothing left to build for.
    await tx.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index"
        " WHERE relid = ANY(SELECT to_regclass(name)::oid FROM unnest($1::text[]) AS name)",
        list(tables),
    )
    await tx.execute(f"DROP TABLE {', '.join(tables)}")


async def others(connection: Connection, collection: Collection) -> list[str]:
    """The tables of embeddings that other models have of the collection: one that it is about to be switched to, and those
    that it was switched from. Whoever erases faces erases them there, too."""
    rows = await connection.fetch(
        "SELECT table_name FROM (SELECT key, format('embeddings_m%s_c%s', key, $1::integer) AS table_name"
        " FROM embedding_models) m WHERE key <> $2 AND to_regclass(table_name) IS NOT NULL ORDER BY key",
        collection.key,
        collection.model_key,
    )
    return [row["table_name"] for row in rows]


async def erase_elsewhere(tx: Connection, collection: Collection, face_ids: Sequence[UUID]) -> None:
    """What other models made of these faces."""
    for table in await others(tx, collection):
        await tx.execute(f"DELETE FROM {table} WHERE face_id = ANY($1::uuid[])", list(face_ids))


async def forget_elsewhere(tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> None:
    """Other models' tables know whose a face was when they were last in use."""
    for table in await others(tx, collection):
        await tx.execute(f"UPDATE {table} SET person_id = NULL WHERE person_id = ANY($1::uuid[])", list(person_ids))


async def insert_embeddings(
    tx: Connection, collection: Collection, person_id: UUID | None, rows: Sequence[tuple[UUID, FloatArray]]
) -> None:
    await tx.executemany(
        f"INSERT INTO {VectorTables.of(collection).embeddings} (face_id, person_id, embedding) VALUES ($1, $2, $3)",
        [(face_id, person_id, embedding) for face_id, embedding in rows],
    )


async def replace_embedding(
    tx: Connection, collection: Collection, face_id: UUID, person_id: UUID | None, embedding: FloatArray
) -> bool:
    """Of a face that may have one already. False, and nothing written, where that is as good as the same."""
    table = VectorTables.of(collection).embeddings
    found = await tx.fetchval(
        f"INSERT INTO {table} AS kept (face_id, person_id, embedding) VALUES ($1, $2, $3)"
        " ON CONFLICT (face_id) DO UPDATE SET embedding = excluded.embedding"
        " WHERE kept.embedding <#> excluded.embedding > $4 RETURNING true",
        face_id,
        person_id,
        embedding,
        -SAME_EMBEDDING,
    )
    return bool(found)


def packed(column: str, order: str = "") -> str:
    """SQL for an aggregate of halfvecs that `unpack` reads: in Python a value for each costs ten times as much."""
    return f"string_agg(halfvec_send({column}), ''::bytea {order})"


def unpack(data: bytes | None, dim: int) -> FloatArray:
    """(N, D) float32. Each as on the wire: the number of values, two unused bytes, the values (halfvec_send in pgvector)."""
    rows = np.frombuffer(data or b"", dtype=[("head", ">i2", 2), ("values", ">f2", dim)])
    return rows["values"].astype(np.float32)


async def embeddings_of_persons(tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> dict[UUID, FloatArray]:
    """Of each who has any the (N, D) float32 embeddings, by face id."""
    rows = await tx.fetch(
        f"SELECT person_id, {packed('embedding', 'ORDER BY place')} AS packed FROM (SELECT person_id, embedding,"
        " row_number() OVER (PARTITION BY person_id ORDER BY face_id) AS place"
        f" FROM {VectorTables.of(collection).embeddings} WHERE person_id = ANY($1::uuid[])) e"
        f" GROUP BY person_id, place / {_PACKED_FACES:d} ORDER BY person_id, place / {_PACKED_FACES:d}",
        list(person_ids),
    )
    parts: dict[UUID, list[FloatArray]] = {}
    for row in rows:
        parts.setdefault(row["person_id"], []).append(unpack(row["packed"], collection.contract.dim))
    return {person_id: np.concatenate(theirs) for person_id, theirs in parts.items()}


async def refresh_templates(tx: Connection, collection: Collection, *person_ids: UUID) -> int:
    """Makes the persons' templates those of their present faces; returns how many were removed. They must be locked."""
    wanted, removed = sorted(set(person_ids)), 0
    for start in range(0, len(wanted), _PERSONS_AT_ONCE):
        removed += await _refresh(tx, collection, wanted[start : start + _PERSONS_AT_ONCE])
    return removed


async def _refresh(tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> int:
    tables, dim = VectorTables.of(collection), collection.contract.dim
    embeddings = await embeddings_of_persons(tx, collection, person_ids)
    rows = await tx.fetch(
        f"SELECT person_id, {packed('embedding', 'ORDER BY ordinal')} AS packed FROM {tables.templates}"
        " WHERE person_id = ANY($1::uuid[]) GROUP BY person_id",
        list(person_ids),
    )
    present = {row["person_id"]: unpack(row["packed"], dim) for row in rows}
    moved, same, ends = [], [], []
    for person_id in person_ids:
        theirs, before = embeddings.get(person_id, unpack(None, dim)), present.get(person_id, unpack(None, dim))
        if len(theirs) > _INLINE_FACES:
            wanted, counts = await asyncio.to_thread(templates_of, theirs)
        else:
            wanted, counts = templates_of(theirs)
        for ordinal, (template, face_count) in enumerate(zip(wanted, counts, strict=True)):
            if ordinal < len(before) and float(np.dot(template, before[ordinal])) >= SAME_TEMPLATE:
                same.append((person_id, ordinal, face_count))
            else:
                moved.append((person_id, ordinal, face_count, template))
        if len(before) > len(wanted):
            ends.append((person_id, len(wanted)))
    if moved:
        await tx.executemany(
            f"INSERT INTO {tables.templates} (person_id, ordinal, face_count, embedding) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (person_id, ordinal)"
            " DO UPDATE SET face_count = excluded.face_count, embedding = excluded.embedding",
            moved,
        )
    if same:
        await tx.executemany(
            f"UPDATE {tables.templates} SET face_count = $3 WHERE person_id = $1 AND ordinal = $2 AND face_count <> $3", same
        )
    if ends:
        await tx.executemany(f"DELETE FROM {tables.templates} WHERE person_id = $1 AND ordinal >= $2", ends)
    return sum(len(present[person_id]) - end for person_id, end in ends)


async def grow_templates(tx: Connection, collection: Collection, gained: Mapping[UUID, Sequence[UUID]]) -> None:
    """As `refresh_templates` for persons who have got these faces and lost none, but a face that is like a template of
    somebody with many is only counted there: the template is made anew each time they are a twentieth more, not each time.
    The persons must be locked."""
    tables = VectorTables.of(collection)
    # An expression is not what was indexed: of one person the nearest, not of the nearest those who are the person.
    rows = await tx.fetch(
        f"SELECT e.person_id, t.ordinal, t.similarity, (SELECT sum(face_count) FROM {tables.templates} c"
        f" WHERE c.person_id = e.person_id) AS before FROM {tables.embeddings} e CROSS JOIN LATERAL ("
        f"SELECT t.ordinal, -(t.embedding <#> e.embedding) AS similarity FROM {tables.templates} t"
        " WHERE t.person_id = e.person_id ORDER BY (t.embedding <#> e.embedding) + 0, t.ordinal LIMIT 1) t"
        " WHERE e.face_id = ANY($1::uuid[])",
        [face_id for theirs in gained.values() for face_id in theirs],
    )
    counted: Counter[tuple[UUID, int]] = Counter()
    like: Counter[UUID] = Counter()
    for row in rows:
        person_id, more = row["person_id"], len(gained[row["person_id"]])
        if row["similarity"] >= TEMPLATE_COSINE and _stage(row["before"]) == _stage(row["before"] + more):
            like[person_id] += 1
            counted[person_id, row["ordinal"]] += 1
    only_counted = {person_id for person_id, theirs in gained.items() if like[person_id] == len(theirs)}
    await refresh_templates(tx, collection, *(gained.keys() - only_counted))
    growing = sorted((key, more) for key, more in counted.items() if key[0] in only_counted)
    if growing:
        await tx.execute(
            f"UPDATE {tables.templates} t SET face_count = t.face_count + n.more"
            " FROM unnest($1::uuid[], $2::int[], $3::int[]) AS n (person_id, ordinal, more)"
            " WHERE t.person_id = n.person_id AND t.ordinal = n.ordinal",
            [key[0] for key, _ in growing],
            [key[1] for key, _ in growing],
            [more for _, more in growing],
        )


def _stage(faces: int) -> int:
    """Changes with each face of somebody with few, and with each twentieth of somebody with many."""
    return faces if faces < _FEW_FACES else int(math.log(faces) / math.log(1.05))


async def remove_templates(tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> None:
    """Of persons who have no faces any more. They must be locked."""
    await tx.execute(
        f"DELETE FROM {VectorTables.of(collection).templates} WHERE person_id = ANY($1::uuid[])", list(person_ids)
    )


def stack(vectors: Sequence[HalfVector], dim: int) -> FloatArray:
    """(N, D) float32."""
    if not vectors:
        return np.empty((0, dim), dtype=np.float32)
    return np.stack([vector.to_numpy() for vector in vectors]).astype(np.float32)


def affected(status: str) -> int:
    """Rows of a command's status, as "DELETE 3"."""
    return int(status.rpartition(" ")[2])
