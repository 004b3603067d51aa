"""What is decided of faces and persons: read with the locks that a change needs, and written where it was changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from serve_app.errors import AlreadyExists, InvalidRequest
from serve_app.identity.facts import Changes, FacePerson, FaceState, Facts, PersonPair, PersonState
from serve_app.identity.people import Collection
from serve_app.storage import do_not_recognise, persons, vectors
from serve_app.storage.database import Connection
from serve_app.storage.vectors import VectorTables

MAX_FACES = 50_000
"""Of persons who are changed as a whole: no statement of the transaction comes near the time limit of a command, not on a
busy machine either."""


class _Moved(Exception):
    """A face got another person while we waited; the persons to lock as well."""

    def __init__(self, person_ids: Iterable[UUID]) -> None:
        super().__init__()
        self.person_ids = set(person_ids)


async def load(
    tx: Connection,
    collection: Collection,
    face_ids: Iterable[UUID] = (),
    person_ids: Iterable[UUID] = (),
    *,
    whole: Iterable[UUID] = (),
) -> Facts:
    """The faces, their persons, `person_ids`, and `whole` persons with all faces; locked until the transaction ends. What is
    not there is absent. The collection must be locked. Raises InvalidRequest for more than MAX_FACES of `whole` persons."""
    faces, whole = list(face_ids), set(whole)
    wanted = {*person_ids, *whole}
    while True:
        try:
            # A savepoint: faces that were locked before their persons are let go.
            async with tx.transaction():
                return await _load(tx, collection, faces, wanted, whole)
        except _Moved as moved:
            wanted |= moved.person_ids


async def _load(
    tx: Connection, collection: Collection, face_ids: Sequence[UUID], person_ids: set[UUID], whole: set[UUID]
) -> Facts:
    owners = await tx.fetch(
        "SELECT DISTINCT person_id FROM faces WHERE id = ANY($1::uuid[]) AND collection_key = $2 AND person_id IS NOT NULL",
        face_ids,
        collection.key,
    )
    locked = await persons.lock(tx, collection, sorted({*person_ids, *(row["person_id"] for row in owners)}))
    await _refuse_too_many(tx, sorted(whole.intersection(locked)))
    rows = await tx.fetch(
        "SELECT id, person_id, decided_by, hidden, unassigned FROM faces"
        " WHERE (id = ANY($1::uuid[]) OR person_id = ANY($2::uuid[])) AND collection_key = $3 ORDER BY id FOR UPDATE",
        face_ids,
        sorted(whole.intersection(locked)),
        collection.key,
    )
    faces = {row["id"]: face_state(row["person_id"], row["decided_by"], row["hidden"], row["unassigned"]) for row in rows}
    missed = {state.person_id for state in faces.values() if state.person_id is not None}.difference(locked)
    if missed:
        raise _Moved(missed)
    return Facts(
        faces,
        await _persons(tx, locked),
        await _rejections(tx, faces, locked),
        await _distinctions(tx, locked),
        await _others(tx, faces, locked),
    )


async def _refuse_too_many(tx: Connection, person_ids: Sequence[UUID]) -> None:
    count = await tx.fetchval(
        f"SELECT count(*) FROM (SELECT 1 FROM faces WHERE person_id = ANY($1::uuid[]) LIMIT {MAX_FACES + 1:d}) f", person_ids
    )
    if count > MAX_FACES:
        raise InvalidRequest(f"More than {MAX_FACES} faces cannot be changed at once.", max_faces=MAX_FACES)


def face_state(person_id: UUID | None, decided_by: str, hidden: bool, unassigned: object) -> FaceState:
    return FaceState(person_id, decided_by, hidden, None if unassigned is None else json.dumps(unassigned, sort_keys=True))


async def _persons(tx: Connection, person_ids: Sequence[UUID]) -> dict[UUID, PersonState]:
    rows = await tx.fetch(
        "SELECT id, name, metadata, external_id, hidden, cover_face_id, founded_by, created_at FROM persons"
        " WHERE id = ANY($1::uuid[])",
        person_ids,
    )
    return {
        row["id"]: PersonState(
            row["name"],
            row["metadata"],
            row["external_id"],
            row["hidden"],
            row["cover_face_id"],
            row["founded_by"],
            row["created_at"],
        )
        for row in rows
    }


async def _rejections(tx: Connection, faces: Iterable[UUID], person_ids: Sequence[UUID]) -> set[FacePerson]:
    """Their faces are kept from being erased: nobody would then take them out of the journal."""
    rows = await tx.fetch(
        "SELECT r.face_id, r.person_id FROM face_rejections r JOIN faces f ON f.id = r.face_id"
        " WHERE r.person_id = ANY($1::uuid[]) OR r.face_id = ANY($2::uuid[]) ORDER BY f.id FOR KEY SHARE OF f",
        person_ids,
        list(faces),
    )
    return {(row["face_id"], row["person_id"]) for row in rows}


async def _distinctions(tx: Connection, person_ids: Sequence[UUID]) -> set[PersonPair]:
    rows = await tx.fetch(
        "SELECT person_a, person_b FROM person_distinctions WHERE person_a = ANY($1::uuid[]) OR person_b = ANY($1::uuid[])",
        person_ids,
    )
    return {(row["person_a"], row["person_b"]) for row in rows}


async def _others(tx: Connection, faces: Mapping[UUID, FaceState], person_ids: Sequence[UUID]) -> dict[UUID, int]:
    rows = await tx.fetch(
        "SELECT person_id, count(*) AS n FROM faces WHERE person_id = ANY($1::uuid[]) GROUP BY person_id", person_ids
    )
    known = Counter(state.person_id for state in faces.values())
    return {row["person_id"]: row["n"] - known[row["person_id"]] for row in rows if row["n"] > known[row["person_id"]]}


async def external_ids(tx: Connection, collection: Collection, wanted: Iterable[str]) -> dict[str, UUID]:
    """Those that are taken, and by whom."""
    return await persons.by_external_ids(tx, collection, sorted(wanted))


async def write(
    tx: Connection, collection: Collection, changes: Changes, after: Facts, undoing: datetime | None = None
) -> None:
    """Rows, vectors and templates: `changes` lead to `after`. What changes must have been loaded with its locks. Raises
    AlreadyExists for an external id that is taken, MustNotBeRecognised where such a person or a face of theirs would go.
    `undoing`: when the decision was made that is taken back."""
    gone = [one for one, (_, new) in changes.persons.items() if new is None]
    # Who goes is never on the list: to undo it would not put them back there.
    await do_not_recognise.keep(tx, gone)
    left = {old.person_id for old, new in changes.faces.values() if old.person_id != new.person_id}
    await do_not_recognise.keep(tx, {one for one in left if one is not None}, undoing)
    try:
        await _free_external_ids(tx, changes)
        await _insert_persons(tx, collection, changes, after)
        await _write_faces(tx, collection, changes)
        await _write_sayings(tx, changes)
        # With what is said of them.
        await tx.execute("DELETE FROM persons WHERE id = ANY($1::uuid[])", gone)
        await _update_persons(tx, changes, after)
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists("Another person of this collection has this external_id.") from error
    await vectors.remove_templates(tx, collection, gone)
    touched = {state.person_id for both in changes.faces.values() for state in both if state.person_id is not None}
    moved = {state.person_id for both in changes.faces.values() if both[0].person_id != both[1].person_id for state in both}
    for person_id in sorted(touched.intersection(moved).difference(gone)):
        await vectors.refresh_templates(tx, collection, person_id)


async def _free_external_ids(tx: Connection, changes: Changes) -> None:
    """So that two may change theirs in one transaction."""
    freed = [one for one, (old, new) in changes.persons.items() if old and (new is None or "external_id" in new)]
    if freed:
        await tx.execute("UPDATE persons SET external_id = NULL WHERE id = ANY($1::uuid[])", freed)


async def _insert_persons(tx: Connection, collection: Collection, changes: Changes, after: Facts) -> None:
    """Without covers: those faces may have to come first."""
    new = [(one, after.persons[one]) for one, (old, _) in changes.persons.items() if old is None]
    await tx.executemany(
        "INSERT INTO persons (id, collection_key, name, metadata, external_id, hidden, founded_by, created_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        [
            (one, collection.key, state.name, state.metadata, state.external_id, state.hidden, state.founded_by,
             state.created_at)
            for one, state in new
        ],
    )  # fmt: skip


async def _update_persons(tx: Connection, changes: Changes, after: Facts) -> None:
    changed = [(one, after.persons[one]) for one in changes.persons if one in after.persons]
    await tx.executemany(
        "UPDATE persons SET name = $2, metadata = $3, external_id = $4, hidden = $5, cover_face_id = $6, updated_at = now()"
        " WHERE id = $1",
        [(one, state.name, state.metadata, state.external_id, state.hidden, state.cover_face_id) for one, state in changed],
    )


async def _write_faces(tx: Connection, collection: Collection, changes: Changes) -> None:
    changed = [(face_id, after) for face_id, (_, after) in changes.faces.items()]
    await tx.execute(
        "UPDATE faces f SET person_id = n.person_id, decided_by = n.decided_by, hidden = n.hidden,"
        " unassigned = n.unassigned::jsonb"
        " FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::boolean[], $5::text[])"
        " AS n (id, person_id, decided_by, hidden, unassigned) WHERE f.id = n.id AND f.collection_key = $6",
        [face_id for face_id, _ in changed],
        [state.person_id for _, state in changed],
        [state.decided_by for _, state in changed],
        [state.hidden for _, state in changed],
        [state.unassigned for _, state in changed],
        collection.key,
    )
    moved = [(one, after.person_id) for one, (before, after) in changes.faces.items() if before.person_id != after.person_id]
    await tx.execute(
        f"UPDATE {VectorTables.of(collection).embeddings} e SET person_id = n.person_id"
        " FROM unnest($1::uuid[], $2::uuid[]) AS n (face_id, person_id) WHERE e.face_id = n.face_id",
        [face_id for face_id, _ in moved],
        [person_id for _, person_id in moved],
    )


async def _write_sayings(tx: Connection, changes: Changes) -> None:
    for table, columns, named, said in (
        ("face_rejections", ("face_id", "person_id"), "faces", changes.rejections),
        ("person_distinctions", ("person_a", "person_b"), "persons", changes.distinctions),
    ):
        for came in (False, True):
            some = [one for one, wanted in said.items() if wanted is came]
            if not some:
                continue
            first, second = columns
            statement = (
                # Of what was not locked, somebody may have erased some meanwhile: nothing is said of it then.
                f"INSERT INTO {table} ({first}, {second}) SELECT n.first, n.second"
                f" FROM unnest($1::uuid[], $2::uuid[]) AS n (first, second)"
                f" JOIN {named} a ON a.id = n.first JOIN persons b ON b.id = n.second"
                " ORDER BY b.id, a.id FOR KEY SHARE OF a, b ON CONFLICT DO NOTHING"
                if came
                else f"DELETE FROM {table} WHERE ({first}, {second}) IN (SELECT * FROM unnest($1::uuid[], $2::uuid[]))"
            )
            await tx.execute(statement, [one for one, _ in some], [two for _, two in some])
