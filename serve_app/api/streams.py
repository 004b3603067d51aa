"""Stored pictures as downloads: whole or in part, unless the client has them already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import PurePosixPath
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from serve_app.api.deps import Services
from serve_app.api.ranges import byte_range
from serve_app.errors import ImageError, NotFound
from serve_app.imaging.images import sniff
from serve_app.services.enrolment import CONTENT_TYPES
from serve_app.storage.objects import ObjectMissing

URL_EXPIRES_S = 900
"""Of a signed address."""
ALWAYS_ASKED = "private, no-cache"
"""Cache-Control of what has an ETag: a browser that has it asks each time (304), and shows nothing that was erased."""
NEVER_A_PAGE = {"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff"}
"""Headers that keep a browser from rendering bytes as anything but a picture, whatever they are."""

_KEPT_AN_HOUR = "private, max-age=3600"
"""Cache-Control of what has none, and would be sent anew each time."""
_SNIFFED_BYTES = 256
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
}
_MAX_NAME_CHARACTERS = 120


async def signed_url(key: str | None, services: Services) -> str | None:
    """An address of the object that needs no key and expires; None of None."""
    if key is None:
        return None
    # Of the local store a path: relative to this API's address, whatever proxies stand before it.
    return await services.gallery.objects.presigned_url(key, URL_EXPIRES_S)


async def stream_object(
    key: str, request: Request, services: Services, *, etag: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An object as a download. `etag`: strong; `headers`: further ones. Raises NotFound, ObjectStoreUnavailable."""
    objects = services.gallery.objects
    caching = {"Cache-Control": ALWAYS_ASKED, "ETag": etag} if etag else {"Cache-Control": _KEPT_AN_HOUR}
    more = {**caching, **(headers or {})}
    if etag and matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=more)
    # A part of what the client has only if that is still the same (RFC 9110, section 13.1.5).
    condition = request.headers.get("if-range")
    wanted = request.headers.get("range") if condition is None or condition.strip() == etag else None
    try:
        info = await objects.stat(key)
        head = await objects.get_range(key, 0, _SNIFFED_BYTES) if info.size_bytes else b""
        start, length = byte_range(wanted, info.size_bytes)
        body: AsyncIterator[bytes] = objects.stream(key, start, length)
    except ObjectMissing as error:
        raise NotFound("The object is gone.") from error
    partial = length != info.size_bytes
    more |= {"Accept-Ranges": "bytes", "Content-Length": str(length), **NEVER_A_PAGE}
    if partial:
        more["Content-Range"] = f"bytes {start}-{start + length - 1}/{info.size_bytes}"
    return StreamingResponse(body, 206 if partial else 200, headers=more, media_type=_content_type(head))


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has it already (RFC 9110, section 13.1.2)."""
    given = [] if if_none_match is None else [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in given or given == ["*"]


def content_disposition(file_name: str, image_format: str) -> str:
    """Shown in the page; saved under the name it was uploaded with, which ends as the format does (RFC 6266)."""
    name = "".join(character for character in PurePosixPath(file_name.replace("\\", "/")).name if character.isprintable())
    suffixes = _SUFFIXES[image_format]
    stem, dot, suffix = name.rpartition(".")
    if f".{suffix.lower()}" not in suffixes or not stem:
        stem, dot, suffix = name, ".", suffixes[0][1:]
    whole = f"{stem.strip(' .')[:_MAX_NAME_CHARACTERS] or 'photo'}{dot}{suffix}"
    plain = "".join(character if character.isascii() and character not in '"\\%' else "_" for character in whole)
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(whole.encode('utf-8', 'replace'), safe='')}"


def _content_type(head: bytes) -> str:
    """By the bytes themselves: what is stored was a picture when it came."""
    try:
        return CONTENT_TYPES[sniff(head)]
    except ImageError:
        return "application/octet-stream"
