"""The limit: the same pipeline in bare processes, without HTTP, Ray or queues; and what the libraries do out of the box."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from deployments.models.packs import PackLocation


@dataclass(frozen=True, slots=True)
class Work:
    """Encoded pictures, taken in turn; `all_faces`: embed every face, else the largest."""

    images: list[bytes]
    all_faces: bool


@dataclass(frozen=True, slots=True)
class BareResult:
    """Over all processes of one run."""

    images: int
    elapsed_s: float
    cpu_s: float
    latencies_s: list[float]

    @property
    def per_second(self) -> float:
        return self.images / self.elapsed_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds an image."""
        return self.cpu_s / self.images * 1e3

    @property
    def median_ms(self) -> float:
        return statistics.median(self.latencies_s) * 1e3


class BarePool:
    """Processes that hold the models and run when told; idle in between, so that runs can alternate with others."""

    def __init__(self, location: PackLocation, processes: int, *, reference: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, location, reference), daemon=True)
            process.start()
            self._connections.append(ours)
            self._processes.append(process)
        for connection in self._connections:
            connection.recv()

    def run(self, work: Work, duration_s: float, processes: int | None = None) -> BareResult:
        """For `duration_s` on the first `processes` of the pool."""
        chosen = self._connections[:processes]
        for connection in chosen:
            connection.send((work, duration_s))
        parts: list[BareResult] = [connection.recv() for connection in chosen]
        return BareResult(
            sum(part.images for part in parts),
            max(part.elapsed_s for part in parts),
            sum(part.cpu_s for part in parts),
            [latency for part in parts for latency in part.latencies_s],
        )

    def close(self) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.send(None)
            process.join(10)


def _serve(connection: Connection, location: PackLocation, reference: bool) -> None:
    one = _reference(location) if reference else BarePipeline(location)
    connection.send("ready")
    while (order := connection.recv()) is not None:
        work, duration_s = order
        for image in work.images[:2]:
            one(image, work.all_faces)
        latencies: list[float] = []
        started, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - started < duration_s:
            begun = time.perf_counter()
            one(work.images[len(latencies) % len(work.images)], work.all_faces)
            latencies.append(time.perf_counter() - begun)
        connection.send(BareResult(len(latencies), time.perf_counter() - started, time.process_time() - cpu, latencies))


class BarePipeline:
    """Decode, detect, align and embed with the very classes the deployments run."""

    def __init__(self, location: PackLocation) -> None:
        from deployments.models.engine import DetectionEngine, EmbeddingEngine
        from deployments.models.loading import load_detector, load_recognizer
        from deployments.models.packs import resolve
        from deployments.process import tune_process
        from serve_app.imaging.images import ImageLimits

        tune_process()
        pack = resolve(location)
        limits = ImageLimits(20 << 20, 50_000_000)
        threshold = pack.spec.detector.threshold
        self._detection = DetectionEngine(load_detector(pack, location.device, 1), limits, threshold)
        self._embedding = EmbeddingEngine(load_recognizer(pack, location.device, 1))

    def __call__(self, image: bytes, all_faces: bool, qualities: bool = False) -> None:
        from deployments.models.engine import DetectionRequest
        from serve_app.errors import KinlensError
        from serve_app.faces import ALL_FACES, DetectionOptions

        crops = ALL_FACES if all_faces else 1
        options = DetectionOptions(crops=crops, qualities=crops if qualities else 0)
        found = self._detection.run([DetectionRequest(image, options)])[0]
        if isinstance(found, KinlensError):
            raise found
        self._embedding.run([found.crops])


class _FaceAnalysis:
    """insightface as its README shows it, one thread a session; it embeds every face, whatever is asked for."""

    def __init__(self, folder: Path) -> None:
        from insightface.app import FaceAnalysis

        from deployments.models.session import session_options

        self._app = FaceAnalysis(
            name=str(folder),
            allowed_modules=["detection", "recognition"],
            providers=["CPUExecutionProvider"],
            sess_options=session_options(1),
        )
        self._app.prepare(ctx_id=-1)

    def __call__(self, image: bytes, all_faces: bool) -> None:
        import cv2
        import numpy as np

        self._app.get(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR))


class _PlainOpenCV:
    """The default pack without what Kinlens does to it: SFace's graph as distributed (only dequantised, so that it runs),
    the process as it starts; every face is embedded one by one."""

    def __init__(self, location: PackLocation) -> None:
        from deployments.models import graphs
        from deployments.models.loading import load_detector
        from deployments.models.packs import resolve, source_folder
        from deployments.models.recognizer import SFACE, Recognizer
        from deployments.models.session import create_session

        pack = resolve(location)
        model = graphs.load(source_folder(pack.spec) / pack.spec.recognizer.file)
        graphs.fold(model)
        self._detector = load_detector(pack, location.device, 1)
        self._recognizer = Recognizer(create_session(graphs.serialize(model), location.device, 1), SFACE, 128)

    def __call__(self, image: bytes, all_faces: bool) -> None:
        import cv2
        import numpy as np

        from serve_app.imaging.images import align

        pixels = np.asarray(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB), dtype=np.uint8)
        (faces,) = self._detector.detect([pixels], [0.6])
        for crop in align(pixels, faces.landmarks[: None if all_faces else 1]):
            self._recognizer.embed(crop[None])


def _reference(location: PackLocation) -> Callable[[bytes, bool], None]:
    from deployments.models.packs import resolve

    pack = resolve(location)
    if pack.spec.detector.family == "yunet":
        return _PlainOpenCV(location)
    return _FaceAnalysis(pack.detector_path.parent)
