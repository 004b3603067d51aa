"""The object store of a machine without MinIO: a folder.

    ROOT/collections/1/originals/9c/01980f...9c     a key is a path below ROOT
    ROOT/.tmp/                                      what is being written; no key starts with a dot

A write goes to a file in `.tmp`, which is synced, renamed over its key, and its folder synced: after a crash or a loss
of power an object is there as a whole, or not at all, and what was acknowledged is there. Folders are 0700, files 0600.
Every folder on the way is opened from its parent without following links, so a link inside ROOT leads nowhere. ROOT
itself may be one. Several processes may share ROOT. Emptied folders stay: a few hundred a collection at most.

The content type is not kept. Kinlens stores pictures, and these say what they are: whoever serves one asks
`serve_app.images.sniff` about its first 256 bytes, which unlike a header of the upload cannot lie.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import itertools
import os
import re
import secrets
import stat
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from serve_app.errors import ConfigurationError, ObjectStoreUnavailable
from serve_app.storage.objects import (
    MAX_EXPIRES_S,
    SLICE_BYTES,
    ObjectInfo,
    ObjectMissing,
    Slice,
    check_expires,
    check_key,
    check_prefix,
    check_range,
    is_key,
    stream_slices,
)

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 16
_DRAFTS = ".tmp"
_DRAFT_MAX_AGE_S = 3600
_DELETE_BATCH = 1000
_RETRY_AFTER_S = 2
_MIN_SIGNING_KEY_BYTES = 16
_MAX_DURABLE = 1 << 16

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that somebody put there would wait for its writer.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_EXPIRES = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
_SIGNATURE = re.compile(r"[0-9a-f]{64}", re.ASCII)


class LocalObjectStore:
    """`serve_app.storage.objects.ObjectStore` in the folder `root`.

    signing_key: secret of the presigned URLs, at least 16 bytes, the same in every process that serves them; ValueError
    for a shorter one. url_prefix: where the API serves objects, without a slash at its end.
    """

    def __init__(self, root: Path, signing_key: bytes, url_prefix: str = "/api/v1/objects") -> None:
        if len(signing_key) < _MIN_SIGNING_KEY_BYTES:
            raise ValueError(f"The signing key has {len(signing_key)} bytes; at least {_MIN_SIGNING_KEY_BYTES} are needed.")
        self._root = root
        self._signing_key = signing_key
        self._url_prefix = url_prefix
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")
        self._closed = False
        self._durable: set[str] = set()

    def __repr__(self) -> str:
        return f"LocalObjectStore({str(self._root)!r})"

    async def prepare(self) -> None:
        """Makes ROOT, and sweeps drafts that a crash left more than an hour ago. Raises ConfigurationError."""
        try:
            await self._in_thread(self._prepare)
        except OSError as error:
            raise ConfigurationError(f"Objects cannot be kept in {self._root}: {error.strerror}. Set DATA_DIR.") from error

    async def check(self) -> None:
        try:
            async with asyncio.timeout(5):
                await self._run(self._check)
        except TimeoutError as error:
            raise ObjectStoreUnavailable("The object store did not answer in time.", retry_after_s=_RETRY_AFTER_S) from error

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown, wait=True)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        check_key(key)
        await self._run(self._put, key, data)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], content_type: str) -> int:
        check_key(key)
        draft = _Draft(self)
        size, waiting = 0, bytearray()
        try:
            async for chunk in chunks:
                size += len(chunk)
                waiting += chunk
                if len(waiting) >= SLICE_BYTES:
                    await self._run(draft.write, bytes(waiting))
                    waiting.clear()
            await self._run(draft.write, bytes(waiting))
            await self._run(draft.commit, key)
        finally:
            # Not awaited: a cancelled caller must not wait, and its thread may still be writing.
            try:
                self._executor.submit(draft.discard)
            except RuntimeError:  # closed meanwhile: no thread of ours runs any more
                draft.discard()
        return size

    async def get(self, key: str) -> bytes:
        check_key(key)
        return (await self._run(self._read, key, 0, None, None)).data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        check_range(start, length)
        return (await self._run(self._read, key, start, length, None)).data

    def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        check_range(start, length)

        async def read(at: int, size: int, version: str | None) -> Slice:
            return await self._run(self._read, key, at, size, version)

        return stream_slices(read, start, length)

    async def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        return await self._run(self._stat, key)

    async def exists(self, key: str) -> bool:
        try:
            await self.stat(key)
        except ObjectMissing:
            return False
        return True

    async def delete(self, key: str) -> None:
        await self.delete_many((key,))

    async def delete_many(self, keys: Iterable[str]) -> None:
        wanted = iter(keys)
        while batch := tuple(itertools.islice(wanted, _DELETE_BATCH)):
            for key in batch:
                check_key(key)
            await self._run(self._delete, batch)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    async def presigned_url(self, key: str, expires_s: int) -> str:
        """A path of this service, such as `/api/v1/objects/KEY?expires=UNIX&signature=HEX`."""
        check_key(key)
        check_expires(expires_s)
        expires = int(time.time()) + expires_s
        return f"{self._url_prefix}/{key}?expires={expires}&signature={self._signature(key, expires)}"

    def verify_signature(self, key: str, expires: str, signature: str) -> bool:
        """Whether `presigned_url` made this URL for reading `key`, and it has not expired. Takes anything, raises nothing.

        A time more than 7 days ahead is refused even when it is signed well: no such URL is made.
        """
        if not is_key(key) or not _EXPIRES.fullmatch(expires) or not _SIGNATURE.fullmatch(signature):
            return False
        genuine = hmac.compare_digest(self._signature(key, int(expires)), signature)
        return genuine and 0 < int(expires) - time.time() <= MAX_EXPIRES_S

    def _signature(self, key: str, expires: int) -> str:
        # The first line keeps a signature from being one of another purpose that shares the signing key.
        message = f"kinlens object url 1\nGET\n{key}\n{expires}"
        return hmac.new(self._signing_key, message.encode("ascii"), "sha256").hexdigest()

    # What follows runs on the store's threads, and raises OSError.

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise ObjectStoreUnavailable("The object store is closed.", retry_after_s=_RETRY_AFTER_S)
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args, **kwargs))

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._in_thread(function, *args, **kwargs)
        except OSError as error:
            # Not str(error): it names the path.
            reason = error.strerror or type(error).__name__
            raise ObjectStoreUnavailable(f"The object store failed: {reason}.", retry_after_s=_RETRY_AFTER_S) from error

    async def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        # One folder at a time: a folder holds a 256th of a collection's pictures.
        folders = [tuple(prefix.split("/")[:-1])]
        while folders:
            folder = folders.pop()
            found, below = await self._run(self._scan, folder)
            folders.extend((*folder, name) for name in below)
            for info in found:
                yield info

    @contextmanager
    def folder(self, names: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder ROOT/names...; a folder made on the way is durable before anything is put in it.

        Raises ObjectStoreUnavailable when ROOT itself is gone: an empty store and a disk that is not mounted must not
        look alike.
        """
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ObjectStoreUnavailable("The object store is gone.", retry_after_s=_RETRY_AFTER_S) from error
        try:
            path = ""
            for name in names:
                path = f"{path}/{name}"
                child = self._enter(descriptor, name, path, create=create)
                os.close(descriptor)
                descriptor = child
            yield descriptor
        finally:
            os.close(descriptor)

    def _enter(self, parent: int, name: str, path: str, *, create: bool) -> int:
        if not create:
            return os.open(name, _FOLDER, dir_fd=parent)
        if path in self._durable:
            with suppress(FileNotFoundError):  # somebody tidied up
                return os.open(name, _FOLDER, dir_fd=parent)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        # Also when it existed: another writer may have made it, and not yet synced.
        os.fsync(parent)
        if len(self._durable) >= _MAX_DURABLE:
            self._durable.clear()
        self._durable.add(path)
        return os.open(name, _FOLDER, dir_fd=parent)

    def _prepare(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = os.open(self._root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
        with self.folder((_DRAFTS,), create=True) as drafts, os.scandir(drafts) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process sweeps as well
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _DRAFT_MAX_AGE_S:
                        os.unlink(entry.name, dir_fd=drafts)

    def _check(self) -> None:
        with self.folder((_DRAFTS,)) as drafts:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=drafts, effective_ids=True):
                raise ObjectStoreUnavailable("The object store cannot be written.", retry_after_s=_RETRY_AFTER_S)
            if os.fstatvfs(drafts).f_bavail == 0:
                raise ObjectStoreUnavailable("The object store is full.", retry_after_s=_RETRY_AFTER_S)

    def _put(self, key: str, data: bytes) -> None:
        draft = _Draft(self)
        try:
            draft.write(data)
            draft.commit(key)
        finally:
            draft.discard()

    def _read(self, key: str, start: int, length: int | None, version: str | None) -> Slice:
        folders, name = _split(key)
        try:
            with self.folder(folders) as folder:
                descriptor = os.open(name, _READ, dir_fd=folder)
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ObjectMissing(key)
            current = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
            if version not in (None, current):
                raise ObjectStoreUnavailable("The object was replaced while it was read.", retry_after_s=_RETRY_AFTER_S)
            end = status.st_size if length is None else min(start + length, status.st_size)
            return Slice(_read_exactly(descriptor, start, end), status.st_size, current)
        finally:
            os.close(descriptor)

    def _stat(self, key: str) -> ObjectInfo:
        folders, name = _split(key)
        try:
            with self.folder(folders) as folder:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissing(key)
        return _info(key, status)

    def _delete(self, keys: Iterable[str]) -> None:
        names_by_folder: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for key in keys:
            folders, name = _split(key)
            names_by_folder[folders].append(name)
        for folders, names in names_by_folder.items():
            with suppress(FileNotFoundError), self.folder(folders) as folder:
                for name in names:
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)
                # Also when nothing was there: an earlier delete may have failed before its own sync.
                os.fsync(folder)

    def _scan(self, folders: tuple[str, ...]) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        found: list[ObjectInfo] = []
        below: list[str] = []
        with suppress(FileNotFoundError), self.folder(folders) as folder, os.scandir(folder) as entries:
            for entry in entries:
                key = "/".join((*folders, entry.name))
                if not is_key(key):
                    continue
                with suppress(FileNotFoundError):  # deleted meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        below.append(entry.name)
                    elif stat.S_ISREG(status.st_mode):
                        found.append(_info(key, status))
        return found, below


class _Draft:
    """A file that is being written, and becomes an object or nothing.

    The lock is for a caller that is cancelled: its thread goes on writing while `discard` is called from another.
    """

    def __init__(self, store: LocalObjectStore) -> None:
        self._store = store
        self._name = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._over = False

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._over:
                return
            if self._file is None:
                with self._store.folder((_DRAFTS,), create=True) as drafts:
                    self._file = os.fdopen(os.open(self._name, _CREATE, 0o600, dir_fd=drafts), "wb")
            self._file.write(data)

    def commit(self, key: str) -> None:
        folders, name = _split(key)
        with self._lock:
            if self._over or self._file is None:
                return
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            with self._store.folder((_DRAFTS,)) as drafts, self._store.folder(folders, create=True) as folder:
                os.replace(self._name, name, src_dir_fd=drafts, dst_dir_fd=folder)
                self._over = True
                os.fsync(folder)

    def discard(self) -> None:
        with self._lock:
            if self._over or self._file is None:
                self._over = True
                return
            self._over = True
            with suppress(OSError):  # a full disk fails once more when the buffer is flushed
                self._file.close()
            # What cannot be removed now is swept at a later start.
            with suppress(OSError, ObjectStoreUnavailable), self._store.folder((_DRAFTS,)) as drafts:
                os.unlink(self._name, dir_fd=drafts)


def _split(key: str) -> tuple[tuple[str, ...], str]:
    *folders, name = key.split("/")
    return tuple(folders), name


def _read_exactly(descriptor: int, start: int, end: int) -> bytes:
    """Bytes start to end, none for end <= start. One call and one copy, except of more than 2 GB."""
    parts: list[bytes] = []
    while start < end:
        part = os.pread(descriptor, end - start, start)
        if not part:
            raise OSError(errno.EIO, "An object was cut short")
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
