"""Which files were made photos of, as they were then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.storage.database import Connection


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """`file`, `version`: hashes of where it lies and of what it was like (`serve_app.bulk.files`)."""

    file: UUID
    version: UUID
    photo_id: UUID


async def unchanged(connection: Connection, collection: Collection, files: Sequence[tuple[UUID, UUID]]) -> set[UUID]:
    """Of files with their versions, those that are photos whose faces were looked for, and have not changed since."""
    rows = await connection.fetch(
        "SELECT f.file FROM unnest($2::uuid[], $3::uuid[]) given (file, version)"
        " JOIN indexed_files f ON f.collection_key = $1 AND f.file = given.file AND f.version = given.version"
        " JOIN photos p ON p.id = f.photo_id WHERE p.indexed_at IS NOT NULL",
        collection.key,
        [file for file, _ in files],
        [version for _, version in files],
    )
    return {row["file"] for row in rows}


async def remember(tx: Connection, collection: Collection, files: Sequence[IndexedFile]) -> None:
    """Photos that are gone are left out. A file is named once. The collection must be locked."""
    if not files:
        return
    # In one order always. The photo's lock: it is not erased before the row that refers to it is there.
    ordered = sorted(files, key=lambda one: one.file)
    await tx.execute(
        "INSERT INTO indexed_files (collection_key, file, version, photo_id)"
        " SELECT $1, given.file, given.version, p.id FROM unnest($2::uuid[], $3::uuid[], $4::uuid[])"
        " given (file, version, photo_id) JOIN photos p ON p.id = given.photo_id AND p.collection_key = $1"
        " ORDER BY given.file FOR KEY SHARE OF p"
        " ON CONFLICT (collection_key, file) DO UPDATE SET version = excluded.version, photo_id = excluded.photo_id",
        collection.key,
        [one.file for one in ordered],
        [one.version for one in ordered],
        [one.photo_id for one in ordered],
    )
