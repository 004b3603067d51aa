"""A collector of traces and of Sentry's envelopes, as a real HTTP server that reads what is sent to it."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

SERVER, CLIENT = 2, 3
"""Kinds of spans (opentelemetry.proto.trace.v1)."""


@dataclass(frozen=True, slots=True)
class SentSpan:
    """Times in seconds since the epoch. `failed`: its status is an error."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    started: float
    ended: float
    failed: bool
    attributes: dict[str, object]
    resource: dict[str, object]

    @property
    def seconds(self) -> float:
        return self.ended - self.started


@dataclass(eq=False)
class Collector:
    """`status`, `delay_s`: of its answers."""

    url: str = ""
    status: int = 200
    delay_s: float = 0.0
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    spans: list[SentSpan] = field(default_factory=list)
    events: list[dict[str, object]] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        return self.url.replace("http://", "http://publickey@") + "/7"

    def trace(self, trace_id: str) -> list[SentSpan]:
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.started)

    def whole(self, trace_id: str, parent_id: str, timeout_s: float = 60) -> list[SentSpan]:
        """A trace once all of it is here: the span below `parent_id`, which ends last, and of each call its other side.
        What is inside a span is sent before it; processes send whenever they will."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.trace(trace_id)
            answered = {span.parent_id for span in found if span.kind == SERVER}
            calls = {span.span_id for span in found if span.kind == CLIENT}
            if parent_id in answered and calls <= answered:
                return found
            assert time.monotonic() < deadline, [span.name for span in found]
            time.sleep(0.05)

    def keep(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        self.bodies.append(body)
        if path == "/v1/traces":
            self.spans.extend(_spans(body))
        elif path == "/api/7/envelope/":
            lines = body.split(b"\n")
            for header, item in zip(lines[1::2], lines[2::2], strict=False):
                if json.loads(header)["type"] == "event":
                    self.events.append(json.loads(item))
        else:
            raise AssertionError(f"nothing is to be sent to {path}")


def _spans(body: bytes) -> Iterator[SentSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield SentSpan(
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    span.kind,
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    span.status.code == Status.STATUS_CODE_ERROR,
                    _attributes(span.attributes),
                    _attributes(resource.resource.attributes),
                )


def _attributes(given: Iterator[KeyValue]) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in given}


@contextmanager
def collecting_server() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(collector.delay_s)
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if collector.status == 200:
                collector.keep(self.path, body, dict(self.headers))
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()


def text_of(span: SentSpan) -> str:
    """All that it says, for a look for what it must not."""
    return json.dumps([span.name, span.attributes, span.resource])
