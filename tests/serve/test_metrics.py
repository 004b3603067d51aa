"""What the running service tells of itself: every metric that is documented, and log lines that explain a request."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serve_app.observing.stages import Stage
from tests.data import package_image
from tests.serve.conftest import KEY, Served

ROOT = Path(__file__).resolve().parents[2]
Samples = dict[str, list[tuple[dict[str, str], float]]]


def scraped(served: Served, **query: str) -> Samples:
    with served.client() as client:
        answer = client.get("/api/v1/metrics", params=query)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def whole(served: Served) -> Samples:
    """Of all processes. On a busy machine one of them, Serve's controller or the database may not answer in time: then once
    more."""
    deadline = time.monotonic() + 120
    while True:
        found = scraped(served)
        told = {"kinlens_replicas", "kinlens_jobs_waiting", "kinlens_stored"} <= set(found)
        if told and value(found, "kinlens_replicas_silent") == 0:
            return found
        assert time.monotonic() < deadline, "somebody is silent all the time"
        time.sleep(0.5)


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all processes."""
    return sum(one for own, one in samples.get(name, []) if labels.items() <= own.items())


def documented() -> set[str]:
    section = (ROOT / "docs/operations.md").read_text(encoding="utf-8").partition("\n## Metrics\n")[2].partition("\n## ")[0]
    names = set()
    for line in section.splitlines():
        if line.startswith("| `"):
            cell = line.split("|")[1]
            suffix = "_count" if "histogram" in cell else ""
            names |= {name + suffix for name in re.findall(r"`([a-z_]+)`", cell)}
    assert len(names) > 20
    return names


def gcs_command(served: Served) -> list[str]:
    for process in psutil.Process(served.pid).children(recursive=True):
        # Others come and go, such as those of Postgres.
        with suppress(psutil.NoSuchProcess):
            if process.name() == "gcs_server":
                return process.cmdline()
    raise AssertionError("there is no gcs_server")


def log_lines(served: Served, request_id: str) -> list[dict[str, object]]:
    """Of the replica's log; it may take a moment to be there."""
    (folder,) = {argument.partition("=")[2] for argument in gcs_command(served) if argument.startswith("--log_dir=")}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        lines = [
            line
            for path in (Path(folder) / "serve").glob("replica_kinlens_Ingress_*.log")
            for line in path.read_text(encoding="utf-8").splitlines()
            if request_id in line
        ]
        if lines:
            return [json.loads(line) for line in lines]
        time.sleep(0.1)
    raise AssertionError("nothing was logged")


def test_every_documented_metric_is_told_and_counts_what_happened(served: Served) -> None:
    before = whole(served)
    with served.client() as client:
        for _ in range(3):
            image = package_image("t1.jpg")
            assert client.post("/api/v1/face/extract-embedding", files={"file": image}).status_code == 200
        assert client.get("/api/v1/no/such/place").status_code == 404
        posted = client.post("/api/v1/photos/upload", files={"files": ("metrics.jpg", image + b"metrics")})
        assert posted.json()["results"][0]["status"] == "created"
        deadline = time.monotonic() + 60
        while value(scraped(served), "kinlens_job_items_total", kind="faces", outcome="done") <= value(
            before, "kinlens_job_items_total", kind="faces", outcome="done"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    after = whole(served)
    # A refusal cannot be brought about with one client; the name is told all the same.
    told = set(after) | {family.name for family in families(served)}
    assert {name for name in documented() if name not in told and name.removesuffix("_total") not in told} == set()
    route = "/api/v1/face/extract-embedding"

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("kinlens_requests_total", route=route, status="200", method="POST", deployment="Ingress") == 3
    assert grown("kinlens_request_seconds_count", route=route) == 3
    assert grown("kinlens_requests_total", route="(none)", status="404") == 1
    assert grown("kinlens_problems_total", code="not_found") == 1
    for which in (Stage.RECEIVE, Stage.TRANSPORT, Stage.QUEUE, Stage.DECODE, Stage.DETECT, Stage.ALIGN, Stage.EMBED):
        assert grown("kinlens_stage_seconds_count", stage=which.value, deployment="Ingress") >= 3, which
    for which in (Stage.DETECT, Stage.EMBED, Stage.DATABASE, Stage.OBJECTS):
        assert grown("kinlens_stage_seconds_sum", stage=which.value, deployment="Indexing") > 0, which
    assert value(after, "kinlens_replicas", of="Detection", state="running") == 2
    assert value(after, "kinlens_part_up", part="database") == 1


def families(served: Served) -> list[Metric]:
    with served.client() as client:
        return list(text_string_to_metric_families(client.get("/api/v1/metrics").text))


def test_what_serve_counts_comes_along_when_asked_for(served: Served) -> None:
    deadline = time.monotonic() + 120
    # Ray's agent hears of it every ten seconds.
    while value(found := scraped(served, ray="true"), "ray_serve_deployment_replica_healthy", deployment="Ingress") < 1:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert "kinlens_requests_total" in found
    assert not [name for name in scraped(served) if name.startswith("ray_")]


def test_no_label_says_who(served: Served) -> None:
    """What clients choose is in no label: neither ids, nor names, nor what stood in a path."""
    with served.client() as client:
        client.get("/api/v1/collections/secret-collection/persons/01a2031d-0000-7000-8000-000000000000")
        client.get("/api/v1/photos", params={"tag": "secret-tag"})
        client.request("SECRET", "/api/v1/photos")
        text = client.get("/api/v1/metrics", params={"ray": "true"}).text
    assert "secret" not in text.lower().replace("/secret", "") and "01a2031d" not in text and KEY not in text


def test_a_request_is_explained_by_its_log_line(served: Served) -> None:
    shares = []
    with served.client() as client:
        # On a busy machine the ingress may have to wait for its turn, too: not each of five times.
        for _ in range(5):
            request_id = f"explained-{time.time_ns()}"
            began = time.perf_counter()
            answer = client.post(
                "/api/v1/face/extract-embedding",
                files={"file": ("portrait-of-somebody.jpg", package_image("t1.jpg"))},
                headers={"X-Request-ID": request_id},
            )
            took_ms = (time.perf_counter() - began) * 1000
            assert answer.status_code == 200
            shares.append(told_share(served, request_id, took_ms))
    print(f"shares of the time that the stages tell: {[round(share, 2) for share in shares]}")
    # One picture: one thing after the other. What the stages do not tell is the ingress itself.
    assert max(shares) > 0.6 and max(shares) <= 1.02


def told_share(served: Served, request_id: str, took_ms: float) -> float:
    """Of the time of the request, what its line tells by stages."""
    (line,) = log_lines(served, request_id)
    assert line["event"] == "request" and line["route"] == "/api/v1/face/extract-embedding" and line["status"] == 200
    assert line["method"] == "POST" and line["key_id"] == "bootstrap" and line["complete"] is True
    stages, duration_ms, until_answer_ms = line["stages_ms"], line["duration_ms"], line["until_answer_ms"]
    assert isinstance(stages, dict) and isinstance(duration_ms, float) and isinstance(until_answer_ms, float)
    assert set(stages) >= {"receive", "transport", "queue", "decode", "detect", "align", "embed"}
    # Rounded to a tenth. The end may come after the client has all of it.
    assert until_answer_ms <= took_ms + 0.1 and until_answer_ms <= duration_ms
    text = json.dumps(line)
    assert "portrait" not in text and KEY not in text
    return float(sum(stages.values())) / duration_ms


def test_a_failed_request_says_which_error(served: Served) -> None:
    request_id = f"failed-{time.time_ns()}"
    with served.client() as client:
        client.post(
            "/api/v1/face/extract-embedding", files={"file": b"\xff\xd8\xff none"}, headers={"X-Request-ID": request_id}
        )
    (line,) = [one for one in log_lines(served, request_id) if one.get("event") == "request"]
    assert line["status"] == 422 and line["code"] == "invalid_image"


def test_the_system_is_told_as_a_whole(served: Served) -> None:
    with served.client() as client:
        deadline = time.monotonic() + 60
        # Null while Serve's controller is busy, and a busy replica may be silent.
        while not (found := client.get("/api/v1/system").json())["deployments"] or found["requests"]["replicas_silent"]:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        replicas = {one["name"]: one["replicas"] for one in found["deployments"]}
        assert replicas == {"Analysis": replicas["Analysis"], "Detection": 2, "Embedding": 2, "Indexing": 1, "Ingress": 1}
        assert found["requests"]["replicas_answered"] == 1
        assert found["requests"]["lately"]["requests"] >= 1 and found["requests"]["lately"]["p95_ms"] > 0
        assert found["database"]["state"] == "ok" and found["object_store"]["kind"] == "folder"
        assert client.get("/api/v1/system", headers={"Authorization": "Bearer wrong-key-0123456789"}).status_code == 401
        assert client.get("/api/v1/metrics", headers={"Authorization": ""}).status_code == 401
