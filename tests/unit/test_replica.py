"""What every replica does when it starts, with Serve's context of it given by the test."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from serve_app import replica
from serve_app.errors import ConfigurationError
from serve_app.observing import failures
from serve_app.observing.outlets import Outlets
from serve_app.observing.tracing import MAX_CHILDREN, OtlpTracer
from serve_app.replica import observed
from tests.collector import Collector, collecting_server


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    context = SimpleNamespace(deployment="Detection", replica_id=SimpleNamespace(unique_id="replica-1"))
    monkeypatch.setattr(replica, "_get_internal_replica_context", lambda: context)
    with collecting_server() as made:
        yield made


class Replica:
    outlets: Outlets

    @observed
    def __init__(self, model: str, *, threads: int = 1) -> None:
        """What it is."""
        assert isinstance(self.outlets, Outlets)
        if model == "missing":
            raise ConfigurationError(f"secret/{model} is not there")
        self.threads = threads


def test_a_replica_that_cannot_start_says_so_before_it_ends(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    monkeypatch.setenv("SENTRY_DSN", collector.dsn)
    # Two seconds may be over on a busy machine.
    monkeypatch.setattr(failures, "_FLUSH_S", 60.0)
    with pytest.raises(ConfigurationError, match="secret"):
        Replica("missing")
    (event,) = collector.events
    assert event["tags"] == {"deployment": "Detection", "replica": "replica-1", "method": "start"}
    assert b"secret" not in b"".join(collector.bodies)


def test_a_replica_that_starts_says_nothing(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    monkeypatch.setenv("SENTRY_DSN", collector.dsn)
    there = Replica("there", threads=3)
    assert there.threads == 3 and Replica.__init__.__doc__ == "What it is."
    there.outlets.close()
    assert collector.bodies == []
    monkeypatch.delenv("SENTRY_DSN")
    assert Replica("there").outlets == Outlets()


def test_calls_beyond_the_bound_of_a_trace_are_made_without_it(collector: Collector) -> None:
    tracer = OtlpTracer(f"{collector.url}/v1/traces", {}, "always_on", 1, "kinlens", "Ingress", "replica-1")
    span = tracer.request(None)
    assert span is not None
    calls = [span.call("Detection.detect") for _ in range(MAX_CHILDREN + 7)]
    assert calls[MAX_CHILDREN:] == [None] * 7
    for call in calls[:MAX_CHILDREN]:
        assert call is not None and call.trace_id == span.trace_id and call.header.split("-")[1] == span.trace_id
        call.end()
    span.end()
    tracer._provider.force_flush()
    tracer.close()
    (root,) = [one for one in collector.spans if not one.parent_id]
    assert len(collector.spans) == MAX_CHILDREN + 1 and root.attributes["kinlens.spans_left_out"] == 7
