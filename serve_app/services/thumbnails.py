"""Thumbnails: made when they are first asked for, kept in the object store, gone with what they show."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from serve_app.errors import (
    RETRY_AFTER_S,
    DatabaseUnavailable,
    DeadlineExceeded,
    NotFound,
    ObjectStoreUnavailable,
    Overloaded,
)
from serve_app.identity.people import Collection
from serve_app.photos import THUMBNAIL_SIDES_PX, Photo, ThumbnailFormat
from serve_app.services.enrolment import CONTENT_TYPES
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import when_free
from serve_app.storage import collections, objects_outbox, photos
from serve_app.storage.database import Connection, Database
from serve_app.storage.objects import ObjectMissing, ObjectStore, thumbnail_key

logger = logging.getLogger("ray.serve")

_MADE_AT_ONCE = 4
"""By one process. Each holds its original in memory, and a page of a hundred thumbnails must not fill the queue that
detection waits in too."""
_UNDER_WAY = 256
"""Thumbnails of one process that are made or waited for; more are refused. Some pages of a hundred."""
_CLOSE_TIMEOUT_S = 5
"""For what has been made to be kept."""


class Kept(Protocol):
    """What is made of a photo's picture once and kept under `key`."""

    @property
    def key(self) -> str: ...

    @property
    def etag(self) -> str: ...

    @property
    def content_type(self) -> str: ...

    @property
    def photo_id(self) -> UUID: ...

    @property
    def image_key(self) -> str:
        """Of the original."""

    async def make(self, pictures: PictureReader, original: bytes) -> bytes:
        """Raises ImageError, CapacityError, PartUnavailable."""
        ...

    async def current(self, connection: Connection) -> bool:
        """Whether it is still what would be asked for. Raises NotFound when what it shows is gone."""
        ...


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

    async def make(self, pictures: PictureReader, original: bytes) -> bytes:
        return await pictures.thumbnail(original, self.side_px, self.format)

    async def current(self, connection: Connection) -> bool:
        await photos.get(connection, self.collection, self.photo_id)
        return True


def thumbnail_of(collection: Collection, photo: Photo, size_px: int, image_format: ThumbnailFormat) -> Thumbnail:
    """The smallest that is at least `size_px` on its longer side, or else the largest; none larger than the photo needs."""
    needed = min(size_px, max(photo.info.width_px, photo.info.height_px))
    side_px = next((side for side in THUMBNAIL_SIDES_PX if side >= needed), THUMBNAIL_SIDES_PX[-1])
    return Thumbnail(collection, photo.id, photo.image_id, photo.image_key, photo.sha256, side_px, image_format)


@dataclass(eq=False, slots=True)
class _Making:
    """One thumbnail that is being made. `waiting`: callers; `has_place`: it has come to the front of the line; `keeping`:
    it is made, and may be in the store already."""

    waiting: int = 0
    has_place: bool = False
    keeping: bool = False


class Thumbnails:
    """Of the photos of one collection. `timeout_s`: for making one, from the moment it has a place."""

    def __init__(
        self, database: Database, objects: ObjectStore, pictures: PictureReader, collection_id: str, timeout_s: float
    ) -> None:
        self._collection_id = collection_id
        self._database = database
        self._objects = objects
        self._pictures = pictures
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(_MADE_AT_ONCE)
        self._under_way: dict[str, tuple[_Making, asyncio.Task[bytes]]] = {}

    async def close(self) -> None:
        """Ends what is under way. What may be in the store already is first brought to its end, or to that of the time."""
        under_way = list(self._under_way.values())
        for making, task in under_way:
            if not making.keeping:
                task.cancel()
        tasks = [task for _, task in under_way]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
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

    async def get(self, thumbnail: Kept) -> bytes:
        """From the store, or made now and put there. Whoever asks for one that is being made waits for that.

        Raises NotFound (the photo is gone), ImageError, CapacityError, PartUnavailable.
        """
        key = thumbnail.key
        try:
            return await self._objects.get(key)
        except ObjectMissing:
            pass
        making, task = self._under_way.get(key) or self._begin(thumbnail)
        making.waiting += 1
        try:
            # A caller that leaves takes nothing from the others.
            return await asyncio.shield(task)
        finally:
            making.waiting -= 1
            if not making.waiting and not making.has_place:
                # Nobody wants it, and others stand behind it. Whoever asks from now on begins anew.
                self._forget(key, making)
                task.cancel()

    def _begin(self, thumbnail: Kept) -> tuple[_Making, asyncio.Task[bytes]]:
        if len(self._under_way) >= _UNDER_WAY:
            raise Overloaded("Too many thumbnails are waited for.", retry_after_s=RETRY_AFTER_S)
        making = _Making()
        task = asyncio.create_task(self._make(thumbnail, making))
        self._under_way[thumbnail.key] = making, task
        task.add_done_callback(lambda done: self._finished(thumbnail.key, making, done))
        return making, task

    def _finished(self, key: str, making: _Making, task: asyncio.Task[bytes]) -> None:
        self._forget(key, making)
        if not task.cancelled():
            # Looked at, so that asyncio does not complain when every caller has left.
            task.exception()

    def _forget(self, key: str, making: _Making) -> None:
        """Unless another one has taken its place."""
        if key in self._under_way and self._under_way[key][0] is making:
            del self._under_way[key]

    async def _make(self, thumbnail: Kept, making: _Making) -> bytes:
        async with self._places:
            making.has_place = True
            try:
                # Callers have limits of their own. Without one here, a few calls that hang would hold every place.
                async with asyncio.timeout(self._timeout_s):
                    try:
                        # It may have been finished between the caller's look and now.
                        return await self._objects.get(thumbnail.key)
                    except ObjectMissing:
                        data = await self._made(thumbnail)
            except TimeoutError as error:
                raise DeadlineExceeded(f"The thumbnail took longer than {self._timeout_s:g} s.") from error
        making.keeping = True
        await self._keep(thumbnail, data)
        return data

    async def _made(self, thumbnail: Kept) -> bytes:
        try:
            original = await self._objects.get(thumbnail.image_key)
        except ObjectMissing as error:
            raise NotFound("The photo's picture is gone.", photo_id=str(thumbnail.photo_id)) from error
        # A page asks for many at once, and would show gaps.
        return await when_free(lambda: thumbnail.make(self._pictures, original))

    async def _keep(self, thumbnail: Kept, data: bytes) -> None:
        """A thumbnail that cannot be kept is made again next time. Raises NotFound when what it shows was deleted meanwhile,
        perhaps after its thumbnails were."""
        try:
            await self._objects.put(thumbnail.key, data, thumbnail.content_type)
        except ObjectStoreUnavailable as error:
            # It may be there all the same.
            logger.warning("thumbnail %s was not kept: %s", thumbnail.key, error.detail)
        gone: NotFound | None = None
        try:
            async with self._database.connection() as connection:
                try:
                    if await thumbnail.current(connection):
                        return
                except NotFound as error:
                    gone = error
                # The sweeper tries until the store has deleted it.
                await objects_outbox.add(connection, [thumbnail.key])
        except (DatabaseUnavailable, Overloaded) as error:
            logger.warning("thumbnail %s is taken back: %s", thumbnail.key, error.detail)
        # Here as well: the outbox may have had the key already, from a deletion that removed the object before it was put and
        # is about to say so. And where nobody can tell whether the photo exists, none is better than one too many.
        try:
            await self._objects.delete(thumbnail.key)
        except ObjectStoreUnavailable as error:
            logger.warning("thumbnail %s cannot be deleted now: %s", thumbnail.key, error.detail)
        if gone is not None:
            raise gone
