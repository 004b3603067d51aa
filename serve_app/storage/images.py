"""Pictures that are kept: one row each, whatever comes from them. Faces and a photo may share one."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from serve_app.identity.people import Collection, NewImage
from serve_app.storage import objects_outbox
from serve_app.storage.database import Connection


async def insert(tx: Connection, collection: Collection, image: NewImage) -> UUID:
    """The picture's row, kept until the transaction ends.

    A picture the collection has already keeps its object; the one uploaded for nothing goes to the outbox.
    """
    # The update that changes nothing waits for whoever is deleting the picture, and keeps the row from then on.
    row = await tx.fetchrow(
        "INSERT INTO images (id, collection_key, sha256, object_key, size_bytes, format, width_px, height_px)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        " ON CONFLICT (collection_key, sha256) DO UPDATE SET sha256 = excluded.sha256 RETURNING id, object_key",
        image.id, collection.key, image.sha256, image.object_key, image.size_bytes, image.format, image.width_px,
        image.height_px,
    )  # fmt: skip
    assert row is not None
    if row["object_key"] != image.object_key:
        await objects_outbox.add(tx, [image.object_key])
    image_id: UUID = row["id"]
    return image_id


async def lock(tx: Connection, image_ids: Sequence[UUID]) -> None:
    """Keeps every other writer from them: from deleting them, and from adding faces or photos of them."""
    await tx.execute("SELECT 1 FROM images WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE", list(image_ids))


async def delete_unused(tx: Connection, image_ids: Sequence[UUID]) -> list[str]:
    """Deletes those from which neither a face nor a photo comes any more; the keys of their objects."""
    # Locked first, looked at after: somebody may have been about to enrol another face of the same picture.
    await lock(tx, image_ids)
    rows = await tx.fetch(
        "DELETE FROM images WHERE id = ANY($1::uuid[])"
        " AND NOT EXISTS (SELECT 1 FROM faces WHERE image_id = images.id)"
        " AND NOT EXISTS (SELECT 1 FROM photos WHERE image_id = images.id) RETURNING object_key",
        list(image_ids),
    )
    return [row["object_key"] for row in rows]
