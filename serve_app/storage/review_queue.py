"""Who might be the same, over the whole library: groups without a name and faces of nobody, each with the person most like it.

To compare all of them with everybody for every page would be too much. So they are taken a window at a time, in the order in
which they were made, and each of a window is looked for among the templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.storage.database import Connection
from serve_app.storage.vectors import VectorTables

_LOOKED_AT = 24
"""Templates nearest to each; some are of persons that are not to be suggested, or its own."""

_EF_SEARCH = 64
"""Less than searches have: who is like a face is not missed by it, but may be the second."""


class Kind(StrEnum):
    GROUPS = "groups"
    FACES = "faces"


@dataclass(frozen=True, slots=True)
class Likeness:
    """`subject_id`: of a group or a face. `face_id`: the face of the person that is most like it, by cosine `similarity`."""

    subject_id: UUID
    person_id: UUID
    face_id: UUID
    similarity: float


@dataclass(frozen=True, slots=True)
class Window:
    """`last`: of the groups or faces that were looked for; None where there are no more. `found`: the most similar first."""

    kind: Kind
    last: UUID | None
    found: list[Likeness]


async def window(connection: Connection, collection: Collection, kind: Kind, after: UUID, size: int, least: float) -> Window:
    """The next `size` groups or faces. `least`: similarity from which it is asked. Measured for 400 of them on a busy machine:
    0.3 s among the templates of 2,000 persons, 1.6 to 2.7 s of 20,000.

    Not asked is what users decided: of hidden ones, of faces somebody took away, of persons told apart, of two with names.
    Of two groups without a name the younger is asked about.
    """
    subjects = await connection.fetch(_SUBJECTS[kind], collection.key, after, size)
    if not subjects:
        return Window(kind, None, [])
    # Whoever searches by the index sets it first.
    await connection.execute("SELECT set_config('hnsw.ef_search', $1, false)", str(_EF_SEARCH))
    rows = await connection.fetch(_alike(collection, kind), [row["id"] for row in subjects], least)
    found = [
        # Rounding of halfs can end a hair above 1.
        Likeness(row["id"], row["person_id"], row["face_id"], max(-1.0, min(1.0, float(row["similarity"]))))
        for row in rows
    ]
    found.sort(key=lambda one: (-one.similarity, one.subject_id))
    return Window(kind, subjects[-1]["id"], found)


_SUBJECTS = {
    # Whoever has an id of another system is known there, if not by name.
    Kind.GROUPS: """
        SELECT p.id FROM persons p
        WHERE p.collection_key = $1 AND p.name = '' AND NOT p.hidden AND p.external_id IS NULL
        AND NOT p.do_not_recognise AND p.id > $2 ORDER BY p.id LIMIT $3
    """,
    Kind.FACES: """
        SELECT f.id FROM faces f
        WHERE f.collection_key = $1 AND f.person_id IS NULL AND NOT f.hidden AND f.decided_by = 'machine' AND f.id > $2
        ORDER BY f.id LIMIT $3
    """,
}

_ALLOWED = {
    Kind.GROUPS: """
        p.id <> s.id AND (p.name <> '' OR p.id < s.id) AND NOT EXISTS (
            SELECT 1 FROM person_distinctions d
            WHERE (d.person_a, d.person_b) = (least(p.id, s.id), greatest(p.id, s.id)))
    """,
    Kind.FACES: """
        NOT EXISTS (SELECT 1 FROM face_rejections r WHERE r.face_id = s.id AND r.person_id = p.id)
        AND NOT EXISTS (SELECT 1 FROM faces f JOIN faces o ON o.image_id = f.image_id WHERE f.id = s.id AND o.person_id = p.id)
    """,
}


def _alike(collection: Collection, kind: Kind) -> str:
    tables = VectorTables.of(collection)
    # A group by the template that stands for most of its faces.
    probe = {
        Kind.GROUPS: f"(SELECT t.embedding FROM {tables.templates} t WHERE t.person_id = g.id"
        " ORDER BY t.face_count DESC, t.ordinal LIMIT 1)",
        Kind.FACES: f"(SELECT e.embedding FROM {tables.embeddings} e WHERE e.face_id = g.id)",
    }[kind]
    return f"""
        WITH subjects AS MATERIALIZED (
            SELECT g.id, {probe} AS probe FROM unnest($1::uuid[]) AS g (id)
        ), near AS MATERIALIZED (
            SELECT s.id, s.probe, n.person_id, n.place FROM subjects s CROSS JOIN LATERAL (
                SELECT t.person_id, row_number() OVER () AS place FROM (
                    SELECT t.person_id FROM {tables.templates} t ORDER BY t.embedding <#> s.probe LIMIT {_LOOKED_AT:d}) t) n
            WHERE s.probe IS NOT NULL
        ), best AS MATERIALIZED (
            SELECT DISTINCT ON (s.id) s.id, s.probe, s.person_id FROM near s JOIN persons p ON p.id = s.person_id
            WHERE NOT p.hidden AND NOT p.do_not_recognise AND {_ALLOWED[kind]} ORDER BY s.id, s.place
        )
        SELECT b.id, b.person_id, f.face_id, f.similarity FROM best b CROSS JOIN LATERAL (
            SELECT e.face_id, -(e.embedding <#> b.probe) AS similarity FROM {tables.embeddings} e
            WHERE e.person_id = b.person_id ORDER BY e.embedding <#> b.probe, e.face_id LIMIT 1) f
        WHERE f.similarity >= $2
    """
