"""The API over ASGI, around fakes of the two model protocols."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from config.settings import Settings
from serve_app.api.app import create_api
from serve_app.api.deps import Admission, Secrets, Services
from serve_app.errors import DatabaseUnavailable, InvalidImage, KinlensError
from serve_app.faces import (
    ALL_FACES,
    Crops,
    DetectionOptions,
    Detections,
    FaceQuality,
    FloatArray,
    Occlusion,
    OperatingPoint,
    l2_normalize,
)
from serve_app.gallery import open_gallery
from serve_app.images import ImageLimits, sniff
from serve_app.services.fetching import ImageFetcher
from serve_app.services.models import FileInfo, ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.services.verification import Verification
from serve_app.storage.database import Dsn
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.objects import ObjectStore

KEY = "a-key-of-sixteen-or-more"
DIM = 4
JPEG = b"\xff\xd8\xff\xe0"


def image(faces: int = 1, identity: int = 0) -> bytes:
    """Bytes that sniff as JPEG; the fake detector reads the face count and identity from them."""
    return JPEG + bytes([faces, identity])


GOOD = FaceQuality(
    size_px=150.0,
    sharpness=0.5,
    yaw_deg=2.0,
    pitch_deg=1.0,
    roll_deg=0.0,
    brightness=0.5,
    contrast=0.2,
    overexposed=0.0,
    underexposed=0.0,
    occlusion=Occlusion.NONE,
    occlusion_score=0.05,
)


@dataclass
class FakeDetector:
    """`faces` faces of falling size; the first pixel of each crop carries the identity. All have `quality`."""

    quality: FaceQuality = GOOD

    error: KinlensError | None = None
    delay_s: float = 0.0
    calls: list[DetectionOptions] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0
    most_running: int = 0

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        self.calls.append(options)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        if image.endswith(b"broken"):
            raise InvalidImage("The JPEG data is damaged or incomplete.")
        count = min(image[4], options.max_faces or 255)
        sizes = np.arange(count, 0, -1, dtype=np.float32) * 10
        boxes = np.stack([sizes * 0, sizes * 0, sizes, sizes], axis=1).reshape(-1, 4)
        crops = np.zeros((count if options.crops == ALL_FACES else min(count, options.crops), 112, 112, 3), np.uint8)
        crops[:, 0, 0, 0] = image[5]
        return Detections(
            boxes,
            np.zeros((count, 5, 2), np.float32),
            np.full(count, 0.9, np.float32),
            crops,
            640,
            480,
            sniff(image),
            qualities=(self.quality,) * len(crops) if options.quality else (),
        )


@dataclass
class FakeEmbedder:
    """Identity i becomes a fixed direction; i and i + 100 are 0.33 apart in cosine: between the two thresholds."""

    faces: int = 0

    async def embed(self, crops: Crops) -> FloatArray:
        self.faces += len(crops)
        return np.stack([self._direction(int(crop[0, 0, 0])) for crop in crops])

    def _direction(self, identity: int) -> FloatArray:
        base: FloatArray = np.eye(DIM, dtype=np.float32)[identity % 100 % DIM]
        if identity >= 100:
            other = np.eye(DIM, dtype=np.float32)[(identity + 1) % 100 % DIM]
            return l2_normalize(0.33 * base + np.sqrt(1 - 0.33**2) * other)
        return base


@dataclass
class World:
    """What a test may look at and change."""

    detector: FakeDetector
    embedder: FakeEmbedder
    api: FastAPI
    client: httpx.AsyncClient


MakeWorld = Callable[..., World]


def no_database() -> str:
    raise DatabaseUnavailable("Tests of the API alone have no database.")


def make_services(
    detector: FakeDetector,
    embedder: FakeEmbedder,
    settings: dict[str, object],
    dsn: Dsn = no_database,
    objects: ObjectStore | None = None,
) -> Services:
    point, places = settings.pop("point", True), int(str(settings.pop("places", 64)))
    configured = Settings.model_validate({"api_key": None, **settings})
    limits = ImageLimits(configured.max_image_bytes, configured.max_image_pixels)
    pipeline = FacePipeline(detector, embedder, limits)
    operating_point = OperatingPoint("fake-model", "made up", 0.36, 0.30, 0.001, 0.02) if point else None
    file = FileInfo("yunet", "detector.onnx", "0" * 64, "v1")
    model = ModelInfo(
        "fake", "Fake", "MIT", True, "fake-model", DIM, "cpu", file, file, 0.6, operating_point, 0.98, ("fake", "other")
    )
    return Services(
        settings=configured,
        api_key=KEY,
        pipeline=pipeline,
        verification=Verification(pipeline, "fake-model", DIM, operating_point),
        fetcher=ImageFetcher(
            allowed=configured.allow_image_urls,
            limits=limits,
            timeout_s=configured.image_url_timeout,
        ),
        model=model,
        admission=Admission(places),
        started_at=time.monotonic(),
        gallery=open_gallery(configured, pipeline, model, dsn, objects or LocalObjectStore(Path("/nonexistent"), b"k" * 32)),
        secrets=Secrets.of(KEY),
    )


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    clients: list[httpx.AsyncClient] = []

    def make(**settings: object) -> World:
        detector, embedder = FakeDetector(), FakeEmbedder()
        api = create_api(make_services(detector, embedder, settings))
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(api, raise_app_exceptions=False),
            base_url="http://test",
            headers={"Authorization": f"Bearer {KEY}"},
        )
        clients.append(client)
        return World(detector, embedder, api, client)

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return make_world()
