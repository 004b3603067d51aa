"""Which rows name an object, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from serve_app.identity.people import Collection
from serve_app.storage.database import Connection, Row
from serve_app.storage.objects import thumbnail_image, thumbnail_keys


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`file_name`: to be saved under. `format`: of an original, as Kinlens names formats. `sha256`: of what never changes."""

    key: str
    file_name: str
    format: str | None = None
    sha256: bytes | None = None


_ORIGINAL = (
    "SELECT i.object_key, i.sha256, i.format, p.file_name FROM images i LEFT JOIN photos p ON p.image_id = i.id"
    " WHERE i.collection_key = $1"
)


async def by_key(connection: Connection, collection: Collection, key: str) -> StoredFile | None:
    """An original, a crop or a thumbnail of the collection, if a row names it now."""
    row = await connection.fetchrow(f"{_ORIGINAL} AND i.object_key = $2", collection.key, key)
    if row is not None:
        return _original(row)
    name = PurePosixPath(key).name
    image_id = thumbnail_image(key)
    if image_id is not None:
        named = key in thumbnail_keys(collection.key, image_id) and await connection.fetchval(
            "SELECT true FROM images WHERE collection_key = $1 AND id = $2", collection.key, image_id
        )
    else:
        named = await connection.fetchval(
            "SELECT true FROM faces WHERE collection_key = $1 AND crop_key = $2", collection.key, key
        )
    return StoredFile(key, name) if named else None


async def by_name(connection: Connection, collection: Collection, folder: str, name: str) -> StoredFile | None:
    """The original of a photo; of several of one name the one that came first."""
    row = await connection.fetchrow(
        "SELECT i.object_key, i.sha256, i.format, p.file_name FROM photos p JOIN images i ON i.id = p.image_id"
        " WHERE p.collection_key = $1 AND p.folder = $2 AND p.file_name = $3 ORDER BY p.id LIMIT 1",
        collection.key,
        folder,
        name,
    )
    return None if row is None else _original(row)


def _original(row: Row) -> StoredFile:
    return StoredFile(row["object_key"], row["file_name"] or "photo", row["format"], bytes(row["sha256"]))
