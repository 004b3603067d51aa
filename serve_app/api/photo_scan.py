"""Photos that lie on the server already: a scan of a folder there, as a job."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from serve_app.api.deps import ServicesDep, answer, read_request
from serve_app.api.job_schemas import JobAnswer, job_answer
from serve_app.api.openapi import json_body, problems
from serve_app.api.photo_schemas import Folder, Tags
from serve_app.api.schemas import RequestModel
from serve_app.api.writes import WRITE_ERRORS, idempotency_header, once
from serve_app.errors import FileUnreadable, ScanRefused
from serve_app.services.scanning import Scan

router = APIRouter(prefix="/photos", tags=["photos"])

_MAX_PATH = 4096


class ScanFields(RequestModel):
    path: str = Field(
        max_length=_MAX_PATH, description="Absolute, on the server, below one of SCAN_ROOTS.", examples=["/srv/photos/2024"]
    )
    folder: Folder | None = Field(
        None, description="Folder of the library for what lies in `path` itself; default: the way from the root to it."
    )
    tags: Tags = Field((), description="Of every photo that comes in.")


@router.post(
    "/scan-path",
    status_code=202,
    response_model=JobAnswer,
    summary="Add the photos of a folder of the server",
    dependencies=[Depends(idempotency_header)],
    responses=problems(*WRITE_ERRORS, ScanRefused, FileUnreadable),
    openapi_extra=json_body(ScanFields, {"path": "/srv/photos/2024"}),
)
async def scan_path(request: Request, services: ServicesDep) -> Response:
    """A job with an item for each folder and file below the path, links left out. The files are copied and stay as they
    are. A picture that the library has is skipped, so a scan may be repeated."""
    fields = await read_request(request, services, ScanFields)
    write = once(request, services, fields, job_answer, 202, services.gallery.photos.collection_id)
    job = await services.gallery.scanning.start(Scan(fields.path, fields.folder, fields.tags), write)
    return answer(job_answer(job), 202)
