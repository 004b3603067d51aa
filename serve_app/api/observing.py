"""What is counted, timed and logged of each request. Never what is in it: no body, no query, no part of the path that a client
chose."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import KinlensError
from serve_app.observing.spans import Span
from serve_app.observing.stages import Stage, StageTimes, collecting
from serve_app.observing.telemetry import Telemetry

logger = logging.getLogger("ray.serve.requests")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNKNOWN = "(none)"
_ENDLESS = "/events"
"""The last part of routes whose answers go on as long as somebody listens."""
_QUIET = frozenset(
    {"/api/v1/health", "/api/v1/ready", "/api/health", "/api/v1/health/parts", "/api/v1/metrics", "/api/v1/system"}
)
"""Asked again and again by machines and by the page that shows the figures: they must not make the figures."""
_CLIENT_LEFT = 499
_MAX_TRACEPARENT = 256


class RequestObserver:
    """Stands outside of everything else. `log_from_s`: requests that took less are not logged, unless they failed."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, log_from_s: float) -> None:
        self._app = app
        self._telemetry = telemetry
        self._log_from_s = log_from_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Observed()
        tracer = self._telemetry.outlets.tracer
        if tracer is not None and _is_traced(scope["path"]):
            request.span = tracer.request(_traceparent(scope))

        async def receive_counted() -> Message:
            began = time.perf_counter()
            message = await receive()
            if message["type"] == "http.request":
                ended = time.perf_counter()
                times.add(Stage.RECEIVE, ended - began)
                request.received_bytes += len(message.get("body", b""))
                if request.span is not None:
                    request.receiving_from = request.receiving_from or began
                    if not message.get("more_body", False):
                        request.span.record(Stage.RECEIVE.value, ended - request.receiving_from)
            return message

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                request.answered_at = time.perf_counter()
            else:
                request.sent_bytes += len(message.get("body", b""))
                request.ended = request.ended or not message.get("more_body", False)
            await send(message)

        ends = not scope["path"].endswith(_ENDLESS)
        self._telemetry.begun()
        self._telemetry.unanswered += ends
        with collecting(*(() if request.span is None else (request.span,))) as times:
            try:
                await self._app(scope, receive_counted, send_counted)
            finally:
                self._telemetry.unanswered -= ends
                self._tell(scope, request, times)

    def _tell(self, scope: Scope, request: _Observed, times: StageTimes) -> None:
        now = time.perf_counter()
        until_answer_s = (request.answered_at or now) - request.started_at
        duration_s = now - request.started_at
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = route_template(scope)
        # A copy: what the request has left running goes on adding.
        stages = dict(times.seconds)
        counts = route not in _QUIET and not route.endswith(_ENDLESS) and not route.startswith("/assets/")
        state = scope.get("state", {})
        problem = state.get("problem")
        if isinstance(problem, KinlensError):
            self._telemetry.problem(problem)
        self._telemetry.ended(method, route, request.status, until_answer_s, stages, counts=counts)
        caller = state.get("caller")
        code = problem.code if isinstance(problem, KinlensError) else None
        if request.span is not None:
            request.span.annotate(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": request.status,
                    "kinlens.request_id": state.get("request_id"),
                    "kinlens.key_id": None if caller is None else str(caller.id),
                    "kinlens.code": code,
                    "kinlens.until_answer_ms": round(until_answer_s * 1000, 1),
                    "kinlens.received_bytes": request.received_bytes,
                    "kinlens.sent_bytes": request.sent_bytes,
                    "kinlens.complete": request.ended,
                }
            )
            if request.status >= 500:
                request.span.fail(code or str(request.status))
            request.span.end(f"{method} {route}")
        fine = request.status < 400 and route.startswith("/assets/")
        if fine or (duration_s < self._log_from_s and request.status < 500):
            return
        fields: dict[str, object] = {
            "event": "request",
            "request_id": state.get("request_id"),
            "trace_id": None if request.span is None else request.span.trace_id,
            "key_id": None if caller is None else caller.id,
            "method": method,
            "route": route,
            "status": request.status,
            "code": code,
            "duration_ms": round(duration_s * 1000, 1),
            "until_answer_ms": round(until_answer_s * 1000, 1),
            "received_bytes": request.received_bytes,
            "sent_bytes": request.sent_bytes,
            "complete": request.ended,
            "stages_ms": times.milliseconds(),
        }
        # `%s` of what is made only where the line is text.
        logger.info("%s", _Line(fields), extra={"fields": fields})


def _is_traced(path: str) -> bool:
    """Probes, scrapes, streams without an end and the page's own files would be most of all traces, and tell nothing."""
    return path not in _QUIET and not path.endswith(_ENDLESS) and not path.startswith("/assets/")


def _traceparent(scope: Scope) -> str | None:
    """W3C: of several, none counts."""
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return given[0].decode("latin-1") if len(given) == 1 and len(given[0]) <= _MAX_TRACEPARENT else None


class _Observed:
    __slots__ = (
        "answered_at",
        "ended",
        "received_bytes",
        "receiving_from",
        "sent_bytes",
        "span",
        "started_at",
        "status",
    )

    def __init__(self) -> None:
        self.started_at = time.perf_counter()
        self.answered_at: float | None = None
        self.status = _CLIENT_LEFT
        self.received_bytes = 0
        self.sent_bytes = 0
        self.ended = False
        self.span: Span | None = None
        self.receiving_from: float | None = None


class _Line:
    """The fields as one line of text."""

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._fields.items() if value not in (None, {}))


def route_template(scope: Scope) -> str:
    """As in the OpenAPI document: `/api/v1/photos/{photo_id}`. `(none)`: no route took it. Never what the client wrote."""
    route = scope.get("route")
    template = getattr(route, "path", None)
    if not isinstance(template, str):
        return _UNKNOWN
    # A route does not know the prefix of its router.
    for prefix in ("/api/v1", "/api"):
        if scope["path"].startswith(f"{prefix}/") and not template.startswith(prefix):
            return prefix + template
    return template
