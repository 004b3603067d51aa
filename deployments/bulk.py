"""Workers of `kinlens index`: Ray actors, each with its own detector and recognizer, database connections and object store.

They ask no deployment: a worker is the whole way from a file to its rows, so nothing but names and outcomes travels.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from config.settings import Settings
from deployments.models.local import LocalModels
from deployments.models.packs import PackLocation
from deployments.process import tune_process
from serve_app.attributes import Asked, AttributeOutputs
from serve_app.backends import check_backends, object_store
from serve_app.bulk.files import BatchResult, Place, SourceFile
from serve_app.bulk.run import WorkerFailed, WorkersGone
from serve_app.bulk.wiring import open_indexer, open_source
from serve_app.errors import ConfigurationError, ModelUnavailable
from serve_app.faces import Chips
from serve_app.gallery import database_dsn
from serve_app.imaging.images import ImageLimits
from serve_app.jobs import JobKind
from serve_app.processes import groups_of_their_own
from serve_app.services.analysis import FaceAnalysis
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.storage.database import Database

logger = logging.getLogger("ray.serve")

_CONNECTIONS = 4
_START_TIMEOUT_S = 180.0
_BATCH_TIMEOUT_S = 600.0
"""Beside two others. A worker that takes longer hangs: over a file that a decoder does not come back from, or a dead share."""
_OBJECT_STORE_BYTES = 80 << 20
"""Nothing lies in it; Ray takes no less."""


class _NoAnalyzer:
    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        raise ModelUnavailable("A bulk worker has no attribute models.")


class BulkWorker:
    """`settings` come without secrets, which each process reads from its own environment. `place`: of the source, on the
    worker's node."""

    def __init__(
        self,
        settings: Settings,
        model: ModelInfo,
        location: PackLocation,
        place: Place,
        collection_id: str,
        automatic: Sequence[JobKind],
    ) -> None:
        tune_process()
        own = Settings(data_dir=settings.data_dir)
        check_backends(settings, own)
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        models = LocalModels(location, limits, settings.face_det_thresh)
        pipeline = FacePipeline(models, models, FaceAnalysis(_NoAnalyzer(), {}, {}), limits)
        self._source = open_source(place, own)
        self._database = Database(database_dsn(own), _CONNECTIONS)
        objects = object_store(own)
        self._indexer = open_indexer(
            settings, pipeline, models, model, self._database, objects, collection_id, automatic
        )  # fmt: skip

    async def ready(self) -> int:
        """Its process. Raises DatabaseUnavailable, Overloaded."""
        await self._database.check()
        return os.getpid()

    async def index(self, files: Sequence[SourceFile]) -> BatchResult:
        return await self._indexer.index(self._source, files)


class RayPool:
    """A `with` block around workers, in the Ray cluster at `address`, or in one of its own on loopback for None. A worker that
    dies is replaced.

    `workers`: None for one a CPU, in a cluster one a free CPU. Raises ConfigurationError where the cluster has no room for
    them, or they cannot start.
    """

    def __init__(self, address: str | None, workers: int | None, arguments: tuple[Any, ...]) -> None:
        self._address = address
        self._workers = workers
        self._arguments = arguments
        self._actors: list[Any] = []
        self.pids: list[int] = []

    @property
    def size(self) -> int:
        return len(self._actors)

    def __enter__(self) -> RayPool:
        quiet = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": False}
        try:
            if self._address is None:
                count = self._workers or os.cpu_count() or 1
                with groups_of_their_own():
                    ray.init(
                        address="local",
                        include_dashboard=False,
                        num_cpus=count,
                        object_store_memory=_OBJECT_STORE_BYTES,
                        **quiet,
                    )
            else:
                ray.init(address=self._address, namespace="kinlens-index", **quiet)
                # What the service has there is its own.
                count = self._workers or max(1, int(ray.available_resources().get("CPU", 1)))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigurationError(f"Ray at {self._address or 'this machine'} cannot be used: {error}") from error
        try:
            self._actors = [self._start() for _ in range(count)]
            self.pids = ray.get([actor.ready.remote() for actor in self._actors], timeout=_START_TIMEOUT_S)
        except GetTimeoutError as error:
            self.__exit__(None, None, None)
            raise ConfigurationError(
                f"The cluster had no room for {count} workers of one CPU each within {_START_TIMEOUT_S:g} s. Give --workers."
            ) from error
        except RayError as error:
            self.__exit__(None, None, None)
            raise ConfigurationError(f"The workers cannot start: {_why(error)}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        ray.shutdown()

    async def index(self, worker: int, files: Sequence[SourceFile]) -> BatchResult:
        actor = self._actors[worker]
        try:
            found: BatchResult = await asyncio.wait_for(actor.index.remote(list(files)), _BATCH_TIMEOUT_S)
            return found
        except RayTaskError as error:
            logger.exception("a worker failed over %d files", len(files))
            raise WorkerFailed(f"{_why(error)}", died=False) from error
        except (RayError, TimeoutError) as error:
            # One that hangs is killed, and so are the calls beside it.
            ray.kill(actor)
            logger.warning("a worker died over %d files (%s); another takes its place", len(files), type(error).__name__)
            await self._replace(worker, actor)
            raise WorkerFailed("The worker that read this file died.", died=True) from error

    async def _replace(self, worker: int, actor: Any) -> None:
        """Once, whoever of its callers is first."""
        try:
            if self._actors[worker] is actor:
                self._actors[worker] = self._start()
            await asyncio.wait_for(self._actors[worker].ready.remote(), _START_TIMEOUT_S)
        except RayTaskError:
            # The database is away: that is told when there is something to write.
            return
        except (RayError, TimeoutError) as error:
            raise WorkersGone("A worker died, and no other could be started in its place.") from error

    def _start(self) -> Any:
        # Calls wait for each other only at the model; in another's place a call is never made twice.
        options = {
            "num_cpus": 1,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 16,
            "scheduling_strategy": "SPREAD",
        }
        return ray.remote(BulkWorker).options(**options).remote(*self._arguments)


def _why(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).splitlines()[-1] if str(cause) else ''}"
