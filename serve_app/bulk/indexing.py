"""A batch of files becomes photos with their faces: read and looked at side by side, written in one transaction.

What comes of a file is what a scan makes of it. Whatever is not simply new, a picture that faces were enrolled from for
instance, goes the way of the scan itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from serve_app.bulk.files import BatchResult, Outcome, Source, SourceFile, Status, file_id, version_id
from serve_app.errors import (
    CapacityError,
    FileUnreadable,
    ImageError,
    ImageTooLarge,
    KinlensError,
    NotFound,
    ObjectStoreUnavailable,
    PartUnavailable,
    UnsupportedImage,
)
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.imaging.images import sniff
from serve_app.jobs import JobKind
from serve_app.photos import NewPhoto
from serve_app.server_files import NotAFile
from serve_app.services.collections import Collections, check_contract
from serve_app.services.enrolment import CONTENT_TYPES
from serve_app.services.indexing import PhotoIndexer, Prepared
from serve_app.services.photos import COLLECTION_NAME, Photos, Upload, Uploaded, new_photo, unsupported
from serve_app.services.scanning import PhotoFaces
from serve_app.services.work import WorkItem
from serve_app.services.writing import Once
from serve_app.storage import collections, indexed_files, jobs, photo_batches
from serve_app.storage.database import Connection, Database
from serve_app.storage.indexed_files import IndexedFile
from serve_app.storage.objects import ObjectStore
from serve_app.storage.photo_batches import BatchPhoto
from serve_app.text.photo_names import folder_of

logger = logging.getLogger("ray.serve")

_READ_IN_TURN = 4
"""Files that one thread reads. With fewer, threads hand over to each other more often."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A file that may be a picture. `digest`: its SHA-256."""

    file: SourceFile
    upload: Upload
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Stored:
    """Its objects are there; rows do not name them yet."""

    loaded: _Loaded
    photo: NewPhoto
    prepared: Prepared

    @property
    def keys(self) -> list[str]:
        return [self.photo.object_key, *self.prepared.crop_keys]


class BulkIndexer:
    """`collection_id`: of the library. `automatic`: jobs that a photo is an item of as soon as it is there. `max_file_bytes`:
    of a photo. For one event loop."""

    def __init__(
        self,
        library: Collections,
        photos: Photos,
        indexer: PhotoIndexer,
        database: Database,
        objects: ObjectStore,
        contract: EmbeddingContract,
        automatic: Sequence[JobKind],
        max_file_bytes: int,
    ) -> None:
        self._library = library
        self._photos = photos
        self._indexer = indexer
        self._database = database
        self._objects = objects
        self._contract = contract
        self._automatic = automatic
        self._max_file_bytes = max_file_bytes
        self._collection_id = photos.collection_id

    async def index(self, source: Source, files: Sequence[SourceFile]) -> BatchResult:
        """An outcome for each; durable when it returns. Done again, whatever became of the first time, it makes nothing
        twice."""
        try:
            return BatchResult(await self._index(source, files))
        except (CapacityError, PartUnavailable) as error:
            return BatchResult([], error.detail)
        except KinlensError as error:
            # Of the collection: it was erased, or switched to another model.
            return BatchResult([_failed(file, error) for file in files])

    async def _index(self, source: Source, files: Sequence[SourceFile]) -> list[Outcome]:
        starts = range(0, len(files), _READ_IN_TURN)
        loading = (asyncio.to_thread(self._load_some, source, files[start : start + _READ_IN_TURN]) for start in starts)
        read = [one for some in await asyncio.gather(*loading) for one in some]
        outcomes = [one for one in read if isinstance(one, Outcome)]
        loaded = [one for one in read if isinstance(one, _Loaded)]
        if not loaded:
            return outcomes
        # Of files with the same bytes, the last stands for all.
        by_digest = {one.digest: one for one in loaded}
        repeats = [one for one in loaded if by_digest[one.digest] is not one]
        collection = await self._library.ensure(self._collection_id, COLLECTION_NAME)
        check_contract(collection, self._contract)
        async with self._database.connection() as connection:
            known = await photo_batches.known(connection, collection, list(by_digest))
        made, left = await self._make(source, collection, [one for one in by_digest.values() if one.digest not in known])
        outcomes += [Outcome(one.loaded.file.name, Status.INDEXED, len(one.prepared.found)) for one in made]
        photo_ids = {one.loaded.digest: one.photo.id for one in made}
        elsewhere: list[_Loaded] = [*repeats]
        failed: dict[bytes, Outcome] = {}
        alone = {one.digest for one in left}
        for one in by_digest.values():
            there = known.get(one.digest)
            if there is not None and there.photo_id is not None and there.indexed:
                outcomes.append(Outcome(one.file.name, Status.EXISTS))
                photo_ids[one.digest] = there.photo_id
                elsewhere.append(one)
            elif there is not None or one.digest in alone:
                outcome, photo_id = await self._make_alone(one)
                outcomes.append(outcome)
                if photo_id is None:
                    failed[one.digest] = outcome
                else:
                    photo_ids[one.digest] = photo_id
                    elsewhere.append(one)
        outcomes += [
            replace(failed[one.digest], name=one.file.name) if one.digest in failed else Outcome(one.file.name, Status.EXISTS)
            for one in repeats
        ]
        await self._remember(source, [one for one in elsewhere if one.digest in photo_ids], photo_ids)
        return outcomes

    def _load_some(self, source: Source, files: Sequence[SourceFile]) -> list[_Loaded | Outcome]:
        """On a thread. Raises ObjectStoreUnavailable, Overloaded."""
        return [self._load(source, file) for file in files]

    def _load(self, source: Source, file: SourceFile) -> _Loaded | Outcome:
        name = ""
        try:
            folders, name = source.path(file)
            found = source.read(file, self._max_file_bytes)
        except NotAFile as error:
            if error.reason == "gone":
                # Of a share that is not mounted here, or not any more, every file is.
                return _failed(file, FileUnreadable("It was listed, and is not there where it is read."))
            return Outcome(file.name, Status.SKIPPED, code=error.reason)
        except ImageError as error:
            refused = unsupported(b"", name) if isinstance(error, ImageTooLarge) else None
            return _failed(file, error) if refused is None else _skipped(file, refused)
        refusal = unsupported(found.data, name)
        if refusal is None:
            try:
                sniff(found.data)
            except UnsupportedImage:
                return Outcome(file.name, Status.SKIPPED, code="not_a_picture")
            except ImageError as error:
                return _failed(file, error)
            upload = Upload(found.data, name, folder_of(folders), (), found.modified_at)
            return _Loaded(file, upload, hashlib.sha256(found.data).digest())
        return _skipped(file, refusal)

    async def _make(
        self, source: Source, collection: Collection, new: Sequence[_Loaded]
    ) -> tuple[list[_Stored], list[_Loaded]]:
        """Photos of pictures that the library did not have, and what it has by now or could not be read. Raises KinlensError:
        none of them came in."""
        looked = await asyncio.gather(*(self._look(collection, one) for one in new), return_exceptions=True)
        stored = [one for one in looked if isinstance(one, _Stored)]
        left = [one for one, found in zip(new, looked, strict=True) if found is None]
        for found in looked:
            if isinstance(found, BaseException):
                # Nothing names them yet, and all will be looked at again.
                await self._discard(stored)
                raise found
        if not stored:
            return [], left
        try:
            made = await self._database.run(lambda tx: self._write(tx, source, collection, stored))
        except PartUnavailable:
            # The commit may have happened: the objects must stay. If it did not, `kinlens gc` finds them.
            raise
        except KinlensError:
            await self._discard(stored)
            raise
        others = [one for one in stored if one.photo.id not in made]
        await self._discard(others)
        return [one for one in stored if one.photo.id in made], left + [one.loaded for one in others]

    async def _look(self, collection: Collection, one: _Loaded) -> _Stored | None:
        """None for a picture that cannot be read to the end. Raises CapacityError, PartUnavailable."""
        try:
            extraction = await self._indexer.find(one.upload.data, info=True)
        except ImageError:
            return None
        info = extraction.detections.info
        if info is None:
            return None
        photo = new_photo(collection, one.upload, one.digest, info)
        prepared = await self._indexer.prepare(collection, extraction)
        try:
            await self._objects.put(photo.object_key, one.upload.data, CONTENT_TYPES[info.format])
        except ObjectStoreUnavailable:
            self._indexer.discard(prepared)
            raise
        return _Stored(one, photo, prepared)

    async def _write(self, tx: Connection, source: Source, seen: Collection, stored: Sequence[_Stored]) -> set[UUID]:
        """The ids of the photos that were made."""
        collection = await collections.lock(tx, self._collection_id)
        if collection.key != seen.key:
            raise NotFound("The library was erased meanwhile.")
        check_contract(collection, self._contract)
        batch = [BatchPhoto(one.photo, one.prepared.found) for one in stored]
        made = await photo_batches.insert(tx, collection, batch, self._indexer.indexed_with)
        mine = [one for one in stored if one.photo.id in made]
        await indexed_files.remember(tx, collection, [_of(source, one.loaded, one.photo.id) for one in mine])
        if made:
            for kind in self._automatic:
                await jobs.add_automatic(tx, collection, kind, [str(photo_id) for photo_id in sorted(made)])
        return made

    async def _make_alone(self, one: _Loaded) -> tuple[Outcome, UUID | None]:
        """As a scan does: the photo's id, where its faces are known now. Raises CapacityError, PartUnavailable."""
        faces = PhotoFaces(self._indexer)
        try:
            uploaded = await self._photos.upload(one.upload, _ONCE, faces)
            photo_id = uploaded.photo.id
            if not uploaded.created:
                # Whoever brought it in may have died over its faces, or failed.
                await self._indexer.index_known(_item(self._collection_id, photo_id), photo_id, one.upload.data)
            elif faces.error is not None:
                return _failed(one.file, faces.error), None
        except (CapacityError, PartUnavailable):
            raise
        except KinlensError as error:
            return _failed(one.file, error), None
        found = [] if faces.prepared is None else faces.prepared.found
        return Outcome(one.file.name, Status.INDEXED if uploaded.created else Status.EXISTS, len(found)), photo_id

    async def _remember(self, source: Source, files: Sequence[_Loaded], photo_ids: Mapping[bytes, UUID]) -> None:
        if not files:
            return
        rows = [_of(source, one, photo_ids[one.digest]) for one in files]

        async def work(tx: Connection) -> None:
            await indexed_files.remember(tx, await collections.lock(tx, self._collection_id), rows)

        await self._database.run(work)

    async def _discard(self, stored: Sequence[_Stored]) -> None:
        if not stored:
            return
        try:
            await self._objects.delete_many([key for one in stored for key in one.keys])
        except ObjectStoreUnavailable:
            logger.warning("objects of photos that did not come in remain; `kinlens gc` finds them")


_ONCE: Once[Uploaded] = Once(None, lambda _: (200, b""))


def _item(collection_id: str, photo_id: UUID) -> WorkItem:
    """Of no job: nobody waits for its end."""

    async def ended(tx: Connection) -> None: ...

    async def skipped(tx: Connection, reason: str) -> None: ...

    async def added(tx: Connection, subjects: Sequence[str]) -> None: ...

    return WorkItem(photo_id, JobKind.FACES, collection_id, str(photo_id), {}, ended, skipped, added, ended)


def _of(source: Source, one: _Loaded, photo_id: UUID) -> IndexedFile:
    return IndexedFile(file_id(source.location, one.file.name), version_id(one.file), photo_id)


def _failed(file: SourceFile, error: KinlensError) -> Outcome:
    return Outcome(file.name, Status.FAILED, code=error.code, detail=error.detail)


def _skipped(file: SourceFile, error: UnsupportedImage) -> Outcome:
    return Outcome(file.name, Status.SKIPPED, code=str(error.details["kind"]))
