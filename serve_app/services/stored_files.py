"""Stored objects by their keys, as far as they belong to the photo library; and photos by folder and name."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import NotFound
from serve_app.storage import collections, stored_files
from serve_app.storage.database import Database
from serve_app.storage.objects import is_key
from serve_app.storage.stored_files import StoredFile


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """Of one collection: no other's objects are found here."""

    database: Database
    collection_id: str

    async def find(self, path: str) -> StoredFile:
        """A key that a row names, or else `folder/name` of a photo. Raises NotFound, the same for what is not there and what
        is somebody else's; DatabaseUnavailable, Overloaded."""
        async with self.database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                raise missing() from None
            # Nothing else can be in the database.
            found = await stored_files.by_key(connection, collection, path) if is_key(path) else None
            if found is None and "\0" not in path and path.isprintable():
                folder, _, name = path.rpartition("/")
                found = await stored_files.by_name(connection, collection, folder, name)
        if found is None:
            raise missing()
        return found


def missing() -> NotFound:
    return NotFound("There is no such file in the library.")
