"""What indexing knows and keeps of the faces of one photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from serve_app.errors import JsonValue
from serve_app.faces import FloatArray
from serve_app.grouping.reconciling import KnownFace, reconcile
from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.people import Collection
from serve_app.storage import clustering, faces, images, objects_outbox, persons, vectors
from serve_app.storage.database import Connection
from serve_app.storage.objects import face_thumbnail_keys


@dataclass(frozen=True, slots=True)
class PhotoToIndex:
    """`indexed_with`: what looked for its faces last; None before."""

    id: UUID
    image_id: UUID
    image_key: str
    taken_at: datetime
    indexed_with: str | None


@dataclass(frozen=True, slots=True)
class FoundFace:
    """A face as it was found now. `id`: for one that was not known. `crop_key`: where its crop lies already; never used
    before. `landmarks`: ten numbers. `poor`: why it is not to be grouped."""

    id: UUID
    embedding: FloatArray
    crop_key: str
    bbox: list[float]
    landmarks: list[float]
    detection_score: float
    quality: Mapping[str, JsonValue] | None
    poor: Unassigned | None


@dataclass(frozen=True, slots=True)
class Indexed:
    """How many faces were new, known before, enrolled, and removed."""

    new: int
    same: int
    enrolled: int
    gone: int


@dataclass(frozen=True, slots=True)
class _Known:
    """A face of the picture, locked. `waits`: nobody has it and nobody said that nobody should."""

    face: KnownFace
    person_id: UUID | None
    crop_key: str | None


async def find(connection: Connection, collection: Collection, photo_id: UUID) -> PhotoToIndex | None:
    """None where there is no such photo (any more)."""
    row = await connection.fetchrow(
        "SELECT p.id, p.image_id, i.object_key, p.taken_at, p.indexed_with"
        " FROM photos p JOIN images i ON i.id = p.image_id WHERE p.id = $1 AND p.collection_key = $2",
        photo_id,
        collection.key,
    )
    if row is None:
        return None
    return PhotoToIndex(row["id"], row["image_id"], row["object_key"], row["taken_at"], row["indexed_with"])


async def keep(
    tx: Connection, collection: Collection, photo: PhotoToIndex, found: Sequence[FoundFace], indexed_with: str
) -> Indexed | None:
    """Makes the faces of the photo those that were found; None, and nothing done, where the photo is gone.

    What was known keeps its id, its person and all that users decided: see `reconciling`. Crops that are not needed, new or
    old, go to the outbox. The collection must be locked.
    """
    known = await _lock(tx, collection, photo)
    if known is None:
        return None
    of = {one.face.id: one for one in known}
    result = reconcile([one.face for one in known], [one.bbox for one in found])
    owners = [of[face_id].person_id for face_id in result.gone]
    for face_id, place in result.same:
        moved = await _replace(tx, collection, photo, of[face_id], found[place])
        owners.append(of[face_id].person_id if moved else None)
    if result.gone:
        await faces.delete(tx, collection, result.gone)
    await insert(tx, collection, [(photo, found[place]) for place in result.new])
    if result.enrolled:
        await objects_outbox.add(tx, [found[place].crop_key for _, place in result.enrolled])
    for person_id in sorted({owner for owner in owners if owner is not None}):
        await vectors.refresh_templates(tx, collection, person_id)
    if result.gone:
        await clustering.remove_empty(tx, collection, {owner for owner in owners if owner is not None})
    await _note(tx, photo, indexed_with)
    return Indexed(len(result.new), len(result.same), len(result.enrolled), len(result.gone))


async def keep_first(
    tx: Connection, collection: Collection, photo: PhotoToIndex, found: Sequence[FoundFace], indexed_with: str
) -> None:
    """As `keep`, of a picture that this transaction has made: it has no faces, and nobody else sees it."""
    await insert(tx, collection, [(photo, one) for one in found])
    await _note(tx, photo, indexed_with)


async def _note(tx: Connection, photo: PhotoToIndex, indexed_with: str) -> None:
    await tx.execute("UPDATE photos SET indexed_at = now(), indexed_with = $2 WHERE id = $1", photo.id, indexed_with)


async def outdate(tx: Connection, image_ids: Sequence[UUID]) -> list[UUID]:
    """Photos of these pictures that were indexed count as not indexed from now on; their ids."""
    if not image_ids:
        return []
    rows = await tx.fetch(
        "UPDATE photos SET indexed_at = NULL, indexed_with = NULL"
        " WHERE image_id = ANY($1::uuid[]) AND indexed_at IS NOT NULL RETURNING id",
        list(image_ids),
    )
    return [row["id"] for row in rows]


async def _lock(tx: Connection, collection: Collection, photo: PhotoToIndex) -> list[_Known] | None:
    """The faces of the photo; they, their persons, the picture and the photo are locked. None: the photo is gone.

    A face that got another person while we waited is looked up again.
    """
    owners = {owner for owner in (await faces.of_image(tx, collection, photo.image_id)).values() if owner is not None}
    while True:
        if owners:
            await persons.lock(tx, collection, sorted(owners))
        # Whoever indexes, enrols or erases the same picture waits from here on.
        await images.lock(tx, [photo.image_id])
        known = await _lock_faces(tx, photo.image_id)
        now = {one.person_id for one in known if one.person_id is not None}
        if now <= owners:
            break
        owners = now
    status = await tx.execute(
        "SELECT 1 FROM photos WHERE id = $1 AND collection_key = $2 FOR NO KEY UPDATE", photo.id, collection.key
    )
    return known if vectors.affected(status) else None


async def _lock_faces(tx: Connection, image_id: UUID) -> list[_Known]:
    # Locked first: what users said of a face is read after whoever was saying it has finished.
    status = await tx.execute("SELECT 1 FROM faces WHERE image_id = $1 ORDER BY id FOR UPDATE", image_id)
    if not vectors.affected(status):
        return []
    rows = await tx.fetch(
        "SELECT f.id, f.person_id, f.bbox, f.crop_key, f.found_by = 'enrolment' AS enrolled,"
        " f.decided_by = 'user' OR f.hidden OR EXISTS (SELECT 1 FROM face_rejections r WHERE r.face_id = f.id)"
        " OR EXISTS (SELECT 1 FROM persons p WHERE p.cover_face_id = f.id) AS decided"
        " FROM faces f WHERE f.image_id = $1 AND f.bbox IS NOT NULL ORDER BY f.id",
        image_id,
    )
    return [
        _Known(KnownFace(row["id"], row["bbox"], row["enrolled"], row["decided"]), row["person_id"], row["crop_key"])
        for row in rows
    ]


async def _replace(tx: Connection, collection: Collection, photo: PhotoToIndex, known: _Known, found: FoundFace) -> bool:
    """What was found in place of what was known of a face; whether its embedding is another."""
    await tx.execute(
        "UPDATE faces SET bbox = $2, landmarks = $3, detection_score = $4, quality = $5, crop_key = $6, taken_at = $7,"
        # What spoke against it may be over: it is looked at again. What a user said of it stays.
        " unassigned = CASE WHEN person_id IS NULL AND decided_by = 'machine' AND NOT hidden THEN $8 ELSE unassigned END"
        " WHERE id = $1",
        known.face.id, found.bbox, found.landmarks, found.detection_score, found.quality, found.crop_key, photo.taken_at,
        _reason(found),
    )  # fmt: skip
    outdated = [] if known.crop_key is None else [known.crop_key]
    if list(known.face.box) != found.bbox:
        outdated += face_thumbnail_keys(collection.key, known.face.id, known.face.box)
    if outdated:
        await objects_outbox.add(tx, outdated)
    return await vectors.replace_embedding(tx, collection, known.face.id, known.person_id, found.embedding)


async def insert(tx: Connection, collection: Collection, found: Sequence[tuple[PhotoToIndex, FoundFace]]) -> None:
    """New faces, each with its photo."""
    if not found:
        return
    await tx.executemany(
        "INSERT INTO faces (id, collection_key, image_id, bbox, landmarks, detection_score, quality, crop_key, taken_at,"
        " unassigned, found_by, decided_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'indexing', 'machine')",
        [
            (one.id, collection.key, photo.image_id, one.bbox, one.landmarks, one.detection_score, one.quality, one.crop_key,
             photo.taken_at, _reason(one))
            for photo, one in found
        ],
    )  # fmt: skip
    await vectors.insert_embeddings(tx, collection, None, [(one.id, one.embedding) for _, one in found])


def _reason(found: FoundFace) -> dict[str, JsonValue] | None:
    return None if found.poor is None else found.poor.to_json()
