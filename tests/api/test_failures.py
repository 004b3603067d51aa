"""What is reported of failures nobody foresaw, as a Sentry server gets it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from config.settings import Settings
from serve_app.api.app import create_api
from serve_app.errors import DatabaseUnavailable
from serve_app.observing import failures
from serve_app.observing.failures import MOST
from serve_app.observing.outlets import Outlets, open_outlets
from serve_app.observing.telemetry import Telemetry
from tests.api.conftest import KEY, FakeDetector, FakeEmbedder, image, make_services
from tests.collector import Collector, collecting_server


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting_server() as made:
        yield made


@pytest.fixture
def outlets(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outlets]:
    # Closing waits until all is sent; two seconds may be over on a busy machine.
    monkeypatch.setattr(failures, "_FLUSH_S", 60.0)
    made = open_outlets(Settings.model_validate({"sentry_dsn": collector.dsn}), "Ingress", "replica-1")
    yield made
    made.close()


class SecretiveDetector(FakeDetector):
    """Fails with what it must keep to itself in its text, in a variable, in its cause and in what it carries."""

    failure: Exception | None = None

    async def detect(self, image: bytes, options: object) -> object:  # type: ignore[override]
        embedding = ["secret-embedding", 0.25]
        try:
            raise FileNotFoundError(2, "secret-reason", "/photos/secret-anna.jpg")
        except FileNotFoundError as error:
            found = self.failure or ValueError(f"secret-anna {embedding}")
            found.add_note("secret-note")
            raise found from error


def client_of(outlets: Outlets, detector: FakeDetector) -> httpx.AsyncClient:
    services = make_services(detector, FakeEmbedder(), {})
    telemetry = Telemetry("Ingress", "replica-1", outlets)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(
            create_api(dataclasses.replace(services, telemetry=telemetry)), raise_app_exceptions=False
        ),
        base_url="http://test",
        headers={"Authorization": f"Bearer {KEY}"},
    )


async def test_a_500_is_reported_and_nothing_of_the_request_with_it(outlets: Outlets, collector: Collector) -> None:
    async with client_of(outlets, SecretiveDetector()) as client:
        answer = await client.post(
            "/api/v1/face/extract-embedding",
            files={"file": ("secret-anna.jpg", image(1))},
            headers={
                "X-Request-ID": "request-1",
                "Cookie": "a=secret-cookie",
                "User-Agent": "secret-agent",
                "X-Forwarded-For": "203.0.113.9",
            },
        )
    assert answer.status_code == 500 and "secret" not in answer.text
    await asyncio.to_thread(outlets.close)
    (event,) = collector.events
    tags = {
        "deployment": "Ingress",
        "replica": "replica-1",
        "request_id": "request-1",
        "route": "/api/v1/face/extract-embedding",
    }
    assert event["tags"] == tags and str(event["release"]).startswith("kinlens@")
    values = event["exception"]["values"]  # type: ignore[index]
    assert [one["type"] for one in values] == ["FileNotFoundError", "ValueError"]
    # Where in the code is told.
    frames = values[-1]["stacktrace"]["frames"]
    assert frames[-1]["function"] == "detect" and frames[-1]["lineno"] > 0 and "vars" not in json.dumps(event)
    assert any(frame["module"] == "serve_app.services.pipeline" for frame in frames)
    sent = b"".join(collector.bodies)
    for secret in (
        b"secret",
        b"anna",
        b"203.0.113.9",
        KEY.encode(),
        b"/photos",
        str(Path(__file__).parents[2]).lower().encode(),
        b"site-packages/..",
    ):
        assert secret not in sent.lower(), secret
    assert set(event) <= {
        "event_id", "timestamp", "release", "environment", "server_name", "exception", "tags", "level", "platform", "sdk",
        "_meta", "type",
    }, set(event)  # fmt: skip


async def test_what_is_foreseen_is_not_reported(outlets: Outlets, collector: Collector) -> None:
    detector = SecretiveDetector()
    detector.failure = DatabaseUnavailable("It is down.")
    async with client_of(outlets, detector) as client:
        assert (await client.post("/api/v1/face/extract-embedding", files={"file": image(1)})).status_code == 503
        assert (await client.get("/api/v1/none")).status_code == 404
    await asyncio.to_thread(outlets.close)
    assert collector.events == []


def test_a_storm_of_failures_is_not_one_of_reports(outlets: Outlets, collector: Collector) -> None:
    for _ in range(MOST + 50):
        outlets.report(RuntimeError("again"))
    outlets.close()
    assert len(collector.events) == MOST


@pytest.mark.parametrize("trouble", ["away", "slow", "full"])
def test_nobody_waits_for_a_server_of_sentry(collector: Collector, trouble: str) -> None:
    collector.delay_s, collector.status = (120.0 if trouble == "slow" else 0.0), (503 if trouble == "full" else 200)
    dsn = "http://key@127.0.0.1:9/7" if trouble == "away" else collector.dsn
    outlets = open_outlets(Settings.model_validate({"sentry_dsn": dsn}), "Ingress", "replica-1")
    began = time.perf_counter()
    for _ in range(MOST):
        outlets.report(RuntimeError("it"))
    assert time.perf_counter() - began < 30
    outlets.close()
    assert time.perf_counter() - began < 60


def test_a_replica_reports_what_its_model_raised(outlets: Outlets, collector: Collector) -> None:
    with pytest.raises(ValueError, match="secret"), outlets.serving("Detection.detect", ()):
        raise ValueError("secret")
    outlets.close()
    (event,) = collector.events
    assert event["tags"]["method"] == "Detection.detect"  # type: ignore[index]
    assert b"secret" not in b"".join(collector.bodies)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("otel_exporter_otlp_endpoint", "http://user:hidden@host:4318"), ("otel_exporter_otlp_endpoint", "host:4318"),
        ("otel_exporter_otlp_endpoint", "http://host:port"), ("otel_exporter_otlp_endpoint", "http://h/?key=hidden"),
        ("otel_exporter_otlp_headers", "hidden"), ("otel_exporter_otlp_headers", "a=b,hid den=c"), ("otel_exporter_otlp_headers", 'a=hidden"b'),
        ("otel_exporter_otlp_headers", "a=hidden%0d%0ab: c"), ("otel_exporter_otlp_protocol", "grpc"),
        ("otel_traces_sampler", "hidden"), ("otel_traces_sampler_arg", 2),
        ("sentry_dsn", "https://hidden@host/"), ("sentry_dsn", "hidden"), ("sentry_dsn", "https://host/7"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_stops_the_start_and_is_not_repeated(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        Settings.model_validate({name: value})
    assert "hidden" not in str(caught.value)
