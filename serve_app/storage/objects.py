"""The object store: bytes under keys of our own making, in a folder or in MinIO.

Kinlens keeps pictures, crops and thumbnails here and everything else in Postgres. A key holds numbers and ids only, no
names and nothing that a client wrote, so that it may stand in a URL, a log or a file system as it is.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from serve_app.photos import FACE_THUMBNAIL_SIDES_PX, THUMBNAIL_SIDES_PX, ThumbnailFormat

MAX_KEY_LENGTH = 512
MAX_EXPIRES_S = 7 * 24 * 3600
"""The longest a presigned URL may live: what S3 signatures allow."""

CHUNK_BYTES = 64 << 10
SLICE_BYTES = 1 << 20
"""What one read of a stream takes from the store. Between two slices nothing is held open for the consumer."""

_MAX_SEGMENT_LENGTH = 255
_SEGMENT = re.compile(r"[a-z0-9][a-z0-9._-]*")
_THUMBNAIL = re.compile(r"collections/[0-9]+/thumbnails/[0-9]+/[0-9a-f]{2}/([0-9a-f]{32})\.[a-z]+")


class ObjectMissing(Exception):
    """There is no object `key`. Internal: the caller knows what is missing and answers `NotFound` in its own words."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"There is no object {self.key}."


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """modified_at: UTC; whole seconds where the store keeps no finer time."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStore(Protocol):
    """What every store does alike.

    Every method that takes a key raises ValueError for one that `check_key` refuses, and ObjectStoreUnavailable for any
    trouble with the store: unreachable, too slow, full, forbidden. Reads raise ObjectMissing for a key that is not there.
    A write that returned is durable and replaces what was under the key at once: a reader sees the old bytes or the new
    ones. A write that raised may or may not have happened; repeating it is safe.
    """

    async def prepare(self) -> None:
        """Makes the bucket or the folders. For start-up: raises ConfigurationError, naming the setting."""

    async def check(self) -> None:
        """Whether the store can be reached, in constant time; raises ObjectStoreUnavailable after 5 s at the latest."""

    async def close(self) -> None:
        """Lets running calls end, then frees threads and connections. Later calls raise ObjectStoreUnavailable."""

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Stores `data` under `key`."""

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], content_type: str) -> int:
        """Stores bytes of unknown length; returns how many. When `chunks` raises, nothing is stored."""

    async def get(self, key: str) -> bytes:
        """The whole object, in memory: for pictures, whose size is limited."""

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`: fewer where the object ends earlier, none past its end.

        Raises ValueError for start < 0 or length < 1.
        """

    def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The object, or `length` bytes of it, in chunks of at most 64 KiB.

        The first step raises ObjectMissing; the call itself raises ValueError like `get_range`. An object that is
        replaced in the middle raises ObjectStoreUnavailable instead of mixing two objects.
        """

    async def stat(self, key: str) -> ObjectInfo:
        """Size and time of the object."""

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    async def delete(self, key: str) -> None:
        """Removes the object; a key that is not there is fine."""

    async def delete_many(self, keys: Iterable[str]) -> None:
        """Removes all of them; keys that are not there are fine. When it raises, some may be left: repeat it."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """All objects below `prefix`, in no promised order, a page at a time.

        `prefix` is empty or a key with a slash at its end; raises ValueError otherwise. Objects that come or go
        meanwhile may be missed or reported. What is not ours, by its key, is left out.
        """

    async def presigned_url(self, key: str, expires_s: int) -> str:
        """A URL that reads the object without a key, for `expires_s` seconds; needs no network.

        Raises ValueError unless 1 <= expires_s <= 604800 (7 days).
        """


def check_key(key: str) -> None:
    """Raises ValueError unless `key` is segments of `[a-z0-9][a-z0-9._-]*` joined by `/`, without `..`.

    At most 512 characters, a segment at most 255: the limit of file systems, and of MinIO, which keeps objects in one.
    """
    if len(key) > MAX_KEY_LENGTH:
        raise ValueError(f"An object key has at most {MAX_KEY_LENGTH} characters, not {len(key)}.")
    for segment in key.split("/"):
        if not _SEGMENT.fullmatch(segment) or ".." in segment or len(segment) > _MAX_SEGMENT_LENGTH:
            raise ValueError(f"{key!r} is not an object key.")


def is_key(key: str) -> bool:
    """Whether `check_key` lets it pass."""
    try:
        check_key(key)
    except ValueError:
        return False
    return True


def check_prefix(prefix: str) -> None:
    """Raises ValueError unless `prefix` is empty or a key and a slash.

    The slash is asked for because `collections/1` would also list collection 12.
    """
    if prefix:
        if not prefix.endswith("/"):
            raise ValueError(f"{prefix!r} does not end with a slash.")
        check_key(prefix[:-1])


def check_range(start: int, length: int | None) -> None:
    """Raises ValueError for a negative start or a length that is not positive."""
    if start < 0 or (length is not None and length < 1):
        raise ValueError(f"start {start} must not be negative, length {length} must be positive.")


def check_expires(expires_s: int) -> None:
    """Raises ValueError unless 1 <= expires_s <= MAX_EXPIRES_S."""
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise ValueError(f"A presigned URL lives 1 to {MAX_EXPIRES_S} seconds, not {expires_s}.")


def collection_prefix(collection_key: int) -> str:
    """Everything of a collection lies below it. Raises ValueError for a negative number."""
    if collection_key < 0:
        raise ValueError(f"Collection {collection_key} does not exist.")
    return f"collections/{collection_key}/"


def original_key(collection_key: int, image_id: UUID) -> str:
    """The picture as it came.

    Sharded by the last two digits of the id: the first digits of a UUIDv7 are the time, and all pictures of an import
    would fall into one folder.
    """
    return f"{collection_prefix(collection_key)}originals/{_sharded(image_id)}"


def crop_key(collection_key: int, face_id: UUID) -> str:
    """The aligned crop of a face, PNG."""
    return f"{collection_prefix(collection_key)}crops/{_sharded(face_id)}.png"


_THUMBNAIL_SUFFIXES = {ThumbnailFormat.JPEG: "jpg", ThumbnailFormat.WEBP: "webp", ThumbnailFormat.AVIF: "avif"}


def thumbnail_key(
    collection_key: int, image_id: UUID, side_px: int, image_format: ThumbnailFormat = ThumbnailFormat.JPEG
) -> str:
    """A smaller copy of a picture. Raises ValueError unless side_px is positive."""
    if side_px < 1:
        raise ValueError(f"A thumbnail's side is not {side_px} pixels.")
    suffix = _THUMBNAIL_SUFFIXES[image_format]
    return f"{collection_prefix(collection_key)}thumbnails/{side_px}/{_sharded(image_id)}.{suffix}"


def thumbnail_keys(collection_key: int, image_id: UUID) -> list[str]:
    """Every thumbnail a picture may have, made or not."""
    return [
        thumbnail_key(collection_key, image_id, side_px, image_format)
        for side_px in THUMBNAIL_SIDES_PX
        for image_format in ThumbnailFormat
    ]


def thumbnail_image(key: str) -> UUID | None:
    """The id of the picture that `key` is a thumbnail of; None for any other key."""
    found = _THUMBNAIL.fullmatch(key)
    return None if found is None else UUID(hex=found[1])


_FACE_THUMBNAIL = re.compile(r"collections/[0-9]+/face-thumbnails/[0-9]+/[0-9a-f]{2}/([0-9a-f]{32})-([0-9a-f]{12})\.[a-z]+")


def box_version(box: Sequence[float]) -> str:
    """What tells the box of a face from any other it had: a thumbnail of the face is of one box."""
    return hashlib.blake2s(struct.pack("<4f", *box), digest_size=6).hexdigest()


def face_thumbnail_key(collection_key: int, face_id: UUID, version: str, side_px: int, image_format: ThumbnailFormat) -> str:
    """A square cut around a face. `version`: of its box."""
    prefix = f"{collection_prefix(collection_key)}face-thumbnails/{side_px}/"
    return f"{prefix}{_sharded(face_id)}-{version}.{_THUMBNAIL_SUFFIXES[image_format]}"


def face_thumbnail_keys(collection_key: int, face_id: UUID, box: Sequence[float]) -> list[str]:
    """Every thumbnail that a face with this box may have, made or not."""
    version = box_version(box)
    return [
        face_thumbnail_key(collection_key, face_id, version, side_px, image_format)
        for side_px in FACE_THUMBNAIL_SIDES_PX
        for image_format in ThumbnailFormat
    ]


def thumbnail_face(key: str) -> tuple[UUID, str] | None:
    """The id of the face that `key` is a thumbnail of, and the version of its box; None for any other key."""
    found = _FACE_THUMBNAIL.fullmatch(key)
    return None if found is None else (UUID(hex=found[1]), found[2])


def _sharded(identity: UUID) -> str:
    return f"{identity.hex[-2:]}/{identity.hex}"


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of an object. size_bytes: of the whole object. version: differs between any two writes of the key."""

    data: bytes
    size_bytes: int
    version: str


ReadSlice = Callable[[int, int, str | None], Awaitable[Slice]]
"""start, length and the version expected (None: any) to a slice; ObjectStoreUnavailable when the version differs."""


async def stream_slices(read: ReadSlice, start: int, length: int | None) -> AsyncIterator[bytes]:
    """The chunks of `ObjectStore.stream`, slice by slice.

    A consumer that is slow, stops early or is never finalised holds memory, but no connection and no file: with one
    connection to a stream, a pool of connections is empty after as many slow readers as it has places.
    """
    position, version = start, None
    end = None if length is None else start + length
    while end is None or position < end:
        part = await read(position, SLICE_BYTES if end is None else min(SLICE_BYTES, end - position), version)
        version = part.version
        for offset in range(0, len(part.data), CHUNK_BYTES):
            yield part.data[offset : offset + CHUNK_BYTES]
        position += len(part.data)
        if not part.data or position >= part.size_bytes:
            return
