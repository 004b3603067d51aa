"""What clustering reads of a collection, and how it writes who has which face: a little at a time, under the locks of whoever
else changes persons, and never over what a user decided meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Collection as Some
from contextlib import asynccontextmanager
from uuid import UUID

from pgvector import HalfVector

from serve_app.faces import FloatArray
from serve_app.grouping.group_plans import CODES, GroupedFace, Move
from serve_app.grouping.person_sums import PersonSums
from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.facts import FacePerson
from serve_app.identity.people import Collection
from serve_app.storage import do_not_recognise, persons, vectors
from serve_app.storage.database import Connection, Row
from serve_app.storage.vectors import VectorTables

_LOCK = 0x6B6C6772
"""First half of the advisory lock; the second is the collection's key."""

_WAITING = "f.person_id IS NULL AND f.unassigned IS NULL AND f.decided_by = 'machine' AND NOT f.hidden"
"""As the index `faces_waiting` has it."""

# A picture shows its faces as they are known: what is fixed, the machine leaves where it is. So it does with all faces of
# somebody who must not be recognised: they would be somebody's else whom everybody may recognise.
_FIXED = """
    f.decided_by = 'user'
    OR EXISTS (SELECT 1 FROM persons c WHERE c.id = f.person_id AND (c.cover_face_id = f.id OR c.do_not_recognise))
"""
_COLUMNS = f"f.id, f.person_id, f.image_id, f.unassigned, e.embedding, ({_FIXED}) AS fixed"
_GROUPABLE = """
    NOT f.hidden AND (f.person_id IS NOT NULL OR f.decided_by = 'machine')
    AND (f.person_id IS NOT NULL OR f.unassigned IS NULL OR f.unassigned ->> 'code' = ANY(ARRAY[{codes}]))
""".format(codes=", ".join(f"'{code}'" for code in sorted(CODES)))

# Whoever a user has said anything of. The others are groups that the machine made, and may make otherwise.
_KEPT = """
    p.name <> '' OR p.external_id IS NOT NULL OR p.metadata <> '{}' OR p.hidden OR p.founded_by = 'user'
    OR p.do_not_recognise
    OR p.cover_face_id IS NOT NULL
    OR EXISTS (SELECT 1 FROM faces k WHERE k.person_id = p.id AND k.decided_by = 'user')
    OR EXISTS (SELECT 1 FROM face_rejections k WHERE k.person_id = p.id)
    OR EXISTS (SELECT 1 FROM person_distinctions k WHERE p.id IN (k.person_a, k.person_b))
    OR EXISTS (SELECT 1 FROM journal k WHERE k.subjects @> ARRAY[p.id])
"""


@asynccontextmanager
async def one_at_a_time(connection: Connection, collection: Collection, *, wait: bool) -> AsyncIterator[bool]:
    """Whether this process may group the faces of the collection. `wait`: until it may. The connection must be a dedicated
    one; if it breaks, the next may, and what is written is checked again anyway."""
    if wait:
        await connection.execute("SELECT pg_advisory_lock($1, $2)", _LOCK, collection.key)
        mine = True
    else:
        mine = bool(await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", _LOCK, collection.key))
    try:
        yield mine
    finally:
        if mine:
            await connection.execute("SELECT pg_advisory_unlock($1, $2)", _LOCK, collection.key)


async def waiting(connection: Connection, collection: Collection, limit: int, after: UUID | None = None) -> list[UUID]:
    """Faces that the machine has not looked at yet, the oldest first."""
    rows = await connection.fetch(
        f"SELECT f.id FROM faces f WHERE f.collection_key = $1 AND f.id > $3 AND {_WAITING} ORDER BY f.id LIMIT $2",
        collection.key,
        limit,
        after or UUID(int=0),
    )
    return [row["id"] for row in rows]


async def unclaimed(connection: Connection, collection: Collection) -> bytes:
    """Ids, of 16 bytes each, of all faces that nobody has and that may be grouped."""
    found: bytes | None = await connection.fetchval(
        "SELECT string_agg(uuid_send(f.id), ''::bytea) FROM faces f WHERE f.collection_key = $1 AND f.person_id IS NULL"
        f" AND {_GROUPABLE}",
        collection.key,
    )
    return found or b""


async def embeddings_of(
    connection: Connection, collection: Collection, face_ids: Sequence[UUID]
) -> tuple[list[UUID], FloatArray]:
    """Those of the faces that are there, and their (N, D) embeddings. Some thousands at a time."""
    row = await connection.fetchrow(
        f"SELECT array_agg(face_id ORDER BY face_id) AS ids, {vectors.packed('embedding', 'ORDER BY face_id')} AS packed"
        f" FROM {VectorTables.of(collection).embeddings} WHERE face_id = ANY($1::uuid[])",
        list(face_ids),
    )
    assert row is not None
    return row["ids"] or [], vectors.unpack(row["packed"], collection.contract.dim)


async def nearest_persons(connection: Connection, collection: Collection, face_ids: Sequence[UUID], each: int) -> set[UUID]:
    """For each of the faces the persons with the nearest templates."""
    tables = VectorTables.of(collection)
    await connection.execute("SELECT set_config('hnsw.ef_search', $1, false)", str(collection.ef_search))
    rows = await connection.fetch(
        f"SELECT DISTINCT n.person_id FROM {tables.embeddings} w CROSS JOIN LATERAL (SELECT t.person_id"
        f" FROM {tables.templates} t ORDER BY t.embedding <#> w.embedding LIMIT {each:d}) n"
        " WHERE w.face_id = ANY($1::uuid[])",
        list(face_ids),
    )
    return {row["person_id"] for row in rows}


async def some(
    connection: Connection, collection: Collection, face_ids: Sequence[UUID]
) -> tuple[list[GroupedFace], FloatArray]:
    """Those of the faces that may be grouped, by id, and their (N, D) embeddings."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM faces f JOIN {VectorTables.of(collection).embeddings} e ON e.face_id = f.id"
        f" WHERE f.id = ANY($1::uuid[]) AND f.collection_key = $2 AND {_GROUPABLE} ORDER BY f.id",
        list(face_ids),
        collection.key,
    )
    return _faces(rows, collection)


async def person_sums(connection: Connection, collection: Collection, person_ids: Some[UUID], each: int) -> PersonSums:
    """Of up to `each` faces of each person, the last ones."""
    tables, dim = VectorTables.of(collection), collection.contract.dim
    rows = await connection.fetch(
        f"SELECT p.id, (SELECT {vectors.packed('e.embedding')} FROM (SELECT f.id FROM faces f WHERE f.person_id = p.id"
        f" AND NOT f.hidden ORDER BY f.id DESC LIMIT {each:d}) l JOIN {tables.embeddings} e ON e.face_id = l.id) AS faces,"
        f" (SELECT {vectors.packed('t.embedding')} FROM {tables.templates} t WHERE t.person_id = p.id) AS templates"
        " FROM unnest($1::uuid[]) AS p (id)",
        sorted(person_ids),
    )
    there = [row for row in rows if row["faces"] is not None and row["templates"] is not None]
    if not there:
        return PersonSums.none(dim)
    faces, templates = ([vectors.unpack(row[column], dim) for row in there] for column in ("faces", "templates"))
    return PersonSums.of([row["id"] for row in there], faces, templates)


async def page(
    connection: Connection, collection: Collection, after: UUID | None, limit: int
) -> tuple[list[GroupedFace], FloatArray]:
    """All faces that may be grouped, by id."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM faces f JOIN {VectorTables.of(collection).embeddings} e ON e.face_id = f.id"
        f" WHERE f.collection_key = $1 AND f.id > $2 AND {_GROUPABLE} ORDER BY f.id LIMIT $3",
        collection.key,
        after or UUID(int=0),
        limit,
    )
    return _faces(rows, collection)


def _faces(rows: Sequence[Row], collection: Collection) -> tuple[list[GroupedFace], FloatArray]:
    found = [
        GroupedFace(
            row["id"],
            row["person_id"],
            row["image_id"],
            row["fixed"],
            None if row["unassigned"] is None else Unassigned.from_json(row["unassigned"]),
        )
        for row in rows
    ]
    embeddings: list[HalfVector] = [row["embedding"] for row in rows]
    return found, vectors.stack(embeddings, collection.contract.dim)


async def present(connection: Connection, collection: Collection, face_ids: Sequence[UUID]) -> set[FacePerson]:
    """Each of the faces with the persons who have another face of its picture."""
    rows = await connection.fetch(
        "SELECT f.id, o.person_id FROM faces f JOIN faces o ON o.image_id = f.image_id AND o.id <> f.id"
        " WHERE f.id = ANY($1::uuid[]) AND f.collection_key = $2 AND o.person_id IS NOT NULL",
        list(face_ids),
        collection.key,
    )
    return {(row["id"], row["person_id"]) for row in rows}


async def rejections(
    connection: Connection, collection: Collection, face_ids: Sequence[UUID] | None = None
) -> set[FacePerson]:
    """Of the faces, or of all."""
    rows = await connection.fetch(
        "SELECT r.face_id, r.person_id FROM face_rejections r JOIN faces f ON f.id = r.face_id"
        " WHERE f.collection_key = $1 AND ($2::uuid[] IS NULL OR f.id = ANY($2::uuid[]))",
        collection.key,
        None if face_ids is None else list(face_ids),
    )
    return {(row["face_id"], row["person_id"]) for row in rows}


async def kept(connection: Connection, collection: Collection, person_ids: Some[UUID] | None = None) -> set[UUID]:
    """Persons whom the machine must not give up, merge or make anew; of these, or of all."""
    rows = await connection.fetch(
        f"SELECT p.id FROM persons p WHERE p.collection_key = $1 AND ($2::uuid[] IS NULL OR p.id = ANY($2::uuid[]))"
        f" AND ({_KEPT})",
        collection.key,
        None if person_ids is None else list(person_ids),
    )
    return {row["id"] for row in rows}


async def give(
    tx: Connection, collection: Collection, moves: Sequence[Move], made: Some[UUID], fresh: Some[UUID]
) -> set[UUID]:
    """Gives persons the faces of `moves`; returns those that they have got. `fresh`: persons who are made first, if they get
    two. `made`: persons who were the machine's when the moves were planned. The collection must be locked.

    A face stays where it is if it is not where it was, if a user decided on it or on whoever has it meanwhile, if it is not
    the person's by a user's word, or if the person is in its picture already. Who must not be recognised gets none.
    """
    targets = {move.after for move in moves if move.after is not None}
    locked = set(await persons.lock(tx, collection, sorted({*targets, *_owners(moves)})))
    free = await _still_free(tx, collection, moves, made)
    possible = locked - await do_not_recognise.among(tx, locked) | set(fresh)
    wanted = {move.face_id: move.after for move in moves if move.face_id in free and move.after in possible}
    fitting = await _fitting(tx, wanted)
    sizes = Counter(fitting.values())
    given = {one: person_id for one, person_id in fitting.items() if person_id in locked or sizes[person_id] > 1}
    founded = sorted(set(given.values()) - locked)
    await tx.execute(
        "INSERT INTO persons (id, collection_key, name, metadata, founded_by)"
        " SELECT id, $2, '', '{}', 'machine' FROM unnest($1::uuid[]) AS n (id)",
        founded,
        collection.key,
    )
    await tx.execute(
        "UPDATE faces f SET person_id = n.person_id, unassigned = NULL"
        " FROM unnest($1::uuid[], $2::uuid[]) AS n (id, person_id) WHERE f.id = n.id",
        list(given),
        list(given.values()),
    )
    await _moved(tx, collection, given, free)
    return set(given)


async def _fitting(tx: Connection, wanted: Mapping[UUID, UUID | None]) -> dict[UUID, UUID]:
    """Those of the faces with whoever is to have them: of each picture one face a person, and none that is not the person's or
    in a picture with it."""
    rows = await tx.fetch(
        "SELECT DISTINCT ON (n.person_id, coalesce(f.image_id, f.id)) f.id, n.person_id"
        " FROM unnest($1::uuid[], $2::uuid[]) AS n (id, person_id) JOIN faces f ON f.id = n.id"
        " WHERE NOT EXISTS (SELECT 1 FROM face_rejections r WHERE r.face_id = f.id AND r.person_id = n.person_id)"
        " AND NOT EXISTS (SELECT 1 FROM faces o WHERE o.image_id = f.image_id AND o.person_id = n.person_id)"
        " ORDER BY n.person_id, coalesce(f.image_id, f.id), f.id",
        list(wanted),
        list(wanted.values()),
    )
    return {row["id"]: row["person_id"] for row in rows}


async def release(tx: Connection, collection: Collection, moves: Sequence[Move], made: Some[UUID]) -> set[UUID]:
    """Takes the faces from whoever has them, and keeps why; without a reason they wait. Otherwise as `give`."""
    await persons.lock(tx, collection, sorted(_owners(moves)))
    free = await _still_free(tx, collection, moves, made)
    reasons = {move.face_id: move.reason for move in moves}
    await tx.executemany(
        "UPDATE faces SET person_id = NULL, unassigned = $2 WHERE id = $1",
        [(one, None if (reason := reasons[one]) is None else reason.to_json()) for one in sorted(free)],
    )
    had = {one: owner for one, owner in free.items() if owner is not None}
    await _moved(tx, collection, dict.fromkeys(had), had)
    return set(free)


def _owners(moves: Sequence[Move]) -> set[UUID]:
    return {move.before for move in moves if move.before is not None}


async def _still_free(
    tx: Connection, collection: Collection, moves: Sequence[Move], made: Some[UUID]
) -> dict[UUID, UUID | None]:
    """Faces that are as they were planned with, locked, and who has them."""
    before = {move.face_id: move.before for move in moves}
    owners = _owners(moves).intersection(made)
    claimed = await kept(tx, collection, owners) if owners else frozenset[UUID]()
    rows = await tx.fetch(
        f"SELECT f.id, f.person_id FROM faces f WHERE f.id = ANY($1::uuid[]) AND f.collection_key = $2"
        f" AND NOT ({_FIXED}) AND {_GROUPABLE} ORDER BY f.id FOR UPDATE OF f",
        list(before),
        collection.key,
    )
    return {
        row["id"]: row["person_id"]
        for row in rows
        if row["person_id"] == before[row["id"]] and row["person_id"] not in claimed
    }


async def _moved(
    tx: Connection, collection: Collection, now: Mapping[UUID, UUID | None], before: Mapping[UUID, UUID | None]
) -> None:
    """Vectors and templates after their rows: of the faces `now`, who has them and who had."""
    if not now:
        return
    await tx.execute(
        f"UPDATE {VectorTables.of(collection).embeddings} e SET person_id = n.person_id"
        " FROM unnest($1::uuid[], $2::uuid[]) AS n (id, person_id) WHERE e.face_id = n.id",
        list(now),
        list(now.values()),
    )
    gained: dict[UUID, list[UUID]] = {}
    for face_id, person_id in now.items():
        if person_id is not None:
            gained.setdefault(person_id, []).append(face_id)
    lost = {owner for one in now if (owner := before[one]) is not None}
    await vectors.refresh_templates(tx, collection, *lost)
    await vectors.grow_templates(tx, collection, {one: theirs for one, theirs in gained.items() if one not in lost})


async def remove_empty(tx: Connection, collection: Collection, person_ids: Some[UUID] | None = None) -> int:
    """Groups of the machine's without a face, of which no user has said anything; of these, or of all. The collection must
    be locked."""
    empty = "NOT EXISTS (SELECT 1 FROM faces f WHERE f.person_id = p.id)"
    rows = await tx.fetch(
        f"SELECT p.id FROM persons p WHERE p.collection_key = $1 AND p.founded_by = 'machine' AND {empty}"
        " AND ($2::uuid[] IS NULL OR p.id = ANY($2::uuid[])) ORDER BY p.id FOR UPDATE",
        collection.key,
        None if person_ids is None else list(person_ids),
    )
    # Read again, of each as it is now that nobody else can change it.
    status = await tx.execute(
        f"DELETE FROM persons p WHERE p.id = ANY($1::uuid[]) AND {empty} AND NOT ({_KEPT})", [row["id"] for row in rows]
    )
    return vectors.affected(status)
