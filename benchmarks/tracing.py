"""What traces cost a trivial request: the application without, with an endpoint whose sampler takes none, and with all traced.

`python -m benchmarks.tracing`. In one process, blocks of requests in turn, so that what else the machine does meets all alike.
CPU is of the whole process, the thread that sends included; the collector is a process of its own. Median (quartiles).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import subprocess
import sys
import time

from fastapi import FastAPI

from config.settings import Settings
from serve_app.api.app import create_api
from serve_app.observing.outlets import Outlets, open_outlets
from serve_app.observing.telemetry import Telemetry
from serve_app.observing.tracing import OtlpTracer
from tests.api.conftest import KEY, FakeDetector, FakeEmbedder, make_services

COLLECTOR = """
import time
from tests.collector import collecting_server
with collecting_server() as collector:
    collector.keep = lambda *_: None
    print(collector.url, flush=True)
    time.sleep(3600)
"""
PATH = "/api/v1/models"


def application(**settings: object) -> tuple[FastAPI, Outlets]:
    outlets = open_outlets(Settings.model_validate(settings), "Ingress", "benchmark")
    services = make_services(FakeDetector(), FakeEmbedder(), {"log_requests_s": 3600})
    return create_api(dataclasses.replace(services, telemetry=Telemetry("Ingress", "benchmark", outlets))), outlets


async def ask(api: FastAPI) -> None:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        if isinstance(message, dict) and "status" in message:
            statuses.append(message["status"])

    statuses: list[int] = []
    headers = [(b"host", b"test"), (b"authorization", f"Bearer {KEY}".encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": PATH,
        "raw_path": PATH.encode(), "query_string": b"", "root_path": "", "headers": headers, "client": ("127.0.0.1", 1),
        "server": ("test", 80), "state": {},
    }  # fmt: skip
    await api(scope, receive, send)
    assert statuses == [200]


async def block(api: FastAPI, outlets: Outlets, requests: int) -> tuple[float, float]:
    """CPU and wall seconds a request; what it has to send is sent within."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(requests):
        await ask(api)
    wall = time.perf_counter() - wall
    if isinstance(outlets.tracer, OtlpTracer):
        await asyncio.to_thread(outlets.tracer._provider.force_flush)
    return (time.process_time() - cpu) / requests, wall / requests


async def measure(rounds: int, requests: int, url: str) -> None:
    made = {
        "off": application(),
        "on, none sampled": application(otel_exporter_otlp_endpoint=url, otel_traces_sampler="always_off"),
        "on, all sampled": application(otel_exporter_otlp_endpoint=url),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for api, outlets in made.values():
        await block(api, outlets, requests)
    for number in range(rounds):
        # Another one first each time.
        for name in sorted(made, key=lambda one: (list(made).index(one) + number) % len(made)):
            found[name].append(await block(*made[name], requests))
    off = found["off"]
    for name, samples in found.items():
        for kind, index in (("CPU", 0), ("clock", 1)):
            times = [one[index] * 1e6 for one in samples]
            ratios = [one[index] / base[index] for one, base in zip(samples, off, strict=True)]
            low, middle, high = statistics.quantiles(times, n=4)
            under, half, over = statistics.quantiles(ratios, n=4)
            print(
                f"{name:18} {kind:5} {middle:6.0f} us ({low:.0f} to {high:.0f}), least {min(times):.0f}"
                f"   ratio {half:.2f} ({under:.2f} to {over:.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    collector = subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    try:
        assert collector.stdout is not None
        asyncio.run(measure(options.rounds, options.requests, collector.stdout.readline().strip()))
    finally:
        collector.kill()
        collector.wait()


if __name__ == "__main__":
    main()
