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
from serve_app.attributes import AgeInterval, Asked, Attribute, AttributeModel, AttributeOutputs
from serve_app.errors import DatabaseUnavailable, InvalidImage, KinlensError
from serve_app.faces import (
    ALL_FACES,
    Chips,
    ChipSpec,
    Crops,
    DetectionOptions,
    Detections,
    FaceQuality,
    FloatArray,
    Frame,
    Occlusion,
    OperatingPoint,
    l2_normalize,
)
from serve_app.gallery import open_gallery
from serve_app.imaging.images import ImageLimits, sniff
from serve_app.imaging.regions import Region
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.services.access import access_limits, open_access
from serve_app.services.analysis import Analyzer, FaceAnalysis
from serve_app.services.fetching import ImageFetcher
from serve_app.services.models import FileInfo, ModelInfo
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import Detector, Embedder, FacePipeline
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
        measured, cut = (count if most == ALL_FACES else min(count, most) for most in (options.qualities, options.chip_faces))
        return Detections(
            boxes,
            np.zeros((count, 5, 2), np.float32),
            np.full(count, 0.9, np.float32),
            crops,
            640,
            480,
            sniff(image),
            qualities=(self.quality,) * measured,
            chips={spec: np.full((cut, spec.size_px, spec.size_px, 3), image[5], np.uint8) for spec in options.chips},
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
class FakeAnalyzer:
    """Of identity i: i years, a gender of probability 0.6, and so on for every face."""

    error: KinlensError | None = None
    lost: frozenset[Attribute] = frozenset()
    years: float | None = None
    calls: list[tuple[int, tuple[Attribute, ...]]] = field(default_factory=list)

    async def analyze(self, chips: Chips, asked: Asked) -> AttributeOutputs:
        first = next(iter(chips.values()))
        attributes = tuple(attribute for attribute, _ in asked)
        assert all(model == f"fake_{attribute.value}" for attribute, model in asked)
        self.calls.append((len(first), attributes))
        if self.error is not None:
            raise self.error
        if self.years is not None:
            return {Attribute.AGE: np.array([[self.years, 1.0]] * len(first), np.float32)}
        rows = {
            Attribute.AGE: np.stack([first[:, 0, 0, 0].astype(np.float32), np.full(len(first), 3.0, np.float32)], axis=1),
            Attribute.GENDER: np.tile(np.array([[0.4, 0.6]], np.float32), (len(first), 1)),
            Attribute.EMOTION: np.tile(np.array([[0.1, 0.9]], np.float32), (len(first), 1)),
        }
        return {attribute: rows[attribute] for attribute in attributes if attribute not in self.lost}


@dataclass
class FakePictures:
    """A JPEG says what `infos` has for its bytes, else nothing but its format. A thumbnail is the bytes and its size."""

    infos: dict[bytes, PictureInfo] = field(default_factory=dict)
    error: KinlensError | None = None
    delay_s: float = 0.0
    inspected: int = 0

    async def inspect(self, image: bytes) -> PictureInfo:
        self.inspected += 1
        await asyncio.sleep(self.delay_s)
        return self.infos.get(image) or PictureInfo(self._read(image), 640, 480)

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes:
        return f"{image_format} {side_px} ".encode() + self._read(image).encode() + image

    async def cut(self, image: bytes, region: Region, side_px: int, image_format: ThumbnailFormat) -> bytes:
        return await self.thumbnail(image, side_px, image_format)

    def _read(self, image: bytes) -> str:
        if self.error is not None:
            raise self.error
        if image.endswith(b"broken"):
            raise InvalidImage("The JPEG data is damaged or incomplete.")
        return sniff(image)


def attribute_model(attribute: Attribute, *classes: str, interval: AgeInterval | None = None) -> AttributeModel:
    return AttributeModel(
        attribute,
        f"fake_{attribute.value}",
        ChipSpec(Frame.DLIB, 8),
        classes,
        0.8,
        interval,
        "",
        "MIT",
        True,
        "f",
        "0" * 64,
        "v1",
    )


ATTRIBUTE_MODELS = {
    Attribute.AGE: attribute_model(Attribute.AGE, interval=AgeInterval(0.8, 1.0, 2.0, 1.0)),
    Attribute.GENDER: attribute_model(Attribute.GENDER, "female", "male"),
    Attribute.EMOTION: attribute_model(Attribute.EMOTION, "sadness", "happiness"),
}
MISSING = {Attribute.RACE: "race_model needs race.onnx, which is not in /models."}


@dataclass
class World:
    """What a test may look at and change."""

    detector: FakeDetector
    embedder: FakeEmbedder
    analyzer: FakeAnalyzer
    api: FastAPI
    client: httpx.AsyncClient


MakeWorld = Callable[..., World]


def no_database() -> str:
    raise DatabaseUnavailable("Tests of the API alone have no database.")


def make_services(
    detector: Detector,
    embedder: Embedder,
    settings: dict[str, object],
    dsn: Dsn = no_database,
    objects: ObjectStore | None = None,
    analyzer: Analyzer | None = None,
    pictures: PictureReader | None = None,
    model: ModelInfo | None = None,
) -> Services:
    point, places = settings.pop("point", True), int(str(settings.pop("places", 64)))
    configured = Settings.model_validate({"api_key": None, **settings})
    limits = ImageLimits(configured.max_image_bytes, configured.max_image_pixels)
    operating_point = OperatingPoint("fake-model", "made up", 0.36, 0.30, 0.001, 0.02) if point else None
    file = FileInfo("yunet", "detector.onnx", "0" * 64, "v1")
    model = model or ModelInfo(
        "fake",
        "Fake",
        "MIT",
        True,
        "fake-model",
        DIM,
        "cpu",
        file,
        file,
        0.6,
        operating_point,
        0.98,
        ("fake", "other"),
        ATTRIBUTE_MODELS,
        MISSING,
    )
    analysis = FaceAnalysis(analyzer or FakeAnalyzer(), model.attribute_models, model.missing_attributes)
    pipeline = FacePipeline(detector, embedder, analysis, limits)
    return Services(
        settings=configured,
        access=open_access(KEY, dsn, access_limits(configured)),
        pipeline=pipeline,
        verification=Verification(pipeline, model.embedding_model, model.dim, model.point),
        fetcher=ImageFetcher(
            allowed=configured.allow_image_urls,
            limits=limits,
            timeout_s=configured.image_url_timeout,
        ),
        model=model,
        admission=Admission(places),
        started_at=time.monotonic(),
        gallery=open_gallery(
            configured,
            pipeline,
            pictures or FakePictures(),
            model,
            dsn,
            objects or LocalObjectStore(Path("/nonexistent"), b"k" * 32),
        ),
        secrets=Secrets.of(KEY),
    )


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    clients: list[httpx.AsyncClient] = []

    def make(**settings: object) -> World:
        detector, embedder, analyzer = FakeDetector(), FakeEmbedder(), FakeAnalyzer()
        api = create_api(make_services(detector, embedder, settings, analyzer=analyzer))
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(api, raise_app_exceptions=False),
            base_url="http://test",
            headers={"Authorization": f"Bearer {KEY}"},
        )
        clients.append(client)
        return World(detector, embedder, analyzer, api, client)

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return make_world()
