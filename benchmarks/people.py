"""Persons of a large photo library: pages of them, suggestions, and merges that are undone:

    uv run python -m benchmarks.people --persons 20000 --faces 500000

On an embedded Postgres in a temporary folder, as the service sets it up, through the functions the service calls. The first
persons have thousands of faces, most a few; a tenth of the faces is nobody's. Pages have 100 persons.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

from benchmarks.search import Timed, postgres, say
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.services.collections import Collections
from serve_app.services.deciding import Deciding
from serve_app.services.erasure import Eraser
from serve_app.services.journal import Journal, JournalQuery
from serve_app.services.library_people import LibraryPeople
from serve_app.services.writing import Once
from serve_app.storage import collections, journal
from serve_app.storage.database import Database
from serve_app.storage.library_persons import LibraryPerson, PersonPosition, PersonSort, PersonsWanted
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.vectors import VectorTables

LIBRARY = "library"
CONTRACT = EmbeddingContract("benchmark", 128, "none")
PAGE = 100

# The person of rank r has about r ** -0.85 of the faces.
_FILL = (
    "INSERT INTO persons (id, collection_key, name, metadata, founded_by)"
    " SELECT md5('person' || n)::uuid, {key}, CASE WHEN n % 3 = 0 THEN 'Person ' || n ELSE '' END, '{{}}', 'machine'"
    " FROM generate_series(1, {persons}) n",
    "CREATE TABLE known AS SELECT md5('person' || n)::uuid AS id, greatest(1, (power(n + 5, -0.85) / sum(power(n + 5, -0.85))"
    " OVER () * {of_persons})::int) AS faces FROM generate_series(1, {persons}) n",
    "INSERT INTO images (id, collection_key, sha256, object_key, size_bytes, format, width_px, height_px)"
    " SELECT md5('image' || n)::uuid, {key}, sha256(n::text::bytea), 'o/' || n, 4000000, 'JPEG', 4000, 3000"
    " FROM generate_series(0, {faces} / 3) n",
    "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, orientation)"
    " SELECT md5('photo' || n)::uuid, {key}, md5('image' || n)::uuid, n || '.jpg', '', now(), 1"
    " FROM generate_series(0, {faces} / 3) n",
    "INSERT INTO faces (id, collection_key, person_id, image_id, crop_key, quality, taken_at, found_by, decided_by)"
    " SELECT md5('face' || k)::uuid, {key}, person, md5('image' || (k % ({faces} / 3)))::uuid, 'c/' || k,"
    " '{{\"size_px\": 120}}', now(), 'indexing', 'machine' FROM (SELECT person, row_number() OVER (ORDER BY hashint8(i)) AS k"
    " FROM (SELECT person, row_number() OVER () AS i FROM (SELECT id AS person FROM known, generate_series(1, faces)"
    " UNION ALL SELECT NULL FROM generate_series(1, {faces} / 10)) f) f) f",
    "CREATE TABLE directions AS SELECT id, (SELECT array_agg(random_normal(0, 0.0884)::real) FROM generate_series(1, 128)"
    " WHERE known.faces > 0)::halfvec(128) AS direction"
    " FROM (SELECT id, faces FROM known UNION ALL SELECT '{nobody}', 1) known",
    "INSERT INTO {embeddings} SELECT f.id, f.person_id, d.direction FROM faces f"
    " JOIN directions d ON d.id = coalesce(f.person_id, '{nobody}')",
    "INSERT INTO {templates} SELECT k.id, 0, k.faces, d.direction FROM known k JOIN directions d ON d.id = k.id",
)


async def fill(database: Database, persons: int, faces: int) -> Collection:
    collection = await database.run(lambda tx: collections.create(tx, LIBRARY, "", {}, CONTRACT))
    tables = VectorTables.of(collection)
    names = {
        "embeddings": tables.embeddings,
        "templates": tables.templates,
        "persons": persons,
        "faces": faces,
        "nobody": UUID(int=0),
    }
    async with database.dedicated() as connection:
        for statement in _FILL:
            await connection.execute(statement.format(**names, key=collection.key, of_persons=faces * 9 // 10))
        await connection.execute(f"VACUUM (ANALYZE) persons, photos, images, faces, {tables.embeddings}, {tables.templates}")
    return collection


async def timed(name: str, work: Callable[[], Awaitable[object]], repeats: int) -> None:
    taken = Timed()
    for _ in range(repeats):
        begun = time.perf_counter()
        await work()
        taken.latencies_s.append(time.perf_counter() - begun)
    print(f"| {name} | {taken.percentile_ms(0.5):.1f} | {taken.percentile_ms(0.95):.1f} |", flush=True)


async def pages(people: LibraryPeople, repeats: int) -> list[LibraryPerson]:
    first = await people.page(PersonsWanted(), None, PAGE)
    middle = PersonPosition(first[-1].face_count // 10, first[-1].id)
    print("\n| | p50 ms | p95 ms |\n|---|---|---|")
    for name, wanted, after in (
        ("most faces first", PersonsWanted(), None),
        ("most faces first, from the middle", PersonsWanted(), middle),
        ("most faces first, without a name", PersonsWanted(named=False), None),
        ("by name", PersonsWanted(PersonSort.NAME), None),
        ("the newest first", PersonsWanted(PersonSort.RECENT), None),
        ("a part of the name", PersonsWanted(name="rson 1999"), None),
    ):
        await timed(name, lambda wanted=wanted, after=after: people.page(wanted, after, PAGE), repeats)  # type: ignore[misc]
    await timed("one person, the most frequent", lambda: people.get(first[0].id), repeats)
    await timed("faces suggested for it", lambda: people.suggested_faces(first[0].id, 20), repeats)
    print()
    return first


async def merge(database: Database, collection: Collection, persons: list[LibraryPerson]) -> None:
    deciding = Deciding(
        Collections(database, Eraser(database, LocalObjectStore(Path("/nonexistent"), b"k" * 32)), CONTRACT), database, LIBRARY
    )
    book = Journal(database, LIBRARY)
    target, *sources = (person.id for person in persons)
    begun = time.perf_counter()
    merged = await deciding.merge(target, sources, "benchmark", Once(None, lambda _: (200, b"")))
    merging_s = time.perf_counter() - begun
    assert merged.journal_id is not None
    kept = await _size(database, merged.journal_id)
    begun = time.perf_counter()
    await book.page(JournalQuery(None, 51))
    listing_ms = (time.perf_counter() - begun) * 1e3
    begun = time.perf_counter()
    undone = await book.undo(merged.journal_id, "benchmark", Once(None, lambda _: (200, b"")))
    undoing_s = time.perf_counter() - begun
    assert not undone.kept
    face = next(iter(undone.changes.faces))
    begun = time.perf_counter()
    async with database.transaction() as tx:
        await journal.erase_subjects(tx, collection, [face])
    erasing_s = time.perf_counter() - begun
    say(
        f"{len(sources) + 1:,} persons with {len(undone.changes.faces):,} faces: merged in {merging_s:.2f} s, undone in"
        f" {undoing_s:.2f} s; the entry takes {kept / 1024:,.0f} KiB, a page of the journal {listing_ms:.1f} ms; to take a"
        f" face out of both entries {erasing_s:.2f} s"
    )


async def _size(database: Database, entry: UUID) -> int:
    async with database.connection() as connection:
        return int(
            await connection.fetchval(
                "SELECT pg_column_size(faces) + pg_column_size(before) + pg_column_size(after) + pg_column_size(subjects)"
                " FROM journal WHERE id = $1",
                entry,
            )
        )


async def measure(persons: int, faces: int, repeats: int) -> None:
    async with postgres() as (database, _):
        begun = time.perf_counter()
        collection = await fill(database, persons, faces)
        say(f"{persons:,} persons, {faces:,} faces in {time.perf_counter() - begun:.0f} s")
        first = await pages(LibraryPeople(database, None, LIBRARY), repeats)
        await merge(database, collection, [one for one in first if one.face_count < 1500][:5])
        await merge(database, collection, first[:10])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--persons", type=int, default=20_000)
    parser.add_argument("--faces", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    asyncio.run(measure(options.persons, options.faces, options.repeats))


if __name__ == "__main__":
    main()
