"""The object store of a machine without MinIO: a folder.

    ROOT/collections/1/originals/9c/01980f...9c     a key is a path below ROOT
    ROOT/.tmp/                                      what is being written; no key starts with a dot

A write goes to a file in `.tmp`, which is synced, renamed over its key, and its folder synced: after a crash or a loss
of power an object is there as a whole, or not at all, and what was acknowledged is there. Folders are 0700, files 0600.
Every folder on the way is opened from its parent without following links, so a link inside ROOT leads nowhere. ROOT
itself may be one. Several processes may share ROOT. Emptied folders stay: a few hundred a collection at most.

The content type is not kept. Kinlens stores pictures, and these say what they are: whoever serves one asks
`serve_app.imaging.images.sniff` about its first 256 bytes, which unlike a header of the upload cannot lie.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from serve_app.errors import ConfigurationError, ObjectStoreUnavailable
from serve_app.observing.stages import Stage, stage
from serve_app.storage.object_folder import Draft, ObjectFolder
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
_DELETE_BATCH = 1000
_RETRY_AFTER_S = 2
_MIN_SIGNING_KEY_BYTES = 16

_EXPIRES = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
_SIGNATURE = re.compile(r"[0-9a-f]{64}", re.ASCII)


class LocalObjectStore:
    """`serve_app.storage.objects.ObjectStore` in the folder `root`.

    signing_key: secret of the presigned URLs, at least 16 bytes, the same in every process that serves them; ValueError
    for a shorter one. A function where it is not known yet: called whenever a URL is signed or checked. url_prefix: where
    the API serves objects, without a slash at its end.
    """

    def __init__(self, root: Path, signing_key: bytes | Callable[[], bytes], url_prefix: str = "/api/v1/objects") -> None:
        if isinstance(signing_key, bytes) and len(signing_key) < _MIN_SIGNING_KEY_BYTES:
            raise ValueError(f"The signing key has {len(signing_key)} bytes; at least {_MIN_SIGNING_KEY_BYTES} are needed.")
        self._root = root
        self._folder = ObjectFolder(root)
        self._signing_key = signing_key
        self._url_prefix = url_prefix
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")
        self._closed = False

    def __repr__(self) -> str:
        return f"LocalObjectStore({str(self._root)!r})"

    async def prepare(self) -> None:
        """Makes ROOT, and sweeps drafts that a crash left more than an hour ago. Raises ConfigurationError."""
        try:
            await self._in_thread(self._folder.prepare)
        except OSError as error:
            raise ConfigurationError(f"Objects cannot be kept in {self._root}: {error.strerror}. Set DATA_DIR.") from error

    async def check(self) -> None:
        try:
            async with asyncio.timeout(5):
                await self._run(self._folder.check)
        except TimeoutError as error:
            raise ObjectStoreUnavailable("The object store did not answer in time.", retry_after_s=_RETRY_AFTER_S) from error

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown, wait=True)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        check_key(key)
        await self._run(self._folder.put, key, data)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], content_type: str) -> int:
        check_key(key)
        draft = Draft(self._folder)
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
        return (await self._run(self._folder.read, key, 0, None, None)).data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        check_range(start, length)
        return (await self._run(self._folder.read, key, start, length, None)).data

    def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        check_range(start, length)

        async def read(at: int, size: int, version: str | None) -> Slice:
            return await self._run(self._folder.read, key, at, size, version)

        return stream_slices(read, start, length)

    async def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        return await self._run(self._folder.stat, key)

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
            await self._run(self._folder.delete, batch)

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
        secret = self._signing_key if isinstance(self._signing_key, bytes) else self._signing_key()
        return hmac.new(secret, message.encode("ascii"), "sha256").hexdigest()

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise ObjectStoreUnavailable("The object store is closed.", retry_after_s=_RETRY_AFTER_S)
        with stage(Stage.OBJECTS):
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
            found, below = await self._run(self._folder.scan, folder)
            folders.extend((*folder, name) for name in below)
            for info in found:
                yield info
