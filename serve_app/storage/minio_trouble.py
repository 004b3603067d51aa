"""What goes wrong with MinIO: what its client raises, what is tried again, and how operators are told."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self
from xml.etree.ElementTree import ParseError

import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import exceptions as http
from urllib3.connectionpool import ConnectionPool
from urllib3.util import Retry

# Besides the client's own errors: answers that are not S3 fail in its XML parser and its conversions.
TROUBLE = (MinioException, http.HTTPError, OSError, ParseError, ValueError)
_CODE = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)

SETTINGS_BY_CODE = {
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


class Retries(Retry):
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


def plain(code: str | None) -> str:
    """An error code of the server; what does not look like one is not passed on."""
    return code if code is not None and _CODE.fullmatch(code) else "an unknown error"


def reason(error: Exception) -> str:
    """What went wrong, in words that say nothing of addresses and credentials."""
    if isinstance(error, http.MaxRetryError) and error.reason is not None:
        error = error.reason
    match error:
        case S3Error():
            return f"it answered {plain(error.code)}"
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
