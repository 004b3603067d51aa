"""Thumbnails: made when they are first asked for, kept in the object store, gone with their photo."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from uuid import UUID

from serve_app.errors import DatabaseUnavailable, DeadlineExceeded, NotFound, ObjectStoreUnavailable, Overloaded
from serve_app.people import Collection
from serve_app.photos import THUMBNAIL_SIDES_PX, Photo, ThumbnailFormat
from serve_app.services.enrolment import CONTENT_TYPES
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import when_free
from serve_app.storage import collections, photos
from serve_app.storage.database import Database
from serve_app.storage.objects import ObjectMissing, ObjectStore, thumbnail_key

logger = logging.getLogger("ray.serve")

_MADE_AT_ONCE = 4
"""By one process. Each holds its original in memory, and a page of a hundred thumbnails must not fill the queue that
detection waits in too."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Which one: of the picture with this hash. `side_px`: a rung of THUMBNAIL_SIDES_PX."""

    collection: Collection
    photo_id: UUID
    image_id: UUID
    image_key: str
    sha256: bytes
    side_px: int
    format: ThumbnailFormat

    @property
    def key(self) -> str:
        """Of the object it is kept in."""
        return thumbnail_key(self.collection.key, self.image_id, self.side_px, self.format)

    @property
    def etag(self) -> str:
        """Strong: the picture never changes, and what was made of it is kept."""
        return f'"{self.sha256.hex()}-{self.side_px}-{self.format.value.lower()}"'

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format.value]


def thumbnail_of(collection: Collection, photo: Photo, size_px: int, image_format: ThumbnailFormat) -> Thumbnail:
    """The smallest that is at least `size_px` on its longer side, or else the largest; none larger than the photo needs."""
    needed = min(size_px, max(photo.info.width_px, photo.info.height_px))
    side_px = next((side for side in THUMBNAIL_SIDES_PX if side >= needed), THUMBNAIL_SIDES_PX[-1])
    return Thumbnail(collection, photo.id, photo.image_id, photo.image_key, photo.sha256, side_px, image_format)


class Thumbnails:
    """Of the photos of one collection. `timeout_s`: for making one, waiting included."""

    def __init__(
        self, database: Database, objects: ObjectStore, pictures: PictureReader, collection_id: str, timeout_s: float
    ) -> None:
        self._collection_id = collection_id
        self._database = database
        self._objects = objects
        self._pictures = pictures
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(_MADE_AT_ONCE)
        self._under_way: dict[str, asyncio.Task[bytes]] = {}

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, photo_id: UUID, size_px: int, image_format: ThumbnailFormat) -> Thumbnail:
        """Which thumbnail answers this; nothing is made yet. Raises NotFound, DatabaseUnavailable, Overloaded."""
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self._collection_id)
            except NotFound:
                raise photos.missing(photo_id) from None
            return thumbnail_of(collection, await photos.get(connection, collection, photo_id), size_px, image_format)

    async def get(self, thumbnail: Thumbnail) -> bytes:
        """From the store, or made now and put there. Whoever asks for one that is being made waits for that.

        Raises NotFound (the photo is gone), ImageError, CapacityError, PartUnavailable.
        """
        key = thumbnail.key
        try:
            return await self._objects.get(key)
        except ObjectMissing:
            pass
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._make(thumbnail))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        # A caller that leaves takes nothing from the others.
        return await asyncio.shield(task)

    def _finished(self, key: str, task: asyncio.Task[bytes]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            # Looked at, so that asyncio does not complain when every caller has left.
            task.exception()

    async def _make(self, thumbnail: Thumbnail) -> bytes:
        try:
            # Without a limit of its own, one call that hangs would hold everybody who asks for the same.
            async with asyncio.timeout(self._timeout_s), self._places:
                data = await self._made(thumbnail)
        except TimeoutError as error:
            raise DeadlineExceeded(f"The thumbnail took longer than {self._timeout_s:g} s.") from error
        await self._keep(thumbnail, data)
        return data

    async def _made(self, thumbnail: Thumbnail) -> bytes:
        try:
            original = await self._objects.get(thumbnail.image_key)
        except ObjectMissing as error:
            raise NotFound("The photo's picture is gone.", photo_id=str(thumbnail.photo_id)) from error
        # A page asks for many at once, and would show gaps.
        return await when_free(lambda: self._pictures.thumbnail(original, thumbnail.side_px, thumbnail.format))

    async def _keep(self, thumbnail: Thumbnail, data: bytes) -> None:
        """A thumbnail that cannot be kept is made again next time."""
        try:
            await self._objects.put(thumbnail.key, data, thumbnail.content_type)
            if not await self._photo_exists(thumbnail):
                # Deleted meanwhile, perhaps after its thumbnails were.
                await self._objects.delete(thumbnail.key)
        except ObjectStoreUnavailable as error:
            logger.warning("thumbnail %s was not kept: %s", thumbnail.key, error.detail)

    async def _photo_exists(self, thumbnail: Thumbnail) -> bool:
        """False where nobody can tell."""
        try:
            async with self._database.connection() as connection:
                await photos.get(connection, thumbnail.collection, thumbnail.photo_id)
        except (NotFound, DatabaseUnavailable, Overloaded):
            return False
        return True
