"""The ingress deployment: the FastAPI application on a Ray Serve replica."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from fastapi import FastAPI
from ray import serve
from ray.serve._private import replica
from ray.serve._private.constants import RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve.handle import DeploymentHandle

from config.settings import Settings
from serve_app.api.app import create_api
from serve_app.api.deps import Admission, Secrets, Services
from serve_app.backends import check_backends, join_database
from serve_app.cluster import RemoteCluster
from serve_app.environment import EDGE_TOKEN
from serve_app.gallery import database_dsn, open_gallery
from serve_app.imaging.images import ImageLimits
from serve_app.keys import load_or_create_api_key
from serve_app.observing.logs import configure_logging
from serve_app.observing.outlets import Outlets
from serve_app.observing.telemetry import Snapshot, Telemetry
from serve_app.postgres.local import EmbeddedPostgres
from serve_app.remote import RemoteAnalyzer, RemoteDetector, RemoteEmbedder, RemotePictures, RemoteSemantic
from serve_app.replica import observed
from serve_app.services.access import access_limits, open_access
from serve_app.services.analysis import FaceAnalysis
from serve_app.services.fetching import ImageFetcher
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.services.verification import Verification
from serve_app.storage.stores import open_object_store

_BUFFERED_CHUNKS = 16
"""Body chunks (64 kB or so each) that may wait between the socket and the endpoint."""


def bound_request_bodies() -> None:
    """Lets a client send only as fast as its body is read.

    Serve moves every chunk it receives into an unbounded queue, beginning before the request has a place or a key has been
    asked for: a few large uploads would fill the memory. A bounded queue pauses the socket instead. Only possible where
    Serve's loop and ours are the same (RAY_SERVE_THROUGHPUT_OPTIMIZED), because only there does it wait for room.
    """
    if RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD:
        return

    def queue(self: ASGIDIReceiveProxy) -> asyncio.Queue[object]:
        if self._queue is None:
            self._queue = asyncio.Queue(_BUFFERED_CHUNKS)
        found: asyncio.Queue[object] = self._queue
        return found

    ASGIDIReceiveProxy.queue = property(queue)


def keep_limits_from_clients() -> None:
    """Serve lets a client set its own time limit, or none, and keep its work going after it left, by headers. HAProxy takes
    them away under `kinlens up`; here they are not read, whoever stands before us."""

    def time_limit(headers: object, default_timeout_s: float | None) -> float | None:
        return default_timeout_s

    def disconnect_disabled(headers: object) -> bool:
        return False

    replica.parse_request_timeout_header = time_limit
    replica.parse_disconnect_disabled_header = disconnect_disabled


def keep_addresses_from_clients() -> None:
    """uvicorn takes whatever X-Forwarded-For says for the client's address where the peer is 127.0.0.1, as HAProxy is, and
    X-Forwarded-Proto for its scheme. Read when the server starts, which is after this."""
    os.environ["FORWARDED_ALLOW_IPS"] = ""


@serve.deployment
@serve.ingress()
class Ingress:
    """Never decodes a picture and never computes on an array of pixels: its loop answers while models are busy.

    `settings` come without secrets, which must not pass through Serve's configuration; the key is read here. `semantic`: None
    where no image-text model is loaded. `indexing` is asked for its metrics only; and Serve deploys what the ingress has a
    handle to.
    """

    outlets: Outlets

    @observed
    def __init__(
        self,
        settings: Settings,
        model: ModelInfo,
        max_in_flight: int,
        detection: DeploymentHandle,
        embedding: DeploymentHandle,
        analysis: DeploymentHandle,
        semantic: DeploymentHandle | None,
        indexing: DeploymentHandle,
    ) -> None:
        bound_request_bodies()
        keep_limits_from_clients()
        keep_addresses_from_clients()
        context = serve.get_replica_context()
        logging.getLogger("ray.serve").setLevel(logging.DEBUG if settings.debug else logging.INFO)
        configure_logging(settings.log_format, context.deployment, context.replica_id.unique_id)
        telemetry = Telemetry(context.deployment, context.replica_id.unique_id, self.outlets)
        calls = telemetry.calls
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        attributes = FaceAnalysis(RemoteAnalyzer(analysis, calls), model.attribute_models, model.missing_attributes)
        pipeline = FacePipeline(RemoteDetector(detection, calls), RemoteEmbedder(embedding, calls), attributes, limits)
        # Secrets come from this process's own environment.
        own = Settings(data_dir=settings.data_dir)
        api_key = load_or_create_api_key(own).value
        check_backends(settings, own)
        self._postgres = join_database(own)
        redis_url = own.redis_url.get_secret_value() if own.redis_url else None
        access = open_access(api_key, database_dsn(own), access_limits(settings), redis_url)
        secrets = Secrets(access.server_secret)
        self._services = Services(
            settings=settings,
            access=access,
            pipeline=pipeline,
            verification=Verification(pipeline, model.embedding_model, model.dim, model.point),
            fetcher=ImageFetcher(allowed=settings.allow_image_urls, limits=limits, timeout_s=settings.image_url_timeout),
            model=model,
            admission=Admission(max_in_flight),
            started_at=time.monotonic(),
            gallery=open_gallery(
                settings,
                pipeline,
                RemotePictures(detection, limits, calls),
                model,
                database_dsn(own),
                open_object_store(own, lambda: secrets.object_urls),
                None if semantic is None else RemoteSemantic(semantic, calls),
            ),
            secrets=secrets,
            telemetry=telemetry,
            cluster=RemoteCluster(context.app_name, context.deployment, indexing),
            edge_token=os.environ.get(EDGE_TOKEN, ""),
        )

    async def snapshot(self) -> Snapshot:
        """For whichever replica is asked for the metrics of all."""
        return self._services.telemetry.snapshot()

    async def unanswered(self) -> int:
        """Requests that this replica still has to answer, without streams of events."""
        return self._services.telemetry.unanswered

    def __del__(self) -> None:
        # The last one out stops the embedded server.
        postgres: EmbeddedPostgres | None = getattr(self, "_postgres", None)
        if postgres is not None:
            postgres.leave()

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's own middleware echoes X-Request-ID.
        return create_api(self._services, echo_request_id=False)
