"""What `kinlens db check` asks the database: rows that should belong together, and the index against the truth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from serve_app.errors import NotFound
from serve_app.faces import FloatArray
from serve_app.identity.people import Collection
from serve_app.storage.database import Connection
from serve_app.storage.maintenance import HNSW_M
from serve_app.storage.vectors import VectorTables

_PAGE_BYTES = 8192 - 24 - 8
"""Of a page of an index, less its header and pgvector's 8 bytes at its end."""
_ELEMENT_HEADER_BYTES = 72 + 8
"""HnswElementTupleData of pgvector's hnsw.h up to its vector, and the header of a halfvec."""
_ITEM_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Mismatches:
    """Rows of a collection that lack what belongs to them; all 0 where nothing is wrong."""

    faces_without_embedding: int
    embeddings_without_face: int
    embeddings_of_another_person: int
    persons_without_templates: int
    templates_without_person: int
    pictures_of_nothing: int
    photos_of_another_collection: int
    photos_with_wrong_tag_count: int
    jobs_with_wrong_counts: int


@contextmanager
def still_there(collection: Collection) -> Iterator[None]:
    """Raises NotFound when the collection is deleted while it is looked at."""
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        raise NotFound(f"The collection {collection.id!r} was deleted meanwhile.", collection_id=collection.id) from error


async def mismatches(connection: Connection, collection: Collection) -> Mismatches:
    """Of one moment, while others write. `persons_without_templates`: that have faces. `templates_without_person`: of a
    person that is gone, or has no face left. `pictures_of_nothing`: neither a face nor a photo comes from them.
    `photos_of_another_collection`: than their picture, or their tags.
    `photos_with_wrong_tag_count`: their row names another number of tags than there are. `jobs_with_wrong_counts`: their
    counters another number of items, in all or of a state.

    Reads every row of the collection once or twice."""
    tables = VectorTables.of(collection)
    key = f"{collection.key:d}"
    row = await connection.fetchrow(
        f"""
        SELECT
            (SELECT count(*) FROM faces f WHERE f.collection_key = {key}
                AND NOT EXISTS (SELECT 1 FROM {tables.embeddings} e WHERE e.face_id = f.id)) AS faces_without_embedding,
            (SELECT count(*) FROM {tables.embeddings} e
                WHERE NOT EXISTS (SELECT 1 FROM faces f WHERE f.id = e.face_id AND f.collection_key = {key}))
                AS embeddings_without_face,
            (SELECT count(*) FROM {tables.embeddings} e JOIN faces f ON f.id = e.face_id AND f.collection_key = {key}
                WHERE e.person_id IS DISTINCT FROM f.person_id) AS embeddings_of_another_person,
            (SELECT count(*) FROM persons p WHERE p.collection_key = {key}
                AND EXISTS (SELECT 1 FROM faces f WHERE f.person_id = p.id)
                AND NOT EXISTS (SELECT 1 FROM {tables.templates} t WHERE t.person_id = p.id)) AS persons_without_templates,
            (SELECT count(*) FROM {tables.templates} t
                WHERE NOT EXISTS (SELECT 1 FROM persons p WHERE p.id = t.person_id AND p.collection_key = {key})
                OR NOT EXISTS (SELECT 1 FROM faces f WHERE f.person_id = t.person_id)) AS templates_without_person,
            (SELECT count(*) FROM images i WHERE i.collection_key = {key}
                AND NOT EXISTS (SELECT 1 FROM faces f WHERE f.image_id = i.id)
                AND NOT EXISTS (SELECT 1 FROM photos p WHERE p.image_id = i.id)) AS pictures_of_nothing,
            (SELECT count(*) FROM photos p JOIN images i ON i.id = p.image_id WHERE p.collection_key = {key}
                AND (i.collection_key <> {key} OR EXISTS (
                    SELECT 1 FROM photo_tags t WHERE t.photo_id = p.id AND t.collection_key <> {key}
                ))) AS photos_of_another_collection,
            (SELECT count(*) FROM photos p LEFT JOIN (
                SELECT photo_id, count(*) AS tags FROM photo_tags GROUP BY photo_id
            ) t ON t.photo_id = p.id
                WHERE p.collection_key = {key} AND p.tag_count <> coalesce(t.tags, 0)) AS photos_with_wrong_tag_count,
            (SELECT count(*) FROM jobs j WHERE j.collection_key = {key} AND (
                SELECT ARRAY[coalesce(sum(total), 0), coalesce(sum(done), 0), coalesce(sum(failed), 0),
                    coalesce(sum(skipped), 0), coalesce(sum(cancelled), 0)] FROM job_progress WHERE job_id = j.id
            ) <> (
                SELECT ARRAY[count(*), count(*) FILTER (WHERE state = 'done'), count(*) FILTER (WHERE state = 'failed'),
                    count(*) FILTER (WHERE state = 'skipped'), count(*) FILTER (WHERE state = 'cancelled')]
                FROM job_items WHERE job_id = j.id
            )) AS jobs_with_wrong_counts
        """
    )
    assert row is not None
    return Mismatches(
        row["faces_without_embedding"],
        row["embeddings_without_face"],
        row["embeddings_of_another_person"],
        row["persons_without_templates"],
        row["templates_without_person"],
        row["pictures_of_nothing"],
        row["photos_of_another_collection"],
        row["photos_with_wrong_tag_count"],
        row["jobs_with_wrong_counts"],
    )


async def indexed_templates(
    connection: Connection, collection: Collection, probe: FloatArray, limit: int
) -> list[tuple[UUID, float]]:
    """The nearest templates through the index where there is one: person and similarity. Beside `search.exact_templates`."""
    rows = await connection.fetch(
        f"SELECT person_id, -(embedding <#> $1) AS similarity FROM {VectorTables.of(collection).templates}"
        # A literal: for a parameter the planner assumes a tenth of the table, and scans it.
        f" ORDER BY embedding <#> $1 LIMIT {limit:d}",
        probe,
    )
    return [(row["person_id"], row["similarity"]) for row in rows]


async def invalid_indexes(connection: Connection, collection: Collection) -> list[str]:
    """Of the collection's vector tables: what a CREATE or REINDEX that was interrupted left behind."""
    tables = VectorTables.of(collection)
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid IN (to_regclass($1), to_regclass($2)) AND NOT i.indisvalid ORDER BY c.relname",
        tables.embeddings,
        tables.templates,
    )
    return [row["relname"] for row in rows]


async def drop_invalid_indexes(connection: Connection, collection: Collection) -> list[str]:
    """Without blocking anybody; returns their names. Call it under `maintenance.only_one`: an index being built is invalid
    as well. Needs autocommit."""
    names = await invalid_indexes(connection, collection)
    for name in names:
        quoted = await connection.fetchval("SELECT quote_ident($1)", name)
        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {quoted}")
    return names


def fresh_index_bytes(templates: int, dim: int) -> int:
    """What an HNSW index that was just built over `templates` different vectors takes.

    pgvector puts an element (its header, the halfvec) and its neighbours (2m on the bottom level, m on each above) on one
    page where they fit: CreateGraphPages in hnswbuild.c. A vector is on level l or above with probability m ** -l.
    """
    element = _aligned(_ELEMENT_HEADER_BYTES + 2 * dim)
    neighbours = _aligned(4 + 6 * 2 * HNSW_M) + 6 * HNSW_M / (HNSW_M - 1)
    on_a_page = max(1, int(_PAGE_BYTES / (element + neighbours + 2 * _ITEM_ID_BYTES)))
    return 8192 * (1 + -(-templates // on_a_page))


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
