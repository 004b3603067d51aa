"""The whole service in one process and without Ray: real models, a real Postgres, a real object store, over HTTP.

`python -m tests.browser.service FOLDER [PORT]` serves the pages for a look at them; the key is tests.api.conftest.KEY.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import uvicorn

from config.settings import Settings
from deployments.models.attribute_packs import AnalysisLocation, resolve_analysis
from deployments.models.engine import AnalysisEngine, AnalysisRequest, DetectionEngine, DetectionRequest, EmbeddingEngine
from deployments.models.loading import load_attribute_models, load_detector, load_recognizer
from deployments.models.packs import PackLocation, resolve
from deployments.models.pictures import CutRequest, InspectRequest, PictureEngine, PictureRequest, ThumbnailRequest
from deployments.models.session import Device
from serve_app.api.app import create_api
from serve_app.api.deps import Secrets, Services
from serve_app.app import model_info
from serve_app.attributes import Asked, AttributeOutputs
from serve_app.faces import Chips, Crops, DetectionOptions, Detections, FloatArray
from serve_app.imaging.images import ImageLimits
from serve_app.imaging.regions import Region
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.postgres.local import EmbeddedPostgres, dsn
from serve_app.storage import schema
from serve_app.storage.database import Dsn
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.workshop import open_workshop
from tests.api.conftest import KEY, make_services

AnswerT = TypeVar("AnswerT")
RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

LIMITS = ImageLimits(20 << 20, 50_000_000)


class Models:
    """The engines behind the deployments, called on threads; one call at a time each, as of a replica. `delay_s`: before each
    detection."""

    def __init__(self, cache: Path) -> None:
        self.delay_s = 0.0
        location = PackLocation("opencv", Path("/nonexistent"), cache)
        where = AnalysisLocation(location, Path("/nonexistent"))
        pack = resolve(location)
        attributes = resolve_analysis(where, pack)
        self.info = model_info(pack, attributes, Settings.model_validate({"api_key": None, "data_dir": cache}), Device.CPU)
        self._detection = DetectionEngine(load_detector(pack, Device.CPU, 1), LIMITS, pack.spec.detector.threshold)
        self._embedding = EmbeddingEngine(load_recognizer(pack, Device.CPU, 1))
        self._analysis = AnalysisEngine(load_attribute_models(where, attributes.assignment, 1))
        self._pictures = PictureEngine(LIMITS)
        self._computing, self._reading = threading.Lock(), threading.Lock()

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        await asyncio.sleep(self.delay_s)
        answer = await self._alone(self._computing, self._detection.run, DetectionRequest(image, options))
        return _or_raise(answer, Detections)

    async def embed(self, crops: Crops) -> FloatArray:
        return await self._alone(self._computing, self._embedding.run, crops)

    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        return await self._alone(self._computing, self._analysis.run, AnalysisRequest(chips, asked))

    async def inspect(self, image: bytes) -> PictureInfo:
        return _or_raise(await self._picture(InspectRequest(image)), PictureInfo)

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes:
        return _or_raise(await self._picture(ThumbnailRequest(image, side_px, image_format)), bytes)

    async def cut(self, image: bytes, region: Region, side_px: int, image_format: ThumbnailFormat) -> bytes:
        return _or_raise(await self._picture(CutRequest(image, region, side_px, image_format)), bytes)

    async def _picture(self, request: PictureRequest) -> object:
        return await self._alone(self._reading, self._pictures.run, request)

    async def _alone(self, lock: threading.Lock, run: Callable[[list[RequestT]], list[ResultT]], request: RequestT) -> ResultT:
        def locked() -> ResultT:
            with lock:
                (answer,) = run([request])
                return answer

        return await asyncio.to_thread(locked)


def _or_raise(answer: object, kind: type[AnswerT]) -> AnswerT:
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, kind)
    return answer


@dataclass(frozen=True)
class Running:
    url: str
    services: Services


@contextmanager
def serving(
    models: Models, address: Dsn, folder: Path, port: int = 0, *, library: str = "library", indexing: bool = False
) -> Iterator[Running]:
    """The API and the pages on a port of this machine, from a thread of their own, until left. The database has its schema.
    `indexing`: photos are looked at for faces, by a worker beside it."""

    def make() -> Services:
        objects = LocalObjectStore(folder / "objects", Secrets.of(KEY).object_urls)
        settings: dict[str, object] = {"data_dir": folder, "library_collection": library, "index_uploads": indexing}
        return make_services(models, models, settings, address, objects, analyzer=models, pictures=models, model=models.info)

    services = make()
    with socket.create_server(("127.0.0.1", port)) as listening:
        # Connections nobody uses stay open for longer than httpx keeps its own: else both may end one in the same moment.
        config = uvicorn.Config(
            create_api(services), log_level="warning", lifespan="on", timeout_keep_alive=60, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)

        async def run() -> None:
            await services.gallery.objects.prepare()
            async with AsyncExitStack() as stack:
                if indexing:
                    # On a gallery of its own, as its deployment has.
                    own = make()
                    workshop = open_workshop(own.settings, own.pipeline, own.gallery, own.model, address)
                    workshop.start()
                    stack.push_async_callback(workshop.close)
                await server.serve([listening])

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.02)
        try:
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", services)
        finally:
            server.should_exit = True
            thread.join()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with EmbeddedPostgres(folder / "postgres"):
        schema.upgrade(dsn(folder / "postgres"))
        models = Models(folder / "models")
        port = int(sys.argv[2]) if len(sys.argv) > 2 else 8123
        with serving(models, lambda: dsn(folder / "postgres"), folder, port, indexing=True) as running:
            print(f"{running.url}/  key {KEY}", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    main()
