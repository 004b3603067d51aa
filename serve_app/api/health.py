"""Liveness and readiness: O(1), no key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, Response

from serve_app.api.deps import ServicesDep, answer
from serve_app.api.schemas import HealthAnswer, ReadyAnswer
from serve_app.errors import CapacityError, PartUnavailable

router = APIRouter(tags=["service"])

_CHECK_TIMEOUT_S = 3
_not_ready: dict[int | str, dict[str, Any]] = {503: {"model": ReadyAnswer, "description": "One of them does not answer."}}


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


@router.get("/ready", response_model=ReadyAnswer, summary="Does everything behind it answer?", responses=_not_ready)
async def ready(services: ServicesDep) -> Response:
    """One round trip to the database and one to the object store, however much they hold; 503 when either fails. Needs no key.

    Not for liveness probes: a restart of Kinlens brings no database back.
    """
    database, objects = await asyncio.gather(
        _answers(services.gallery.database.check()), _answers(services.gallery.objects.check())
    )
    both = ReadyAnswer(database=database, object_store=objects)
    return answer(both, 200 if database == objects == "ok" else 503)


async def _answers(check: Awaitable[None]) -> Literal["ok", "unavailable"]:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            await check
    except (PartUnavailable, CapacityError, TimeoutError):
        return "unavailable"
    return "ok"
