"""One real Ray Serve instance for all serve tests, started the way users start it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.ports import free_port
from tests.collector import Collector, collecting_server

KEY = "serve-tests-key-0123456789"


@dataclass(frozen=True, slots=True)
class Served:
    """A running `kinlens up`."""

    url: str
    port: int
    pid: int
    output: Path

    def client(self, **options: float) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=options.get("timeout", 60))

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Living replica processes of a deployment, by their process titles."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                title = " ".join(process.cmdline())
                if f"ServeReplica:kinlens:{deployment}" in title and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def wait_for_replicas(self, deployment: str, count: int, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while len(self.replicas(deployment)) < count:
            assert time.monotonic() < deadline, f"{deployment} did not come back"
            time.sleep(0.2)


def start(folder: Path, **environment: str) -> tuple[subprocess.Popen[bytes], Served]:
    port = free_port()
    output = folder / "up.log"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", "from serve_app.cli import main; main()", "up"],
            env={
                **os.environ,
                "API_KEY": KEY,
                "PORT": str(port),
                "DATA_DIR": str(folder / "data"),
                "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
                **environment,
            },
            cwd=Path(__file__).resolve().parents[2],
            stdout=stream,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    served = Served(f"http://127.0.0.1:{port}", port, process.pid, output)
    deadline = time.monotonic() + 240
    while True:
        # A letter may be half written.
        said = output.read_text(errors="replace")
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"kinlens up did not get ready:\n{said}")
        if "\nready" in said or said.startswith("ready"):
            return process, served
        time.sleep(0.3)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting_server() as found:
        yield found


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    """Only requests whose client traces them are traced."""
    process, instance = start(
        tmp_path_factory.mktemp("served"),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20of-the-collector",
        OTEL_TRACES_SAMPLER="parentbased_always_off",
    )
    yield instance
    stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    for left in alive:
        left.kill()
