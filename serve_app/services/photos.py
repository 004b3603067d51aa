"""The photo library: photos come in, are listed, tagged and erased. They are the pictures of one collection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

from serve_app.errors import InvalidRequest, KinlensError, NotFound, ObjectStoreUnavailable, PartUnavailable, UnsupportedImage
from serve_app.identity.people import Collection, new_id
from serve_app.imaging.media import Media, recognize
from serve_app.jobs import ItemWithdrawn, JobKind
from serve_app.photos import NewPhoto, Photo, PhotoFilter, PictureInfo
from serve_app.services.collections import Collections
from serve_app.services.enrolment import CONTENT_TYPES, sha256_of
from serve_app.services.erasure import Eraser, Receipt
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import when_free
from serve_app.services.writing import Once
from serve_app.storage import (
    clustering,
    collections,
    faces,
    idempotency,
    images,
    job_items,
    jobs,
    journal,
    persons,
    photo_embeddings,
    photo_months,
    photo_tags,
    photos,
    vectors,
)
from serve_app.storage.database import Connection, Database
from serve_app.storage.idempotency import Replayed
from serve_app.storage.objects import ObjectStore, original_key
from serve_app.storage.photo_months import MonthCount
from serve_app.storage.photo_pages import Order, Position
from serve_app.storage.photo_tags import TagCount
from serve_app.text import photo_names

logger = logging.getLogger("ray.serve")

ResultT = TypeVar("ResultT")

COLLECTION_NAME = "Photo library"
TagChange = Callable[[Connection, Collection], Awaitable[None]]
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}
_UNSUPPORTED = {
    Media.RAW: "This is a camera's raw photo. Kinlens does not develop raw photos; send a JPEG, HEIC or TIFF made from it.",
    Media.VIDEO: "This is a video. The library holds photos only.",
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as a client sent it. `file_name`: as it came; `folder`, `tags`: as they are kept. `taken_at`: for a picture
    that does not say it itself."""

    data: bytes
    file_name: str | None
    folder: str = ""
    tags: tuple[str, ...] = ()
    taken_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """`created`: False for a picture that is in the library already; it is as it was."""

    photo: Photo
    created: bool


class Companion(Protocol):
    """What comes into the library with a photo, in the same transaction."""

    async def look(self, original: bytes) -> PictureInfo | None:
        """First of all; what the picture says of itself, where that is found out by the way. Raises CapacityError,
        PartUnavailable: the photo does not come in either."""
        ...

    async def prepare(self, collection: Collection) -> None:
        """Before the transaction. Raises likewise."""
        ...

    async def keep(self, tx: Connection, collection: Collection, photo: Photo, *, created: bool, fresh: bool) -> None:
        """`created`: False where somebody else brought the photo in meanwhile; `fresh`: so is its picture."""
        ...

    def discard(self) -> None:
        """What was prepared is not needed."""
        ...


@dataclass(frozen=True, slots=True)
class PhotoQuery:
    """`after`: where the page before ended."""

    filter: PhotoFilter
    order: Order
    after: Position | None
    limit: int


class Photos:
    """Every method raises DatabaseUnavailable and Overloaded, and NotFound for a photo that is not there."""

    def __init__(
        self,
        library: Collections,
        database: Database,
        objects: ObjectStore,
        eraser: Eraser,
        pictures: PictureReader,
        collection_id: str,
        automatic: Sequence[JobKind] = (),
    ) -> None:
        """`automatic`: jobs that a photo is an item of as soon as it is in the library."""
        self._automatic = automatic
        self._library = library
        self._database = database
        self._objects = objects
        self._eraser = eraser
        self._pictures = pictures
        self.collection_id = collection_id
        self._under_way: set[asyncio.Task[Any]] = set()

    async def upload(self, new: Upload, once: Once[Uploaded], companion: Companion | None = None) -> Uploaded:
        """Durable when it returns. A picture the library has costs a look-up, whatever it is called now. `companion`: in
        place of an automatic job for its faces.

        Raises ImageError, Replayed, IdempotencyKeyReused, CapacityError, PartUnavailable.
        """
        await once.check(self._database)
        digest = await sha256_of(new.data)
        known = await self._known(digest)
        if known is not None:
            return Uploaded(known, created=False)
        refusal = unsupported(new.data, new.file_name)
        if refusal is not None:
            raise refusal
        info = None if companion is None else await companion.look(new.data)
        if info is None:
            info = await when_free(lambda: self._pictures.inspect(new.data))
        collection = await self._library.ensure(self.collection_id, COLLECTION_NAME)
        photo = new_photo(collection, new, digest, info)
        if companion is not None:
            await companion.prepare(collection)
        try:
            await self._put(photo, new.data)
        except BaseException:
            if companion is not None:
                companion.discard()
            raise
        automatic = [kind for kind in self._automatic if companion is None or kind is not JobKind.FACES]

        async def work(tx: Connection) -> Uploaded:
            locked = await collections.lock(tx, self.collection_id)
            if locked.key != collection.key:
                raise NotFound("The library was erased meanwhile; send the photo again.")
            uploaded = Uploaded(*await photos.insert(tx, locked, photo, new.tags))
            if companion is not None:
                fresh = uploaded.photo.image_id == photo.image_id
                await companion.keep(tx, locked, uploaded.photo, created=uploaded.created, fresh=fresh)
            if uploaded.created:
                for kind in automatic:
                    await jobs.add_automatic(tx, locked, kind, [str(photo.id)])
            return uploaded

        async def insert() -> Uploaded:
            try:
                return await once.run(self._database, work)
            except PartUnavailable:
                # The commit may have happened: the object must stay. If it did not, `kinlens gc` finds it.
                raise
            except (KinlensError, Replayed, ItemWithdrawn):
                await self._discard(photo.object_key)
                if companion is not None:
                    companion.discard()
                raise

        # Shielded: of a transaction that is cancelled nobody knows whether it was committed, and whether the object is to
        # go. It is short, and what the client would have been told is so.
        return await asyncio.shield(self._keep(asyncio.create_task(insert())))

    async def settle(self, timeout_s: float) -> None:
        """Waits for what clients that left have left under way: photos on their way into the database, objects to remove."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout_s)

    async def get(self, photo_id: UUID) -> Photo:
        async with self._database.connection() as connection:
            collection = await self._existing(connection)
            if collection is None:
                raise photos.missing(photo_id)
            return await photos.get(connection, collection, photo_id)

    async def page(self, query: PhotoQuery) -> list[Photo]:
        async with self._database.connection() as connection:
            collection = await self._existing(connection)
            if collection is None:
                return []
            return await photos.page(connection, collection, query.filter, query.order, query.after, query.limit)

    async def months(self, wanted: PhotoFilter) -> list[MonthCount]:
        """Of all photos that fulfil the filter, the newest first."""
        async with self._database.connection() as connection:
            collection = await self._existing(connection)
            return [] if collection is None else await photo_months.counted(connection, collection, wanted)

    async def change_tags(self, photo_id: UUID, add: Sequence[str], remove: Sequence[str], once: Once[Photo]) -> Photo:
        """A tag in both is on it afterwards. Raises InvalidRequest for more tags than a photo may have."""

        async def change(tx: Connection, collection: Collection) -> None:
            await photo_tags.remove(tx, photo_id, remove)
            await photo_tags.add(tx, collection, photo_id, add)

        return await self._tagged(photo_id, change, once)

    async def replace_tags(self, photo_id: UUID, tags: Sequence[str], once: Once[Photo]) -> Photo:
        async def change(tx: Connection, collection: Collection) -> None:
            await photo_tags.replace(tx, collection, photo_id, tags)

        return await self._tagged(photo_id, change, once)

    async def tags(self, after: str | None, limit: int) -> list[TagCount]:
        """All tags of the library."""
        async with self._database.connection() as connection:
            collection = await self._existing(connection)
            return [] if collection is None else await photo_tags.counted(connection, collection, after, limit)

    async def delete(self, photo_id: UUID, once: Once[Receipt]) -> Receipt:
        """With its picture and every face in it, whosever they are."""

        async def work(tx: Connection) -> Receipt:
            try:
                collection = await collections.lock(tx, self.collection_id)
            except NotFound:
                raise photos.missing(photo_id) from None
            image_id = await photos.image_of(tx, collection, photo_id)
            found = await self._lock_faces(tx, collection, image_id)
            erased = await photos.delete(tx, collection, photo_id, list(found))
            owners = sorted({owner for owner in found.values() if owner is not None})
            templates = sum([await vectors.refresh_templates(tx, collection, owner) for owner in owners])
            groups = await clustering.remove_empty(tx, collection, owners)
            await idempotency.erase_subjects(tx, [photo_id, image_id, *found])
            await journal.erase_subjects(tx, collection, found)
            await job_items.erase_subjects(tx, collection, [str(photo_id)])
            remaining = await photos.remaining_rows(tx, photo_id, image_id)
            remaining += await photo_embeddings.remaining(tx, collection, photo_id)
            remaining += await job_items.remaining_subjects(tx, [str(photo_id)])
            return Receipt.of(replace(erased, persons=groups, templates=templates), remaining)

        return await self._eraser.finish(await once.run(self._database, work), once)

    async def _tagged(self, photo_id: UUID, change: TagChange, once: Once[Photo]) -> Photo:
        async def work(tx: Connection) -> Photo:
            try:
                collection = await collections.lock(tx, self.collection_id)
            except NotFound:
                raise photos.missing(photo_id) from None
            await photos.lock_one(tx, collection, photo_id)
            before = await photo_tags.of_photo(tx, photo_id)
            await change(tx, collection)
            after = await photo_tags.of_photo(tx, photo_id)
            if len(after) > max(photo_names.MAX_TAGS, len(before)):
                raise InvalidRequest(f"A photo has at most {photo_names.MAX_TAGS} tags.", max_tags=photo_names.MAX_TAGS)
            if after != before:
                await photos.tags_changed(tx, photo_id)
            return await photos.get(tx, collection, photo_id)

        return await once.run(self._database, work)

    async def _lock_faces(self, tx: Connection, collection: Collection, image_id: UUID) -> dict[UUID, UUID | None]:
        """The faces of the picture, their persons locked, and then the picture: nobody adds a face from then on. A face that
        came or was moved while we waited is looked up again."""
        found = await faces.of_image(tx, collection, image_id)
        while True:
            await persons.lock(tx, collection, sorted({owner for owner in found.values() if owner is not None}))
            await images.lock(tx, [image_id])
            now = await faces.of_image(tx, collection, image_id, lock=True)
            if set(now.values()) <= set(found.values()):
                return now
            found = now

    async def _known(self, digest: bytes) -> Photo | None:
        async with self._database.connection() as connection:
            collection = await self._existing(connection)
            return None if collection is None else await photos.by_sha256(connection, collection, digest)

    async def _existing(self, connection: Connection) -> Collection | None:
        """None before the first photo."""
        try:
            return await collections.get(connection, self.collection_id)
        except NotFound:
            return None

    async def _put(self, photo: NewPhoto, data: bytes) -> None:
        """No row can name the object yet, so it is removed when this fails or the client leaves."""
        task = asyncio.create_task(self._objects.put(photo.object_key, data, CONTENT_TYPES[photo.info.format]))
        try:
            # Shielded: a put that is under way when the client leaves may succeed, and then nobody would know of it.
            await asyncio.shield(task)
        except BaseException:
            self._keep(asyncio.create_task(self._remove(task, photo.object_key)))
            raise

    def _keep(self, task: asyncio.Task[ResultT]) -> asyncio.Task[ResultT]:
        """Until it is done, whoever waits for it."""
        self._under_way.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Looked at, so that asyncio does not complain when the client has left.
            task.exception()

    async def _remove(self, task: asyncio.Task[None], object_key: str) -> None:
        await asyncio.wait([task])
        await self._discard(object_key)

    async def _discard(self, object_key: str) -> None:
        try:
            await self._objects.delete(object_key)
        except ObjectStoreUnavailable:
            logger.warning("an object of a refused upload remains; `kinlens gc` finds it")


def new_photo(collection: Collection, upload: Upload, digest: bytes, info: PictureInfo) -> NewPhoto:
    """Of the picture `upload`, whose SHA-256 is `digest`."""
    # Random, so that the key says nothing of when; and never used twice.
    image_id = uuid4()
    return NewPhoto(
        id=new_id(),
        image_id=image_id,
        object_key=original_key(collection.key, image_id),
        sha256=digest,
        size_bytes=len(upload.data),
        file_name=photo_names.file_name(upload.file_name) or f"{digest.hex()[:16]}.{_suffix(info.format)}",
        folder=upload.folder,
        info=info,
        taken_at=taken_at(info) or upload.taken_at,
    )


def unsupported(data: bytes, file_name: str | None) -> UnsupportedImage | None:
    """Why the file cannot be a photo of the library, where it is a raw photo or a video."""
    media = recognize(data, file_name)
    return None if media is None else UnsupportedImage(_UNSUPPORTED[media], kind=media.value)


def taken_at(info: PictureInfo) -> datetime | None:
    """For sorting: the camera's clock in its zone, or as UTC where the picture names none. None without a date."""
    if info.taken_local is None:
        return None
    if info.taken_offset_min is None:
        return info.taken_local.replace(tzinfo=UTC)
    return info.taken_local.replace(tzinfo=timezone(timedelta(minutes=info.taken_offset_min)))


def _suffix(image_format: str) -> str:
    return _SUFFIXES.get(image_format, image_format.lower())
