"""The object store in MinIO, or in another server that speaks S3, through MinIO's own client.

The client blocks, so every call runs on a thread of the store; a call holds a connection no longer than its thread, and
there are as many of one as of the other. What the client's own defaults would do (wait 5 minutes, wait as long as a
`Retry-After` says, follow redirects with a signature for another host) is replaced here.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from io import BytesIO
from types import TracebackType
from typing import BinaryIO, ParamSpec, Self, TypeVar, cast
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import MIN_PART_SIZE, DictType, check_bucket_name
from urllib3 import exceptions as http
from urllib3.connectionpool import ConnectionPool
from urllib3.util import Retry, Timeout

from serve_app.errors import ConfigurationError, ObjectStoreUnavailable
from serve_app.storage.objects import (
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

_THREADS = 32
_PART_BYTES = 10 << 20
_PAGE = 1000
_CHECK_TIMEOUT_S = 5
_RETRY_AFTER_S = 2
_RETRIED_STATUSES = (500, 502, 503, 504)

# Besides the client's own errors: answers that are not S3 fail in its XML parser and its conversions.
_TROUBLE = (MinioException, http.HTTPError, OSError, ParseError, ValueError)
_CODE = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)

_SETTINGS_BY_CODE = {
    "AccessDenied": "the key in MINIO_ACCESS_KEY may not use the bucket in MINIO_BUCKET",
    "AuthorizationHeaderMalformed": "MINIO_REGION is not its region",
    "BadRequest": "it does not understand the request; MINIO_SECURE may be wrong",
    "IllegalLocationConstraintException": "MINIO_REGION is not its region",
    "InvalidAccessKeyId": "it does not know the key in MINIO_ACCESS_KEY",
    "InvalidBucketName": "MINIO_BUCKET is not a bucket name",
    "InvalidRegion": "MINIO_REGION is not its region",
    "PermanentRedirect": "MINIO_REGION is not its region",
    "RequestTimeTooSkewed": "its clock and the clock of this machine differ too much",
    "SignatureDoesNotMatch": "MINIO_SECRET_KEY does not belong to MINIO_ACCESS_KEY",
}


@dataclass(frozen=True, slots=True)
class MinioConfig:
    """endpoint, public_endpoint: host:port. secure: TLS to both. public_endpoint None: presigned URLs name `endpoint`."""

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str = "kinlens"
    region: str = "us-east-1"
    secure: bool = False
    public_endpoint: str | None = None
    connect_timeout_s: float = 3
    read_timeout_s: float = 30


class MinioObjectStore:
    """`serve_app.storage.objects.ObjectStore` in one bucket.

    Raises ConfigurationError for an endpoint, region or bucket name that cannot be one. Makes no connection before
    `prepare`.
    """

    def __init__(self, config: MinioConfig) -> None:
        try:
            check_bucket_name(config.bucket, strict=True)
        except ValueError as error:
            raise ConfigurationError(f"MINIO_BUCKET: {error}.") from error
        self._config = config
        self._bucket = config.bucket
        self._pool = urllib3.PoolManager(
            maxsize=_THREADS,
            block=True,
            timeout=Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s),
            retries=_Retries(
                2,
                redirect=False,
                status_forcelist=_RETRIED_STATUSES,
                backoff_factor=0.2,
                raise_on_status=False,
                respect_retry_after_header=False,
            ),
        )
        self._client = self._connect("MINIO_ENDPOINT", config.endpoint)
        # Signing needs no connection: the region is given, so this client never asks for it.
        self._signer = self._connect("MINIO_PUBLIC_ENDPOINT", config.public_endpoint or config.endpoint)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")
        self._closed = False

    def __repr__(self) -> str:
        return f"MinioObjectStore({self._config})"

    def _connect(self, setting: str, endpoint: str) -> Minio:
        config = self._config
        try:
            return Minio(
                endpoint,
                access_key=config.access_key,
                secret_key=config.secret_key,
                secure=config.secure,
                region=config.region,
                http_client=self._pool,
            )
        except ValueError as error:
            name = "MINIO_REGION" if "region" in str(error) else setting
            raise ConfigurationError(f"{name}: {error}.") from error

    async def prepare(self) -> None:
        """Makes the bucket, if nobody has, and asks for what will be asked for later. Raises ConfigurationError."""
        try:
            await self._in_thread(self._prepare)
        except S3Error as error:
            reason = _SETTINGS_BY_CODE.get(error.code or "", _reason(error))
            raise ConfigurationError(
                f"The object store at MINIO_ENDPOINT {self._config.endpoint} cannot be used: {reason}."
            ) from error
        except _TROUBLE as error:
            raise ConfigurationError(
                f"No object store answers at MINIO_ENDPOINT {self._config.endpoint}: {_reason(error)}. "
                f"MINIO_SECURE is {str(self._config.secure).lower()}."
            ) from error

    async def check(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                await self._run(self._check)
        except TimeoutError as error:
            raise ObjectStoreUnavailable("The object store did not answer in time.", retry_after_s=_RETRY_AFTER_S) from error

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown, wait=True)
        self._pool.clear()

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        check_key(key)
        await self._run(self._put, key, data, content_type)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], content_type: str) -> int:
        """Takes in the whole object, over 10 MiB in an unnamed temporary file, before anything is sent.

        So a sender that is slow holds neither a thread nor a connection, and one that leaves no parts of an upload.
        """
        check_key(key)
        spool = _Spool()
        waiting = bytearray()
        try:
            async for chunk in chunks:
                waiting += chunk
                if len(waiting) >= SLICE_BYTES:
                    await self._run(spool.write, bytes(waiting))
                    waiting.clear()
            await self._run(spool.write, bytes(waiting))
            return await self._run(self._put_spool, key, spool, content_type)
        finally:
            # Not awaited: a cancelled caller must not wait, and its thread may still be at it.
            try:
                self._executor.submit(spool.close)
            except RuntimeError:  # closed meanwhile: no thread of ours runs any more
                spool.close()

    async def get(self, key: str) -> bytes:
        check_key(key)
        return await self._run(self._get, key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        check_range(start, length)
        return (await self._run(self._slice, key, start, length, None)).data

    def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        check_range(start, length)

        async def read(at: int, size: int, version: str | None) -> Slice:
            return await self._run(self._slice, key, at, size, version)

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
        check_key(key)
        await self._run(self._delete, key)

    async def delete_many(self, keys: Iterable[str]) -> None:
        wanted = iter(keys)
        while batch := tuple(itertools.islice(wanted, _PAGE)):
            for key in batch:
                check_key(key)
            await self._run(self._delete_batch, batch)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    async def presigned_url(self, key: str, expires_s: int) -> str:
        """A URL of MINIO_PUBLIC_ENDPOINT: clients read from the object store, not through Kinlens."""
        check_key(key)
        check_expires(expires_s)
        return self._signer.presigned_get_object(self._bucket, key, expires=timedelta(seconds=expires_s))

    async def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        listing = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
        while page := await self._run(self._page, listing):
            for info in page:
                if info is not None:
                    yield info

    # What follows runs on the store's threads, and raises what the client raises.

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise ObjectStoreUnavailable("The object store is closed.", retry_after_s=_RETRY_AFTER_S)
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args, **kwargs))

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._in_thread(function, *args, **kwargs)
        except _TROUBLE as error:
            # Not str(error): it can hold an address of the inner network or the body of an answer.
            raise ObjectStoreUnavailable(
                f"The object store failed: {_reason(error)}.", retry_after_s=_RETRY_AFTER_S
            ) from error

    def _prepare(self) -> None:
        try:
            exists = self._client.bucket_exists(self._bucket)
        except S3Error as error:
            if error.code != "AccessDenied":
                raise
            exists = True  # the answer to HEAD has no body that says more; the one below has
        if not exists:
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                # Somebody was faster; if that was somebody else's account, the listing is refused.
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise
        # Not recursive: the top level of the bucket is one entry.
        next(iter(self._client.list_objects(self._bucket)), None)

    def _check(self) -> None:
        if not self._client.bucket_exists(self._bucket):
            raise ObjectStoreUnavailable("The bucket of the object store is gone.", retry_after_s=_RETRY_AFTER_S)

    def _put(self, key: str, data: bytes, content_type: str) -> None:
        # One request, whatever the size: the bytes are in memory anyway, and parts would be three threads and two
        # requests more.
        part_size = max(len(data), MIN_PART_SIZE)
        self._client.put_object(self._bucket, key, BytesIO(data), len(data), content_type, part_size=part_size)

    def _put_spool(self, key: str, spool: _Spool, content_type: str) -> int:
        with spool.opened() as (file, size):
            # Parts one after another: the client leaves the threads of parallel ones behind when an upload fails.
            self._client.put_object(self._bucket, key, file, size, content_type, part_size=_PART_BYTES, num_parallel_uploads=1)
            return size

    @contextmanager
    def _response(
        self, key: str, start: int = 0, length: int = 0, headers: DictType | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        try:
            response = self._client.get_object(self._bucket, key, start, length, request_headers=headers)
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise ObjectMissing(key) from None
            raise
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def _get(self, key: str) -> bytes:
        with self._response(key) as response:
            return response.read()

    def _slice(self, key: str, start: int, length: int, version: str | None) -> Slice:
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

    def _stat(self, key: str) -> ObjectInfo:
        try:
            found = self._client.stat_object(self._bucket, key)
        except S3Error as error:
            if error.code != "NoSuchKey":
                raise
            self._check()  # the 404 to a HEAD does not say what is missing: the object or the bucket
            raise ObjectMissing(key) from None
        if found.size is None or found.last_modified is None:
            raise ObjectStoreUnavailable("The object store tells no size or time.", retry_after_s=_RETRY_AFTER_S)
        return ObjectInfo(key, found.size, found.last_modified)

    def _delete(self, key: str) -> None:
        try:
            self._client.remove_object(self._bucket, key)
        except S3Error as error:
            if error.code != "NoSuchKey":
                raise

    def _delete_batch(self, keys: Iterable[str]) -> None:
        failed = [
            error
            for error in self._client.remove_objects(self._bucket, [DeleteObject(key) for key in keys])
            if error.code != "NoSuchKey"
        ]
        if failed:
            raise ObjectStoreUnavailable(
                f"The object store did not delete {len(failed)} objects ({_plain(failed[0].code)}).",
                retry_after_s=_RETRY_AFTER_S,
            )

    @staticmethod
    def _page(listing: Iterator[Object]) -> tuple[ObjectInfo | None, ...]:
        """The next objects, None for what is not ours; nothing at the end."""
        return tuple(
            ObjectInfo(found.object_name, found.size, found.last_modified)
            if found.object_name and is_key(found.object_name) and found.size is not None and found.last_modified
            else None
            for found in itertools.islice(listing, _PAGE)
        )


class _Spool:
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


class _Retries(Retry):
    """Retries, except of a request that was not answered in time: three times 30 s help nobody."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        if isinstance(error, http.ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


def _plain(code: str | None) -> str:
    """An error code of the server; what does not look like one is not passed on."""
    return code if code is not None and _CODE.fullmatch(code) else "an unknown error"


def _reason(error: Exception) -> str:
    """What went wrong, in words that say nothing of addresses and credentials."""
    if isinstance(error, http.MaxRetryError) and error.reason is not None:
        error = error.reason
    match error:
        case S3Error():
            return f"it answered {_plain(error.code)}"
        case ServerError():
            return f"it answered HTTP {error.status_code}"
        case InvalidResponseError():
            return "its answer is not S3"
        case http.NewConnectionError():
            return "it cannot be reached"
        case http.TimeoutError():
            return "it did not answer in time"
        case http.SSLError():
            return "the TLS connection failed"
        case http.HTTPError():
            return "the connection broke"
        case OSError():
            return error.strerror or type(error).__name__
        case _:
            return "its answer is not S3"
