"""Faces of the library: listed, looked at, shown."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from serve_app.errors import NotFound
from serve_app.identity.library_faces import FaceQuery, LibraryFace
from serve_app.identity.people import Collection
from serve_app.imaging.regions import Region, square_around
from serve_app.photos import FACE_THUMBNAIL_SIDES_PX, Photo, ThumbnailFormat
from serve_app.services.enrolment import CONTENT_TYPES
from serve_app.services.pictures import PictureReader
from serve_app.storage import collections, faces, library_faces, persons, photos
from serve_app.storage.database import Connection, Database
from serve_app.storage.objects import box_version, face_thumbnail_key


@dataclass(frozen=True, slots=True)
class FaceThumbnail:
    """A square around a face, with some margin. `version`: of its box; when that moves, the thumbnail is another."""

    collection: Collection
    face_id: UUID
    photo_id: UUID
    image_key: str
    version: str
    region: Region
    side_px: int
    format: ThumbnailFormat

    @property
    def key(self) -> str:
        """Of the object it is kept in."""
        return face_thumbnail_key(self.collection.key, self.face_id, self.version, self.side_px, self.format)

    @property
    def etag(self) -> str:
        """Strong: the picture never changes, and neither does what was cut out of it."""
        return f'"{self.face_id.hex}-{self.version}-{self.side_px}-{self.format.value.lower()}"'

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format.value]

    async def make(self, pictures: PictureReader, original: bytes) -> bytes:
        return await pictures.cut(original, self.region, self.side_px, self.format)

    async def current(self, connection: Connection) -> bool:
        face = await library_faces.get(connection, self.collection, self.face_id)
        return face.photo_id is not None and face.bbox is not None and box_version(face.bbox) == self.version


class LibraryFaces:
    """Every method raises DatabaseUnavailable and Overloaded."""

    def __init__(self, database: Database, collection_id: str) -> None:
        self._database = database
        self._collection_id = collection_id

    async def get(self, face_id: UUID) -> LibraryFace:
        """Raises NotFound."""
        async with self._database.connection() as connection:
            return (await self._found(connection, face_id))[1]

    async def page(self, query: FaceQuery) -> list[LibraryFace]:
        """Raises NotFound for a person or a photo that is not there."""
        wanted = query.filter
        async with self._database.connection() as connection:
            collection = await self._existing(connection)
            if collection is None:
                if wanted.person_id is not None:
                    raise persons.missing(wanted.person_id)
                if wanted.photo_id is not None:
                    raise photos.missing(wanted.photo_id)
                return []
            if wanted.person_id is not None:
                await persons.get(connection, collection, wanted.person_id)
            if wanted.photo_id is not None:
                await photos.image_of(connection, collection, wanted.photo_id)
            return await library_faces.page(connection, collection, query)

    async def of_photo(self, photo_id: UUID) -> tuple[Photo, list[LibraryFace]]:
        """The photo and all its faces, hidden ones too, the largest first. Raises NotFound."""
        async with self._database.connection() as connection:
            collection = await self._existing(connection)
            if collection is None:
                raise photos.missing(photo_id)
            photo = await photos.get(connection, collection, photo_id)
            return photo, await library_faces.of_image(connection, collection, photo.image_id)

    async def thumbnail(self, face_id: UUID, size_px: int, image_format: ThumbnailFormat) -> FaceThumbnail:
        """Which one answers this: the smallest that is at least `size_px` wide, or else the largest; none larger than there
        are pixels. Nothing is made yet. Raises NotFound, also for a face of no photo."""
        async with self._database.connection() as connection:
            collection, face = await self._found(connection, face_id)
        if face.photo_id is None or face.image_key is None or face.bbox is None or not face.width_px or not face.height_px:
            raise NotFound("The face comes from no photo of the library; it has no thumbnail.", face_id=str(face_id))
        region, side = square_around(face.bbox, face.width_px, face.height_px)
        needed = min(size_px, side)
        side_px = next((one for one in FACE_THUMBNAIL_SIDES_PX if one >= needed), FACE_THUMBNAIL_SIDES_PX[-1])
        version = box_version(face.bbox)
        return FaceThumbnail(
            collection, face_id, face.photo_id, face.image_key, version, region, side_px, image_format
        )  # fmt: skip

    async def _found(self, connection: Connection, face_id: UUID) -> tuple[Collection, LibraryFace]:
        collection = await self._existing(connection)
        if collection is None:
            raise faces.missing(face_id)
        return collection, await library_faces.get(connection, collection, face_id)

    async def _existing(self, connection: Connection) -> Collection | None:
        """None before the first photo."""
        try:
            return await collections.get(connection, self._collection_id)
        except NotFound:
            return None
