"""A bucket of somebody's pictures as a source, through MinIO's client. Nothing in it is ever written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime

import urllib3
from minio import Minio
from minio.error import S3Error
from minio.helpers import check_bucket_name
from urllib3.util import Timeout

from serve_app.bulk.files import SourceFile, Unlisted
from serve_app.errors import ConfigurationError, FileUnreadable, ImageTooLarge, ObjectStoreUnavailable
from serve_app.server_files import NotAFile, ServerFile
from serve_app.storage.minio_trouble import TROUBLE, Retries, plain, reason

_CONNECTIONS = 32
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 3, 60
_RETRY_AFTER_S = 2
_LISTING_ATTEMPTS = 5
_OF_THE_BUCKET = ("AccessDenied", "InvalidAccessKeyId", "InvalidBucketName", "NoSuchBucket", "SignatureDoesNotMatch")
"""No listing will ever come."""
_OF_ALL_OBJECTS = ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "NoSuchBucket", "RequestTimeTooSkewed",
                   "RequestTimeout", "SignatureDoesNotMatch", "SlowDown")  # fmt: skip
"""With a status of 4xx, and yet no other object could be read now. Any other 4xx says something of the one."""


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """`endpoint`: host:port. `secure`: TLS."""

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str
    secure: bool


class BucketSource:
    """The objects below a folder, `prefix`, of a bucket; hidden ones, and those that stand for folders, are left out.

    Raises ConfigurationError for an endpoint, region or bucket name that cannot be one.
    """

    def __init__(self, access: BucketAccess, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint = access.endpoint
        self._pool = urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            block=True,
            timeout=Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S),
            retries=Retries(
                2,
                redirect=False,
                status_forcelist=(500, 502, 503, 504),
                backoff_factor=0.2,
                raise_on_status=False,
                respect_retry_after_header=False,
            ),
        )
        try:
            check_bucket_name(bucket)
            self._client = Minio(
                access.endpoint,
                access_key=access.access_key,
                secret_key=access.secret_key,
                secure=access.secure,
                region=access.region,
                http_client=self._pool,
            )
        except ValueError as error:
            raise ConfigurationError(f"s3://{bucket} at {access.endpoint}: {error}.") from error

    @property
    def location(self) -> str:
        return f"s3://{self._endpoint}/{self._bucket}/{self._prefix}"

    def files(self) -> Iterator[SourceFile | Unlisted]:
        """A page at a time. What breaks off is taken up again after the last object that came."""
        last, attempt = "", 1
        while True:
            try:
                found = self._client.list_objects(
                    self._bucket, prefix=self._prefix, recursive=True, start_after=last or None
                )  # fmt: skip
                for one in found:
                    name = one.object_name or ""
                    last, attempt = name, 1
                    below = name.removeprefix(self._prefix)
                    if name.endswith("/") or not below or any(part.startswith(".") for part in below.split("/")):
                        continue
                    yield SourceFile(below, one.size or 0, (one.etag or "").strip('"'))
                return
            except TROUBLE as error:
                refused = isinstance(error, S3Error) and error.code in _OF_THE_BUCKET
                if refused or attempt == _LISTING_ATTEMPTS:
                    raise ObjectStoreUnavailable(
                        f"s3://{self._bucket} cannot be listed: {reason(error)}.", retry_after_s=_RETRY_AFTER_S
                    ) from error
                time.sleep(2**attempt / 4)
                attempt += 1

    def path(self, file: SourceFile) -> tuple[list[str], str]:
        *folders, name = file.name.split("/")
        return [folder for folder in folders if folder], name

    def read(self, file: SourceFile, max_bytes: int) -> ServerFile:
        """As it was when it was listed: raises FileUnreadable where it has been replaced since."""
        if file.size_bytes > max_bytes:
            raise _too_large(file.size_bytes, max_bytes)
        headers: dict[str, str | list[str] | tuple[str]] = {}
        if file.version and file.version.isascii() and file.version.isprintable():
            headers["If-Match"] = f'"{file.version}"'
        try:
            response = self._client.get_object(self._bucket, self._prefix + file.name, request_headers=headers)
            try:
                data = response.read(max_bytes + 1)
                modified_at = response.headers.get("Last-Modified")
            finally:
                response.close()
                response.release_conn()
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise NotAFile("gone") from error
            if error.code == "PreconditionFailed":
                raise FileUnreadable("The object was replaced while the bucket was read. Run it again.") from error
            if _of_one_object(error):
                raise FileUnreadable(f"The object store answered {plain(error.code)}.") from error
            raise _unavailable(error) from error
        except TROUBLE as error:
            raise _unavailable(error) from error
        if len(data) > max_bytes:
            raise _too_large(len(data), max_bytes)
        return ServerFile(data, _moment(modified_at))

    def close(self) -> None:
        self._pool.clear()


def _of_one_object(error: S3Error) -> bool:
    """Others may be read: what the server will not give out, say because it lies encrypted with a key of its owner, must not
    hold them up."""
    return 400 <= error.response.status < 500 and error.response.status != 429 and error.code not in _OF_ALL_OBJECTS


def _moment(header: str | None) -> datetime | None:
    """Of an HTTP date."""
    try:
        return None if header is None else parsedate_to_datetime(header)
    except ValueError:
        return None


def _unavailable(error: Exception) -> ObjectStoreUnavailable:
    # Not str(error): it can hold an address of the inner network or the body of an answer.
    return ObjectStoreUnavailable(f"The source failed: {reason(error)}.", retry_after_s=_RETRY_AFTER_S)


def _too_large(size: int, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"The image has {size} bytes; the limit is {max_bytes}.", bytes=size, max_bytes=max_bytes)
