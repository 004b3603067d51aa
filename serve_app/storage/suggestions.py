"""Who else might be who: faces of nobody and persons most like a person, persons most like a face."""

from __future__ import annotations

from uuid import UUID

from serve_app.identity.people import Collection, SearchFilter
from serve_app.storage import search, vectors
from serve_app.storage.database import Connection
from serve_app.storage.vectors import VectorTables

_TEMPLATES = 8
"""Of a person, those that stand for most faces, by which others are looked for."""
_LOOKED_AT = 4
"""Times as many as asked for: some of them are not to be suggested."""
_MAX_EXCLUDED = 1000


async def faces_for(connection: Connection, collection: Collection, person_id: UUID, limit: int) -> list[tuple[UUID, float]]:
    """Face ids and cosines, most similar first. Every face of nobody is compared."""
    tables = VectorTables.of(collection)
    rows = await connection.fetch(
        f"""
        WITH person AS MATERIALIZED (
            SELECT embedding FROM {tables.templates} WHERE person_id = $1 ORDER BY face_count DESC LIMIT {_TEMPLATES:d}
        ), alike AS MATERIALIZED (
            SELECT e.face_id, max(-(e.embedding <#> t.embedding)) AS similarity
            FROM {tables.embeddings} e CROSS JOIN person t WHERE e.person_id IS NULL
            GROUP BY e.face_id ORDER BY similarity DESC LIMIT {(_LOOKED_AT * limit + 100):d}
        )
        SELECT a.face_id, a.similarity FROM alike a JOIN faces f ON f.id = a.face_id
        WHERE NOT f.hidden AND NOT EXISTS (SELECT 1 FROM persons w WHERE w.id = $1 AND w.do_not_recognise)
            AND NOT EXISTS (SELECT 1 FROM face_rejections r WHERE r.face_id = f.id AND r.person_id = $1)
            AND NOT EXISTS (SELECT 1 FROM faces o WHERE o.image_id = f.image_id AND o.person_id = $1)
        ORDER BY a.similarity DESC, a.face_id LIMIT {limit:d}
        """,
        person_id,
    )
    # Rounding of halfs can end a hair above 1.
    return [(row["face_id"], max(-1.0, min(1.0, float(row["similarity"])))) for row in rows]


async def persons_for(
    connection: Connection, collection: Collection, person_id: UUID, limit: int
) -> list[tuple[UUID, UUID, float]]:
    """Person ids, the face of each that is most alike, and cosines, most similar first."""
    tables = VectorTables.of(collection)
    templates = await connection.fetch(
        f"SELECT embedding FROM {tables.templates} WHERE person_id = $1 ORDER BY face_count DESC LIMIT {_TEMPLATES:d}",
        person_id,
    )
    distinct = await connection.fetch(
        "SELECT person_b AS id FROM person_distinctions WHERE person_a = $1"
        f" UNION SELECT person_a FROM person_distinctions WHERE person_b = $1 LIMIT {_MAX_EXCLUDED:d}",
        person_id,
    )
    wanted = SearchFilter(exclude_person_ids=(person_id, *(row["id"] for row in distinct)))
    best: dict[UUID, tuple[UUID, float]] = {}
    for probe in vectors.stack([row["embedding"] for row in templates], collection.contract.dim):
        for one in await search.nearest(connection, collection, probe, _LOOKED_AT * limit, wanted):
            if one.person_id not in best or one.similarity > best[one.person_id][1]:
                best[one.person_id] = (one.face_id, one.similarity)
    rows = await connection.fetch(
        "SELECT p.id FROM persons p, persons o WHERE p.id = ANY($1::uuid[]) AND o.id = $2 AND NOT p.hidden"
        " AND NOT p.do_not_recognise AND (p.name = '' OR o.name = '')",
        list(best),
        person_id,
    )
    return _ranked({row["id"]: best[row["id"]] for row in rows}, limit)


async def persons_for_face(
    connection: Connection, collection: Collection, face_id: UUID, limit: int
) -> list[tuple[UUID, UUID, float]]:
    """As `persons_for`."""
    embedding = await connection.fetchval(
        f"SELECT embedding FROM {VectorTables.of(collection).embeddings} WHERE face_id = $1", face_id
    )
    if embedding is None:
        return []
    excluded = await connection.fetch(
        "SELECT person_id FROM face_rejections WHERE face_id = $1"
        f" UNION SELECT person_id FROM faces WHERE id = $1 AND person_id IS NOT NULL LIMIT {_MAX_EXCLUDED:d}",
        face_id,
    )
    wanted = SearchFilter(exclude_person_ids=tuple(row["person_id"] for row in excluded))
    (probe,) = vectors.stack([embedding], collection.contract.dim)
    found = await search.nearest(connection, collection, probe, _LOOKED_AT * limit, wanted)
    rows = await connection.fetch(
        "SELECT id FROM persons WHERE id = ANY($1::uuid[]) AND NOT hidden AND NOT do_not_recognise",
        [one.person_id for one in found],
    )
    shown = {row["id"] for row in rows}
    return _ranked({one.person_id: (one.face_id, one.similarity) for one in found if one.person_id in shown}, limit)


def _ranked(best: dict[UUID, tuple[UUID, float]], limit: int) -> list[tuple[UUID, UUID, float]]:
    ranked = sorted(best.items(), key=lambda item: (-item[1][1], item[0]))
    return [(person_id, face_id, similarity) for person_id, (face_id, similarity) in ranked[:limit]]
