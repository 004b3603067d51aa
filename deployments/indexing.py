"""The Indexing deployment: works off the jobs in the database. Nobody calls it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from ray import serve
from ray.serve.handle import DeploymentHandle

from config.settings import Settings
from deployments.scaling import DEPTH
from serve_app.backends import check_backends, join_database, object_store
from serve_app.errors import CapacityError, PartUnavailable
from serve_app.gallery import database_dsn, open_gallery
from serve_app.imaging.images import ImageLimits
from serve_app.observing.logs import configure_logging
from serve_app.observing.outlets import Outlets
from serve_app.observing.telemetry import Snapshot, Telemetry
from serve_app.remote import RemoteAnalyzer, RemoteDetector, RemoteEmbedder, RemotePictures, RemoteSemantic
from serve_app.replica import observed
from serve_app.services.analysis import FaceAnalysis
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.services.system import watch_connections
from serve_app.workshop import open_workshop


@serve.deployment
class Indexing:
    """One worker a replica, in its event loop: it waits for the models, the database and the object store, and computes next
    to nothing itself.

    `settings` come without secrets, as the ingress's. `semantic`: None where no image-text model is loaded.
    """

    outlets: Outlets

    @observed
    def __init__(
        self,
        settings: Settings,
        model: ModelInfo,
        detection: DeploymentHandle,
        embedding: DeploymentHandle,
        analysis: DeploymentHandle,
        semantic: DeploymentHandle | None,
    ) -> None:
        context = serve.get_replica_context()
        logging.getLogger("ray.serve").setLevel(logging.DEBUG if settings.debug else logging.INFO)
        configure_logging(settings.log_format, context.deployment, context.replica_id.unique_id)
        self._telemetry = Telemetry(context.deployment, context.replica_id.unique_id, self.outlets)
        calls = self._telemetry.calls
        own = Settings(data_dir=settings.data_dir)
        check_backends(settings, own)
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        attributes = FaceAnalysis(RemoteAnalyzer(analysis, calls), model.attribute_models, model.missing_attributes)
        pipeline = FacePipeline(RemoteDetector(detection, calls), RemoteEmbedder(embedding, calls), attributes, limits)
        self._postgres = join_database(own)
        gallery = open_gallery(
            settings,
            pipeline,
            RemotePictures(detection, limits, calls),
            model,
            database_dsn(own),
            object_store(own),
            None if semantic is None else RemoteSemantic(semantic, calls),
        )
        self._workshop = open_workshop(settings, pipeline, gallery, model, database_dsn(own), self._telemetry)
        watch_connections(self._telemetry, gallery.database)
        self._depth = 0.0
        # Serve makes its replicas inside a running event loop.
        self._workshop.start()

    async def snapshot(self) -> Snapshot:
        """Its metrics, for an ingress replica."""
        return self._telemetry.snapshot()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks every few seconds, and hands it to `scaling.by_depth`."""
        # Else the last that was known: a database that starts again must not end replicas.
        with suppress(PartUnavailable, CapacityError):
            self._depth = float(await self._workshop.depth())
        return {DEPTH: self._depth}

    def check_health(self) -> None:
        """Raises RuntimeError when the worker has ended. Never asks the database: Serve would replace replicas for nothing."""
        if not self._workshop.worker.alive:
            raise RuntimeError("the worker has ended")

    async def __del__(self) -> None:
        workshop = getattr(self, "_workshop", None)
        if workshop is not None:
            await workshop.close()
        postgres = getattr(self, "_postgres", None)
        if postgres is not None:
            # The last one out stops the embedded server.
            postgres.leave()
        outlets = getattr(self, "outlets", None)
        if outlets is not None:
            await asyncio.to_thread(outlets.close)
