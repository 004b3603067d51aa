"""Scans: the photos below a folder of the server come into the library, as a job. What lies there is only read.

Each folder and each file is an item. A folder's item adds those of what is in it, in the transaction that ends it; a file's
ends with the one that makes the photo and its faces. So a scan goes on where it was, whoever dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import EmbeddingModelMismatch, ImageError, ImageTooLarge, JsonValue, ScanRefused, UnsupportedImage
from serve_app.identity.people import Collection
from serve_app.imaging.images import sniff
from serve_app.jobs import Job, JobKind
from serve_app.photos import Photo, PictureInfo
from serve_app.server_files import (
    NotAFile,
    Parts,
    check_folder,
    entries,
    locate,
    of_subject,
    read_file,
    text_of,
    to_subject,
)
from serve_app.services.collections import Collections
from serve_app.services.indexing import PhotoIndexer, Prepared
from serve_app.services.photos import COLLECTION_NAME, Companion, Photos, Upload, Uploaded, unsupported
from serve_app.services.pipeline import Extraction
from serve_app.services.work import WorkItem
from serve_app.services.writing import Once
from serve_app.storage import collections, jobs, objects_outbox
from serve_app.storage.database import Connection, Database
from serve_app.storage.photo_faces import PhotoToIndex
from serve_app.text.photo_names import folder_of

_ADDED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Scan:
    """What a client asks for. `path`: absolute. `folder`: of the library, in place of the way from the root to `path`; None:
    that way. `tags`: of every photo that comes in."""

    path: str
    folder: str | None = None
    tags: tuple[str, ...] = ()


class Scanning:
    """`roots`: what may be scanned."""

    def __init__(self, library: Collections, database: Database, collection_id: str, roots: Sequence[Path]) -> None:
        self._library = library
        self._database = database
        self._collection_id = collection_id
        self._roots = tuple(roots)

    async def start(self, scan: Scan, once: Once[Job]) -> Job:
        """Raises ScanRefused, NotFound, FileUnreadable, Replayed, IdempotencyKeyReused, CapacityError, PartUnavailable."""
        await once.check(self._database)
        root, parts = locate(self._roots, scan.path)
        await asyncio.to_thread(check_folder, root, parts)
        collection = await self._library.ensure(self._collection_id, COLLECTION_NAME)
        options: dict[str, JsonValue] = {
            "root": str(root),
            "path": to_subject(parts, folder=True),
            "folder": scan.folder,
            "tags": list(scan.tags),
        }

        async def work(tx: Connection) -> Job:
            locked = await collections.lock(tx, collection.id)
            return await jobs.create(tx, locked, JobKind.SCAN, options, [to_subject(parts, folder=True)])

        return await once.run(self._database, work)


class ScanWorker:
    """An ItemHandler; the subject is a folder or a file below one of `roots`. `max_file_bytes`: of a photo. `indexer`: finds
    the faces of each photo at once; None where nobody wants that (INDEX_UPLOADS)."""

    def __init__(
        self,
        database: Database,
        photos: Photos,
        roots: Sequence[Path],
        max_file_bytes: int,
        indexer: PhotoIndexer | None,
    ) -> None:
        self._database = database
        self._photos = photos
        self._roots = tuple(roots)
        self._max_file_bytes = max_file_bytes
        self._indexer = indexer

    async def run(self, item: WorkItem) -> None:
        """Raises ScanRefused, ImageError, CapacityError, PartUnavailable, ItemWithdrawn."""
        root = Path(str(item.options["root"]))
        if root not in self._roots:
            raise ScanRefused("The folder is not among SCAN_ROOTS any more.")
        parts, folder = of_subject(item.subject)
        if item.subject != item.options["path"] and parts[-1].startswith(b"."):
            await self._skip(item, "hidden")
            return
        try:
            if folder:
                await self._folder(item, root, parts)
            else:
                await self._file(item, root, parts)
        except NotAFile as error:
            await self._skip(item, error.reason)

    async def _folder(self, item: WorkItem, root: Path, parts: Parts) -> None:
        found = await asyncio.to_thread(entries, root, parts)
        subjects = [to_subject((*parts, name), folder=is_folder) for name, is_folder in found]

        async def work(tx: Connection) -> None:
            for start in range(0, len(subjects), _ADDED_AT_ONCE):
                await item.add(tx, subjects[start : start + _ADDED_AT_ONCE])
            await item.finish(tx)

        await self._database.run(work)

    async def _file(self, item: WorkItem, root: Path, parts: Parts) -> None:
        name = text_of(parts[-1])
        try:
            found = await asyncio.to_thread(read_file, root, parts, self._max_file_bytes)
        except ImageTooLarge:
            kind = _kind(b"", name)
            if kind is None:
                raise
            await self._skip(item, kind)
            return
        kind = _kind(found.data, name)
        if kind is None:
            try:
                sniff(found.data)
            except UnsupportedImage:
                kind = "not_a_picture"
        if kind is not None:
            await self._skip(item, kind)
            return
        upload = Upload(found.data, name, _library_folder(item, parts[:-1]), _tags(item), found.modified_at)
        faces = None if self._indexer is None else PhotoFaces(self._indexer)
        uploaded = await self._photos.upload(upload, _WithItem(None, lambda _: (200, b""), item, faces), faces)
        if not uploaded.created:
            if self._indexer is None:
                await self._skip(item, "exists")
            else:
                # Whoever brought it in may have died over its faces, or failed.
                await self._indexer.index_known(item, uploaded.photo.id, found.data)
        elif faces is not None and faces.error is not None:
            raise faces.error

    async def _skip(self, item: WorkItem, reason: str) -> None:
        await self._database.run(lambda tx: item.skip(tx, reason))


@dataclass
class PhotoFaces(Companion):
    """The faces of a photo that comes in. `error`: why they could not be found; the photo comes in without them, and its item
    fails."""

    indexer: PhotoIndexer
    found: Extraction | None = None
    prepared: Prepared | None = None
    error: ImageError | EmbeddingModelMismatch | None = None

    async def look(self, original: bytes) -> PictureInfo | None:
        try:
            self.found = await self.indexer.find(original, info=True)
        except ImageError as error:
            # It may still be a picture that can be shown.
            self.error = error
            return None
        return self.found.detections.info

    async def prepare(self, collection: Collection) -> None:
        if self.found is None:
            return
        try:
            self.prepared = await self.indexer.prepare(collection, self.found)
        except EmbeddingModelMismatch as error:
            self.error = error

    async def keep(self, tx: Connection, collection: Collection, photo: Photo, *, created: bool, fresh: bool) -> None:
        if self.prepared is None:
            return
        if created:
            place = PhotoToIndex(photo.id, photo.image_id, photo.image_key, photo.taken_at, None)
            await self.indexer.keep(tx, collection, place, self.prepared, fresh=fresh)
        else:
            await objects_outbox.add(tx, self.prepared.crop_keys)

    def discard(self) -> None:
        if self.prepared is not None:
            self.indexer.discard(self.prepared)


@dataclass(frozen=True, slots=True)
class _WithItem(Once[Uploaded]):
    """A new photo and the end of its item, in one transaction."""

    item: WorkItem
    faces: PhotoFaces | None

    async def run(self, database: Database, work: Callable[[Connection], Awaitable[Uploaded]]) -> Uploaded:
        async def both(tx: Connection) -> Uploaded:
            uploaded = await work(tx)
            if uploaded.created and (self.faces is None or self.faces.error is None):
                await self.item.finish(tx)
            return uploaded

        return await Once.run(self, database, both)


def _library_folder(item: WorkItem, parts: Parts) -> str:
    """Of the photos in the folder `parts`."""
    given = item.options["folder"]
    if given is None:
        return folder_of([text_of(part) for part in parts])
    scanned, _ = of_subject(str(item.options["path"]))
    return folder_of([*filter(None, str(given).split("/")), *map(text_of, parts[len(scanned) :])])


def _tags(item: WorkItem) -> tuple[str, ...]:
    tags = item.options["tags"]
    return tuple(map(str, tags)) if isinstance(tags, list) else ()


def _kind(data: bytes, name: str) -> str | None:
    """`raw` or `video`."""
    found = unsupported(data, name)
    return None if found is None else str(found.details["kind"])
