"""Names of persons as words. They are made when somebody looks for a name, and whenever a name is not the one they were made
of: whoever changes names need not know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.storage.database import Connection, Database
from serve_app.text.photo_document import HEARD
from serve_app.text.words import keys, sound

MAX_FOUND = 2000
"""Persons that a name may mean; the first of them."""
_BATCH = 1000
_MAX_WORDS = 20
_SIMILARITY = "0.3"
"""Of pg_trgm: below what one or two wrong letters leave of a name. What it lets through is compared letter by letter."""


@dataclass(frozen=True, slots=True)
class NamedPerson:
    """`words`: of the name, as words.key makes them; `heard`: how they sound."""

    id: UUID
    name: str
    words: tuple[str, ...]
    heard: frozenset[str]


async def refresh(database: Database, collection: Collection, batches: int = 5) -> None:
    """Makes words of names that have none yet. Persons that somebody is writing to are left for the next time."""
    for _ in range(batches):
        async with database.connection() as connection:
            if not await connection.fetchval(f"SELECT true {_UNREAD} LIMIT 1", collection.key):
                return
        async with database.transaction() as tx:
            rows = await tx.fetch(
                f"SELECT id, name {_UNREAD} ORDER BY id LIMIT {_BATCH:d} FOR NO KEY UPDATE SKIP LOCKED", collection.key
            )
            await tx.executemany(
                "UPDATE persons SET name_words = $2, words_of = $3 WHERE id = $1",
                [(row["id"], _column(row["name"]), row["name"]) for row in rows],
            )
        if len(rows) < _BATCH:
            return


_UNREAD = "FROM persons WHERE collection_key = $1 AND name <> '' AND words_of IS DISTINCT FROM name"


def _column(name: str) -> str:
    words = keys(name, _MAX_WORDS)
    heard = [HEARD + one for word in words if (one := sound(word)) is not None]
    return f" {' '.join(dict.fromkeys([*words, *heard]))} "


async def beginning(connection: Connection, collection: Collection, words: Sequence[str]) -> list[NamedPerson]:
    """Persons with a word in their name that begins with one of these, or sounds like one. Hidden persons are nobody's
    business: they have no name here."""
    patterns = [f"% {word}%" for word in words]
    patterns += [f"% {HEARD}{one} %" for word in words if (one := sound(word)) is not None]
    return await _named(connection, collection, "name_words LIKE ANY($2::text[])", patterns)


async def similar(connection: Connection, collection: Collection, words: Sequence[str]) -> list[NamedPerson]:
    """Persons with a word in their name that may be one of these, misspelt; and others."""
    await connection.execute("SELECT set_config('pg_trgm.word_similarity_threshold', $1, false)", _SIMILARITY)
    return await _named(connection, collection, "name_words %> ANY($2::text[])", list(words))


async def _named(connection: Connection, collection: Collection, condition: str, words: Sequence[str]) -> list[NamedPerson]:
    if not words:
        return []
    rows = await connection.fetch(
        "SELECT id, name, name_words FROM persons WHERE collection_key = $1 AND name_words IS NOT NULL AND words_of = name"
        f" AND NOT hidden AND {condition} ORDER BY id LIMIT {MAX_FOUND:d}",
        collection.key,
        list(words),
    )
    found = []
    for row in rows:
        parts = row["name_words"].split()
        found.append(
            NamedPerson(
                row["id"],
                row["name"],
                tuple(part for part in parts if not part.startswith(HEARD)),
                frozenset(part.removeprefix(HEARD) for part in parts if part.startswith(HEARD)),
            )
        )
    return found


async def called(connection: Connection, collection: Collection, name: str) -> tuple[NamedPerson, ...]:
    """Persons with every word of `name` in their name; none that is hidden."""
    words = keys(name, _MAX_WORDS)
    if not words:
        return ()
    found = await _named(connection, collection, "name_words LIKE ALL($2::text[])", [f"% {word} %" for word in words])
    return tuple(found)


async def of_ids(connection: Connection, collection: Collection, person_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The names of those who are there, hidden or not."""
    rows = await connection.fetch(
        "SELECT id, name FROM persons WHERE id = ANY($1::uuid[]) AND collection_key = $2", list(person_ids), collection.key
    )
    return {row["id"]: row["name"] for row in rows}


async def by_id(connection: Connection, collection: Collection, person_id: UUID) -> NamedPerson | None:
    """Hidden or not: who knows the id has seen the person."""
    row = await connection.fetchrow(
        "SELECT id, name FROM persons WHERE id = $1 AND collection_key = $2", person_id, collection.key
    )
    return None if row is None else NamedPerson(row["id"], row["name"], (), frozenset())
