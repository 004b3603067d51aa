"""Similarity search: the persons nearest to a probe, each by its best face.

Two paths, by `collections.search_mode`:

`exact`: every face of the collection is compared. Up to `EXACT_MAX_FACES`, where that takes milliseconds.

`templates`: the probe is compared with the persons' templates, through an HNSW index where there are enough of them, and the
nearest candidates are ranked by their best face; `ef_search` of the index grows with the number of templates. A filter that
selects few persons or faces is searched exactly among those; whatever still comes back with fewer persons than asked for is
searched exactly again. So an answer is short only when there is nobody else.

Candidates are a multiple of what is asked for: a person's best face may be nearer than its template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from serve_app.faces import FloatArray
from serve_app.identity.people import Candidate, Collection, SearchFilter
from serve_app.storage.database import Connection, Row
from serve_app.storage.vectors import VectorTables

EXACT_MAX_FACES = 10_000
"""Faces up to which a collection is searched exactly: under 10 ms at 512 dimensions."""
HNSW_MIN_TEMPLATES = 4_000
"""Templates from which an index pays; below it a scan of the templates takes 3 ms and misses nobody."""
SELECTIVE_PERSONS = 2_000
SELECTIVE_FACES = 10_000
"""A filter that leaves no more is searched exactly among what it leaves."""

_CANDIDATE_STEPS = (50, 200, 1000, 5000)
"""LIMITs of the candidate query. Literals: for a parameter the planner assumes a tenth of the table and scans it."""
_CANDIDATES_PER_RESULT = 4


@dataclass(slots=True)
class _Query:
    """SQL conditions with the values of their parameters."""

    values: list[object] = field(default_factory=list)

    def bind(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


async def nearest(
    connection: Connection, collection: Collection, probe: FloatArray, top_k: int, wanted: SearchFilter
) -> list[Candidate]:
    """Up to `top_k` persons by falling similarity. `probe`: (D,) float32, unit norm."""
    if collection.search_mode == "exact" or wanted.person_ids is not None:
        return await exact(connection, collection, probe, top_k, wanted)
    if wanted.metadata and await _at_most(connection, _matching_persons(collection, wanted), SELECTIVE_PERSONS):
        return await exact(connection, collection, probe, top_k, wanted)
    if wanted.by_date and await _at_most(connection, _matching_faces(collection, wanted), SELECTIVE_FACES):
        return await exact(connection, collection, probe, top_k, wanted)
    found = await by_templates(connection, collection, probe, top_k, wanted)
    if len(found) < top_k and not await _all_found(connection, collection, len(found), wanted):
        return await exact(connection, collection, probe, top_k, wanted)
    return found


async def exact(
    connection: Connection, collection: Collection, probe: FloatArray, top_k: int, wanted: SearchFilter
) -> list[Candidate]:
    sql, values = exact_sql(collection, probe, top_k, wanted)
    return [_candidate(row) for row in await connection.fetch(sql, *values)]


async def by_templates(
    connection: Connection, collection: Collection, probe: FloatArray, top_k: int, wanted: SearchFilter
) -> list[Candidate]:
    # A round trip, 0.15 ms. The session keeps it; whoever searches by an index sets it first.
    await connection.execute("SELECT set_config('hnsw.ef_search', $1, false)", str(collection.ef_search))
    sql, values = templates_sql(collection, probe, top_k, wanted)
    return [_candidate(row) for row in await connection.fetch(sql, *values)]


def exact_sql(collection: Collection, probe: FloatArray, top_k: int, wanted: SearchFilter) -> tuple[str, list[object]]:
    query = _Query()
    vector = query.bind(probe)
    persons = ["e.person_id IS NOT NULL"]
    if wanted.person_ids is not None:
        persons.append(f"e.person_id = ANY({query.bind(list(wanted.person_ids))}::uuid[])")
    if wanted.exclude_person_ids:
        persons.append(f"e.person_id <> ALL({query.bind(list(wanted.exclude_person_ids))}::uuid[])")
    if not wanted.hidden:
        persons.append(
            f"e.person_id NOT IN (SELECT id FROM persons WHERE collection_key = {collection.key:d} AND hidden)"
        )  # fmt: skip
    if wanted.metadata:
        persons.append(
            "e.person_id = ANY(ARRAY(SELECT id FROM persons"
            f" WHERE collection_key = {collection.key:d} AND metadata @> {query.bind(wanted.metadata)}))"
        )
    return _ranked(collection, query, vector, persons, wanted, top_k), query.values


def templates_sql(collection: Collection, probe: FloatArray, top_k: int, wanted: SearchFilter) -> tuple[str, list[object]]:
    query = _Query()
    vector = query.bind(probe)
    limit = next((step for step in _CANDIDATE_STEPS if step >= top_k * _CANDIDATES_PER_RESULT), _CANDIDATE_STEPS[-1])
    conditions = []
    if wanted.exclude_person_ids:
        conditions.append(f"t.person_id <> ALL({query.bind(list(wanted.exclude_person_ids))}::uuid[])")
    # Values, not EXISTS: that would be made a join, which the planner, knowing little of what a filter leaves, begins with
    # everybody who fulfils it, and sorts them by distance.
    if wanted.metadata:
        conditions.append(f"(SELECT p.metadata @> {query.bind(wanted.metadata)} FROM persons p WHERE p.id = t.person_id)")
    if not wanted.hidden:
        conditions.append("(SELECT NOT p.hidden FROM persons p WHERE p.id = t.person_id)")
    if wanted.by_date:
        dates = _date_condition(query, "f", wanted)
        conditions.append(f"(SELECT true FROM faces f WHERE f.person_id = t.person_id AND {dates} LIMIT 1)")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    candidates = (
        f"SELECT t.person_id FROM {VectorTables.of(collection).templates} t {where}"
        f" ORDER BY t.embedding <#> {vector} LIMIT {limit:d}"
    )
    # As an array, not a join: a join of unknown size makes the planner read every face.
    return _ranked(collection, query, vector, [f"e.person_id = ANY(ARRAY({candidates}))"], wanted, top_k), query.values


async def similarity_to_person(
    connection: Connection, collection: Collection, probe: FloatArray, person_id: UUID
) -> Candidate | None:
    """The person by its best face; None when it has no face."""
    found = await exact(connection, collection, probe, 1, SearchFilter(person_ids=(person_id,)))
    return found[0] if found else None


async def exact_templates(
    connection: Connection, collection: Collection, probe: FloatArray, limit: int
) -> list[tuple[UUID, float]]:
    """The nearest templates without the index, for `kinlens db check`: an expression is not what was indexed."""
    rows = await connection.fetch(
        f"SELECT person_id, -(embedding <#> $1) AS similarity FROM {VectorTables.of(collection).templates}"
        " ORDER BY (embedding <#> $1) + 0 LIMIT $2",
        probe,
        limit,
    )
    return [(row["person_id"], row["similarity"]) for row in rows]


def _ranked(
    collection: Collection, query: _Query, vector: str, persons: Sequence[str], wanted: SearchFilter, top_k: int
) -> str:
    """The persons who fulfil the conditions `persons`, each by the best of its faces of the dates wanted, the best first."""
    embeddings = VectorTables.of(collection).embeddings
    dates = ""
    if wanted.by_date:
        dates = f"AND EXISTS (SELECT 1 FROM faces d WHERE d.id = e.face_id AND {_date_condition(query, 'd', wanted)})"
    # The face is looked up after: to carry it along, every face would have to be sorted.
    return f"""
        SELECT best.person_id, nearest.face_id, -best.distance AS similarity, p.external_id, p.name, p.metadata,
               p.do_not_recognise
        FROM (
            SELECT e.person_id, min(e.embedding <#> {vector}) AS distance
            FROM {embeddings} e
            WHERE {" AND ".join(persons)} {dates}
            GROUP BY e.person_id
            ORDER BY distance, e.person_id
            LIMIT {query.bind(top_k)}
        ) AS best
        CROSS JOIN LATERAL (
            SELECT e.face_id
            FROM {embeddings} e
            WHERE e.person_id = best.person_id {dates}
            ORDER BY e.embedding <#> {vector}, e.face_id
            LIMIT 1
        ) AS nearest
        JOIN persons p ON p.id = best.person_id
        ORDER BY best.distance, best.person_id
    """


def _date_condition(query: _Query, alias: str, wanted: SearchFilter) -> str:
    conditions = []
    if wanted.taken_from is not None:
        conditions.append(f"{alias}.taken_at >= {query.bind(wanted.taken_from)}")
    if wanted.taken_to is not None:
        conditions.append(f"{alias}.taken_at < {query.bind(wanted.taken_to)}")
    return " AND ".join(conditions)


def _matching_persons(collection: Collection, wanted: SearchFilter) -> tuple[str, list[object]]:
    query = _Query()
    metadata = query.bind(wanted.metadata)
    return f"SELECT 1 FROM persons WHERE collection_key = {collection.key:d} AND metadata @> {metadata}", query.values


def _matching_faces(collection: Collection, wanted: SearchFilter) -> tuple[str, list[object]]:
    query = _Query()
    dates = _date_condition(query, "f", wanted)
    return f"SELECT 1 FROM faces f WHERE f.collection_key = {collection.key:d} AND {dates}", query.values


async def _at_most(connection: Connection, matching: tuple[str, list[object]], limit: int) -> bool:
    sql, values = matching
    count = await connection.fetchval(f"SELECT count(*) FROM ({sql} LIMIT {limit + 1:d}) AS counted", *values)
    return int(count) <= limit


async def _all_found(connection: Connection, collection: Collection, found: int, wanted: SearchFilter) -> bool:
    """Whether an unfiltered search that came back short has found everybody there is."""
    if not wanted.empty:
        return False
    templates = VectorTables.of(collection).templates
    return int(await connection.fetchval(f"SELECT count(DISTINCT person_id) FROM {templates}")) <= found


def _candidate(row: Row) -> Candidate:
    return Candidate(
        row["person_id"],
        row["external_id"],
        row["name"],
        row["metadata"],
        row["face_id"],
        # Rounding of halfs can end a hair above 1.
        max(-1.0, min(1.0, float(row["similarity"]))),
        row["do_not_recognise"],
    )
