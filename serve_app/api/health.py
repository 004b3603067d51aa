"""Liveness and readiness: O(1), no key."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response

from serve_app.api.deps import ServicesDep, answer
from serve_app.api.health_schemas import ModelsHealthAnswer, PartsAnswer, QueueAnswer
from serve_app.api.schemas import HealthAnswer, ReadyAnswer

router = APIRouter(tags=["service"])
former_router = APIRouter(tags=["service"])
"""Where the former service told of all its parts."""

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


@former_router.get("/health", response_model=PartsAnswer, summary="How are the parts?")
@router.get("/health/parts", response_model=PartsAnswer, summary="How are the parts?")
async def parts(services: ServicesDep) -> Response:
    """Database, object store, models and the depth of the queue, within 4 seconds, whatever they hold; each is asked at most
    every 2 seconds. Always 200: `status` says whether all are there. Needs no key."""
    found = await services.gallery.health.get()
    waiting = found.waiting
    return answer(
        PartsAnswer(
            status="ok" if found.ok else "degraded",
            version=version("kinlens"),
            database=found.database,
            object_store=found.object_store,
            models=ModelsHealthAnswer(pack=services.model.pack, detection=found.detection, embedding=found.embedding),
            queue=None
            if waiting is None
            else QueueAnswer(waiting=sum(waiting.values()), kinds={kind.value: count for kind, count in waiting.items()}),
        )
    )


@router.get("/ready", response_model=ReadyAnswer, summary="Does everything behind it answer?", responses=_not_ready)
async def ready(services: ServicesDep) -> Response:
    """One round trip to the database and one to the object store, however much they hold; 503 when either fails. Needs no key.

    Not for liveness probes: a restart of Kinlens brings no database back.
    """
    database, objects = await services.gallery.health.reachable()
    both = ReadyAnswer(database=database, object_store=objects)
    return answer(both, 200 if database == objects == "ok" else 503)
