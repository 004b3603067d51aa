"""A run of `kinlens index` around fakes of the two models. As a process of its own, to be killed:
`python -m tests.storage.bulk_program DSN FOLDER SOURCE`. Database, object store and source are real."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.bulk.files import BatchResult, Outcome, Source, SourceFile
from serve_app.bulk.folder import FolderSource
from serve_app.bulk.indexing import BulkIndexer
from serve_app.bulk.run import BulkRun, RunOptions, Summary
from serve_app.bulk.wiring import open_indexer
from serve_app.faces import DetectionOptions, Detections
from serve_app.jobs import JobKind
from serve_app.photos import PictureInfo
from serve_app.storage.database import Database
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.objects import ObjectStore
from tests.api.conftest import KEY, FakeDetector, FakeEmbedder, FakePictures, make_services

COLLECTION = "library"


@dataclass
class Detector(FakeDetector):
    """Says of a picture what it says of itself, as the deployment does."""

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        found = await super().detect(image, options)
        return replace(found, info=PictureInfo(found.format, 640, 480) if options.info else None)


@dataclass
class OwnPool:
    """Workers in this process. `hook`: before each batch of a worker."""

    indexer: BulkIndexer
    source: Source
    size: int = 2
    hook: Callable[[int, Sequence[SourceFile]], None] = lambda worker, files: None
    calls: int = 0

    async def index(self, worker: int, files: Sequence[SourceFile]) -> BatchResult:
        self.calls += 1
        self.hook(worker, files)
        return await self.indexer.index(self.source, files)


@asynccontextmanager
async def opened(
    dsn: str,
    objects: ObjectStore,
    source: Source,
    detector: FakeDetector | None = None,
    automatic: Sequence[JobKind] = (),
    collection: str = COLLECTION,
    database: Database | None = None,
    **settings: object,
) -> AsyncIterator[tuple[OwnPool, Database]]:
    own = database or Database(lambda: dsn, 4)
    services = make_services(detector or Detector(), FakeEmbedder(), dict(settings), lambda: dsn, objects)
    indexer = open_indexer(
        services.settings, services.pipeline, FakePictures(), services.model, own, objects, collection, automatic
    )
    try:
        yield OwnPool(indexer, source), own
    finally:
        await services.gallery.database.close()
        if database is None:
            await own.close()


async def run(pool: OwnPool, database: Database, options: RunOptions | None = None) -> tuple[Summary, dict[str, Outcome]]:
    found: list[Outcome] = []
    summary = await BulkRun(pool, pool.source, database, options or RunOptions(COLLECTION), found.append).run()
    outcomes = {one.name: one for one in found}
    assert len(outcomes) == len(found), "an outcome twice"
    return summary, outcomes


async def main(dsn: str, folder: Path, root: Path, kill_after: int) -> None:
    objects = LocalObjectStore(folder, KEY.encode())
    await objects.prepare()
    done = 0
    async with opened(dsn, objects, FolderSource(root), Detector(delay_s=0.002)) as (pool, database):

        def count(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            if done == kill_after:
                # Other batches are in the middle of something.
                signal.raise_signal(signal.SIGKILL)

        await BulkRun(pool, pool.source, database, RunOptions(COLLECTION), count).run()
    await objects.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
