"""Faces, their embeddings and the pictures they came from."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.identity.people import Collection, Erased, NewFace, StoredFace
from serve_app.storage import images, objects_outbox, vectors
from serve_app.storage.database import Connection, Row
from serve_app.storage.objects import face_thumbnail_keys
from serve_app.storage.vectors import VectorTables

_COLUMNS = """
    SELECT f.id, f.person_id, f.image_id, i.object_key AS image_key, f.crop_key, f.bbox, f.landmarks, f.detection_score,
           f.quality, f.taken_at, f.created_at
    FROM faces f LEFT JOIN images i ON i.id = f.image_id
"""


async def insert(tx: Connection, collection: Collection, person_id: UUID, faces: Sequence[NewFace]) -> list[StoredFace]:
    """Rows, embeddings and pictures. The person must be locked; the templates are the caller's to refresh.

    A picture the collection has already keeps its object; the one uploaded for nothing goes to the outbox.
    """
    image_ids: dict[UUID, UUID] = {}
    unique = {face.image.id: face.image for face in faces if face.image is not None}
    for image in sorted(unique.values(), key=lambda image: image.sha256):
        image_ids[image.id] = await images.insert(tx, collection, image)
    await tx.executemany(
        "INSERT INTO faces (id, collection_key, person_id, image_id, bbox, landmarks, detection_score, quality, crop_key,"
        " taken_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, coalesce($10, now()))",
        [
            (face.id, collection.key, person_id, image_ids[face.image.id] if face.image else None, face.bbox, face.landmarks,
             face.detection_score, face.quality, face.crop_key, face.taken_at)
            for face in faces
        ],
    )  # fmt: skip
    await vectors.insert_embeddings(tx, collection, person_id, [(face.id, face.embedding) for face in faces])
    rows = await tx.fetch(f"{_COLUMNS} WHERE f.id = ANY($1::uuid[]) ORDER BY f.id", [face.id for face in faces])
    stored = {row["id"]: _face(row) for row in rows}
    return [stored[face.id] for face in faces]


async def images_of_person(
    connection: Connection, collection: Collection, person_id: UUID, hashes: Sequence[bytes]
) -> set[bytes]:
    """Those of the pictures (sha256) of which the person has a face."""
    rows = await connection.fetch(
        "SELECT DISTINCT i.sha256 FROM images i JOIN faces f ON f.image_id = i.id"
        " WHERE i.collection_key = $1 AND i.sha256 = ANY($2::bytea[]) AND f.person_id = $3",
        collection.key,
        list(hashes),
        person_id,
    )
    return {bytes(row["sha256"]) for row in rows}


async def get(connection: Connection, collection: Collection, face_id: UUID) -> StoredFace:
    """Raises NotFound."""
    row = await connection.fetchrow(_COLUMNS + " WHERE f.id = $1 AND f.collection_key = $2", face_id, collection.key)
    if row is None:
        raise missing(face_id)
    return _face(row)


async def page(
    connection: Connection, collection: Collection, person_id: UUID | None, after: UUID | None, limit: int
) -> list[StoredFace]:
    """In the order they were enrolled; of one person, or of all."""
    rows = await connection.fetch(
        f"{_COLUMNS} WHERE f.collection_key = $1 AND f.id > $2"
        f" {'AND f.person_id = $4' if person_id else ''} ORDER BY f.id LIMIT $3",
        collection.key, after or UUID(int=0), limit, *([person_id] if person_id else []),
    )  # fmt: skip
    return [_face(row) for row in rows]


async def owners(
    connection: Connection, collection: Collection, face_ids: Sequence[UUID], *, lock: bool = False
) -> dict[UUID, UUID | None]:
    """The person of each of the faces that exist; None for one that nobody has. `lock`: nobody gives them another from then
    on; persons are locked before."""
    rows = await connection.fetch(
        "SELECT id, person_id FROM faces WHERE id = ANY($1::uuid[]) AND collection_key = $2 ORDER BY id"
        f"{' FOR UPDATE' if lock else ''}",
        list(face_ids),
        collection.key,
    )
    return {row["id"]: row["person_id"] for row in rows}


async def images_of(tx: Connection, collection: Collection, face_ids: Sequence[UUID]) -> list[UUID]:
    """The pictures they are in. No face ever changes its picture."""
    rows = await tx.fetch(
        "SELECT DISTINCT image_id FROM faces WHERE id = ANY($1::uuid[]) AND collection_key = $2 AND image_id IS NOT NULL",
        list(face_ids),
        collection.key,
    )
    return [row["image_id"] for row in rows]


async def of_image(tx: Connection, collection: Collection, image_id: UUID, *, lock: bool = False) -> dict[UUID, UUID | None]:
    """Every face of the picture and its person. `lock`: as of `owners`."""
    rows = await tx.fetch(
        "SELECT id, person_id FROM faces WHERE image_id = $1 AND collection_key = $2 ORDER BY id"
        f"{' FOR UPDATE' if lock else ''}",
        image_id,
        collection.key,
    )
    return {row["id"]: row["person_id"] for row in rows}


async def ids_of_persons(tx: Connection, person_ids: Sequence[UUID]) -> list[UUID]:
    rows = await tx.fetch("SELECT id FROM faces WHERE person_id = ANY($1::uuid[])", list(person_ids))
    return [row["id"] for row in rows]


async def forget_nearest(tx: Connection, collection: Collection, person_ids: Sequence[UUID]) -> None:
    """Why a face is nobody's may name the person who would have been nearest: none of these any more."""
    await tx.execute(
        "UPDATE faces SET unassigned = unassigned #- '{person_id}' #- '{was,person_id}'"
        " WHERE collection_key = $1 AND person_id IS NULL AND unassigned IS NOT NULL"
        " AND (unassigned ->> 'person_id' = ANY($2::text[]) OR unassigned #>> '{was,person_id}' = ANY($2::text[]))",
        collection.key,
        [str(one) for one in person_ids],
    )


async def move(tx: Connection, collection: Collection, face_id: UUID, person_id: UUID) -> StoredFace:
    """As a user says. Both persons must be locked; their templates are the caller's to refresh."""
    await tx.execute(
        "UPDATE faces SET person_id = $2, decided_by = 'user', unassigned = NULL WHERE id = $1 AND collection_key = $3",
        face_id,
        person_id,
        collection.key,
    )
    await tx.execute(
        f"UPDATE {VectorTables.of(collection).embeddings} SET person_id = $2 WHERE face_id = $1",
        face_id,
        person_id,
    )
    return await get(tx, collection, face_id)


async def delete(tx: Connection, collection: Collection, face_ids: Sequence[UUID]) -> Erased:
    """Faces, embeddings, crops, thumbnails, and pictures that neither another face nor a photo comes from. Their persons must
    be locked; templates are the caller's to refresh. Objects are handed to the outbox."""
    ids = list(face_ids)
    rows = await tx.fetch(
        "DELETE FROM faces WHERE id = ANY($1::uuid[]) AND collection_key = $2"
        # Thumbnails are made of the faces of photos only.
        " RETURNING id, image_id, crop_key, bbox,"
        " EXISTS (SELECT 1 FROM photos p WHERE p.image_id = faces.image_id) AS in_photo",
        ids,
        collection.key,
    )
    embeddings = await tx.execute(
        f"DELETE FROM {VectorTables.of(collection).embeddings} WHERE face_id = ANY($1::uuid[])",
        ids,
    )
    await vectors.erase_elsewhere(tx, collection, ids)
    crops = [row["crop_key"] for row in rows if row["crop_key"] is not None]
    image_ids = sorted({row["image_id"] for row in rows if row["image_id"] is not None})
    pictures = await images.delete_unused(tx, image_ids)
    thumbnails = [
        key
        for row in rows
        if row["in_photo"] and row["bbox"] is not None
        for key in face_thumbnail_keys(collection.key, row["id"], row["bbox"])
    ]
    keys = (*pictures, *crops, *thumbnails)
    await objects_outbox.add(tx, keys)
    return Erased(0, len(rows), vectors.affected(embeddings), 0, len(pictures), len(crops), keys)


def missing(face_id: UUID) -> NotFound:
    return NotFound(f"There is no face {face_id} in this collection.", face_id=str(face_id))


def _face(row: Row) -> StoredFace:
    flat = row["landmarks"]
    return StoredFace(
        id=row["id"],
        person_id=row["person_id"],
        image_id=row["image_id"],
        image_key=row["image_key"],
        crop_key=row["crop_key"],
        bbox=row["bbox"],
        landmarks=None if flat is None else [flat[i : i + 2] for i in range(0, len(flat), 2)],
        detection_score=row["detection_score"],
        quality=row["quality"],
        taken_at=row["taken_at"],
        created_at=row["created_at"],
    )
