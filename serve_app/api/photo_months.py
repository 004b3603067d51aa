"""The months of the photo library."""

from __future__ import annotations

from fastapi import APIRouter, Response

from serve_app.api.deps import ServicesDep, answer
from serve_app.api.openapi import problems
from serve_app.api.photo_filters import WantedPhotos
from serve_app.api.photo_schemas import MonthAnswer, MonthList
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import DeadlineExceeded

router = APIRouter(tags=["photos"])


@router.get(
    "/photos/months",
    response_model=MonthList,
    summary="Count photos by month",
    responses=problems(*READ_ERRORS, DeadlineExceeded),
)
async def list_months(services: ServicesDep, wanted: WantedPhotos) -> Response:
    """Every month that has a photo, the newest first. All filters of the list of photos must hold."""
    found = await services.gallery.photos.months(wanted)
    return answer(MonthList(items=[MonthAnswer(month=one.month, photo_count=one.photos) for one in found]))
