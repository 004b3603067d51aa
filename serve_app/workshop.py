"""The workshop: what works off jobs, put together on a gallery of its own."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings
from serve_app.gallery import Gallery, contract_of
from serve_app.jobs import JobKind
from serve_app.observing.telemetry import Telemetry
from serve_app.services.clustering import Clustering
from serve_app.services.indexing import PhotoIndexer, indexed_with
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.services.review import ReviewLimits
from serve_app.services.scanning import ScanWorker
from serve_app.services.settling import Settling
from serve_app.services.work import ItemHandler
from serve_app.services.worker import Worker
from serve_app.storage import queue
from serve_app.storage.database import Dsn

_GRACE_S = 15.0
"""In this time what is in hand is brought to its end; then it is given back."""
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Workshop:
    gallery: Gallery
    indexer: PhotoIndexer
    worker: Worker
    settling: Settling

    def start(self) -> None:
        """Needs a running event loop."""
        self.worker.start()
        self.settling.start()

    async def depth(self) -> int:
        """Chunks that wait or are being worked on, by whomever. Raises DatabaseUnavailable, Overloaded."""
        async with self.gallery.database.connection() as connection:
            depth = await queue.depth(connection)
        # Others' chunks wait for a model that is not loaded: no worker more would help.
        return sum(chunks for kind, chunks in depth.items() if kind in self.worker.kinds)

    async def close(self) -> None:
        await self.worker.stop(_GRACE_S)
        await self.settling.stop()
        await self.indexer.settle(_SETTLE_S)
        await self.gallery.close()


def open_workshop(
    settings: Settings,
    pipeline: FacePipeline,
    gallery: Gallery,
    model: ModelInfo,
    database_dsn: Dsn,
    telemetry: Telemetry | None = None,
) -> Workshop:
    """Connects to nothing yet. It closes the gallery with itself."""
    limits = ReviewLimits().for_detector(model.detector.family)
    indexer = PhotoIndexer(
        pipeline, gallery.database, gallery.objects, contract_of(model), indexed_with(model), limits
    )  # fmt: skip
    clustering = Clustering(gallery.database, contract_of(model), model.point)
    settling = Settling(clustering, settings.library_collection)
    handlers: dict[JobKind, ItemHandler] = {
        JobKind.FACES: indexer,
        JobKind.SCAN: ScanWorker(
            gallery.database,
            gallery.photos,
            settings.scan_roots,
            settings.max_image_bytes,
            indexer if settings.index_uploads else None,
        ),
        JobKind.CLUSTER: clustering,
    }
    if gallery.semantic.available:
        handlers[JobKind.EMBEDDINGS] = gallery.semantic
    worker = Worker(
        gallery.database,
        database_dsn,
        handlers,
        settings.indexing_concurrency,
        settling.chunk_ended,
        None if telemetry is None else telemetry.item,
        None if telemetry is None else telemetry.outlets,
    )
    return Workshop(gallery, indexer, worker, settling)
