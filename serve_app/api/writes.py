"""Idempotency-Key: a write that is repeated is answered as it was the first time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, TypeVar

from fastapi import Header, Request, Response
from pydantic import BaseModel

from serve_app.api.deps import FORMER_PREFIX, PREFIX, Services, caller_of
from serve_app.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadError,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedMedia,
)
from serve_app.services.writing import Audited, Once
from serve_app.storage.idempotency import Replayed, WriteKey

ResultT = TypeVar("ResultT")

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        description="Makes the write happen once however often it is sent: repetitions within 24 hours get the first answer"
        " (with `Idempotent-Replayed: true`). Any text of up to 255 visible ASCII characters."
    ),
]


def once(
    request: Request,
    services: Services,
    fields: BaseModel | None,
    render: Callable[[ResultT], BaseModel],
    status: int,
    collection_id: str | None = None,
) -> Once[ResultT]:
    """How often this request may write, and the answer to keep. `collection_id`: where the address does not say it.

    Raises InvalidRequest for a malformed key.
    """

    def rendered(result: ResultT) -> tuple[int, bytes]:
        return status, render(result).model_dump_json().encode()

    key = _key(request)
    audited: Audited | None = getattr(request.state, "audited", None)
    if audited is not None:
        audited.line = replace(audited.line, status=status)
    return Once(
        None if key is None else WriteKey(key, _fingerprint(request, fields), collection_id or _collection(request)),
        rendered,
        audited=audited,
    )


def once_per_item(
    request: Request,
    services: Services,
    index: int,
    item: Callable[[], bytes],
    render: Callable[[ResultT], BaseModel],
    collection_id: str | None = None,
) -> Once[ResultT]:
    """The same for the item at `index` of a request of many, each a write of its own. `item`: what tells it from others."""

    def rendered(result: ResultT) -> tuple[int, bytes]:
        return 200, render(result).model_dump_json().encode()

    key = _key(request)
    if key is None:
        return Once(None, rendered)
    fingerprint = hashlib.sha256(_fingerprint(request, None) + item()).digest()
    item_key = hashlib.sha256(key + index.to_bytes(4, "big")).digest()
    return Once(WriteKey(item_key, fingerprint, collection_id or _collection(request)), rendered)


def _key(request: Request) -> bytes | None:
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    if not _KEY.fullmatch(given):
        raise InvalidRequest("The Idempotency-Key must be 1 to 255 visible ASCII characters.")
    # The client's key is part, by its id: nobody gets another client's answer, and a rotation of the key changes nothing.
    return hashlib.sha256(f"{caller_of(request).id}\n{given}".encode()).digest()


def _collection(request: Request) -> str | None:
    found: str | None = request.path_params.get("collection_id")
    return found


def _fingerprint(request: Request, fields: BaseModel | None) -> bytes:
    path = request.url.path
    if path.startswith(f"{FORMER_PREFIX}/") and not path.startswith(f"{PREFIX}/"):
        # The same request, whichever of its two addresses it is sent to.
        path = PREFIX + path.removeprefix(FORMER_PREFIX)
    digest = hashlib.sha256(f"{request.method} {path}?{request.url.query}\n".encode("utf-8", "surrogateescape"))
    if fields is not None:
        digest.update(json.dumps(fields.model_dump(), default=_digest, sort_keys=True).encode())
    return digest.digest()


def _digest(value: object) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


async def on_replayed(_: Request, error: Exception) -> Response:
    assert isinstance(error, Replayed)
    return Response(error.response, error.status, headers={"Idempotent-Replayed": "true"}, media_type="application/json")


async def idempotency_header(idempotency_key: IdempotencyKeyHeader = None) -> None:
    """For the OpenAPI document; `once` reads it."""


READ_ERRORS = (Unauthorized, NotFound, InvalidRequest, DatabaseUnavailable, Overloaded, InternalError)
WRITE_ERRORS = (
    Unauthorized,
    PayloadError,
    PayloadTooLarge,
    UnsupportedMedia,
    InvalidRequest,
    NotFound,
    IdempotencyKeyReused,
    DatabaseUnavailable,
    Overloaded,
    DeadlineExceeded,
    InternalError,
)
