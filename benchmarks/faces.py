"""The face API beside the bare pipeline, in one run: uv run python -m benchmarks.faces

Rounds alternate between the bare pipeline on all cores and the service over HTTP, so that a noisy neighbour hits both;
ratios are taken within a round, and their median and range reported.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.bare import BarePool, BareResult, Work
from benchmarks.client import Load, closed_loop, exchange, get_request, image_request, open_loop
from benchmarks.processes import spent, usage
from config.settings import Settings
from deployments.models.packs import PackLocation
from serve_app.ports import free_port

KEY = "benchmark-key-0123456789"
CLIENTS = (1, 8, 32)


@dataclass(slots=True)
class Round:
    bare: BareResult
    bare_alone: BareResult
    served: dict[int, Load] = field(default_factory=dict)
    cpu_ms: dict[int, float] = field(default_factory=dict)
    cpu_by_process_ms: dict[int, dict[str, float]] = field(default_factory=dict)


def sample_images(folder: Path | None, count: int = 8) -> list[bytes]:
    """One-face photos: of `folder`, else the portrait that comes with insightface."""
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
        if paths:
            return [path.read_bytes() for path in paths]
    return [package_image("Tom_Hanks_54745.png")]


def package_image(name: str) -> bytes:
    found = find_spec("insightface")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0], "data", "images", name).read_bytes()


@contextlib.contextmanager
def service(pack: str, config: Path | None) -> Iterator[tuple[int, int]]:
    """`kinlens up` in a process of its own; yields its pid and port."""
    port = free_port()
    command = [sys.executable, "-c", "from serve_app.cli import main; main()", "up"]
    if config is not None:
        command += ["--config", str(config)]
    environment = {**os.environ, "API_KEY": KEY, "PORT": str(port), "HOST": "127.0.0.1", "MODEL_PACK": pack}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 180
            while True:
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise RuntimeError(f"kinlens up did not get ready:\n{output.read()}")
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/health"):
                    break
                time.sleep(0.2)
            yield process.pid, port
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


async def one_round(pool: BarePool, pid: int, port: int, path: str, work: Work, seconds: float) -> Round:
    requests = [image_request(path, image, KEY) for image in work.images]
    result = Round(pool.run(work, seconds), pool.run(work, seconds / 2, processes=1))
    for clients in CLIENTS:
        await closed_loop(port, requests, clients, 1.0)
        before = usage(pid)
        load = await closed_loop(port, requests, clients, seconds)
        by_process = spent(before, usage(pid))
        images = max(1, load.completed)
        result.served[clients] = load
        result.cpu_ms[clients] = sum(by_process.values()) / images * 1e3
        result.cpu_by_process_ms[clients] = {name: cpu_s / images * 1e3 for name, cpu_s in by_process.items()}
    return result


async def get_while_saturated(port: int, requests: list[bytes], seconds: float) -> Load:
    """GET /health twenty times a second while 16 clients keep every replica busy."""
    probe = Load()

    async def probing() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = get_request("/api/v1/health")
        await asyncio.sleep(1)
        for _ in range(int(seconds * 20)):
            begun = time.perf_counter()
            probe.statuses[await exchange(reader, writer, request)] += 1
            probe.latencies_s.append(time.perf_counter() - begun)
            await asyncio.sleep(0.05)
        writer.close()

    await asyncio.gather(closed_loop(port, requests, 16, seconds + 2), probing())
    return probe


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def report(name: str, rounds: list[Round], reference: list[BareResult]) -> dict[str, object]:
    bare_rate = [one.bare.per_second for one in rounds]
    print(f"\n### {name}\n")
    print(
        "| | images/s | p50 ms | p95 ms | CPU ms an image | throughput / bare | CPU / bare |"
        + " throughput / libraries |" * bool(reference)
    )
    print("|---|---|---|---|---|---|---|" + "---|" * bool(reference))
    alone = [one.bare_alone.median_ms for one in rounds]
    print(f"| bare, 1 process | {spread([one.bare_alone.per_second for one in rounds], 1)} | {spread(alone, 1)} | | | | |")
    print(f"| bare, all cores | {spread(bare_rate, 1)} | | | {spread([one.bare.cpu_ms for one in rounds], 1)} | 1 | 1 |")
    if reference:
        print(
            f"| libraries as they come, all cores | {spread([one.per_second for one in reference], 1)} | | | "
            f"{spread([one.cpu_ms for one in reference], 1)} | | |"
        )
    data: dict[str, object] = {
        "bare_per_second": bare_rate,
        "bare_cpu_ms": [one.bare.cpu_ms for one in rounds],
        "bare_alone_p50_ms": alone,
        "reference_per_second": [one.per_second for one in reference],
        "reference_cpu_ms": [one.cpu_ms for one in reference],
    }
    for clients in CLIENTS:
        loads = [one.served[clients] for one in rounds]
        ratio = [load.per_second / one.bare.per_second for load, one in zip(loads, rounds, strict=True)]
        cpu = [one.cpu_ms[clients] for one in rounds]
        cpu_ratio = [one.cpu_ms[clients] / one.bare.cpu_ms for one in rounds]
        against_reference = [load.per_second / peer.per_second for load, peer in zip(loads, reference, strict=False)]
        print(
            f"| Kinlens, {clients} clients | {spread([load.per_second for load in loads], 1)} "
            f"| {spread([load.median_ms for load in loads], 1)} | {spread([load.percentile_ms(0.95) for load in loads], 1)} "
            f"| {spread(cpu, 1)} | {spread(ratio)} | {spread(cpu_ratio)} |"
            + (f" {spread(against_reference)} |" if reference else "")
        )
        data[f"clients_{clients}"] = {
            "per_second": [load.per_second for load in loads],
            "p50_ms": [load.median_ms for load in loads],
            "p95_ms": [load.percentile_ms(0.95) for load in loads],
            "cpu_ms": cpu,
            "throughput_ratio": ratio,
            "cpu_ratio": cpu_ratio,
            "cpu_by_process_ms": [one.cpu_by_process_ms[clients] for one in rounds],
            "statuses": [dict(load.statuses) for load in loads],
        }
    extra = [one.served[1].median_ms - one.bare_alone.median_ms * 1.25 for one in rounds]
    print(f"\nOne client: p50 less 1.25 x bare p50: {spread(extra, 1)} ms")
    last = rounds[-1].cpu_by_process_ms[8]
    print("CPU ms an image at 8 clients: " + ", ".join(f"{name} {value:.2f}" for name, value in list(last.items())[:8]))
    return data


async def measure(options: argparse.Namespace) -> dict[str, object]:
    settings = Settings()
    location = PackLocation(options.pack, settings.model_root, settings.data_dir / "models")
    cores = os.cpu_count() or 1
    group = package_image("t1.jpg")
    works = {
        "t1.jpg, largest face": ("/api/v1/face/extract-embedding", Work([group], all_faces=False)),
        "t1.jpg, all six faces": ("/api/v1/face/extract-embedding?face=all", Work([group], all_faces=True)),
        "one-face photos": ("/api/v1/face/extract-embedding", Work(sample_images(options.photos), all_faces=False)),
    }
    results: dict[str, object] = {
        "pack": options.pack,
        "cores": cores,
        "python": platform.python_version(),
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    pool = BarePool(location, cores)
    peer = BarePool(location, cores, reference=True) if options.reference else None
    print(f"## {options.pack}: {cores} cores, {options.rounds} rounds of {options.seconds} s, median (range)")
    with service(options.pack, options.config) as (pid, port):
        for name, (path, work) in works.items():
            rounds, reference = [], []
            for _ in range(options.rounds):
                rounds.append(await one_round(pool, pid, port, path, work, options.seconds))
                if peer is not None:
                    reference.append(peer.run(work, options.seconds))
            results[name] = report(name, rounds, reference)
        requests = [image_request("/api/v1/face/extract-embedding", group, KEY)]
        probe = await get_while_saturated(port, requests, options.seconds * 2)
        print(
            f"\nGET /health under 16 saturating clients: p50 {probe.median_ms:.1f} ms, p99 {probe.percentile_ms(0.99):.1f} ms "
            f"({len(probe.latencies_s)} probes)"
        )
        results["get_under_load_ms"] = {"p50": probe.median_ms, "p99": probe.percentile_ms(0.99)}
        capacity = await closed_loop(port, requests, 16, options.seconds)
        over = await open_loop(port, requests, capacity.per_second * 1.5, options.seconds * 2)
        share = over.per_second / capacity.per_second
        print(
            f"Offered 1.5 x capacity ({capacity.per_second:.1f}/s): completed {share:.2f} of it, "
            f"answers {dict(over.statuses)}, p95 of the completed {over.percentile_ms(0.95):.0f} ms"
        )
        results["overload"] = {
            "capacity_per_second": capacity.per_second,
            "completed_share": share,
            "statuses": dict(over.statuses),
        }
        before = usage(pid)
        await asyncio.sleep(10)
        after = usage(pid)
        idle = sum(spent(before, after).values()) / 10
        print(f"Idle: {idle * 100:.1f} % of a core; {after.total_rss_bytes / 1e6:.0f} MB RSS")
        results["idle"] = {"cores": idle, "rss_bytes": after.rss_bytes}
    pool.close()
    if peer is not None:
        peer.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="opencv", help="a pack or folder; its root is MODEL_ROOT")
    parser.add_argument("--photos", type=Path, help="a folder of one-face JPEGs")
    parser.add_argument("--config", type=Path, help="a Serve config to measure instead of serve_config.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--reference", action="store_true", help="measure the libraries as they come as well")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/faces.json"))
    options = parser.parse_args()
    results = asyncio.run(measure(options))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
