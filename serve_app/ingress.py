"""The ingress deployment: the FastAPI application on a Ray Serve replica."""

from __future__ import annotations

import asyncio
import logging
import time

from fastapi import FastAPI
from ray import serve
from ray.serve._private.constants import RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve.handle import DeploymentHandle

from config.settings import Settings
from serve_app.api.app import create_api
from serve_app.api.deps import Admission, Secrets, Services
from serve_app.backends import join_database
from serve_app.errors import ConfigurationError
from serve_app.gallery import database_dsn, open_gallery
from serve_app.images import ImageLimits
from serve_app.keys import load_or_create_api_key
from serve_app.local import EmbeddedPostgres
from serve_app.remote import RemoteAnalyzer, RemoteDetector, RemoteEmbedder, RemotePictures
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


@serve.deployment
@serve.ingress()
class Ingress:
    """Never decodes a picture and never computes on an array of pixels: its loop answers while models are busy.

    `settings` come without secrets, which must not pass through Serve's configuration; the key is read here.
    """

    def __init__(
        self,
        settings: Settings,
        model: ModelInfo,
        max_in_flight: int,
        detection: DeploymentHandle,
        embedding: DeploymentHandle,
        analysis: DeploymentHandle,
    ) -> None:
        bound_request_bodies()
        logging.getLogger("ray.serve").setLevel(logging.DEBUG if settings.debug else logging.INFO)
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        attributes = FaceAnalysis(RemoteAnalyzer(analysis), model.attribute_models, model.missing_attributes)
        pipeline = FacePipeline(RemoteDetector(detection), RemoteEmbedder(embedding), attributes, limits)
        # Secrets come from this process's own environment.
        own = Settings(data_dir=settings.data_dir)
        api_key = load_or_create_api_key(own).value
        _check_backends(settings, own)
        secrets = Secrets.of(api_key)
        self._postgres = join_database(own)
        self._services = Services(
            settings=settings,
            api_key=api_key,
            pipeline=pipeline,
            verification=Verification(pipeline, model.embedding_model, model.dim, model.point),
            fetcher=ImageFetcher(allowed=settings.allow_image_urls, limits=limits, timeout_s=settings.image_url_timeout),
            model=model,
            admission=Admission(max_in_flight),
            started_at=time.monotonic(),
            gallery=open_gallery(
                settings,
                pipeline,
                RemotePictures(detection, limits),
                model,
                database_dsn(own),
                open_object_store(own, secrets.object_urls),
            ),
            secrets=secrets,
        )

    def __del__(self) -> None:
        # The last one out stops the embedded server.
        postgres: EmbeddedPostgres | None = getattr(self, "_postgres", None)
        if postgres is not None:
            postgres.leave()

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's own middleware echoes X-Request-ID.
        return create_api(self._services, echo_request_id=False)


def _check_backends(settings: Settings, own: Settings) -> None:
    """Raises ConfigurationError on a node whose environment lacks what the application was started with: it would serve, and
    acknowledge writes to, an empty store of its own."""
    if (own.minio_endpoint, own.minio_bucket) != (settings.minio_endpoint, settings.minio_bucket):
        raise ConfigurationError("MINIO_ENDPOINT or MINIO_BUCKET differs between this node and the one that deployed.")
