"""Request bodies: multipart read as it arrives, JSON, or the bare picture; limited before anything is kept."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from serve_app.errors import (
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    JsonValue,
    PayloadError,
    PayloadTooLarge,
    UnsupportedMedia,
)

FieldValue: TypeAlias = JsonValue | bytes | list[bytes]
"""bytes only for uploaded files, a list of them for a field that takes many."""
ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_FIELD_BYTES = 1 << 20
"""A text field of a form: an option, or an embedding of some thousand numbers."""
_MAX_FIELDS = 64
_MAX_PART_HEADERS_BYTES = 8 << 10
_INLINE_BYTES = 256 << 10
"""JSON and base64 above this are parsed on a thread, so that they do not hold up other requests."""
_MAX_REPORTED_ERRORS = 10
_SLOW_BODY_S = 10.0
"""So long a body may hardly come, a change of radio cells included; beyond that it has to come at `_LEAST_BYTES_PER_S`."""
_LEAST_BYTES_PER_S = 1 << 10


@dataclass(frozen=True, slots=True)
class FormLimits:
    """`max_file_bytes` a file, `max_body_bytes` in all, `max_files` files."""

    max_file_bytes: int
    max_body_bytes: int
    max_files: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form. `data` is None for a file over its limit: its bytes were counted and dropped."""

    name: str
    filename: str | None
    data: bytes | None
    size_bytes: int

    @property
    def is_file(self) -> bool:
        return self.filename is not None


@dataclass(slots=True)
class _OpenPart:
    headers: dict[str, bytes] = field(default_factory=dict)
    header_name: bytes = b""
    header_value: bytes = b""
    header_bytes: int = 0
    name: str = ""
    filename: str | None = None
    chunks: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    max_bytes: int = 0


class _PartCollector:
    """Callbacks of the push parser; finished parts wait in `done` until the caller takes them."""

    def __init__(self, limits: FormLimits) -> None:
        self._limits = limits
        self._open = _OpenPart()
        self._files = 0
        self._fields = 0
        self.done: list[Part] = []
        self.complete = False

    def parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._complete,
            },
        )

    def _begin(self) -> None:
        self._open = _OpenPart()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._open.header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._open.header_value += data[start:end]

    def _count_header(self, length: int) -> None:
        self._open.header_bytes += length
        if self._open.header_bytes > _MAX_PART_HEADERS_BYTES:
            raise PayloadTooLarge("The headers of a form part are too long.", max_bytes=_MAX_PART_HEADERS_BYTES)

    def _header_end(self) -> None:
        name = self._open.header_name.decode("latin-1").lower()
        self._open.headers[name] = self._open.header_value
        self._open.header_name = self._open.header_value = b""

    def _headers_finished(self) -> None:
        disposition, options = parse_options_header(self._open.headers.get("content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise PayloadError("A form part has no name.")
        self._open.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            self._open.filename = options[b"filename"].decode("utf-8", "replace")
            self._open.max_bytes = self._limits.max_file_bytes
            self._files += 1
            if self._files > self._limits.max_files:
                raise PayloadTooLarge("The form has too many files.", max_files=self._limits.max_files)
        else:
            self._open.max_bytes = _MAX_FIELD_BYTES
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise PayloadTooLarge("The form has too many fields.", max_fields=_MAX_FIELDS)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._open
        part.size_bytes += end - start
        if part.size_bytes <= part.max_bytes:
            part.chunks.append(data[start:end])
        else:
            part.chunks.clear()

    def _end(self) -> None:
        part = self._open
        fits = part.size_bytes <= part.max_bytes
        if not fits and part.filename is None:
            raise PayloadTooLarge(f"The form field {part.name[:64]!r} is too long.", max_bytes=_MAX_FIELD_BYTES)
        data = b"".join(part.chunks) if fits else None
        self.done.append(Part(part.name, part.filename, data, part.size_bytes))
        self._open = _OpenPart()

    def _complete(self) -> None:
        self.complete = True


def media_type(request: Request) -> str:
    """The content type without parameters, lower case; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def stream_body(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body's chunks. Raises PayloadTooLarge as soon as it is known, before the rest is read, and DeadlineExceeded where
    the client sends hardly anything: it holds a place that others wait for."""
    too_large = PayloadTooLarge(f"The request body is over the limit of {max_bytes} bytes.", max_bytes=max_bytes)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    received, waited_s = 0, 0.0
    chunks = request.stream()
    try:
        while True:
            begun = time.monotonic()
            async with asyncio.timeout(_SLOW_BODY_S + received / _LEAST_BYTES_PER_S - waited_s):
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            # Not what the reader took: a batch is read as fast as it is worked off.
            waited_s += time.monotonic() - begun
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            yield chunk
    except ClientDisconnect as error:
        raise asyncio.CancelledError from error
    except TimeoutError as error:
        raise DeadlineExceeded("The request body comes too slowly.", least_bytes_per_s=_LEAST_BYTES_PER_S) from error


async def read_body(request: Request, max_bytes: int) -> bytes:
    return b"".join([chunk async for chunk in stream_body(request, max_bytes)])


async def iter_parts(request: Request, limits: FormLimits) -> AsyncIterator[Part]:
    """The parts of a multipart form, each as soon as it has arrived whole.

    Raises PayloadError for a malformed or cut off form, PayloadTooLarge beyond `limits`.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise PayloadError("The multipart body has no boundary.")
    collector = _PartCollector(limits)
    try:
        parser = collector.parser(boundary)
        async for chunk in stream_body(request, limits.max_body_bytes):
            parser.write(chunk)
            while collector.done:
                yield collector.done.pop(0)
        parser.finalize()
    except FormParserError as error:
        raise PayloadError("The multipart body is malformed.") from error
    if not collector.complete:
        raise PayloadError("The multipart body ends before its last boundary.")


async def read_fields(
    request: Request,
    *,
    files: frozenset[str],
    raw_file: str | None,
    limits: FormLimits,
    max_json_bytes: int,
    many: str | None = None,
) -> dict[str, FieldValue]:
    """The fields of a body in any accepted form, over those of the query string.

    `files`: names that may be uploaded files. `raw_file`: the name a bare image body goes by, where one is accepted.
    `many`: the one of `files` that may come several times; its value is a list.
    Raises PayloadError, PayloadTooLarge, UnsupportedMedia, InvalidRequest (a field twice, a file in the wrong field).
    """
    fields: dict[str, FieldValue] = {**query_fields(request)}
    kind = media_type(request)
    if kind == "multipart/form-data":
        seen: set[str] = set()
        uploads: list[bytes] = []
        async for part in iter_parts(request, limits):
            value = part_value(part, files, limits)
            if part.name == many and isinstance(value, bytes):
                uploads.append(value)
                continue
            if part.name in seen:
                raise InvalidRequest(f"The field {_shown(part.name)} is given twice.")
            seen.add(part.name)
            fields[part.name] = value
        if many is not None and uploads:
            fields[many] = uploads
    elif kind == "application/json":
        fields |= await read_json(request, max_json_bytes)
    elif raw_file is not None and (kind.startswith("image/") or kind == "application/octet-stream"):
        body = await read_body(request, limits.max_file_bytes)
        fields[raw_file] = [body] if raw_file == many else body
    else:
        accepted = ["multipart/form-data", "application/json", *(["image/*"] if raw_file else [])]
        raise UnsupportedMedia(
            f"The content type is {_shown(kind) if kind else 'missing'}; send {', '.join(accepted)}.", accepted=[*accepted]
        )
    return fields


def part_value(part: Part, files: frozenset[str], limits: FormLimits) -> FieldValue:
    """bytes of a file field, text of any other. Raises PayloadTooLarge, InvalidRequest."""
    if part.is_file or part.name in files:
        if part.name not in files:
            raise InvalidRequest(
                f"The field {_shown(part.name)} takes no file; files go into {', '.join(sorted(files))}.",
                field=_plain(part.name),
            )
        if part.data is None:
            raise PayloadTooLarge(
                f"The file in {part.name!r} has {part.size_bytes} bytes; the limit is {limits.max_file_bytes}.",
                field=part.name,
                max_bytes=limits.max_file_bytes,
            )
        # Without a file name it may be either; base64 is ASCII, and no encoded picture is.
        if part.is_file or not part.data.isascii():
            return part.data
    return (part.data or b"").decode("utf-8", "replace")


def query_fields(request: Request) -> dict[str, FieldValue]:
    """Raises InvalidRequest for a parameter given twice: one of the two would be lost."""
    fields: dict[str, FieldValue] = {}
    for name, value in request.query_params.multi_items():
        if name in fields:
            raise InvalidRequest(f"The parameter {_shown(name)} is given twice.")
        fields[name] = value
    return fields


async def read_json(request: Request, max_bytes: int) -> Mapping[str, JsonValue]:
    """A JSON object. Raises PayloadError for anything else."""
    body = await read_body(request, max_bytes)
    parsed = await asyncio.to_thread(_parse_json, body) if len(body) > _INLINE_BYTES else _parse_json(body)
    if not isinstance(parsed, dict):
        raise PayloadError("The JSON body is not an object.")
    return parsed


def _parse_json(body: bytes) -> JsonValue:
    try:
        parsed: JsonValue = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PayloadError("The body is not valid JSON.") from error
    return parsed


def validate(model: type[ModelT], fields: Mapping[str, FieldValue]) -> ModelT:
    """The fields as `model`. Raises InvalidRequest that names each field at fault, never its value."""
    unknown = [name for name in fields if name not in model.model_fields]
    if unknown:
        # Before pydantic, which would make an error of each of a million.
        shown = [_plain(name) for name in unknown[:_MAX_REPORTED_ERRORS]]
        raise InvalidRequest(
            f"{shown[0]}: there is no such field",
            errors=[{"field": name, "message": "there is no such field"} for name in shown],
        )
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problems: list[JsonValue] = [
            {
                "field": _plain(".".join(str(part) for part in entry["loc"])),
                "message": entry["msg"].removeprefix("Value error, "),
            }
            for entry in error.errors(include_input=False, include_url=False)[:_MAX_REPORTED_ERRORS]
        ]
        first = problems[0] if problems and isinstance(problems[0], dict) else {}
        where = f"{first.get('field')}: " if first.get("field") else ""
        raise InvalidRequest(f"{where}{first.get('message', 'invalid')}", errors=problems) from None


async def decode_base64(text: str) -> bytes:
    """A picture as base64 or data URI. Raises InvalidImage."""
    if len(text) > _INLINE_BYTES:
        return await asyncio.to_thread(_decode_base64, text)
    return _decode_base64(text)


def _decode_base64(text: str) -> bytes:
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise InvalidImage("The data URI is not base64.")
    try:
        # Line breaks are part of MIME's base64, and of what many tools print.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage("The image is not valid base64.") from error


def _plain(text: str) -> str:
    """A client's word, fit to be shown back: short, printable ASCII."""
    return text[:64].encode("ascii", "backslashreplace").decode("ascii")


def _shown(text: str) -> str:
    return repr(_plain(text))
