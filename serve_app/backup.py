"""`kinlens backup` and `kinlens restore`: the database and every picture it names, as one file.

A backup is of one moment, taken while the service runs: `pg_dump` and the list of objects see one snapshot, and until the
last object is copied none is deleted (`dumps.no_deletions`). What a client was told is erased is erased in the store a
little later then; no request waits for it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from serve_app import archive
from serve_app.archive import ArchiveWriter, End, Manifest, Part
from serve_app.errors import ConfigurationError, ImageError
from serve_app.imaging.images import sniff
from serve_app.services.enrolment import CONTENT_TYPES
from serve_app.storage import dumps, object_rows, schema
from serve_app.storage.database import Connection, Database, Dsn
from serve_app.storage.dumps import Counts
from serve_app.storage.objects import ObjectMissing, ObjectStore

_AT_ONCE = 16
"""Objects in flight, as many as the stores have threads. Each is held whole: 20 MiB at most by the default of
MAX_IMAGE_BYTES, a tenth of a megabyte mostly."""
_KEPT = 100

Progress = Callable[[int, int], None]
"""How much of how much is done."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """`missing`: objects that rows name and the store does not have; they are not in the backup. `missing_keys`: the
    first hundred."""

    counts: Counts
    size_bytes: int
    missing: int
    missing_keys: tuple[str, ...]


async def back_up(database: Database, dsn: Dsn, objects: ObjectStore, path: Path, progress: Progress) -> BackupReport:
    """Writes `path`, mode 0600, whole or not at all; a file that is there is replaced at the end.

    Raises ConfigurationError when it cannot be written or pg_dump fails, Overloaded while another backup runs,
    DatabaseUnavailable, ObjectStoreUnavailable.
    """
    missing: list[str] = []
    missed = 0

    async def write(add: Callable[..., object], *content: object) -> None:
        # Translated here: further out, an OSError would be taken for the database's.
        with _writable(path):
            await asyncio.to_thread(add, *content)

    with _draft(path) as stream:
        async with database.dedicated() as connection, dumps.no_deletions(connection):
            async with dumps.snapshot(connection) as moment:
                counts = await dumps.counts(connection)
                manifest = await _manifest(connection, counts)
                writer = ArchiveWriter(stream, int(time.time()))
                await write(writer.begin, manifest)
                async for piece in dumps.dump(dsn(), moment):
                    await write(writer.add_database, piece)
                done = 0
                async for key, data in _read_ahead(objects, object_rows.pages(connection)):
                    if data is None:
                        missed += 1
                        missing += [key][: _KEPT - len(missing)]
                    else:
                        await write(writer.add_object, key, data)
                    done += 1
                    progress(done, counts.objects)
            await write(writer.finish)
            size = stream.tell()
    return BackupReport(counts, size, missed, tuple(missing))


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """`manifest` and `end`: what the file says of itself. `counts`: of the database after it."""

    manifest: Manifest
    end: End
    counts: Counts


async def restore(
    database: Database, dsn: Dsn, objects: ObjectStore, path: Path, *, force: bool, verifying: Progress, restoring: Progress
) -> RestoreReport:
    """Puts a backup in the place of everything that is in the database, and its objects into the store.

    The whole file is verified before anything changes; then come the objects, then the database in one transaction. When it
    raises, the database is as it was, and at most objects were added that no row names: `kinlens gc` finds them. No service
    may run on the database meanwhile: what it was about to delete could be what is put back.

    Raises ConfigurationError for a file that is damaged, altered or of a newer version, for a database that has collections
    unless `force`, and when the restore fails; Overloaded while a backup runs, DatabaseUnavailable, ObjectStoreUnavailable.
    """
    try:
        with path.open("rb") as stream:
            return await _restore(database, dsn, objects, stream, force, verifying, restoring)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}.") from error


async def _restore(
    database: Database,
    dsn: Dsn,
    objects: ObjectStore,
    stream: BinaryIO,
    force: bool,
    verifying: Progress,
    restoring: Progress,
) -> RestoreReport:
    manifest = archive.manifest_of(stream)
    if manifest.schema_version not in schema.known_versions():
        raise ConfigurationError(
            f"The backup has schema version {manifest.schema_version} (Kinlens {manifest.kinlens}); this Kinlens knows up to"
            f" {schema.newest_version()}. Upgrade Kinlens."
        )
    async with database.dedicated() as connection, dumps.no_deletions(connection):
        present = await dumps.counts(connection)
        if present.collections and not force:
            raise ConfigurationError(
                f"The database holds {present.collections} collections with {present.faces} faces and {present.photos}"
                " photos. With --force they are replaced by those of the backup."
            )
        size = os.fstat(stream.fileno()).st_size
        manifest, end = await asyncio.to_thread(archive.verify, stream, lambda position: verifying(position, size))
        await _restore_objects(objects, stream, end.objects, restoring)
        await dumps.restore(dsn(), _database_pieces(stream))
    # In a thread: it runs an event loop of its own.
    await asyncio.to_thread(schema.upgrade, dsn())
    # The old connections know types and plans of tables that are gone.
    await database.close()
    async with database.dedicated() as connection:
        await dumps.analyze(connection)
        counts = await dumps.counts(connection)
    expected = Counts(
        collections=manifest.collections,
        persons=manifest.persons,
        faces=manifest.faces,
        images=manifest.images,
        objects=manifest.objects,
        photos=counts.photos if manifest.photos is None else manifest.photos,
    )
    if counts != expected:
        raise ConfigurationError(f"The database was restored, but holds {counts} where the backup names {expected}.")
    return RestoreReport(manifest, end, counts)


async def _manifest(connection: Connection, counts: Counts) -> Manifest:
    return Manifest(
        format=archive.FORMAT,
        kinlens=version("kinlens"),
        schema_version=await dumps.schema_version(connection),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        collections=counts.collections,
        persons=counts.persons,
        faces=counts.faces,
        images=counts.images,
        objects=counts.objects,
        photos=counts.photos,
    )


async def _read_ahead(objects: ObjectStore, pages: AsyncIterator[list[str]]) -> AsyncIterator[tuple[str, bytes | None]]:
    """Each key with its object, in order, some ahead of the reader; None for one that is missing."""
    waiting: deque[tuple[str, asyncio.Task[bytes | None]]] = deque()

    async def get(key: str) -> bytes | None:
        try:
            return await objects.get(key)
        except ObjectMissing:
            return None

    try:
        async for keys in pages:
            for key in keys:
                waiting.append((key, asyncio.create_task(get(key))))
                if len(waiting) >= _AT_ONCE:
                    key, task = waiting.popleft()
                    yield key, await task
        while waiting:
            key, task = waiting.popleft()
            yield key, await task
    finally:
        await _end([task for _, task in waiting])


async def _restore_objects(objects: ObjectStore, stream: BinaryIO, count: int, progress: Progress) -> None:
    """Every object is verified once more as it is read: the file may have changed since."""
    puts: deque[asyncio.Task[None]] = deque()
    done = 0
    try:
        for member in archive.members(stream):
            if member.part is not Part.OBJECTS:
                continue
            data = await asyncio.to_thread(member.read)
            key = member.name.removeprefix(archive.OBJECTS)
            puts.append(asyncio.create_task(objects.put(key, data, _content_type(data))))
            if len(puts) >= _AT_ONCE:
                await puts.popleft()
            done += 1
            progress(done, count)
        while puts:
            await puts.popleft()
    finally:
        await _end(puts)


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Of those that nobody waits for any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _database_pieces(stream: BinaryIO) -> AsyncIterator[bytes]:
    for member in archive.members(stream):
        if member.part is Part.DATABASE:
            yield await asyncio.to_thread(member.read)
        elif member.part > Part.DATABASE:
            return


def _content_type(data: bytes) -> str:
    try:
        return CONTENT_TYPES[sniff(data)]
    except ImageError:
        return "application/octet-stream"


@contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block ends well, and is durable then."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with _writable(path):
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            with _writable(path):
                stream.flush()
                os.fsync(descriptor)
        with _writable(path):
            draft.replace(path)
            _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}.") from error
