"""One bucket through MinIO's client, for `MinioObjectStore`. Everything here blocks, and raises what the client raises."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO, cast

import urllib3
from minio import Minio
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.helpers import MIN_PART_SIZE, DictType

from serve_app.errors import ObjectStoreUnavailable
from serve_app.storage.minio_trouble import plain
from serve_app.storage.objects import ObjectInfo, ObjectMissing, Slice, is_key

PAGE = 1000
_PART_BYTES = 10 << 20
_RETRY_AFTER_S = 2


class Bucket:
    """For several threads at once. Its methods do what those of `ObjectStore` promise."""

    def __init__(self, client: Minio, name: str) -> None:
        self._client = client
        self._name = name

    def listing(self, prefix: str) -> Iterator[Object]:
        """For `page`; asks nothing yet."""
        found: Iterator[Object] = self._client.list_objects(self._name, prefix=prefix, recursive=True)
        return found

    def prepare(self) -> None:
        try:
            exists = self._client.bucket_exists(self._name)
        except S3Error as error:
            if error.code != "AccessDenied":
                raise
            exists = True  # the answer to HEAD has no body that says more; the one below has
        if not exists:
            try:
                self._client.make_bucket(self._name)
            except S3Error as error:
                # Somebody was faster; if that was somebody else's account, the listing is refused.
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise
        # Not recursive: the top level of the bucket is one entry.
        next(iter(self._client.list_objects(self._name)), None)

    def check(self) -> None:
        if not self._client.bucket_exists(self._name):
            raise ObjectStoreUnavailable("The bucket of the object store is gone.", retry_after_s=_RETRY_AFTER_S)

    def put(self, key: str, data: bytes, content_type: str) -> None:
        # One request, whatever the size: the bytes are in memory anyway, and parts would be three threads and two
        # requests more.
        part_size = max(len(data), MIN_PART_SIZE)
        self._client.put_object(self._name, key, BytesIO(data), len(data), content_type, part_size=part_size)

    def put_spool(self, key: str, spool: Spool, content_type: str) -> int:
        with spool.opened() as (file, size):
            # Parts one after another: the client leaves the threads of parallel ones behind when an upload fails.
            self._client.put_object(self._name, key, file, size, content_type, part_size=_PART_BYTES, num_parallel_uploads=1)
            return size

    @contextmanager
    def _response(
        self, key: str, start: int = 0, length: int = 0, headers: DictType | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        try:
            response = self._client.get_object(self._name, key, start, length, request_headers=headers)
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise ObjectMissing(key) from None
            raise
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def get(self, key: str) -> bytes:
        with self._response(key) as response:
            return response.read()

    def slice(self, key: str, start: int, length: int, version: str | None) -> Slice:
        try:
            with self._response(key, start, length, {"If-Match": version} if version else None) as response:
                if response.status != 206 and (start > 0 or int(response.headers.get("Content-Length", length + 1)) > length):
                    raise ObjectStoreUnavailable("The object store serves no ranges.", retry_after_s=_RETRY_AFTER_S)
                data = response.read()
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                return Slice(data, int(total) if total.isdecimal() else start + len(data), response.headers.get("ETag", ""))
        except S3Error as error:
            if error.code == "InvalidRange":  # past the end; every range is, of an empty object
                return Slice(b"", start, version or "")
            if error.code == "PreconditionFailed":
                raise ObjectStoreUnavailable(
                    "The object was replaced while it was read.", retry_after_s=_RETRY_AFTER_S
                ) from error
            raise

    def stat(self, key: str) -> ObjectInfo:
        try:
            found = self._client.stat_object(self._name, key)
        except S3Error as error:
            if error.code != "NoSuchKey":
                raise
            self.check()  # the 404 to a HEAD does not say what is missing: the object or the bucket
            raise ObjectMissing(key) from None
        if found.size is None or found.last_modified is None:
            raise ObjectStoreUnavailable("The object store tells no size or time.", retry_after_s=_RETRY_AFTER_S)
        return ObjectInfo(key, found.size, found.last_modified)

    def delete(self, key: str) -> None:
        try:
            self._client.remove_object(self._name, key)
        except S3Error as error:
            if error.code != "NoSuchKey":
                raise

    def delete_batch(self, keys: Iterable[str]) -> None:
        failed = [
            error
            for error in self._client.remove_objects(self._name, [DeleteObject(key) for key in keys])
            if error.code != "NoSuchKey"
        ]
        if failed:
            raise ObjectStoreUnavailable(
                f"The object store did not delete {len(failed)} objects ({plain(failed[0].code)}).",
                retry_after_s=_RETRY_AFTER_S,
            )

    @staticmethod
    def page(listing: Iterator[Object]) -> tuple[ObjectInfo | None, ...]:
        """The next objects, None for what is not ours; nothing at the end."""
        return tuple(
            ObjectInfo(found.object_name, found.size, found.last_modified)
            if found.object_name and is_key(found.object_name) and found.size is not None and found.last_modified
            else None
            for found in itertools.islice(listing, PAGE)
        )


class Spool:
    """Bytes on their way in: in memory up to 10 MiB, then in an unnamed temporary file.

    The lock is for a caller that is cancelled: its thread goes on while `close` is called from another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file = tempfile.SpooledTemporaryFile(max_size=_PART_BYTES)  # noqa: SIM115  closed by whoever made the spool

    def write(self, data: bytes) -> None:
        with self._lock:
            self._file.write(data)

    @contextmanager
    def opened(self) -> Iterator[tuple[BinaryIO, int]]:
        """The file at its start, and its size in bytes."""
        with self._lock:
            size = self._file.tell()
            self._file.seek(0)
            yield cast(BinaryIO, self._file), size

    def close(self) -> None:
        with self._lock:
            self._file.close()
