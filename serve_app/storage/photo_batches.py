"""Many new photos with their faces at once: ten statements for all of them instead of twenty for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.photos import NewPhoto
from serve_app.storage import photo_faces, photo_words
from serve_app.storage.database import Connection
from serve_app.storage.photo_faces import FoundFace, PhotoToIndex
from serve_app.text.photo_document import VERSION as WORDS_VERSION


@dataclass(frozen=True, slots=True)
class BatchPhoto:
    """`found`: all its faces; their crops lie where they say."""

    photo: NewPhoto
    found: Sequence[FoundFace]


@dataclass(frozen=True, slots=True)
class KnownPicture:
    """`photo_id`: None where only faces come from it. `indexed`: somebody has looked for the photo's faces."""

    photo_id: UUID | None
    indexed: bool


async def known(connection: Connection, collection: Collection, digests: Sequence[bytes]) -> dict[bytes, KnownPicture]:
    """Those pictures of the SHA-256 `digests` that the collection has."""
    rows = await connection.fetch(
        "SELECT i.sha256, p.id, p.indexed_at IS NOT NULL AS indexed FROM images i LEFT JOIN photos p ON p.image_id = i.id"
        " WHERE i.collection_key = $1 AND i.sha256 = ANY($2::bytea[])",
        collection.key,
        list(digests),
    )
    return {bytes(row["sha256"]): KnownPicture(row["id"], row["indexed"]) for row in rows}


async def insert(tx: Connection, collection: Collection, batch: Sequence[BatchPhoto], indexed_with: str) -> set[UUID]:
    """The ids of the photos that were made, without tags. Of a picture that the collection has already, or that somebody else
    brought in meanwhile, nothing is written, and its objects are the caller's to remove. No two of `batch` are one picture.
    The collection must be locked.
    """
    # Pictures by hash, as everybody locks them.
    ordered = sorted((one.photo for one in batch), key=lambda photo: photo.sha256)
    rows = await tx.fetch(
        "INSERT INTO images (id, collection_key, sha256, object_key, size_bytes, format, width_px, height_px)"
        " SELECT id, $1, sha256, object_key, size_bytes, format, width_px, height_px"
        " FROM unnest($2::uuid[], $3::bytea[], $4::text[], $5::bigint[], $6::text[], $7::integer[], $8::integer[])"
        " given (id, sha256, object_key, size_bytes, format, width_px, height_px) ORDER BY sha256"
        " ON CONFLICT (collection_key, sha256) DO NOTHING RETURNING id",
        collection.key,
        [photo.image_id for photo in ordered],
        [photo.sha256 for photo in ordered],
        [photo.object_key for photo in ordered],
        [photo.size_bytes for photo in ordered],
        [photo.info.format for photo in ordered],
        [photo.info.width_px for photo in ordered],
        [photo.info.height_px for photo in ordered],
    )
    made = {row["id"] for row in rows}
    fresh = [one for one in batch if one.photo.image_id in made]
    if fresh:
        await _insert_photos(tx, collection, fresh, indexed_with)
    return {one.photo.id for one in fresh}


async def _insert_photos(tx: Connection, collection: Collection, batch: Sequence[BatchPhoto], indexed_with: str) -> None:
    photos = [one.photo for one in batch]
    infos = [photo.info for photo in photos]
    rows = await tx.fetch(
        "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, taken_local, taken_offset_min, camera,"
        " lens, latitude, longitude, altitude_m, orientation, tag_count, texts, words_version, indexed_at, indexed_with)"
        " SELECT id, $1, image_id, file_name, folder, coalesce(taken_at, now()), taken_local, taken_offset_min, camera, lens,"
        " latitude, longitude, altitude_m, orientation, 0, texts, $2, now(), $3"
        " FROM unnest($4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::timestamptz[], $9::timestamp[], $10::integer[],"
        " $11::text[], $12::text[], $13::float8[], $14::float8[], $15::float8[], $16::smallint[], $17::jsonb[])"
        " given (id, image_id, file_name, folder, taken_at, taken_local, taken_offset_min, camera, lens, latitude, longitude,"
        " altitude_m, orientation, texts) ORDER BY id RETURNING id, taken_at",
        collection.key,
        WORDS_VERSION,
        indexed_with,
        [photo.id for photo in photos],
        [photo.image_id for photo in photos],
        [photo.file_name for photo in photos],
        [photo.folder for photo in photos],
        [photo.taken_at for photo in photos],
        [info.taken_local for info in infos],
        [info.taken_offset_min for info in infos],
        [info.camera for info in infos],
        [info.lens for info in infos],
        [info.latitude for info in infos],
        [info.longitude for info in infos],
        [info.altitude_m for info in infos],
        [info.orientation for info in infos],
        [photo_words.texts_column(info.texts) for info in infos],
    )
    taken = {row["id"]: row["taken_at"] for row in rows}
    await photo_words.refresh(tx, list(taken))
    of = [
        (PhotoToIndex(one.photo.id, one.photo.image_id, one.photo.object_key, taken[one.photo.id], indexed_with), face)
        for one in batch
        for face in one.found
    ]
    await photo_faces.insert(tx, collection, of)
