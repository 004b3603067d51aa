"""What keeps search fast: when a collection changes its path, and the index of its templates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from serve_app.faces import FloatArray
from serve_app.identity.people import Collection
from serve_app.storage import collections, photo_embeddings, search, vectors
from serve_app.storage.database import Connection
from serve_app.storage.vectors import VectorTables

_MAINTENANCE_LOCK = 0x6B6C6D61696E74

HNSW_M = 32
HNSW_EF_CONSTRUCTION = 128
"""Twice pgvector's own: of 188,000 templates without further structure, m 16 finds 0.856 of the known persons among 200
candidates, m 32 0.982, and 0.997 among 600 (docs/performance.md, "Search")."""
_EF_SEARCH = ((10_000, 100), (30_000, 200), (80_000, 400), (150_000, 700))
_MAX_EF_SEARCH = 1_000
"""Templates up to which so many candidates are looked at: the more strangers, the more of them stand between."""


@dataclass(frozen=True, slots=True)
class IndexState:
    """`bytes` and `valid` of the HNSW index; None where there is none. `dead`: dead tuples of the templates' table."""

    templates: int
    faces: int
    index_bytes: int | None
    index_valid: bool | None
    table_bytes: int
    dead: int


class MaintenanceFailed(Exception):
    """Of one collection; internal."""


@asynccontextmanager
async def only_one(connection: Connection) -> AsyncIterator[bool]:
    """Whether this process may maintain; others get False. The connection must be a dedicated one."""
    mine = bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", _MAINTENANCE_LOCK))
    try:
        yield mine
    finally:
        if mine:
            await connection.execute("SELECT pg_advisory_unlock($1)", _MAINTENANCE_LOCK)


async def choose_search_mode(connection: Connection, collection: Collection) -> str:
    """Brings `search_mode` and the indexes in line with the collection's size; returns the mode.

    Builds the index without blocking writers, which takes minutes for a million templates. Needs autocommit.
    """
    try:
        await photo_embeddings.maintain(connection, collection)
        return await _choose_search_mode(connection, collection)
    except asyncpg.UndefinedTableError:
        # Deleted since it was listed.
        return collection.search_mode
    except asyncpg.PostgresConnectionError:
        raise
    except asyncpg.PostgresError as error:
        raise MaintenanceFailed(f"its index could not be brought up to date: {error}") from error


async def _choose_search_mode(connection: Connection, collection: Collection) -> str:
    tables = VectorTables.of(collection)
    # Faces that nobody has are not searched.
    faces = await _count_up_to(connection, f"{tables.embeddings} WHERE person_id IS NOT NULL", search.EXACT_MAX_FACES)
    # Back only well below the border, so that a collection near it does not change with each face.
    if faces <= search.EXACT_MAX_FACES and (collection.search_mode == "exact" or faces > search.EXACT_MAX_FACES // 2):
        return collection.search_mode
    if faces <= search.EXACT_MAX_FACES // 2:
        await collections.set_search_mode(connection, collection, "exact", _EF_SEARCH[0][1])
        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {tables.index}")
        return "exact"
    templates = await _count_up_to(connection, tables.templates, search.HNSW_MIN_TEMPLATES)
    state = await _index_valid(connection, tables.index)
    if templates > search.HNSW_MIN_TEMPLATES and state is not True:
        if state is False:
            # What a build that was interrupted leaves behind.
            await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {tables.index}")
        await build_index(connection, collection)
    ef_search = await _ef_search_for(connection, tables)
    if collection.search_mode != "templates":
        await connection.execute(f"ANALYZE {tables.embeddings}, {tables.templates}")
    if (collection.search_mode, collection.ef_search) != ("templates", ef_search):
        await collections.set_search_mode(connection, collection, "templates", ef_search)
    return "templates"


async def _ef_search_for(connection: Connection, tables: VectorTables) -> int:
    """By the planner's estimate of the templates, which an index build and ANALYZE keep up."""
    estimate = await connection.fetchval("SELECT reltuples FROM pg_class WHERE oid = to_regclass($1)", tables.templates)
    return next((ef for templates, ef in _EF_SEARCH if (estimate or 0) <= templates), _MAX_EF_SEARCH)


async def build_index(connection: Connection, collection: Collection) -> None:
    tables = VectorTables.of(collection)
    await connection.execute(
        f"CREATE INDEX CONCURRENTLY {tables.index} ON {tables.templates} USING hnsw (embedding halfvec_ip_ops)"
        f" WITH (m = {HNSW_M}, ef_construction = {HNSW_EF_CONSTRUCTION})"
    )


async def reindex(connection: Connection, collection: Collection) -> None:
    """A fresh index beside the old one, then dead tuples away: a plain VACUUM would repair the old graph one by one."""
    tables = VectorTables.of(collection)
    await connection.execute(f"REINDEX INDEX CONCURRENTLY {tables.index}")
    await connection.execute(f"VACUUM (ANALYZE) {tables.templates}")


async def index_state(connection: Connection, collection: Collection) -> IndexState:
    tables = VectorTables.of(collection)
    row = await connection.fetchrow(
        f"SELECT (SELECT count(*) FROM {tables.templates}) AS templates, (SELECT count(*) FROM {tables.embeddings}) AS faces,"
        " pg_relation_size(to_regclass($1)) AS index_bytes, pg_total_relation_size($2::regclass) AS table_bytes,"
        " coalesce((SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = $2::regclass), 0) AS dead",
        tables.index,
        tables.templates,
    )
    assert row is not None
    valid = await _index_valid(connection, tables.index)
    return IndexState(row["templates"], row["faces"], row["index_bytes"], valid, row["table_bytes"], row["dead"])


async def sample_embeddings(connection: Connection, collection: Collection, count: int) -> list[tuple[UUID, FloatArray]]:
    """Up to `count` faces with a person, at random: person id and (D,) float32 embedding."""
    tables = VectorTables.of(collection)
    rows = await connection.fetch(
        # Blocks first: sorting a million rows by random() takes seconds.
        f"SELECT person_id, embedding FROM (SELECT person_id, embedding FROM {tables.embeddings}"
        " TABLESAMPLE SYSTEM ($2) WHERE person_id IS NOT NULL) AS sampled ORDER BY random() LIMIT $1",
        count,
        await _sample_percent(connection, tables.embeddings, count),
    )
    embeddings = vectors.stack([row["embedding"] for row in rows], collection.contract.dim)
    return [(row["person_id"], embedding) for row, embedding in zip(rows, embeddings, strict=True)]


async def _sample_percent(connection: Connection, table: str, count: int) -> float:
    rows = int(await connection.fetchval(f"SELECT count(*) FROM {table} WHERE person_id IS NOT NULL"))
    # Ten times as many as wanted: blocks are sampled whole, and neighbours are often of one person.
    return 100.0 if rows <= 10 * count else 1000.0 * count / rows


async def _count_up_to(connection: Connection, table: str, limit: int) -> int:
    """`table`: may have a condition after it."""
    return int(await connection.fetchval(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {limit + 1:d}) AS counted"))


async def _index_valid(connection: Connection, index: str) -> bool | None:
    valid: bool | None = await connection.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", index)
    return valid
