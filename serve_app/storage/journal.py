"""The journal: what users decided, written in the transaction of the decision, and enough of it to take it back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast
from uuid import UUID

from serve_app.errors import JsonValue, NotFound
from serve_app.identity.decisions import Action
from serve_app.identity.facts import Changes, FaceState, PersonValues, cover_of
from serve_app.identity.people import Collection, new_id
from serve_app.identity.undoing import covers
from serve_app.storage.database import Connection, Row
from serve_app.storage.vectors import affected

Json = dict[str, JsonValue]

MAX_LISTED = 100
"""Persons of an entry in a listing."""
_WHOLE_PERSONS = 2
"""Of no more persons a listing tells the metadata, too: 16 KiB each, and a thousand may be merged."""

_ENTRY = "SELECT id, at, actor, action, person_ids, face_count, undoes, undone_by"
_COLUMNS = f"{_ENTRY}, before, after"
"""Without `faces`, of which a merge may have thousands."""


def _listed(side: str) -> str:
    """A side of an entry as a listing has it: it must not grow with what was decided."""
    # Both sides have the same persons, in the same order.
    return f"""
    CASE WHEN cardinality(person_ids) <= {_WHOLE_PERSONS:d} THEN {side} ELSE {side} || jsonb_build_object(
        'rejections', '[]'::jsonb, 'distinctions', '[]'::jsonb, 'persons', (
            SELECT coalesce(jsonb_object_agg(key, told), '{{}}'::jsonb) FROM (
                SELECT key, CASE jsonb_typeof(value) WHEN 'object' THEN value - 'metadata' ELSE value END AS told
                FROM jsonb_each({side} -> 'persons') LIMIT {MAX_LISTED:d}) l)) END AS {side}
    """


_LISTED = f"{_ENTRY}, {_listed('before')}, {_listed('after')}"


@dataclass(frozen=True, slots=True)
class Entry:
    """`changes`: without faces in a listing. `person_ids`: all persons it is about; `face_count`: faces."""

    id: UUID
    at: datetime
    actor: str
    action: str
    person_ids: tuple[UUID, ...]
    face_count: int
    undoes: UUID | None
    undone_by: UUID | None
    changes: Changes


async def record(
    tx: Connection, collection: Collection, actor: str, action: Action, changes: Changes, *, undoes: UUID | None = None
) -> UUID:
    """The id of the entry."""
    entry_id = new_id()
    person_ids, face_ids = _subjects(changes)
    before, after = _sides(changes)
    await tx.execute(
        "INSERT INTO journal (id, collection_key, actor, action, subjects, person_ids, face_count, before, after, faces,"
        " undoes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        entry_id, collection.key, actor, action, [*person_ids, *face_ids], sorted(person_ids), len(face_ids), before,
        after, _packed(changes.faces), undoes,
    )  # fmt: skip
    if undoes is not None:
        await tx.execute("UPDATE journal SET undone_by = $2 WHERE id = $1", undoes, entry_id)
    return entry_id


async def page(
    connection: Connection,
    collection: Collection,
    after: UUID | None,
    limit: int,
    *,
    subjects: Sequence[UUID] = (),
    action: Action | None = None,
) -> list[Entry]:
    """Newest first. `subjects`: about all of them. Of an entry about many persons, some, without metadata."""
    conditions, values = ["collection_key = $1"], [collection.key]
    for condition, value in (
        ("id < {}", after),
        ("subjects @> {}::uuid[]", list(subjects) or None),
        ("action = {}", action),
    ):
        if value is not None:
            values.append(value)  # type: ignore[arg-type]
            conditions.append(condition.format(f"${len(values)}"))
    rows = await connection.fetch(
        f"{_LISTED} FROM journal WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {limit:d}", *values
    )
    return [_entry(row, []) for row in rows]


async def get(connection: Connection, collection: Collection, entry_id: UUID, *, lock: bool = False) -> Entry:
    """With `lock`, kept from others until the transaction ends. Raises NotFound."""
    row = await connection.fetchrow(
        f"{_COLUMNS}, faces FROM journal WHERE id = $1 AND collection_key = $2{' FOR UPDATE' if lock else ''}",
        entry_id,
        collection.key,
    )
    if row is None:
        raise missing(entry_id)
    return _entry(row, row["faces"])


async def erase_subjects(tx: Connection, collection: Collection, ids: Iterable[UUID]) -> None:
    """Forgets persons and faces: their names, ids and what was decided of them; and persons who were merged into one of
    them and are not there any more. That somebody did something then remains."""
    wanted = set(ids)
    while True:
        rows = await tx.fetch(
            f"{_COLUMNS}, faces FROM journal WHERE subjects && $1::uuid[] AND collection_key = $2 ORDER BY id FOR UPDATE",
            sorted(wanted),
            collection.key,
        )
        entries = [_entry(row, row["faces"]) for row in rows]
        absorbed = {person_id for entry in entries for person_id in _absorbed(entry.changes, wanted)} - wanted
        there = await tx.fetch("SELECT id FROM persons WHERE id = ANY($1::uuid[])", sorted(absorbed))
        absorbed -= {row["id"] for row in there}
        if not absorbed:
            break
        wanted |= absorbed
    for entry in entries:
        changes = _without(entry.changes, wanted)
        person_ids, face_ids = _subjects(changes)
        before, after = _sides(changes)
        await tx.execute(
            "UPDATE journal SET subjects = $2, person_ids = $3, face_count = $4, before = $5, after = $6, faces = $7"
            " WHERE id = $1",
            entry.id, [*person_ids, *face_ids], sorted(person_ids), len(face_ids), before, after,
            _packed(changes.faces),
        )  # fmt: skip


async def purge(connection: Connection, kept_for: timedelta) -> int:
    return affected(await connection.execute("DELETE FROM journal WHERE at < now() - $1::interval", kept_for))


def missing(entry_id: UUID) -> NotFound:
    return NotFound(f"There is no entry {entry_id} in the journal.", journal_id=str(entry_id))


def _subjects(changes: Changes) -> tuple[set[UUID], set[UUID]]:
    """Persons and faces."""
    persons = {one for both in changes.faces.values() for state in both if (one := state.person_id) is not None}
    persons |= {*changes.persons, *(one for _, one in changes.rejections)}
    persons |= {one for both in changes.distinctions for one in both}
    faces = {*changes.faces, *(face_id for face_id, _ in changes.rejections)}
    return persons, faces | covers(changes)


def _absorbed(changes: Changes, wanted: set[UUID]) -> set[UUID]:
    """Persons that went while one of `wanted` stayed or changed."""
    persons, _ = _subjects(changes)
    gone = {one for one, (_, after) in changes.persons.items() if after is None}
    return gone if wanted.intersection(persons - gone) else set()


def _without(changes: Changes, ids: set[UUID]) -> Changes:
    def told(values: PersonValues | None) -> PersonValues | None:
        if values is None or cover_of(values) not in ids:
            return values
        return {**values, "cover_face_id": None}

    return Changes(
        {
            one: both
            for one, both in changes.faces.items()
            if one not in ids and not any(state.person_id in ids for state in both)
        },
        {one: (told(before), told(after)) for one, (before, after) in changes.persons.items() if one not in ids},
        {said: came for said, came in changes.rejections.items() if not ids.intersection(said)},
        {said: came for said, came in changes.distinctions.items() if not ids.intersection(said)},
    )


def _sides(changes: Changes) -> tuple[Json, Json]:
    sides: tuple[Json, Json] = ({}, {})
    for place, side in enumerate(sides):
        # What went was there before, what came is there after.
        came = place == 1
        side["persons"] = {
            str(one): None if both[place] is None else dict(both[place] or {}) for one, both in changes.persons.items()
        }
        side["rejections"] = [[str(one) for one in said] for said, wanted in changes.rejections.items() if wanted is came]
        side["distinctions"] = [[str(one) for one in said] for said, wanted in changes.distinctions.items() if wanted is came]
    return sides


def _packed(faces: Mapping[UUID, tuple[FaceState, FaceState]]) -> list[JsonValue]:
    """Thousands of faces are merged alike: their states stand there once."""
    groups: dict[tuple[FaceState, FaceState], list[JsonValue]] = {}
    for face_id, both in faces.items():
        groups.setdefault(both, []).append(str(face_id))
    return [
        {"before": _face_values(before), "after": _face_values(after), "ids": ids} for (before, after), ids in groups.items()
    ]


def _face_values(state: FaceState) -> Json:
    return {
        "person_id": None if state.person_id is None else str(state.person_id),
        "decided_by": state.decided_by,
        "hidden": state.hidden,
        "unassigned": None if state.unassigned is None else _note(json.loads(state.unassigned)),
    }


def _note(unassigned: Json) -> Json:
    """Without the person who would have been nearest: nothing of the decision, and it would outlive that person's erasure."""
    return {
        name: _note(value) if isinstance(value, dict) else value
        for name, value in unassigned.items()
        if name != "person_id"
    }  # fmt: skip


def _entry(row: Row, faces: Sequence[Json]) -> Entry:
    return Entry(
        row["id"],
        row["at"],
        row["actor"],
        row["action"],
        tuple(row["person_ids"]),
        row["face_count"],
        row["undoes"],
        row["undone_by"],
        _changes(row["before"], row["after"], faces),
    )


def _changes(before: Json, after: Json, groups: Sequence[Json]) -> Changes:
    old, new = _persons(before), _persons(after)
    return Changes(
        {face_id: both for group in groups for face_id, both in _group(group)},
        {person_id: (values, new[person_id]) for person_id, values in old.items()},
        {**dict.fromkeys(_pairs(before["rejections"]), False), **dict.fromkeys(_pairs(after["rejections"]), True)},
        {**dict.fromkeys(_pairs(before["distinctions"]), False), **dict.fromkeys(_pairs(after["distinctions"]), True)},
    )


def _persons(side: Json) -> dict[UUID, PersonValues | None]:
    found = cast("dict[str, dict[str, JsonValue] | None]", side["persons"])
    return {UUID(one): values for one, values in found.items()}


def _pairs(value: JsonValue) -> list[tuple[UUID, UUID]]:
    return [(UUID(first), UUID(second)) for first, second in cast("list[tuple[str, str]]", value)]


def _group(group: Json) -> Iterator[tuple[UUID, tuple[FaceState, FaceState]]]:
    before, after = (_face_state(cast("Json", group[side])) for side in ("before", "after"))
    for one in cast("list[str]", group["ids"]):
        yield UUID(one), (before, after)


def _face_state(values: Json) -> FaceState:
    person_id, unassigned = values["person_id"], values["unassigned"]
    return FaceState(
        None if person_id is None else UUID(str(person_id)),
        str(values["decided_by"]),
        bool(values["hidden"]),
        None if unassigned is None else json.dumps(unassigned, sort_keys=True),
    )
