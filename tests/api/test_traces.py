"""Traces of requests as a collector gets them, from the API around fakes of the models."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry import trace
from starlette.types import Message

from config.settings import Settings
from serve_app.api.app import create_api
from serve_app.observing.outlets import open_outlets
from serve_app.observing.stages import Stage, stage
from serve_app.observing.telemetry import Telemetry
from serve_app.observing.tracing import QUEUE_SIZE, OtlpTracer
from tests.api.conftest import KEY, FakeDetector, FakeEmbedder, image, make_services
from tests.collector import Collector, SentSpan, collecting_server, text_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = PARENT.split("-")[1]
SERVER, INTERNAL = 2, 1

MakeClient = Callable[..., httpx.AsyncClient]
Sent = Callable[[], Awaitable[list[SentSpan]]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting_server() as made:
        yield made


@pytest.fixture
async def opened() -> AsyncIterator[list[tuple[httpx.AsyncClient, Telemetry]]]:
    found: list[tuple[httpx.AsyncClient, Telemetry]] = []
    yield found
    for client, telemetry in found:
        await client.aclose()
        tracer = telemetry.outlets.tracer
        assert isinstance(tracer, OtlpTracer)
        # A collector that is away would be waited for.
        tracer._processor.span_exporter.shutdown()


@pytest.fixture
async def sent(opened: list[tuple[httpx.AsyncClient, Telemetry]], collector: Collector) -> Sent:
    """All that is sent: what waits to be sent goes at once."""

    async def close() -> list[SentSpan]:
        for _, telemetry in opened:
            tracer = telemetry.outlets.tracer
            assert isinstance(tracer, OtlpTracer)
            await asyncio.to_thread(tracer._provider.force_flush)
        return sorted(collector.spans, key=lambda span: span.started)

    return close


@pytest.fixture
def make_client(collector: Collector, opened: list[tuple[httpx.AsyncClient, Telemetry]]) -> MakeClient:
    """The API with `settings` in force, and a few routes of the tests' own."""

    def make(**settings: object) -> httpx.AsyncClient:
        configured = Settings.model_validate({"otel_exporter_otlp_endpoint": collector.url, **settings})
        telemetry = Telemetry("Ingress", "replica-1", open_outlets(configured, "Ingress", "replica-1"))
        services = make_services(FakeDetector(), FakeEmbedder(), dict(settings))
        api = create_api(dataclasses.replace(services, telemetry=telemetry))
        api.include_router(_routes())
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(api, raise_app_exceptions=False),
            base_url="http://test",
            headers={"Authorization": f"Bearer {KEY}"},
        )
        opened.append((client, telemetry))
        return client

    return make


def _routes() -> APIRouter:
    router = APIRouter()

    @router.get("/test/worked/{name}")
    async def worked(name: str) -> str:
        for which, seconds in ((Stage.CONNECT, 0.01), (Stage.DATABASE, 0.03)):
            with stage(which):
                await asyncio.sleep(seconds)
        return name

    @router.get("/test/busy/{count}")
    async def busy(count: int) -> int:
        for _ in range(count):
            with stage(Stage.OBJECTS):
                pass
        return count

    @router.get("/test/failed/{name}")
    async def failed(name: str) -> str:
        raise RuntimeError(f"{name} has no such file")

    return router


async def test_a_request_is_one_trace_with_a_child_for_every_stage(
    make_client: MakeClient, collector: Collector, sent: Sent
) -> None:
    client = make_client(otel_exporter_otlp_headers="authorization=Bearer%20of-the-collector", otel_service_name="faces")
    answer = await client.get("/test/worked/somebody?q=secret", headers={"traceparent": PARENT, "X-Request-ID": "one"})
    assert answer.status_code == 200
    spans = await sent()
    root = next(span for span in spans if span.kind == SERVER)
    assert root.name == "GET /test/worked/{name}" and root.parent_id == "b7ad6b7169203331" and not root.failed
    assert root.attributes["http.route"] == "/test/worked/{name}" and root.attributes["http.response.status_code"] == 200
    assert root.attributes["kinlens.request_id"] == "one"
    assert {span.name: (span.parent_id, span.kind) for span in spans if span is not root} == {
        "connect": (root.span_id, INTERNAL),
        "database": (root.span_id, INTERNAL),
    }
    stages = {span.name: span for span in spans}
    assert stages["database"].started >= stages["connect"].ended - 0.002
    assert 0.03 <= stages["database"].seconds < root.seconds
    assert root.resource["service.name"] == "faces" and root.resource["service.instance.id"] == "replica-1"
    assert root.resource["kinlens.deployment"] == "Ingress"
    assert collector.headers[0]["authorization"] == "Bearer of-the-collector"


async def test_a_picture_that_arrives_is_in_its_trace(make_client: MakeClient, collector: Collector, sent: Sent) -> None:
    answer = await make_client().post(
        "/api/v1/face/extract-embedding",
        files={"file": ("anna-mueller.jpg", image(2))},
        headers={"traceparent": PARENT, "tracestate": "vendor=anna", "baggage": "who=anna"},
    )
    assert answer.status_code == 200
    spans = await sent()
    (root,) = [span for span in spans if span.kind == SERVER]
    assert root.name == "POST /api/v1/face/extract-embedding" and root.attributes["kinlens.key_id"] == "bootstrap"
    assert [span.name for span in spans if span is not root] == ["receive"]
    told = b"".join(collector.bodies)
    assert b"anna" not in told and KEY.encode() not in told


async def test_nothing_of_what_a_client_says_is_in_a_trace(make_client: MakeClient, collector: Collector, sent: Sent) -> None:
    client = make_client()
    for path in ("/api/v1/secret/place?name=secret", "/test/failed/secret?query=secret", "/test/worked/secret"):
        await client.request(
            "GET", path, headers={"traceparent": PARENT, "User-Agent": "secret", "X-Request-ID": "not secret"}
        )
    await client.request("SECRET", "/test/worked/secret", headers={"traceparent": PARENT})
    spans = await sent()
    assert not [span for span in spans if "secret" in text_of(span).lower()]
    assert not [body for body in collector.bodies if b"secret" in body.lower()]
    allowed = {"http.request.method", "http.route", "http.response.status_code", "error.type"}
    assert {name for span in spans for name in span.attributes if not name.startswith("kinlens.")} <= allowed
    failed = next(span for span in spans if span.attributes.get("http.response.status_code") == 500)
    assert failed.failed and failed.attributes["error.type"] == failed.attributes["kinlens.code"] == "internal_error"


@pytest.mark.parametrize(
    "given", ["", "junk", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" + PARENT[2:], "x" * 300, "é" * 10]
)
async def test_a_traceparent_that_is_none_begins_a_trace(make_client: MakeClient, sent: Sent, given: str) -> None:
    answer = await make_client().get("/test/busy/0", headers=[(b"traceparent", given.encode("latin-1"))])
    assert answer.status_code == 200
    (root,) = await sent()
    assert root.parent_id == "" and int(root.trace_id, 16) and root.trace_id != TRACE_ID


@pytest.mark.parametrize(
    ("settings", "header", "traced"),
    [
        ({}, PARENT[:-2] + "00", False),
        ({"otel_traces_sampler": "always_on"}, PARENT[:-2] + "00", True),
        ({"otel_traces_sampler": "always_off"}, PARENT, False),
        ({"otel_traces_sampler": "parentbased_always_off"}, None, False),
        ({"otel_traces_sampler": "parentbased_always_off"}, PARENT, True),
        ({"otel_traces_sampler": "parentbased_traceidratio", "otel_traces_sampler_arg": 0}, None, False),
    ],
)
async def test_the_sampler_decides(
    make_client: MakeClient, sent: Sent, settings: dict[str, object], header: str | None, traced: bool
) -> None:
    client = make_client(**settings)
    await client.get("/test/worked/it", headers={} if header is None else {"traceparent": header})
    assert len(await sent()) == (3 if traced else 0)


async def test_probes_and_scrapes_are_not_traced(make_client: MakeClient, collector: Collector, sent: Sent) -> None:
    client = make_client()
    for path in ("/api/v1/health", "/api/v1/ready", "/api/v1/metrics", "/api/v1/system", "/assets/none.js"):
        await client.get(path)
    await client.get("/test/busy/0", headers={"traceparent": PARENT})
    assert [span.name for span in await sent()] == ["GET /test/busy/{count}"]


async def test_a_request_of_a_thousand_pieces_is_a_trace_of_bounded_size(make_client: MakeClient, sent: Sent) -> None:
    await make_client().get("/test/busy/1234", headers={"traceparent": PARENT})
    spans = await sent()
    (root,) = [span for span in spans if span.kind == SERVER]
    assert len(spans) == 501 and root.attributes["kinlens.spans_left_out"] == 734


@pytest.mark.parametrize("trouble", ["away", "slow", "full"])
async def test_no_request_waits_for_the_collector(make_client: MakeClient, collector: Collector, trouble: str) -> None:
    collector.delay_s, collector.status = (120.0 if trouble == "slow" else 0.0), (503 if trouble == "full" else 200)
    endpoint = {"otel_exporter_otlp_endpoint": "http://127.0.0.1:9"} if trouble == "away" else {}
    client = make_client(**endpoint)
    # The first of all builds the application.
    await client.get("/test/busy/0")
    slowest = 0.0
    for _ in range(QUEUE_SIZE // 100 + 10):
        began = time.perf_counter()
        assert (await client.get("/test/busy/100")).status_code == 200
        slowest = max(slowest, time.perf_counter() - began)
    # An export goes on for ten seconds in all three cases.
    assert slowest < 8
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport) and isinstance(transport.app, FastAPI)
    tracer = transport.app.state.services.telemetry.outlets.tracer
    assert len(tracer._processor._batch_processor._queue) <= QUEUE_SIZE
    began = time.perf_counter()
    await asyncio.to_thread(tracer.close)
    assert time.perf_counter() - began < 20


async def test_where_no_endpoint_is_set_nothing_is_imported_or_sent() -> None:
    code = (
        "import sys; from config.settings import Settings; from serve_app.observing.outlets import open_outlets, Outlets;"
        "import serve_app.api.app; from serve_app.observing.telemetry import Telemetry;"
        "assert open_outlets(Settings(_env_file=None), 'Ingress', 'r') == Outlets() == Telemetry().outlets;"
        "print([name for name in sys.modules if name.startswith(('sentry_sdk', 'opentelemetry.exporter', 'opentelemetry.sdk'))])"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out == b"[]\n"


async def test_fastapis_own_telemetry_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, make_client: MakeClient, sent: Sent, collector: Collector
) -> None:
    """It would begin when the server tells it that it starts."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    client = make_client()
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    told: asyncio.Queue[Message] = asyncio.Queue()
    answered: list[Message] = []
    started = asyncio.Event()

    async def answer(message: Message) -> None:
        answered.append(message)
        started.set()

    async def run() -> None:
        await transport.app({"type": "lifespan", "asgi": {"version": "3.0"}}, told.get, answer)

    running = asyncio.create_task(run())
    told.put_nowait({"type": "lifespan.startup"})
    await started.wait()
    await client.get("/test/worked/it", headers={"traceparent": PARENT})
    told.put_nowait({"type": "lifespan.shutdown"})
    await running
    assert [message["type"] for message in answered] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(await sent()) == 3
    assert trace.get_tracer_provider().__class__.__name__ == "ProxyTracerProvider"
