"""Liveness: O(1), no key, asks nobody."""

from __future__ import annotations

import time
from importlib.metadata import version

from fastapi import APIRouter, Response

from serve_app.api.deps import ServicesDep, answer
from serve_app.api.schemas import HealthAnswer

router = APIRouter(tags=["service"])


@router.get("/health", response_model=HealthAnswer, summary="Is the service up?")
async def health(services: ServicesDep) -> Response:
    """Answers while the ingress runs, also when every model replica is busy. Needs no key."""
    return answer(
        HealthAnswer(
            version=version("kinlens"),
            model=services.model.pack,
            uptime_s=round(time.monotonic() - services.started_at, 1),
        )
    )
