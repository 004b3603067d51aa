"""The tables of embeddings and templates: one parent a model, one partition a collection.

A partition a collection, because an index over all of them would have to filter out everybody else's faces and come back
short; a table a model, because a column without a dimension cannot be indexed. Statements name the partition itself:
creating or dropping one never waits for, or holds up, a search of another.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class VectorTables:
    """Names of the two partitions of a collection; safe to put into SQL, as they are made of two integers."""

    embeddings: str
    templates: str

    @staticmethod
    def of(collection: Collection) -> VectorTables:
        suffix = f"m{collection.model_key:d}_c{collection.key:d}"
        return VectorTables(f"embeddings_{suffix}", f"templates_{suffix}")

    @property
    def index(self) -> str:
        return f"{self.templates}_hnsw"


async def create_model_tables(tx: Connection, model_key: int, dim: int) -> None:
    for statement in (
        f"""
        CREATE TABLE IF NOT EXISTS embeddings_m{model_key:d} (
            collection_key integer NOT NULL,
            face_id uuid NOT NULL,
            person_id uuid,
            embedding halfvec({dim:d}) NOT NULL
        ) PARTITION BY LIST (collection_key)
        """,
        f"""
        CREATE TABLE IF NOT EXISTS templates_m{model_key:d} (
            collection_key integer NOT NULL,
            person_id uuid NOT NULL,
            ordinal smallint NOT NULL,
            face_count integer NOT NULL,
            embedding halfvec({dim:d}) NOT NULL
        ) PARTITION BY LIST (collection_key)
        """,
    ):
        await tx.execute(statement)


async def create_partitions(tx: Connection, collection: Collection) -> None:
    """Made aside and attached: CREATE TABLE PARTITION OF would lock the parent against every search."""
    tables = VectorTables.of(collection)
    for parent, child in (
        (f"embeddings_m{collection.model_key:d}", tables.embeddings),
        (f"templates_m{collection.model_key:d}", tables.templates),
    ):
        await tx.execute(f"CREATE TABLE {child} (LIKE {parent}) WITH (fillfactor = 90)")
        await tx.execute(f"ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES IN ({collection.key:d})")
    await tx.execute(f"ALTER TABLE {tables.embeddings} ADD PRIMARY KEY (face_id)")
    await tx.execute(f"CREATE INDEX {tables.embeddings}_person ON {tables.embeddings} (person_id)")
    await tx.execute(f"ALTER TABLE {tables.templates} ADD PRIMARY KEY (person_id, ordinal)")


async def drop_partitions(tx: Connection, collection: Collection) -> tuple[int, int]:
    """Number of embeddings and templates that are gone."""
    tables = VectorTables.of(collection)
    embeddings = await tx.fetchval(f"SELECT count(*) FROM {tables.embeddings}")
    templates = await tx.fetchval(f"SELECT count(*) FROM {tables.templates}")
    await tx.execute(f"DROP TABLE {tables.embeddings}, {tables.templates}")
    return int(embeddings), int(templates)


async def insert_embeddings(
    tx: Connection, collection: Collection, person_id: UUID | None, rows: Sequence[tuple[UUID, FloatArray]]
) -> None:
    await tx.executemany(
        f"INSERT INTO {VectorTables.of(collection).embeddings} (collection_key, face_id, person_id, embedding)"
        " VALUES ($1, $2, $3, $4)",
        [(collection.key, face_id, person_id, embedding) for face_id, embedding in rows],
    )


async def embeddings_of_person(tx: Connection, collection: Collection, person_id: UUID) -> tuple[list[UUID], FloatArray]:
    """Face ids and their (N, D) float32 embeddings."""
    rows = await tx.fetch(
        f"SELECT face_id, embedding FROM {VectorTables.of(collection).embeddings} WHERE person_id = $1 ORDER BY face_id",
        person_id,
    )
    return [row["face_id"] for row in rows], stack([row["embedding"] for row in rows], collection.contract.dim)


async def refresh_templates(tx: Connection, collection: Collection, person_id: UUID, split_below: float) -> int:
    """Makes a person's templates those of its present faces; returns how many were removed. The person must be locked."""
    tables = VectorTables.of(collection)
    _, embeddings = await embeddings_of_person(tx, collection, person_id)
    wanted, counts = templates_of(embeddings, split_below)
    rows = await tx.fetch(
        f"SELECT ordinal, embedding FROM {tables.templates} WHERE person_id = $1 ORDER BY ordinal",
        person_id,
    )
    present = stack([row["embedding"] for row in rows], collection.contract.dim)
    for ordinal, (template, count) in enumerate(zip(wanted, counts, strict=True)):
        if ordinal < len(present) and float(np.dot(template, present[ordinal])) >= SAME_TEMPLATE:
            await tx.execute(
                f"UPDATE {tables.templates} SET face_count = $3 WHERE person_id = $1 AND ordinal = $2 AND face_count <> $3",
                person_id,
                ordinal,
                int(count),
            )
            continue
        await tx.execute(
            f"INSERT INTO {tables.templates} (collection_key, person_id, ordinal, face_count, embedding)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (person_id, ordinal)"
            " DO UPDATE SET face_count = excluded.face_count, embedding = excluded.embedding",
            collection.key, person_id, ordinal, int(count), template,
        )  # fmt: skip
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
