"""The tables of embeddings and templates: two of each collection.

Of each collection, because an index over all of them would have to filter out everybody else's faces and come back short.
Tables of their own and not partitions, because dropping a partition locks its parent, and so every other collection, for as
long as the deletion takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from pgvector import HalfVector

from serve_app.faces import FloatArray, templates_of
from serve_app.people import Collection
from serve_app.storage.database import Connection

SAME_TEMPLATE = 0.9995
"""A template that moved by less (cosine) keeps its row: an update in an HNSW index costs 10 ms and leaves a dead tuple,
and every person with many faces has templates that hardly move."""
_INLINE_FACES = 256
"""Faces of a person above which its templates are computed on a thread."""


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
        f"""
        CREATE TABLE {tables.templates} (
            person_id uuid NOT NULL,
            ordinal smallint NOT NULL,
            face_count integer NOT NULL,
            embedding halfvec({dim:d}) NOT NULL,
            PRIMARY KEY (person_id, ordinal)
        ) WITH (fillfactor = 90)
        """,
        # ANALYZE would copy embeddings into the statistics, where they outlive their erasure; the planner has no use for them.
        f"ALTER TABLE {tables.embeddings} ALTER COLUMN embedding SET STATISTICS 0",
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
    # An index build would make it wait for minutes; it has nothing left to build for.
    await tx.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index"
        " WHERE relid = ANY(ARRAY[to_regclass($1), to_regclass($2)]::oid[])",
        tables.embeddings,
        tables.templates,
    )
    await tx.execute(f"DROP TABLE {tables.embeddings}, {tables.templates}")


async def insert_embeddings(
    tx: Connection, collection: Collection, person_id: UUID | None, rows: Sequence[tuple[UUID, FloatArray]]
) -> None:
    await tx.executemany(
        f"INSERT INTO {VectorTables.of(collection).embeddings} (face_id, person_id, embedding) VALUES ($1, $2, $3)",
        [(face_id, person_id, embedding) for face_id, embedding in rows],
    )


async def embeddings_of_person(tx: Connection, collection: Collection, person_id: UUID) -> tuple[list[UUID], FloatArray]:
    """Face ids and their (N, D) float32 embeddings."""
    rows = await tx.fetch(
        f"SELECT face_id, embedding FROM {VectorTables.of(collection).embeddings} WHERE person_id = $1 ORDER BY face_id",
        person_id,
    )
    return [row["face_id"] for row in rows], stack([row["embedding"] for row in rows], collection.contract.dim)


async def refresh_templates(tx: Connection, collection: Collection, person_id: UUID) -> int:
    """Makes a person's templates those of its present faces; returns how many were removed. The person must be locked."""
    tables = VectorTables.of(collection)
    _, embeddings = await embeddings_of_person(tx, collection, person_id)
    if len(embeddings) > _INLINE_FACES:
        wanted, counts = await asyncio.to_thread(templates_of, embeddings)
    else:
        wanted, counts = templates_of(embeddings)
    rows = await tx.fetch(
        f"SELECT ordinal, embedding FROM {tables.templates} WHERE person_id = $1 ORDER BY ordinal",
        person_id,
    )
    present = stack([row["embedding"] for row in rows], collection.contract.dim)
    moved, same = [], []
    for ordinal, (template, face_count) in enumerate(zip(wanted, counts, strict=True)):
        if ordinal < len(present) and float(np.dot(template, present[ordinal])) >= SAME_TEMPLATE:
            same.append((person_id, ordinal, face_count))
        else:
            moved.append((person_id, ordinal, face_count, template))
    await tx.executemany(
        f"INSERT INTO {tables.templates} (person_id, ordinal, face_count, embedding) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (person_id, ordinal) DO UPDATE SET face_count = excluded.face_count, embedding = excluded.embedding",
        moved,
    )
    await tx.executemany(
        f"UPDATE {tables.templates} SET face_count = $3 WHERE person_id = $1 AND ordinal = $2 AND face_count <> $3", same
    )
    removed = await tx.execute(
        f"DELETE FROM {tables.templates} WHERE person_id = $1 AND ordinal >= $2",
        person_id,
        len(wanted),
    )
    return affected(removed)


def stack(vectors: Sequence[HalfVector], dim: int) -> FloatArray:
    """(N, D) float32."""
    if not vectors:
        return np.empty((0, dim), dtype=np.float32)
    return np.stack([vector.to_numpy() for vector in vectors]).astype(np.float32)


def affected(status: str) -> int:
    """Rows of a command's status, as "DELETE 3"."""
    return int(status.rpartition(" ")[2])
