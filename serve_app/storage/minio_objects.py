"""The object store in MinIO, or in another server that speaks S3, through MinIO's own client.

The client blocks, so every call runs on a thread of the store; a call holds a connection no longer than its thread, and
there are as many of one as of the other. What the client's own defaults would do (wait 5 minutes, wait as long as a
`Retry-After` says, follow redirects with a signature for another host) is replaced here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import ParamSpec, TypeVar

import urllib3
from minio import Minio
from minio.error import S3Error
from minio.helpers import check_bucket_name
from urllib3.util import Timeout

from serve_app.errors import ConfigurationError, ObjectStoreUnavailable
from serve_app.observing.stages import Stage, stage
from serve_app.storage.minio_bucket import PAGE, Bucket, Spool
from serve_app.storage.minio_trouble import SETTINGS_BY_CODE, TROUBLE, Retries, reason
from serve_app.storage.objects import (
    SLICE_BYTES,
    ObjectInfo,
    ObjectMissing,
    Slice,
    check_expires,
    check_key,
    check_prefix,
    check_range,
    stream_slices,
)

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 32
_CHECK_TIMEOUT_S = 5
_RETRY_AFTER_S = 2
_RETRIED_STATUSES = (500, 502, 503, 504)


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
        self._pool = urllib3.PoolManager(
            maxsize=_THREADS,
            block=True,
            timeout=Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s),
            retries=Retries(
                2,
                redirect=False,
                status_forcelist=_RETRIED_STATUSES,
                backoff_factor=0.2,
                raise_on_status=False,
                respect_retry_after_header=False,
            ),
        )
        self._bucket = Bucket(self._connect("MINIO_ENDPOINT", config.endpoint), config.bucket)
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
            await self._in_thread(self._bucket.prepare)
        except S3Error as error:
            why = SETTINGS_BY_CODE.get(error.code or "", reason(error))
            raise ConfigurationError(
                f"The object store at MINIO_ENDPOINT {self._config.endpoint} cannot be used: {why}."
            ) from error
        except TROUBLE as error:
            raise ConfigurationError(
                f"No object store answers at MINIO_ENDPOINT {self._config.endpoint}: {reason(error)}. "
                f"MINIO_SECURE is {str(self._config.secure).lower()}."
            ) from error

    async def check(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                await self._run(self._bucket.check)
        except TimeoutError as error:
            raise ObjectStoreUnavailable("The object store did not answer in time.", retry_after_s=_RETRY_AFTER_S) from error

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown, wait=True)
        self._pool.clear()

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        check_key(key)
        await self._run(self._bucket.put, key, data, content_type)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], content_type: str) -> int:
        """Takes in the whole object, over 10 MiB in an unnamed temporary file, before anything is sent.

        So a sender that is slow holds neither a thread nor a connection, and one that leaves no parts of an upload.
        """
        check_key(key)
        spool = Spool()
        waiting = bytearray()
        try:
            async for chunk in chunks:
                waiting += chunk
                if len(waiting) >= SLICE_BYTES:
                    await self._run(spool.write, bytes(waiting))
                    waiting.clear()
            await self._run(spool.write, bytes(waiting))
            return await self._run(self._bucket.put_spool, key, spool, content_type)
        finally:
            # Not awaited: a cancelled caller must not wait, and its thread may still be at it.
            try:
                self._executor.submit(spool.close)
            except RuntimeError:  # closed meanwhile: no thread of ours runs any more
                spool.close()

    async def get(self, key: str) -> bytes:
        check_key(key)
        return await self._run(self._bucket.get, key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        check_range(start, length)
        return (await self._run(self._bucket.slice, key, start, length, None)).data

    def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        check_range(start, length)

        async def read(at: int, size: int, version: str | None) -> Slice:
            return await self._run(self._bucket.slice, key, at, size, version)

        return stream_slices(read, start, length)

    async def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        return await self._run(self._bucket.stat, key)

    async def exists(self, key: str) -> bool:
        try:
            await self.stat(key)
        except ObjectMissing:
            return False
        return True

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._run(self._bucket.delete, key)

    async def delete_many(self, keys: Iterable[str]) -> None:
        wanted = iter(keys)
        while batch := tuple(itertools.islice(wanted, PAGE)):
            for key in batch:
                check_key(key)
            await self._run(self._bucket.delete_batch, batch)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    async def presigned_url(self, key: str, expires_s: int) -> str:
        """A URL of MINIO_PUBLIC_ENDPOINT: clients read from the object store, not through Kinlens."""
        check_key(key)
        check_expires(expires_s)
        return self._signer.presigned_get_object(self._config.bucket, key, expires=timedelta(seconds=expires_s))

    async def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        listing = self._bucket.listing(prefix)
        while page := await self._run(self._bucket.page, listing):
            for info in page:
                if info is not None:
                    yield info

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise ObjectStoreUnavailable("The object store is closed.", retry_after_s=_RETRY_AFTER_S)
        with stage(Stage.OBJECTS):
            return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args, **kwargs))

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._in_thread(function, *args, **kwargs)
        except TROUBLE as error:
            # Not str(error): it can hold an address of the inner network or the body of an answer.
            raise ObjectStoreUnavailable(f"The object store failed: {reason(error)}.", retry_after_s=_RETRY_AFTER_S) from error
