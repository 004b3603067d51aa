"""Photos of the library: what is known of a picture beside its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from serve_app.errors import DeadlineExceeded, NotFound
from serve_app.identity.people import Collection, Erased, NewImage
from serve_app.photos import NewPhoto, Photo, PhotoFilter, PictureInfo
from serve_app.storage import faces, images, objects_outbox, photo_embeddings, photo_tags, photo_words
from serve_app.storage.database import Connection, Row
from serve_app.storage.objects import thumbnail_keys
from serve_app.storage.photo_pages import WALKED, WORTH_A_WALK, Order, Position, leading_set, page_query
from serve_app.text.photo_document import VERSION as WORDS_VERSION

_WALK_TIMEOUT_S = 15.0
"""Large sets that have no photo in common are found so only by looking at every photo; nobody else should wait for that."""

_COLUMNS = """
    SELECT p.id, p.image_id, i.object_key, i.sha256, i.size_bytes, i.format, i.width_px, i.height_px, p.file_name, p.folder,
           p.taken_at, p.taken_local, p.taken_offset_min, p.camera, p.lens, p.latitude, p.longitude, p.altitude_m,
           p.orientation, p.texts, p.created_at, p.updated_at,
           ARRAY(SELECT t.tag FROM photo_tags t WHERE t.photo_id = p.id ORDER BY t.tag) AS tags,
           (SELECT count(*) FROM faces f WHERE f.image_id = p.image_id) AS face_count
    FROM photos p JOIN images i ON i.id = p.image_id
"""


async def insert(tx: Connection, collection: Collection, new: NewPhoto, tags: Sequence[str]) -> tuple[Photo, bool]:
    """The photo, and whether it was made: of a picture that is a photo already, that one, unchanged. The object uploaded
    for nothing then goes to the outbox."""
    info = new.info
    image = NewImage(
        new.image_id, new.sha256, new.object_key, new.size_bytes, info.format, info.width_px, info.height_px
    )  # fmt: skip
    image_id = await images.insert(tx, collection, image)
    photo_id = await tx.fetchval(
        "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, taken_local, taken_offset_min,"
        " camera, lens, latitude, longitude, altitude_m, orientation, tag_count, texts, words_version)"
        " VALUES ($1, $2, $3, $4, $5, coalesce($6, now()), $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
        " ON CONFLICT (image_id) DO NOTHING RETURNING id",
        new.id, collection.key, image_id, new.file_name, new.folder, new.taken_at, info.taken_local, info.taken_offset_min,
        info.camera, info.lens, info.latitude, info.longitude, info.altitude_m, info.orientation,
        len(set(tags)), photo_words.texts_column(info.texts), WORDS_VERSION,
    )  # fmt: skip
    if photo_id is not None:
        if tags:
            await photo_tags.add(tx, collection, new.id, tags)
        await photo_words.refresh(tx, [new.id])
    found = await by_sha256(tx, collection, new.sha256)
    assert found is not None
    return found, photo_id is not None


async def get(connection: Connection, collection: Collection, photo_id: UUID) -> Photo:
    """Raises NotFound."""
    row = await connection.fetchrow(_COLUMNS + " WHERE p.id = $1 AND p.collection_key = $2", photo_id, collection.key)
    if row is None:
        raise missing(photo_id)
    return _photo(row)


async def by_sha256(connection: Connection, collection: Collection, digest: bytes) -> Photo | None:
    row = await connection.fetchrow(_COLUMNS + " WHERE i.sha256 = $1 AND i.collection_key = $2", digest, collection.key)
    return None if row is None else _photo(row)


async def of_ids(connection: Connection, collection: Collection, photo_ids: Sequence[UUID]) -> list[Photo]:
    """Those that are there, in no order."""
    rows = await connection.fetch(
        _COLUMNS + " WHERE p.id = ANY($1::uuid[]) AND p.collection_key = $2", list(photo_ids), collection.key
    )
    return [_photo(row) for row in rows]


async def page(
    connection: Connection,
    collection: Collection,
    wanted: PhotoFilter,
    order: Order,
    after: Position | None,
    limit: int,
) -> list[Photo]:
    leading, count = await leading_set(connection, collection, wanted)
    direction = "DESC" if order.descending else "ASC"

    async def found(walked: int | None, timeout_s: float | None) -> list[Row]:
        query, values = page_query(collection, wanted, order, after, limit, leading, walked=walked)
        # The page is chosen first: pictures, tags and faces are looked up of its photos only.
        ordered = f"ORDER BY p.{order.sort} {direction}, p.id {direction}"
        return await connection.fetch(f"{_COLUMNS} WHERE p.id IN ({query}) {ordered}", *values, timeout=timeout_s)

    if leading is not None and count >= WORTH_A_WALK and len(rows := await found(WALKED, None)) >= limit:
        return [_photo(row) for row in rows]
    try:
        rows = await found(None, _WALK_TIMEOUT_S if leading is None else None)
    except TimeoutError as error:
        if leading is not None:
            raise
        raise DeadlineExceeded(
            f"Hardly any photo fits all of this: a page of them was not found in {_WALK_TIMEOUT_S:g} s. Ask for fewer tags or"
            " persons at once, or for a shorter time.",
            timeout_s=_WALK_TIMEOUT_S,
        ) from error
    return [_photo(row) for row in rows]


async def lock_one(tx: Connection, collection: Collection, photo_id: UUID) -> UUID:
    """The id of its picture. Raises NotFound."""
    image_id: UUID | None = await tx.fetchval(
        "SELECT image_id FROM photos WHERE id = $1 AND collection_key = $2 FOR NO KEY UPDATE", photo_id, collection.key
    )
    if image_id is None:
        raise missing(photo_id)
    return image_id


async def tags_changed(tx: Connection, photo_id: UUID) -> None:
    """What the photo's row says of its tags, and the words it is found by; they were changed."""
    await tx.execute(
        "UPDATE photos SET updated_at = now(), tag_count = (SELECT count(*) FROM photo_tags WHERE photo_id = $1)"
        " WHERE id = $1",
        photo_id,
    )
    await photo_words.refresh(tx, [photo_id])


async def image_of(connection: Connection, collection: Collection, photo_id: UUID) -> UUID:
    """The id of its picture. Raises NotFound."""
    image_id: UUID | None = await connection.fetchval(
        "SELECT image_id FROM photos WHERE id = $1 AND collection_key = $2", photo_id, collection.key
    )
    if image_id is None:
        raise missing(photo_id)
    return image_id


async def delete(tx: Connection, collection: Collection, photo_id: UUID, face_ids: Sequence[UUID]) -> Erased:
    """The photo with its picture and `face_ids`, all faces of it. Their persons and the picture must be locked; templates
    are the caller's to refresh. Objects are handed to the outbox. Raises NotFound."""
    # Before the photo: of a photo's faces there may be thumbnails.
    erased = await faces.delete(tx, collection, face_ids)
    words = await photo_words.vocabulary_of(tx, photo_id)
    image_id = await tx.fetchval(
        "DELETE FROM photos WHERE id = $1 AND collection_key = $2 RETURNING image_id", photo_id, collection.key
    )
    if image_id is None:
        raise missing(photo_id)
    await photo_words.prune(tx, collection.key, words)
    await photo_embeddings.remove(tx, collection, [photo_id])
    originals = await images.delete_unused(tx, [image_id])
    keys = (*originals, *thumbnail_keys(collection.key, image_id))
    await objects_outbox.add(tx, keys)
    return erased + Erased(images=len(originals), object_keys=keys, photos=1)


async def remaining_rows(connection: Connection, photo_id: UUID, image_id: UUID) -> int:
    """Rows of a deleted photo that are still there."""
    return int(
        await connection.fetchval(
            "SELECT (SELECT count(*) FROM photos WHERE id = $1) + (SELECT count(*) FROM photo_tags WHERE photo_id = $1)"
            " + (SELECT count(*) FROM photo_texts WHERE photo_id = $1)"
            " + (SELECT count(*) FROM indexed_files WHERE photo_id = $1)"
            " + (SELECT count(*) FROM images WHERE id = $2) + (SELECT count(*) FROM faces WHERE image_id = $2)",
            photo_id,
            image_id,
        )
    )


def missing(photo_id: UUID) -> NotFound:
    return NotFound(f"There is no photo {photo_id} in the library.", photo_id=str(photo_id))


def _photo(row: Row) -> Photo:
    info = PictureInfo(
        format=row["format"],
        width_px=row["width_px"],
        height_px=row["height_px"],
        orientation=row["orientation"],
        taken_local=row["taken_local"],
        taken_offset_min=row["taken_offset_min"],
        camera=row["camera"],
        lens=row["lens"],
        latitude=row["latitude"],
        longitude=row["longitude"],
        altitude_m=row["altitude_m"],
        texts=photo_words.picture_texts(row["texts"]),
    )
    return Photo(
        id=row["id"],
        image_id=row["image_id"],
        image_key=row["object_key"],
        sha256=bytes(row["sha256"]),
        size_bytes=row["size_bytes"],
        file_name=row["file_name"],
        folder=row["folder"],
        info=info,
        taken_at=row["taken_at"],
        tags=tuple(row["tags"]),
        face_count=row["face_count"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
