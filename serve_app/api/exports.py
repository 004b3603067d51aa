"""All that is stored of a person, as one file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.api.deps import Services, ServicesDep, tell_results
from serve_app.api.faces import face_answer
from serve_app.api.openapi import problems
from serve_app.api.persons import person_answer
from serve_app.api.streams import NEVER_A_PAGE
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import ImageError, InvalidRequest, ObjectStoreUnavailable
from serve_app.identity.people import Person, StoredFace
from serve_app.imaging.images import sniff
from serve_app.storage.objects import ObjectMissing

router = APIRouter(prefix="/collections/{collection_id}", tags=["persons"])

MAX_FACES = 10_000
"""Of one export: their list is held in memory, the pictures are not."""
_PAGE = 1000
_SNIFFED_BYTES = 256
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""A zip has no earlier date; the true ones are in person.json."""


@router.get(
    "/persons/{person_id}/export",
    response_class=Response,
    summary="All that is stored of a person",
    responses=problems(*READ_ERRORS, ObjectStoreUnavailable) | {200: {"content": {"application/zip": {}}}},
)
async def export_person(collection_id: str, person_id: UUID, request: Request, services: ServicesDep) -> Response:
    """A zip, made while it is sent: `person.json` with the person and its faces, `crops/` with each face, and `images/` with
    the whole pictures they are in, which may show others as well. Embeddings are not in it. It is whole only if it ends as a
    zip does: what breaks off has no directory."""
    person = await services.gallery.people.get(collection_id, person_id)
    faces = await _faces(collection_id, person_id, services)
    tell_results(request, len(faces))
    headers = {"Content-Disposition": f'attachment; filename="person-{person_id}.zip"', **NEVER_A_PAGE}
    body = _zip(collection_id, person, faces, services)
    # What is refused is refused with a status.
    first = await anext(body)
    return StreamingResponse(_from(first, body), media_type="application/zip", headers=headers)


async def _faces(collection_id: str, person_id: UUID, services: Services) -> list[StoredFace]:
    faces: list[StoredFace] = []
    while True:
        page = await services.gallery.people.faces(collection_id, person_id, faces[-1].id if faces else None, _PAGE)
        faces += page
        if len(faces) > MAX_FACES:
            raise InvalidRequest(f"A person with more than {MAX_FACES} faces cannot be exported at once.", limit=MAX_FACES)
        if len(page) < _PAGE:
            return faces


async def _from(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _zip(collection_id: str, person: Person, faces: list[StoredFace], services: Services) -> AsyncIterator[bytes]:
    sink = _Sink()
    missing: list[str] = []
    with zipfile.ZipFile(sink, "w") as archive:
        for folder, owner, key in _pictures(faces):
            try:
                size = (await services.gallery.objects.stat(key)).size_bytes
                head = await services.gallery.objects.get_range(key, 0, _SNIFFED_BYTES) if size else b""
            except ObjectMissing:
                # Erased meanwhile, or lost: said in person.json.
                missing.append(f"{folder}/{owner}")
                continue
            entry = zipfile.ZipInfo(f"{folder}/{owner}.{_suffix(head)}", _EPOCH)
            with archive.open(entry, "w", force_zip64=True) as stream:
                async for chunk in services.gallery.objects.stream(key, 0, size):
                    stream.write(chunk)
                    if piece := sink.take():
                        yield piece
        told = {
            "exported_at": datetime.now(UTC).isoformat(),
            "collection_id": collection_id,
            "person": person_answer(person).model_dump(mode="json"),
            "faces": [face_answer(one).model_dump(mode="json") | {"image_id": _text(one.image_id)} for one in faces],
            "missing": missing,
        }
        archive.writestr(zipfile.ZipInfo("person.json", _EPOCH), json.dumps(told, ensure_ascii=False, indent=2))
        yield sink.take()
    yield sink.take()


def _pictures(faces: list[StoredFace]) -> list[tuple[str, UUID, str]]:
    """Folder, whose, and key; a picture with several faces once."""
    crops = [("crops", one.id, one.crop_key) for one in faces if one.crop_key is not None]
    images = {one.image_id: one.image_key for one in faces if one.image_id is not None and one.image_key is not None}
    return [*crops, *(("images", image_id, key) for image_id, key in images.items())]


def _suffix(head: bytes) -> str:
    try:
        return sniff(head).lower()
    except ImageError:
        return "bin"


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


class _Sink(io.RawIOBase):
    """Where the zip is written to: what has come since the last look. It cannot be sought, so sizes follow their entries."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
