"""What operators look at: the service as a whole, and its metrics for Prometheus."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from serve_app.api.deps import Services, ServicesDep, answer
from serve_app.api.openapi import problems
from serve_app.api.system_schemas import SystemAnswer
from serve_app.api.writes import READ_ERRORS
from serve_app.observing.telemetry import CONTENT_TYPE
from serve_app.services.system import SystemStatus, watch_connections

router = APIRouter(tags=["service"])


def open_system(services: Services) -> SystemStatus:
    """And the gauges of this process, which are read when somebody asks."""
    telemetry, database, admission = services.telemetry, services.gallery.database, services.admission
    watch_connections(telemetry, database)
    places = "Places for requests that need a model"
    telemetry.gauge("kinlens_admission_places", places, lambda: admission.taken, state="taken")
    telemetry.gauge("kinlens_admission_places", places, lambda: admission.places, state="all")
    settings = services.settings
    return SystemStatus(
        telemetry,
        database,
        services.gallery.health,
        services.model.pack,
        settings.data_dir if settings.minio_endpoint is None else None,
        services.cluster,
    )


async def system_status(request: Request) -> SystemStatus:
    found: SystemStatus = request.app.state.system
    return found


SystemDep = Annotated[SystemStatus, Depends(system_status)]


@router.get("/system", response_model=SystemAnswer, summary="The service as a whole", responses=problems(*READ_ERRORS))
async def system(status: SystemDep, services: ServicesDep) -> Response:
    """Replicas, what they did in the last minutes, what is stored and what waits: of all replicas together. Answers within a
    few seconds, whatever is down; they are asked at most once a second, however many want to know."""
    found = await status.get()
    return answer(
        SystemAnswer.of(
            found,
            version=version("kinlens"),
            uptime_s=round(time.monotonic() - services.started_at, 1),
            store="folder" if services.settings.minio_endpoint is None else "minio",
            now=time.time(),
        )
    )


@router.get(
    "/metrics",
    response_class=Response,
    summary="Metrics for Prometheus",
    responses=problems(*READ_ERRORS) | {200: {"content": {"text/plain": {}}}},
)
async def metrics(
    status: SystemDep,
    ray: Annotated[bool, Query(description="Also what Ray Serve counts itself, on every machine of the cluster.")] = False,
) -> Response:
    """Of every replica of the ingress and of Indexing, told apart by labels, whichever of them answers."""
    return Response(await status.metrics(with_ray=ray), headers={"Content-Type": CONTENT_TYPE})
