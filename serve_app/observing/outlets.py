"""What leaves a process for others to look at: traces and reports of failures, each where it is set, else nothing at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from config.settings import Settings, parse_otlp_headers
from serve_app.observing.spans import Span, Spans, Tracer

TRACES_PATH = "/v1/traces"


class Reports(Protocol):
    """Of exceptions that nobody foresaw."""

    def report(self, error: BaseException, where: Mapping[str, str | None] | None = None, *, flush: bool = False) -> None:
        """`where`: names of ours, such as the route. `flush`: wait until it is sent, because the process is about to end."""
        ...

    def close(self) -> None:
        """Sends what it still has, within a second or two."""
        ...


logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Outlets:
    """Of one process."""

    tracer: Tracer | None = None
    reports: Reports | None = None

    @contextmanager
    def serving(self, name: str, traces: Sequence[str]) -> Iterator[Spans]:
        """What a replica does for the callers whose traceparents `traces` are. An exception is reported on its way."""
        spans = self._spans(name, traces)
        try:
            yield spans
        except Exception as error:
            for span in spans:
                span.fail(type(error).__name__)
            self.report(error, method=name)
            raise
        finally:
            for span in spans:
                span.end()

    def _spans(self, name: str, traces: Sequence[str]) -> Spans:
        if self.tracer is None or not traces:
            return ()
        return tuple(span for span in (self.tracer.serve(name, one) for one in traces) if span is not None)

    def item(self) -> Span | None:
        """See Tracer.item."""
        return None if self.tracer is None else self.tracer.item()

    def report(self, error: BaseException, *, flush: bool = False, **where: str | None) -> None:
        """See Reports.report. Never raises: the answer that is being made of the error comes first."""
        if self.reports is None:
            return
        try:
            self.reports.report(error, where, flush=flush)
        except Exception:
            logger.exception("an error could not be reported")

    def close(self) -> None:
        """Waits for a second or two at most."""
        for one in (self.tracer, self.reports):
            if one is not None:
                one.close()


def open_outlets(settings: Settings, deployment: str, replica: str) -> Outlets:
    """`settings`: with secrets, of this process's own environment. Connects to nothing yet; imports only what is needed."""
    tracer: Tracer | None = None
    reports: Reports | None = None
    if settings.otel_exporter_otlp_endpoint is not None:
        from serve_app.observing.tracing import OtlpTracer

        secret = settings.otel_exporter_otlp_headers
        tracer = OtlpTracer(
            settings.otel_exporter_otlp_endpoint.rstrip("/") + TRACES_PATH,
            {} if secret is None else parse_otlp_headers(secret),
            settings.otel_traces_sampler,
            settings.otel_traces_sampler_arg,
            settings.otel_service_name,
            deployment,
            replica,
        )
    if settings.sentry_dsn is not None:
        from serve_app.observing.failures import SentryReports

        reports = SentryReports(settings.sentry_dsn.get_secret_value(), deployment, replica)
    return Outlets(tracer, reports)
