"""Objects as files below a folder, as `LocalObjectStore` describes them. Everything here blocks, and raises OSError."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import ObjectStoreUnavailable
from serve_app.storage.objects import ObjectInfo, ObjectMissing, Slice, is_key

_DRAFTS = ".tmp"
_DRAFT_MAX_AGE_S = 3600
_RETRY_AFTER_S = 2
_MAX_DURABLE = 1 << 16

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that somebody put there would wait for its writer.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ObjectFolder:
    """The folder `root`, for several threads at once. Its methods do what those of `ObjectStore` promise."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._durable: set[str] = set()

    @contextmanager
    def open(self, names: Sequence[str], *, create: bool = False) -> Iterator[int]:
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

    def prepare(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = os.open(self._root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
        with self.open((_DRAFTS,), create=True) as drafts, os.scandir(drafts) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process sweeps as well
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _DRAFT_MAX_AGE_S:
                        os.unlink(entry.name, dir_fd=drafts)

    def check(self) -> None:
        with self.open((_DRAFTS,)) as drafts:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=drafts, effective_ids=True):
                raise ObjectStoreUnavailable("The object store cannot be written.", retry_after_s=_RETRY_AFTER_S)
            if os.fstatvfs(drafts).f_bavail == 0:
                raise ObjectStoreUnavailable("The object store is full.", retry_after_s=_RETRY_AFTER_S)

    def put(self, key: str, data: bytes) -> None:
        draft = Draft(self)
        try:
            draft.write(data)
            draft.commit(key)
        finally:
            draft.discard()

    def read(self, key: str, start: int, length: int | None, version: str | None) -> Slice:
        folders, name = _split(key)
        try:
            with self.open(folders) as folder:
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

    def stat(self, key: str) -> ObjectInfo:
        folders, name = _split(key)
        try:
            with self.open(folders) as folder:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissing(key)
        return _info(key, status)

    def delete(self, keys: Iterable[str]) -> None:
        names_by_folder: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for key in keys:
            folders, name = _split(key)
            names_by_folder[folders].append(name)
        for folders, names in names_by_folder.items():
            with suppress(FileNotFoundError), self.open(folders) as folder:
                for name in names:
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)
                # Also when nothing was there: an earlier delete may have failed before its own sync.
                os.fsync(folder)

    def scan(self, folders: tuple[str, ...]) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        found: list[ObjectInfo] = []
        below: list[str] = []
        with suppress(FileNotFoundError), self.open(folders) as folder, os.scandir(folder) as entries:
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


class Draft:
    """A file that is being written, and becomes an object or nothing.

    The lock is for a caller that is cancelled: its thread goes on writing while `discard` is called from another.
    """

    def __init__(self, folder: ObjectFolder) -> None:
        self._folder = folder
        self._name = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._over = False

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._over:
                return
            if self._file is None:
                with self._folder.open((_DRAFTS,), create=True) as drafts:
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
            with self._folder.open((_DRAFTS,)) as drafts, self._folder.open(folders, create=True) as folder:
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
            with suppress(OSError, ObjectStoreUnavailable), self._folder.open((_DRAFTS,)) as drafts:
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
