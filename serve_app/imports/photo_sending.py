"""Photos on their way into the library of a running instance: sent until the answer is final, and compared with what it is."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Literal
from uuid import UUID

import httpx

from serve_app.errors import ImageError
from serve_app.imaging.images import sniff
from serve_app.imaging.media import Media, recognize
from serve_app.imports.service_client import ServiceClient, longer_pause_s, problem_of

MAX_FILE_BYTES = 60 << 20
"""The most that MAX_IMAGE_BYTES can be."""
HEAD_BYTES = 4096
"""Enough to tell what a file is."""

_PHOTOS = "/api/v1/photos"
_ATTEMPTS = 5
"""Of a photo that the server answers `failed` for a reason of its own."""
_STATUS_OF_ALL = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
"""What is wrong with one photo is wrong with every one."""

SentStatus = Literal["created", "exists", "unsupported", "failed"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """`taken_at`: for a picture that does not say it itself."""

    data: bytes
    file_name: str
    folder: str = ""
    tags: Sequence[str] = ()
    taken_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """`code`, `detail`: why it is not there."""

    status: SentStatus
    photo_id: str = ""
    code: str = ""
    detail: str = ""


class PhotoSender:
    """`read_back`: the stored picture is read again and compared, byte for byte, by its SHA-256.

    Every method raises GaveUp, and ConfigurationError for what no repetition can help.
    """

    def __init__(self, service: ServiceClient, *, read_back: bool = False) -> None:
        self._service = service
        self._read_back = read_back

    async def check(self) -> None:
        """Whether there is such a library, and the key opens it."""
        response = await self._service.ask("GET", _PHOTOS, params={"limit": 1})
        if response.status_code >= 300:
            raise self._service.refusal(response)

    async def holds(self, photo_id: str, sha256: str) -> bool:
        """Whether the library has this photo, with these bytes."""
        response = await self._service.ask("GET", f"{_PHOTOS}/{UUID(photo_id)}", check=_is_object)
        if response.status_code == HTTPStatus.OK:
            return bool(response.json().get("sha256") == sha256)
        if response.status_code != HTTPStatus.NOT_FOUND:
            raise self._service.refusal(response)
        return False

    async def send(self, new: Outgoing) -> Sent:
        """Durable when it says `created` or `exists`: the library says so of a picture of the very SHA-256."""
        digest = await asyncio.to_thread(lambda: hashlib.sha256(new.data).hexdigest())
        attempt = 0
        while True:
            attempt += 1
            sent = await self._once(new, digest)
            if sent is not None:
                return sent if sent.status not in ("created", "exists") else await self._compared(sent, digest)
            if attempt == _ATTEMPTS:
                return Sent("failed", "", "service_failed", f"The service failed with it {_ATTEMPTS} times; run it again.")
            await asyncio.sleep(longer_pause_s(attempt))

    async def _once(self, new: Outgoing, digest: str) -> Sent | None:
        """None for a failure that is the service's own."""
        fields: dict[str, Any] = {"folder": new.folder}
        if new.tags:
            # Not between commas, which a tag may have.
            fields["tags"] = json.dumps(list(new.tags))
        if new.taken_at is not None:
            fields["taken_at"] = new.taken_at.isoformat()
        file = (new.file_name, new.data, "application/octet-stream")
        response = await self._service.ask("POST", f"{_PHOTOS}/upload", check=_has_result, data=fields, files={"files": file})
        if response.status_code != HTTPStatus.OK:
            if response.status_code in _STATUS_OF_ALL:
                raise self._service.refusal(response)
            problem = problem_of(response)
            return Sent("failed", "", problem["code"], problem["detail"])
        (result,) = response.json()["results"]
        problem = result["problem"]
        if problem is not None:
            if result["status"] == "failed" and problem["status"] >= 500:
                return None
            return Sent(result["status"], "", problem["code"], problem["detail"])
        photo = result["photo"]
        if photo["sha256"] != digest or photo["size_bytes"] != len(new.data):
            detail = f"The library has other bytes of it, as photo {photo['id']}: SHA-256 {photo['sha256']}, not {digest}."
            return Sent("failed", photo["id"], "checksum_mismatch", detail)
        return Sent(result["status"], photo["id"])

    async def _compared(self, sent: Sent, digest: str) -> Sent:
        if not self._read_back:
            return sent
        response = await self._service.ask("GET", f"{_PHOTOS}/{UUID(sent.photo_id)}/image")
        found = await asyncio.to_thread(lambda: hashlib.sha256(response.content).hexdigest())
        if response.status_code == HTTPStatus.OK and found == digest:
            return sent
        detail = f"What the object store has of photo {sent.photo_id} is not what was sent (HTTP {response.status_code})."
        return Sent("failed", sent.photo_id, "checksum_mismatch", detail)


def refusal_of(head: bytes, file_name: str) -> tuple[str, str] | None:
    """Code and detail of a file that by its first bytes, and its name, is no photo; None for one that may be one."""
    media = recognize(head, file_name)
    if media is not None:
        return "unsupported_image", "It is a camera's raw photo." if media is Media.RAW else "It is a video."
    try:
        sniff(head)
    except ImageError as error:
        return "not_a_picture", error.detail
    return None


def _is_object(response: httpx.Response) -> None:
    if not isinstance(response.json(), dict):
        raise ValueError("the answer is not what a Kinlens answers")  # noqa: TRY004  as for every broken answer


def _has_result(response: httpx.Response) -> None:
    found = response.json()
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or len(results) != 1:
        raise ValueError("the answer is not what a Kinlens answers")
