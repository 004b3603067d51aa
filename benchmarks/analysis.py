"""The Analysis deployment beside the bare attribute models, in one run: uv run python -m benchmarks.analysis

Rounds alternate between bare models on all cores and the deployment through its handle, as the ingress calls it; then the
whole endpoint over HTTP beside the bare pipeline. Ratios are taken within a round; median and range are reported. CPU is that
of every process of the instance, the caller's side of the handle included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import yaml

from benchmarks.client import Load, closed_loop, image_request
from benchmarks.faces import KEY, package_image, service, spread
from benchmarks.processes import spent, usage
from config.settings import Settings
from deployments.models.attribute_packs import AnalysisLocation
from serve_app.attributes import Asked, Attribute
from serve_app.faces import Chips, ChipSpec, DetectionOptions
from serve_app.ports import free_port
from serve_app.service import Address, Instance, default_config_path, prepare_environment
from serve_app.services.analysis import Analyzer

BARE_BATCH = 8
OUTSTANDING = 64
"""Faces that callers wait for at once."""
CLIENTS = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """`faces` analyzed in `elapsed_s` for `cpu_s` of all processes."""

    faces: int
    elapsed_s: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        return self.faces / self.elapsed_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a face."""
        return self.cpu_s / max(1, self.faces) * 1e3


class BareModels:
    """Processes with nothing but the models; `run` keeps all of them busy."""

    def __init__(self, target: Callable[..., None], processes: int, *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            context.Process(target=target, args=(theirs, *args), daemon=True).start()
            self._connections.append(ours)
        for connection in self._connections:
            connection.recv()

    def run(self, seconds: float) -> Measured:
        for connection in self._connections:
            connection.send(seconds)
        parts: list[Measured] = [connection.recv() for connection in self._connections]
        return Measured(
            sum(part.faces for part in parts), max(part.elapsed_s for part in parts), sum(part.cpu_s for part in parts)
        )

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)


def bare_models(connection: Connection, location: AnalysisLocation, chips: Chips, attributes: tuple[Attribute, ...]) -> None:
    """Batches of BARE_BATCH faces through the engine of the deployment."""
    from deployments.models.attribute_packs import resolve_analysis
    from deployments.models.engine import AnalysisEngine, AnalysisRequest
    from deployments.models.loading import load_attribute_models
    from deployments.process import tune_process

    tune_process()
    resolved = resolve_analysis(location)
    engine = AnalysisEngine(load_attribute_models(location, resolved.assignment, 1))
    request = AnalysisRequest(_repeated(chips, BARE_BATCH), asked(location, attributes))
    _answer(connection, lambda: len(engine.run([request])[0][attributes[0]]))


def bare_pipeline(connection: Connection, location: AnalysisLocation, image: bytes, chips: tuple[ChipSpec, ...]) -> None:
    """Decode, detect, measure, cut and analyze one picture after another."""
    from deployments.models.attribute_packs import resolve_analysis
    from deployments.models.engine import AnalysisEngine, AnalysisRequest, DetectionEngine, DetectionRequest
    from deployments.models.loading import load_attribute_models, load_detector
    from deployments.models.packs import resolve
    from deployments.process import tune_process
    from serve_app.errors import KinlensError
    from serve_app.faces import ALL_FACES
    from serve_app.imaging.images import ImageLimits

    tune_process()
    pack = resolve(location.pack)
    detection = DetectionEngine(
        load_detector(pack, location.pack.device, 1), ImageLimits(20 << 20, 50_000_000), pack.spec.detector.threshold
    )
    analysis = AnalysisEngine(load_attribute_models(location, resolve_analysis(location).assignment, 1))
    wanted = asked(location, (Attribute.AGE, Attribute.GENDER))
    options = DetectionOptions(crops=0, qualities=ALL_FACES, chips=chips)

    def once() -> int:
        (found,) = detection.run([DetectionRequest(image, options)])
        if isinstance(found, KinlensError):
            raise found
        analysis.run([AnalysisRequest(found.chips, wanted)])
        return len(found)

    _answer(connection, once)


def _answer(connection: Connection, once: Callable[[], int]) -> None:
    """`once` returns how many faces it did."""
    connection.send("ready")
    while (seconds := connection.recv()) is not None:
        once()
        faces, begun, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < seconds:
            faces += once()
        connection.send(Measured(faces, time.perf_counter() - begun, time.process_time() - cpu))


def real_chips(location: AnalysisLocation, attributes: tuple[Attribute, ...]) -> Chips:
    """Of the largest face of t1.jpg, which comes with insightface."""
    from deployments.models.attribute_packs import resolve_analysis
    from deployments.models.engine import DetectionEngine, DetectionRequest
    from deployments.models.loading import load_detector
    from deployments.models.packs import resolve
    from serve_app.errors import KinlensError
    from serve_app.imaging.images import ImageLimits

    pack = resolve(location.pack)
    models = resolve_analysis(location).described()
    specs = tuple(dict.fromkeys(models[attribute].chip for attribute in attributes))
    engine = DetectionEngine(
        load_detector(pack, location.pack.device, 1), ImageLimits(20 << 20, 50_000_000), pack.spec.detector.threshold
    )
    options = DetectionOptions(max_faces=1, chips=specs)
    (found,) = engine.run([DetectionRequest(package_image("t1.jpg"), options)])
    if isinstance(found, KinlensError):
        raise found
    return found.chips


def asked(location: AnalysisLocation, attributes: tuple[Attribute, ...]) -> Asked:
    from deployments.models.attribute_packs import resolve_analysis

    models = resolve_analysis(location).described()
    return tuple((attribute, models[attribute].name) for attribute in attributes)


def _repeated(chips: Chips, faces: int) -> Chips:
    import numpy as np

    return {spec: np.repeat(array, faces, axis=0) for spec, array in chips.items()}


async def through_handle(analyzer: Analyzer, chips: Chips, wanted: Asked, faces: int, seconds: float) -> Measured:
    """Callers that each send `faces` faces as soon as the last are answered, `OUTSTANDING` in all."""
    payload = _repeated(chips, faces)
    done = 0

    async def caller(until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            answer = await analyzer.analyze(payload, wanted)
            done += len(answer[wanted[0][0]])

    async def load(duration_s: float) -> None:
        until = time.perf_counter() + duration_s
        await asyncio.gather(*(caller(until) for _ in range(OUTSTANDING // faces)))

    await load(1.0)
    done = 0
    before, begun = usage(os.getpid()), time.perf_counter()
    await load(seconds)
    elapsed_s = time.perf_counter() - begun
    return Measured(done, elapsed_s, sum(spent(before, usage(os.getpid())).values()))


def report(title: str, rows: dict[str, list[Measured]], bare: list[Measured], idle_cores: float) -> dict[str, object]:
    """`idle_cores`: what the instance takes when nobody asks anything."""
    head = "| | faces/s | CPU ms a face | throughput / bare | CPU / bare | CPU less idle / bare |"
    print(f"\n### {title}\n\n{head}\n|---|---|---|---|---|---|")
    print(f"| bare | {spread([m.per_second for m in bare], 1)} | {spread([m.cpu_ms for m in bare])} | 1 | 1 | 1 |")
    data: dict[str, object] = {"idle_cores": idle_cores, "bare": [[m.per_second, m.cpu_ms] for m in bare]}
    for name, measured in rows.items():
        ratios = [m.per_second / b.per_second for m, b in zip(measured, bare, strict=True)]
        cpu = [m.cpu_ms / b.cpu_ms for m, b in zip(measured, bare, strict=True)]
        busy = [(m.cpu_ms - idle_cores / m.per_second * 1e3) / b.cpu_ms for m, b in zip(measured, bare, strict=True)]
        print(
            f"| {name} | {spread([m.per_second for m in measured], 1)} | {spread([m.cpu_ms for m in measured])} "
            f"| {spread(ratios)} | {spread(cpu)} | {spread(busy)} |"
        )
        data[name] = [[m.per_second, m.cpu_ms] for m in measured]
    return data


async def idle(pid: int) -> float:
    """Cores that the process and its children take when nobody asks anything."""
    before = usage(pid)
    await asyncio.sleep(5)
    return sum(spent(before, usage(pid)).values()) / 5


def all_cores(config: Path, folder: Path) -> Path:
    """`config` with one replica of Analysis that may use every core: what autoscaling would come to, from the start."""
    raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    for deployment in raw["applications"][0]["deployments"]:
        if deployment["name"] == "Analysis":
            deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
            deployment["user_config"] |= {"threads": os.cpu_count() or 1}
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def measure_deployment(options: argparse.Namespace, location: AnalysisLocation) -> dict[str, object]:
    from ray import serve

    from serve_app.remote import RemoteAnalyzer

    attributes: tuple[Attribute, ...] = tuple(Attribute(name) for name in options.attributes.split(","))
    chips, wanted = real_chips(location, attributes), asked(location, attributes)
    pool = BareModels(bare_models, os.cpu_count() or 1, location, dict(chips), attributes)
    bare: list[Measured] = []
    served: dict[str, list[Measured]] = {f"Analysis, {faces} faces a call": [] for faces in options.faces}

    async def rounds() -> float:
        # One loop for all of them: the router belongs to the first that calls it.
        analyzer = RemoteAnalyzer(serve.get_deployment_handle("Analysis", "kinlens"))
        for _ in range(options.rounds):
            bare.append(await asyncio.to_thread(pool.run, options.seconds))
            for faces, measured in zip(options.faces, served.values(), strict=True):
                measured.append(await through_handle(analyzer, chips, wanted, faces, options.seconds))
        return await idle(os.getpid())

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["DATA_DIR"], os.environ["API_KEY"] = folder, KEY
        address = Address("127.0.0.1", free_port())
        config = all_cores(options.config or default_config_path(), Path(folder))
        with Instance(config, address, Path(folder) / "instance.json") as instance:
            instance.start_ray()
            instance.start_serve(lambda _: None)
            # Not closed here: Serve's handles outlive the rounds, and are shut down on the loop they were used on.
            loop = asyncio.new_event_loop()
            idle_cores = loop.run_until_complete(rounds())
    pool.close()
    title = f"{options.attributes}: the deployment through its handle, {OUTSTANDING} faces outstanding"
    return report(title, served, bare, idle_cores)


async def measure_endpoint(options: argparse.Namespace, location: AnalysisLocation) -> dict[str, object]:
    image, path = package_image("t1.jpg"), "/api/v1/face/analyze-face-advanced"
    specs = tuple(real_chips(location, (Attribute.AGE, Attribute.GENDER)))
    pool = BareModels(bare_pipeline, os.cpu_count() or 1, location, image, specs)
    bare: list[Measured] = []
    served: list[Measured] = []
    with service(location.pack.name, options.config) as (pid, port):
        request = image_request(path, image, KEY)
        for _ in range(options.rounds):
            bare.append(pool.run(options.seconds))
            await closed_loop(port, [request], CLIENTS, 1.0)
            before = usage(pid)
            load: Load = await closed_loop(port, [request], CLIENTS, options.seconds)
            cpu_s = sum(spent(before, usage(pid)).values())
            served.append(Measured(load.completed * 6, load.elapsed_s, cpu_s))
        idle_cores = await idle(pid)
    pool.close()
    return report(
        f"analyze-face-advanced over HTTP, t1.jpg (six faces), {CLIENTS} clients", {"Kinlens": served}, bare, idle_cores
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attributes", default="age,gender")
    parser.add_argument("--faces", type=int, nargs="+", default=[1, 4, 16], help="faces a call")
    parser.add_argument("--config", type=Path, help="a Serve config to measure instead of serve_config.yaml")
    parser.add_argument("--measure", nargs="+", choices=["endpoint", "deployment"], default=["endpoint", "deployment"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/analysis.json"))
    options = parser.parse_args()
    # Before anything imports Ray, which reads it then.
    prepare_environment()
    from serve_app.app import AppArgs, analysis_location

    location = analysis_location(Settings(), AppArgs())
    print(f"## Attributes, pack {location.pack.name}: {options.rounds} rounds of {options.seconds} s")
    results: dict[str, object] = {"cores": os.cpu_count(), "python": platform.python_version()}
    if "endpoint" in options.measure:
        results["endpoint"] = asyncio.run(measure_endpoint(options, location))
    if "deployment" in options.measure:
        results["deployment"] = measure_deployment(options, location)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
