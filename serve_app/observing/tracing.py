"""Traces through OpenTelemetry's SDK, sent by OTLP over HTTP. Imported only where an endpoint is set.

The provider is ours alone and not the process's: whatever else in this process knows OpenTelemetry (Ray, FastAPI) does not
send through it what we would not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.observing.spans import AttributeValue

MAX_CHILDREN = 500
"""Of one span in this process. A batch of 256 pictures would make more; the rest is counted."""
QUEUE_SIZE = 2048
"""Finished spans that wait to be sent, a process; about 1 kB each. What is more is dropped, the oldest first."""
_BATCH_SIZE = 512
_DELAY_MS = 2000.0
_TIMEOUT_S = 10.0
"""Of one batch, with all that is tried again."""
_CLOSE_MS = 2000
_LEFT_OUT = "kinlens.spans_left_out"


class OtlpTracer:
    """`endpoint`: with its path, `.../v1/traces`. `headers`: for the collector; secret."""

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        sampler: str,
        sampler_arg: float,
        service: str,
        deployment: str,
        replica: str,
    ) -> None:
        resource = Resource.create(
            {
                "service.name": service,
                "service.version": version("kinlens"),
                "service.instance.id": replica,
                "kinlens.deployment": deployment,
            }
        )
        self._provider = TracerProvider(sampler=_sampler(sampler, sampler_arg), resource=resource, shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, headers=dict(headers), timeout=_TIMEOUT_S),
            max_queue_size=QUEUE_SIZE,
            schedule_delay_millis=_DELAY_MS,
            max_export_batch_size=_BATCH_SIZE,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("kinlens")

    def request(self, traceparent: str | None) -> OtlpSpan | None:
        return self._begin("request", traceparent, SpanKind.SERVER)

    def item(self) -> OtlpSpan | None:
        return self._begin("item", None, SpanKind.CONSUMER)

    def serve(self, name: str, traceparent: str) -> OtlpSpan | None:
        return self._begin(name, traceparent, SpanKind.SERVER)

    def _begin(self, name: str, traceparent: str | None, kind: SpanKind) -> OtlpSpan | None:
        # Only this header: `tracestate` and `baggage` are text of the client's, which would be sent along.
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        context = TraceContextTextMapPropagator().extract(carrier)
        span = self._tracer.start_span(name, context=context, kind=kind)
        return OtlpSpan(self._tracer, span) if span.is_recording() else None

    def close(self) -> None:
        # Not the processor's own way, which waits for half a minute where nobody answers.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_MS / 1000)


class OtlpSpan:
    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span)
        self._children = 0

    @property
    def header(self) -> str:
        own = self._span.get_span_context()
        return f"00-{format_trace_id(own.trace_id)}-{format_span_id(own.span_id)}-01"

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def record(self, name: str, seconds: float) -> None:
        self._children += 1
        if self._children > MAX_CHILDREN:
            return
        now_ns = time.time_ns()
        child = self._tracer.start_span(name, context=self._context, start_time=now_ns - int(seconds * 1e9))
        child.end(now_ns)

    def call(self, name: str) -> OtlpSpan | None:
        self._children += 1
        if self._children > MAX_CHILDREN:
            return None
        return OtlpSpan(self._tracer, self._tracer.start_span(name, context=self._context, kind=SpanKind.CLIENT))

    def annotate(self, attributes: Mapping[str, AttributeValue | None]) -> None:
        self._span.set_attributes({key: value for key, value in attributes.items() if value is not None})

    def end(self, name: str | None = None) -> None:
        if name is not None:
            self._span.update_name(name)
        if self._children > MAX_CHILDREN:
            self._span.set_attribute(_LEFT_OUT, self._children - MAX_CHILDREN)
        self._span.end()

    def fail(self, reason: str) -> None:
        # Never the exception itself: its text may name files.
        self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attribute("error.type", reason)


def _sampler(name: str, arg: float) -> Sampler:
    """By the names of the specification."""
    inner = {"always_on": ALWAYS_ON, "always_off": ALWAYS_OFF, "traceidratio": TraceIdRatioBased(arg)}
    sampler: Sampler = inner[name.removeprefix("parentbased_")]
    return ParentBased(sampler) if name.startswith("parentbased_") else sampler
