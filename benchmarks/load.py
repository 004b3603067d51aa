"""Kinlens beside the obvious home-made service, insightface's FaceAnalysis behind plain FastAPI, with the same models:

    uv run python -m benchmarks.load --pack FOLDER --photos FOLDER_OF_ONE_FACE_PHOTOS [--large FOLDER]

`--pack`: a folder with an InsightFace detector and recognizer, which both can load. Clients post pictures as forms and wait
for the answer; the services take turns within a round, so that noise hits all of them, and idle in between.
Loopback only. Prints Markdown, and draws the memory of every process over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.client import HOST, Load, closed_loop
from benchmarks.faces import package_image, sample_images, spread
from benchmarks.home_made import home_made
from benchmarks.instance import KEY, running
from benchmarks.plot import lines
from benchmarks.processes import spent, usage

_BOUNDARY = "a-boundary-that-no-picture-holds"
_READ_EVERY_S = 1.0
THROUGHPUT_BAR, BAR_CLIENTS = 1.5, 16


@dataclass(frozen=True, slots=True)
class Service:
    """`path`: where pictures are posted, by case."""

    name: str
    pids: tuple[int, ...]
    port: int
    path: Mapping[str, str]


@dataclass(slots=True)
class Turn:
    load: Load
    cpu_s: float

    @property
    def cpu_ms(self) -> float:
        return self.cpu_s / max(1, self.load.completed) * 1e3


@dataclass
class Memory:
    """MiB by process name over time, of all services."""

    readings: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    begun: float = field(default_factory=time.monotonic)

    def read(self, services: Iterable[Service]) -> None:
        at_s = time.monotonic() - self.begun
        for service in services:
            for name, size in usage(*service.pids).rss_bytes.items():
                self.readings[f"{service.name}: {name}"].append((at_s, size / (1 << 20)))


def form_request(path: str, image: bytes) -> bytes:
    """A POST of a form with the picture as `file`."""
    body = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode("ascii") + image + f"\r\n--{_BOUNDARY}--\r\n".encode("ascii")  # fmt: skip
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n\r\n"
    )
    return head.encode("ascii") + body


async def turn(service: Service, case: str, images: list[bytes], clients: int, seconds: float) -> Turn:
    """After a second that does not count."""
    requests = [form_request(service.path[case], image) for image in images]
    await closed_loop(service.port, requests, clients, 1.0)
    before = usage(*service.pids)
    load = await closed_loop(service.port, requests, clients, seconds)
    return Turn(load, sum(spent(before, usage(*service.pids)).values()))


async def measure(
    services: list[Service], cases: Mapping[str, list[bytes]], clients: list[int], rounds: int, seconds: float
) -> tuple[dict[tuple[str, int, str], list[Turn]], Memory]:
    turns: dict[tuple[str, int, str], list[Turn]] = defaultdict(list)
    memory, over = Memory(), asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            await asyncio.to_thread(memory.read, services)
            await asyncio.sleep(_READ_EVERY_S)

    watching = asyncio.create_task(watch())
    for number in range(rounds):
        for case, images in cases.items():
            for count in clients:
                # Whoever goes first has a cooler machine: they take turns at that too.
                for service in services[number % len(services) :] + services[: number % len(services)]:
                    turns[case, count, service.name].append(await turn(service, case, images, count, seconds))
    over.set()
    await watching
    return turns, memory


def table(services: list[Service], turns: Mapping[tuple[str, int, str], list[Turn]], case: str, clients: list[int]) -> str:
    rows = [
        "| | images/s | p50 ms | p95 ms | p99 ms | CPU ms an image | errors | Kinlens / it: images/s | p99 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for count in clients:
        ours = turns[case, count, services[0].name]
        for service in services:
            its = turns[case, count, service.name]
            errors: Counter[int] = sum((one.load.statuses for one in its), Counter())
            bad = ", ".join(f"{number} x {status}" for status, number in sorted(errors.items()) if status != 200) or "none"
            ratios = [a.load.per_second / b.load.per_second for a, b in zip(ours, its, strict=True) if b.load.completed]
            tails = [_p99(a) / _p99(b) for a, b in zip(ours, its, strict=True) if b.load.completed]
            compared = ("", "") if service is services[0] else (_spread(ratios), _spread(tails))
            figures = [
                _spread([one.load.per_second for one in its], 1), _spread([one.load.median_ms for one in its], 0),
                _spread([one.load.percentile_ms(0.95) for one in its], 0), _spread([_p99(one) for one in its], 0),
                _spread([one.cpu_ms for one in its], 0), bad, *compared,
            ]  # fmt: skip
            rows.append(f"| {service.name}, {count} clients | {' | '.join(figures)} |")
    return "\n".join(rows)


def _p99(one: Turn) -> float:
    return one.load.percentile_ms(0.99)


def _spread(values: list[float], digits: int = 2) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return spread(finite, digits) if finite else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="a folder of InsightFace models")
    parser.add_argument("--photos", type=Path, help="a folder of one-face JPEGs")
    parser.add_argument(
        "--large", type=Path, help="a folder of JPEGs of some megapixels, as cameras make them: a case of its own"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, BAR_CLIENTS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/load.json"))
    parser.add_argument("--svg", type=Path, default=Path("docs/images/load.svg"))
    options = parser.parse_args()
    pack = options.pack.resolve()
    cases = {"one-face photos": sample_images(options.photos), "six faces, all embedded": [package_image("t1.jpg")]}
    if options.large is not None:
        cases["large photos, all embedded"] = sample_images(options.large)
    theirs = dict.fromkeys(cases, "/faces")
    every = "/api/v1/face/extract-embedding?face=all"
    ours = {**dict.fromkeys(cases, every), "one-face photos": "/api/v1/face/extract-embedding"}
    cores = os.cpu_count() or 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kinlens-load-")))
        folder.chmod(0o711)
        instance = stack.enter_context(running(folder, MODEL_PACK=str(pack)))
        services = [Service("Kinlens", (instance.pid, instance.postmaster()), instance.port, ours)]
        for workers in dict.fromkeys((1, cores)):
            pid, port = stack.enter_context(home_made(pack, workers))
            services.append(Service(f"home-made, {workers} process{'es' * (workers > 1)}", (pid,), port, theirs))
        turns, memory = asyncio.run(measure(services, cases, options.clients, options.rounds, options.seconds))
    load = os.getloadavg()[0]
    print(f"## {pack.name}: {cores} cores, {options.rounds} rounds of {options.seconds:g} s, median (range)")
    for case in cases:
        print(f"\n### {case}\n\n{table(services, turns, case, options.clients)}")
    print(f"\nLoad of the machine at the end: {load:.1f}.")
    for case in cases:
        key = (case, BAR_CLIENTS)
        if (*key, "Kinlens") not in turns:
            continue
        for service in services[1:]:
            pairs = list(zip(turns[*key, "Kinlens"], turns[*key, service.name], strict=True))
            faster = statistics.median(a.load.per_second / b.load.per_second for a, b in pairs)
            lower = statistics.median(_p99(a) / _p99(b) for a, b in pairs)
            met = "met" if faster >= THROUGHPUT_BAR and lower < 1 else "missed"
            print(f"{case}, {BAR_CLIENTS} clients, beside {service.name}: {faster:.2f} x, p99 {lower:.2f} x: {met}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    results = {
        f"{case}, {count} clients, {name}": [
            {
                "per_second": one.load.per_second, "p50_ms": one.load.median_ms, "p95_ms": one.load.percentile_ms(0.95),
                "p99_ms": _p99(one), "cpu_ms": one.cpu_ms, "statuses": dict(one.load.statuses),
            }
            for one in its
        ]
        for (case, count, name), its in turns.items()
    }  # fmt: skip
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    largest = sorted(memory.readings.items(), key=lambda one: -max(size for _, size in one[1]))[:12]
    options.svg.write_text(lines("Resident memory under load", "seconds", "MiB", dict(largest)), encoding="utf-8")


if __name__ == "__main__":
    main()
