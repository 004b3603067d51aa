"""The whole OpenAPI document against the real service, by schemathesis.

`python -m tests.fuzz api --requests 20000`
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

from serve_app.postgres.local import EmbeddedPostgres, dsn
from serve_app.storage import schema
from tests import data
from tests.api.conftest import KEY
from tests.browser.service import Models, serving
from tests.fuzz.hooks import ANSWERS

ROOT = Path(__file__).resolve().parents[2]
CHECKS = "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance,response_headers_conformance"
_OPERATIONS = 99
_COVERAGE = 6_000
"""About what the phase of that name asks, whatever it is told."""
EVENTS = "events$"
"""A stream that does not end by itself: tests/storage/test_jobs_api.py."""


@dataclass(slots=True)
class Report:
    """`failures`: what schemathesis printed of them."""

    statuses: Counter[int] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    runs: int = 0
    elapsed_s: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.took_ms)


def run(url: str, phases: str, examples: int, seed: int, report: Report, timeout_s: float = 3600) -> None:
    """One run of schemathesis, added to the report. `examples`: most requests an operation in the fuzzing phase."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder, "answers")
        answers.touch()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--phases", phases),
                *("--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none", "--no-shrink"),
                *("--checks", CHECKS, "--exclude-path-regex", EVENTS, "--continue-on-failure", "--no-color"),
                *("--suppress-health-check", "all", "--request-timeout", "60", "--warnings", "off"),
                *("--header", f"Authorization: Bearer {KEY}"),
            ],
            cwd=folder,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT), ANSWERS: str(answers)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        for line in answers.read_text().splitlines():
            status, took, operation = line.split(" ", 2)
            report.statuses[int(status)] += 1
            report.took_ms.append(float(took))
            report.slowest = sorted([*report.slowest, (float(took), f"{operation} {status}")], reverse=True)[:5]
    report.runs += 1
    report.elapsed_s += time.monotonic() - began
    if done.returncode != 0:
        printed = done.stdout + done.stderr
        report.failures.append(printed[max(0, printed.find("= FAILURES =")) :])


def populate(url: str) -> None:
    """Somebody to ask for: a collection with enrolled persons, and a library with photos and people."""
    with Image.open(io.BytesIO(data.package_image("t1.jpg"))) as whole:
        pictures = []
        for left in range(0, whole.width - 320, 160):
            buffer = io.BytesIO()
            whole.crop((left, 60, left + 320, 380)).save(buffer, "JPEG")
            pictures.append(buffer.getvalue())
    with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        client.post("/collections", json={"id": "team"})
        for number, picture in enumerate(pictures):
            person = client.post("/collections/team/persons", json={"name": f"Person {number}"}).json()
            image = base64.b64encode(picture).decode()
            client.post(f"/collections/team/persons/{person['id']}/faces", json={"image": image})
            client.post("/persons", json={"name": f"Person {number}"})
            client.post("/photos/upload", files={"files": (f"{number}.jpg", picture, "image/jpeg")}).raise_for_status()


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """Its address: real models, a Postgres and a store of its own, photos are indexed."""
    with EmbeddedPostgres(folder / "postgres"):
        schema.upgrade(dsn(folder / "postgres"))
        with serving(Models(folder / "models"), lambda: dsn(folder / "postgres"), folder, indexing=True) as running:
            yield running.url


def run_long(requests: int, seed: int) -> Report:
    report = Report()
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as url:
        populate(url)
        while report.requests < requests:
            examples = max(1, (requests - report.requests - _COVERAGE) // _OPERATIONS)
            run(url, "examples,coverage,fuzzing,stateful", examples, seed + report.runs, report)
            if report.requests == 0:
                raise RuntimeError("\n".join(report.failures))
    return report


def tell(report: Report) -> str:
    """For people."""
    took = sorted(report.took_ms) or [0.0]
    lines = [
        f"{report.requests} requests in {report.elapsed_s:.0f} s, {report.runs} runs; runs with failures: {len(report.failures)}"
    ]
    lines += [f"  {count:7} {status}" for status, count in sorted(report.statuses.items())]
    lines.append(f"median {took[len(took) // 2]:.1f} ms, p99 {took[len(took) * 99 // 100]:.1f} ms, most {took[-1]:.0f} ms")
    lines += [f"  {milliseconds:7.0f} ms {what}" for milliseconds, what in report.slowest]
    return "\n".join([*report.failures, *lines])
