"""What photos show, as vectors of image-text models: a table of each model and collection, made with its first photo.

Tables of their own for the reasons of `storage/vectors.py`. Nothing in them refers to `photos`: dropping such a table would
lock all photos of everybody. So a photo's embeddings are removed by whoever removes the photo, after its row.

Searched one by one up to `EXACT_MAX_PHOTOS`, beyond through an HNSW index, which housekeeping builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from serve_app.errors import EmbeddingModelMismatch
from serve_app.faces import FloatArray
from serve_app.identity.people import Collection
from serve_app.storage.database import Connection
from serve_app.storage.vectors import affected

EXACT_MAX_PHOTOS = 20_000
"""Photos up to which all are compared: 21 ms at 512 dimensions, on two busy cores; 50,000 take 50, through an index 18."""
_HNSW_M = 16
_HNSW_EF_CONSTRUCTION = 128
_MIN_EF_SEARCH, _MAX_EF_SEARCH = 100, 1_000


@dataclass(frozen=True, slots=True)
class SemanticTable:
    """Safe to put into SQL: it is made of two integers."""

    name: str

    @staticmethod
    def of(collection: Collection, model_key: int) -> SemanticTable:
        return SemanticTable(f"photo_embeddings_m{model_key:d}_c{collection.key:d}")

    @property
    def index(self) -> str:
        return f"{self.name}_hnsw"


async def keep(tx: Connection, collection: Collection, model: str, photo_id: UUID, embedding: FloatArray) -> None:
    """In the place of the one before. `embedding`: (D,) float32, unit norm. The collection and the photo must be locked.

    Raises EmbeddingModelMismatch when the model made vectors of another length before.
    """
    table = await _ensure_table(tx, collection, model, len(embedding))
    await tx.execute(
        f"INSERT INTO {table.name} (photo_id, embedding) VALUES ($1, $2)"
        " ON CONFLICT (photo_id) DO UPDATE SET embedding = excluded.embedding",
        photo_id,
        embedding,
    )


async def has(connection: Connection, collection: Collection, model: str, photo_id: UUID) -> bool:
    table = await _table(connection, collection, model)
    if table is None:
        return False
    return bool(await connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table.name} WHERE photo_id = $1)", photo_id))


async def without(connection: Connection, collection: Collection, model: str) -> list[UUID]:
    """The photos that have no embedding of the model, in order of upload."""
    table = await _table(connection, collection, model)
    lacking = "" if table is None else f"AND NOT EXISTS (SELECT 1 FROM {table.name} e WHERE e.photo_id = p.id)"
    rows = await connection.fetch(
        f"SELECT p.id FROM photos p WHERE p.collection_key = $1 {lacking} ORDER BY p.created_at, p.id", collection.key
    )
    return [row["id"] for row in rows]


async def nearest(
    connection: Connection, collection: Collection, model: str, probe: FloatArray, limit: int
) -> list[tuple[UUID, float]]:
    """Up to `limit` photos and their similarity, by falling similarity. `probe`: (D,) float32, unit norm."""
    table = await _table(connection, collection, model)
    if table is None:
        return []
    # A round trip, 0.15 ms. The session keeps it; whoever searches by an index sets it first.
    ef_search = min(_MAX_EF_SEARCH, max(_MIN_EF_SEARCH, 2 * limit))
    await connection.execute("SELECT set_config('hnsw.ef_search', $1, false)", str(ef_search))
    rows = await connection.fetch(
        # The index answers nearly in order. A literal: for a parameter the planner assumes a tenth of the table, and scans it.
        f"SELECT photo_id, -distance AS similarity FROM (SELECT photo_id, embedding <#> $1 AS distance FROM {table.name}"
        f" ORDER BY embedding <#> $1 LIMIT {limit:d}) AS found ORDER BY distance, photo_id",
        probe,
    )
    return [(row["photo_id"], float(row["similarity"])) for row in rows]


async def nearest_among(
    connection: Connection, collection: Collection, model: str, probe: FloatArray, photo_ids: Sequence[UUID]
) -> list[tuple[UUID, float]]:
    """Those of the photos that have an embedding, by falling similarity."""
    table = await _table(connection, collection, model)
    if table is None:
        return []
    rows = await connection.fetch(
        f"SELECT photo_id, -(embedding <#> $1) AS similarity FROM {table.name} WHERE photo_id = ANY($2::uuid[])"
        # An expression is not what was indexed.
        " ORDER BY (embedding <#> $1) + 0, photo_id",
        probe,
        list(photo_ids),
    )
    return [(row["photo_id"], float(row["similarity"])) for row in rows]


async def count(connection: Connection, collection: Collection, model: str) -> int:
    table = await _table(connection, collection, model)
    return 0 if table is None else int(await connection.fetchval(f"SELECT count(*) FROM {table.name}"))


async def remove(tx: Connection, collection: Collection, photo_ids: Sequence[UUID]) -> int:
    """Of every model. Call it after the photos' rows are deleted: who keeps an embedding locks the photo first."""
    removed = 0
    for table in await _tables(tx, collection):
        removed += affected(await tx.execute(f"DELETE FROM {table.name} WHERE photo_id = ANY($1::uuid[])", list(photo_ids)))
    return removed


async def remaining(connection: Connection, collection: Collection, photo_id: UUID) -> int:
    """Embeddings of a photo, of every model."""
    found = 0
    for table in await _tables(connection, collection):
        found += int(await connection.fetchval(f"SELECT count(*) FROM {table.name} WHERE photo_id = $1", photo_id))
    return found


async def forget(tx: Connection, collection: Collection) -> list[SemanticTable]:
    """The tables of every model, for `drop_tables`. The collection must be locked for deletion."""
    rows = await tx.fetch("DELETE FROM semantic_collections WHERE collection_key = $1 RETURNING model_key", collection.key)
    return [SemanticTable.of(collection, row["model_key"]) for row in rows]


async def drop_tables(tx: Connection, tables: Sequence[SemanticTable]) -> None:
    """At the end of a deletion: it waits for, and holds up, whoever searches these."""
    for table in tables:
        # An index build would make it wait for minutes; it has nothing left to build for.
        await tx.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index WHERE relid = to_regclass($1)::oid", table.name
        )
        await tx.execute(f"DROP TABLE {table.name}")


async def orphans(connection: Connection, collection: Collection) -> int:
    """Embeddings of photos that the collection does not have."""
    found = 0
    for table in await _tables(connection, collection):
        found += int(
            await connection.fetchval(
                f"SELECT count(*) FROM {table.name} e"
                " WHERE NOT EXISTS (SELECT 1 FROM photos p WHERE p.id = e.photo_id AND p.collection_key = $1)",
                collection.key,
            )
        )
    return found


async def maintain(connection: Connection, collection: Collection) -> None:
    """An index where there are enough photos for one, none where there are few. Builds it without blocking writers. Needs
    autocommit; raises asyncpg.PostgresError when a build fails."""
    for table in await _tables(connection, collection):
        try:
            await _maintain(connection, table)
        except asyncpg.UndefinedTableError:
            # Deleted since it was listed.
            continue


async def _maintain(connection: Connection, table: SemanticTable) -> None:
    photos = int(
        await connection.fetchval(
            f"SELECT count(*) FROM (SELECT 1 FROM {table.name} LIMIT {EXACT_MAX_PHOTOS + 1:d}) AS counted"
        )
    )
    valid = await connection.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", table.index
    )  # fmt: skip
    # Back only well below the border, so that a library near it does not change with each photo.
    if valid is False or (valid is True and photos <= EXACT_MAX_PHOTOS // 2):
        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {table.index}")
    if photos > EXACT_MAX_PHOTOS and valid is not True:
        await connection.execute(
            f"CREATE INDEX CONCURRENTLY {table.index} ON {table.name} USING hnsw (embedding halfvec_ip_ops)"
            f" WITH (m = {_HNSW_M}, ef_construction = {_HNSW_EF_CONSTRUCTION})"
        )


async def _table(connection: Connection, collection: Collection, model: str) -> SemanticTable | None:
    key = await connection.fetchval(
        "SELECT c.model_key FROM semantic_collections c JOIN semantic_models m ON m.key = c.model_key"
        " WHERE c.collection_key = $1 AND m.name = $2",
        collection.key,
        model,
    )
    return None if key is None else SemanticTable.of(collection, key)


async def _tables(connection: Connection, collection: Collection) -> list[SemanticTable]:
    rows = await connection.fetch(
        "SELECT model_key FROM semantic_collections WHERE collection_key = $1 ORDER BY model_key", collection.key
    )
    return [SemanticTable.of(collection, row["model_key"]) for row in rows]


async def _ensure_table(tx: Connection, collection: Collection, model: str, dim: int) -> SemanticTable:
    key = await _model_key(tx, model, dim)
    table = SemanticTable.of(collection, key)
    where = "collection_key = $1 AND model_key = $2"
    if await tx.fetchval(f"SELECT true FROM semantic_collections WHERE {where}", collection.key, key):
        return table
    # Who comes second waits here until the first has committed, and then finds the table.
    made = await tx.fetchval(
        "INSERT INTO semantic_collections (collection_key, model_key) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
        collection.key,
        key,
    )
    if made:
        await tx.execute(
            f"CREATE TABLE {table.name} (photo_id uuid NOT NULL PRIMARY KEY, embedding halfvec({dim:d}) NOT NULL)"
        )  # fmt: skip
        # ANALYZE would copy embeddings into the statistics, where they outlive their erasure.
        await tx.execute(f"ALTER TABLE {table.name} ALTER COLUMN embedding SET STATISTICS 0")
    return table


async def _model_key(tx: Connection, model: str, dim: int) -> int:
    # Looked up first: an insert that conflicts uses up a number each time.
    for _ in range(2):
        row = await tx.fetchrow("SELECT key, dim FROM semantic_models WHERE name = $1", model)
        if row is not None:
            if row["dim"] != dim:
                raise EmbeddingModelMismatch(
                    f"{model!r} made vectors of {row['dim']} values until now, and of {dim} at present.",
                    model=model,
                    dim=row["dim"],
                    loaded_dim=dim,
                )
            return int(row["key"])
        await tx.execute("INSERT INTO semantic_models (name, dim) VALUES ($1, $2) ON CONFLICT DO NOTHING", model, dim)
    raise AssertionError("unreachable")
