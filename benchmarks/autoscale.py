"""Replicas that follow a load which rises and falls, on a whole Kinlens:

    uv run python -m benchmarks.autoscale --seconds 250

`kinlens up` with a config of its own: Detection and Embedding may have one to three replicas, Analysis none or one. Clients
send group photos, as many at once as each step says, and never ask twice. Every second is written down how many replicas
run, how long the last answers took, and what was not answered well. Then Analysis, which nobody has asked for, is asked, and
again each time it has gone. Exit status 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.client import HOST, exchange_head, image_request
from benchmarks.faces import package_image
from benchmarks.instance import KEY, ROOT, Instance, running
from benchmarks.mixed import API, portrait
from benchmarks.plot import panels

STEPS = (1, 4, 16, 4, 1)
"""Clients at once."""
TURNS_BAR = 2
"""How often a deployment may turn from growing to shrinking or back: once is enough for one hill."""
_SCALED = ("Detection", "Embedding")
_ASKED = (f"{API}/face/verify-face", f"{API}/face/extract-embedding")
"""In turn: with one of each the two deployments have about as much to do."""
_ANALYZED = f"{API}/face/analyze-face-advanced"
_WINDOW_S = 5.0
_DOWNSCALE_DELAY_S = 40
_TO_ZERO_S = 5
_GONE_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`at_s`: when it came, since the load began. `excused`: a 503 that says when to come again."""

    at_s: float
    took_s: float
    status: int
    excused: bool


@dataclass(frozen=True, slots=True)
class Reading:
    at_s: float
    clients: int
    replicas: dict[str, int]


@dataclass
class Course:
    answers: list[Answer] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    clients: int = 0

    def between(self, from_s: float, to_s: float) -> list[Answer]:
        return [one for one in self.answers if from_s < one.at_s <= to_s]

    def p95_ms(self, at_s: float) -> float:
        """Of what was answered in the seconds before; 0 where nothing was."""
        took = sorted(one.took_s for one in self.between(at_s - _WINDOW_S, at_s) if one.status == 200)
        return took[max(0, math.ceil(0.95 * len(took)) - 1)] * 1e3 if took else 0.0

    def counts(self, deployment: str) -> list[int]:
        return [one.replicas.get(deployment, 0) for one in self.readings]


def turns(counts: Sequence[int]) -> int:
    """How often what grew shrank next, or the other way round."""
    moves = [after > before for before, after in itertools.pairwise(counts) if after != before]
    return sum(one != other for one, other in itertools.pairwise(moves))


def scaled_config(source: Path) -> dict[str, Any]:
    """The default profile with room to grow, and Analysis that may go."""
    loaded: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    for one in loaded["applications"][0]["deployments"]:
        if one["name"] in _SCALED:
            one["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 3, "downscale_delay_s": _DOWNSCALE_DELAY_S}
        elif one["name"] == "Analysis":
            one["autoscaling_config"] |= {
                "min_replicas": 0, "max_replicas": 1, "downscale_delay_s": _TO_ZERO_S, "downscale_to_zero_delay_s": _TO_ZERO_S,
            }  # fmt: skip
    return loaded


async def replicas(client: httpx.AsyncClient) -> dict[str, int]:
    """Running, by deployment, as the service tells; empty where it does not."""
    try:
        told = (await client.get(f"{API}/system")).json()["deployments"]
    except (httpx.HTTPError, KeyError, ValueError):
        return {}
    return {one["name"]: one["replicas"] for one in told or ()}


async def climb(instance: Instance, image: bytes, seconds: float) -> Course:
    """The steps of the load, each as long as the others."""
    course, started = Course(), time.monotonic()
    requests = itertools.cycle([image_request(path, image, KEY) for path in _ASKED])
    over = asyncio.Event()

    async def ask(number: int) -> None:
        """Only while there are to be more than `number` clients."""
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not over.is_set():
            if number >= course.clients:
                await asyncio.sleep(0.1)
                continue
            begun = time.monotonic()
            try:
                connection = connection or await asyncio.open_connection(HOST, instance.port)
                head = await exchange_head(*connection, next(requests))
                status, excused = int(head[9:12]), b"\r\nretry-after:" in head.lower()
            except (OSError, asyncio.IncompleteReadError):
                connection, status, excused = None, 0, False
            ended = time.monotonic()
            course.answers.append(Answer(ended - started, ended - begun, status, status == 503 and excused))
            if status != 200:
                await asyncio.sleep(0.2)
        if connection is not None:
            connection[1].close()

    async def read() -> None:
        async with httpx.AsyncClient(base_url=instance.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10) as client:
            while not over.is_set():
                found = await replicas(client)
                if found:
                    course.readings.append(Reading(time.monotonic() - started, course.clients, found))
                await asyncio.sleep(1)

    tasks = [asyncio.create_task(ask(number)) for number in range(max(STEPS))] + [asyncio.create_task(read())]
    for clients in STEPS:
        course.clients = clients
        print(f"{time.monotonic() - started:5.0f} s: {clients} clients", file=sys.stderr, flush=True)
        await asyncio.sleep(seconds / len(STEPS))
    over.set()
    await asyncio.gather(*tasks)
    return course


async def cold_starts(instance: Instance, image: bytes, times: int) -> tuple[list[float], list[float], list[str]]:
    """Seconds of the first request of Analysis while it has no replica, of the one after it, and what went wrong."""
    cold: list[float] = []
    warm: list[float] = []
    wrong: list[str] = []
    async with httpx.AsyncClient(base_url=instance.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=90) as client:
        for _ in range(times):
            deadline = time.monotonic() + _GONE_WITHIN_S
            while (await replicas(client)).get("Analysis") != 0:
                if time.monotonic() > deadline:
                    return cold, warm, [*wrong, "Analysis did not go"]
                await asyncio.sleep(0.5)
            for found in (cold, warm):
                begun = time.monotonic()
                answer = await client.post(_ANALYZED, content=image, headers={"Content-Type": "image/jpeg"})
                found.append(time.monotonic() - begun)
                if answer.status_code != 200 or answer.json()["unavailable"]:
                    wrong.append(f"{answer.status_code}: {answer.text[:200]}")
    return cold, warm, wrong


def drawing(course: Course) -> str:
    times = [one.at_s for one in course.readings]
    bad = {
        "503 with Retry-After": lambda one: one.excused,
        "other errors": lambda one: one.status != 200 and not one.excused,
    }
    return panels(
        "Replicas follow the load",
        "seconds",
        {
            "clients at once": {"clients": [(one.at_s, float(one.clients)) for one in course.readings]},
            "running replicas": {
                name: [(one.at_s, float(one.replicas.get(name, 0))) for one in course.readings] for name in _SCALED
            },
            f"ms, p95 of the last {_WINDOW_S:g} s": {"p95": [(at, course.p95_ms(at)) for at in times]},
            "answers a second": {
                "200": [(at, sum(a.status == 200 for a in course.between(at - _WINDOW_S, at)) / _WINDOW_S) for at in times],
                **{
                    name: [(at, sum(map(test, course.between(at - _WINDOW_S, at))) / _WINDOW_S) for at in times]
                    for name, test in bad.items()
                },
            },
        },
    )


def step_table(course: Course, seconds: float) -> str:
    rows = ["| clients | answers/s | p50 ms | p95 ms | Detection | Embedding |", "|---|---|---|---|---|---|"]
    for number, clients in enumerate(STEPS):
        # Its second half: replicas have followed then.
        begun, ended = (number + 0.5) * seconds / len(STEPS), (number + 1) * seconds / len(STEPS)
        took = sorted(one.took_s * 1e3 for one in course.between(begun, ended) if one.status == 200)
        its = [one for one in course.readings if begun < one.at_s <= ended]
        shown = [f"{statistics.mean(one.replicas.get(name, 0) for one in its):.1f}" if its else "" for name in _SCALED]
        figures = (statistics.median(took), took[math.ceil(0.95 * len(took)) - 1]) if took else (math.nan, math.nan)
        rows.append(
            f"| {clients} | {len(took) / (ended - begun):.1f} | {figures[0]:.0f} | {figures[1]:.0f} | {' | '.join(shown)} |"
        )
    return "\n".join(rows)


def verdicts(course: Course) -> list[tuple[str, bool]]:
    failed = Counter(one.status for one in course.answers if one.status != 200 and not one.excused)
    refused = sum(one.excused for one in course.answers)
    found = [
        (f"errors other than 503 with Retry-After: {dict(failed) or 'none'} of {len(course.answers)}", not failed),
        (f"503 with Retry-After: {refused}", refused == 0),
    ]
    for name in _SCALED:
        counts = course.counts(name)
        most, last = max(counts, default=0), counts[-1] if counts else 0
        found.append((f"{name}: from {counts[0] if counts else 0} to {most} and back to {last}", most > 1 and last < most))
        found.append((f"{name}: turned {turns(counts)} times", turns(counts) <= TURNS_BAR))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=250)
    parser.add_argument("--cold-starts", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/autoscale.json"))
    parser.add_argument("--svg", type=Path, default=Path("docs/images/autoscale.svg"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kinlens-autoscale-") as folder:
        Path(folder).chmod(0o711)
        config = Path(folder, "serve_config.yaml")
        config.write_text(yaml.safe_dump(scaled_config(ROOT / "serve_config.yaml")), encoding="utf-8")
        with running(Path(folder), config=config) as instance:
            course = asyncio.run(climb(instance, package_image("t1.jpg"), options.seconds))
            cold, warm, wrong = asyncio.run(cold_starts(instance, portrait(), options.cold_starts))
    load = os.getloadavg()[0]
    print(f"## {options.seconds:g} s on {os.cpu_count()} cores; the machine's own load at the end {load:.1f}\n")
    print(f"{step_table(course, options.seconds)}\n")
    found = verdicts(course)
    if options.cold_starts:
        asked = f"{len(cold)} of {options.cold_starts}"
        found.append((f"Analysis from none, {asked} times: {'; '.join(wrong) or 'each answered'}", not wrong))
    for text, met in found:
        print(f"{'met   ' if met else 'missed'} {text}")
    if cold:
        spread = f"{statistics.median(cold):.1f} s ({min(cold):.1f}-{max(cold):.1f})"
        print(f"\nFirst analysis while there is no replica: {spread}; the next one {statistics.median(warm) * 1e3:.0f} ms")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "seconds": options.seconds, "steps": STEPS, "load": load, "cold_s": cold, "warm_s": warm,
        "verdicts": [{"text": text, "met": met} for text, met in found],
        "readings": [
            (round(one.at_s, 1), one.clients, one.replicas, round(course.p95_ms(one.at_s))) for one in course.readings
        ],
        "statuses": dict(Counter(one.status for one in course.answers)),
    }  # fmt: skip
    options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    options.svg.write_text(drawing(course), encoding="utf-8")
    if not all(met for _, met in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
