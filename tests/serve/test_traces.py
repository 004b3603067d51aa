"""One trace through all processes of the running service."""

from __future__ import annotations

import secrets
import time

from tests.collector import CLIENT, SERVER, Collector, SentSpan, text_of
from tests.data import package_image
from tests.serve.conftest import KEY, Served

CALLER = "00f067aa0ba902b7"


def traced(served: Served, collector: Collector, path: str, **form: str) -> tuple[list[SentSpan], float]:
    """The spans of a picture that is posted to `path`, and the seconds that the client waited."""
    trace_id = secrets.token_hex(16)
    with served.client() as client:
        client.get("/api/v1/health")
        began = time.perf_counter()
        answer = client.post(
            path,
            files={"file": ("anna-mueller.jpg", package_image("t1.jpg"))},
            data=form,
            headers={"traceparent": f"00-{trace_id}-{CALLER}-01"},
        )
        took_s = time.perf_counter() - began
    assert answer.status_code == 200, answer.text
    return collector.whole(trace_id, CALLER), took_s


def root_of(spans: list[SentSpan]) -> SentSpan:
    (root,) = [span for span in spans if span.parent_id == CALLER]
    return root


def told_s(spans: list[SentSpan]) -> float:
    """What the ingress spent in calls and receiving."""
    return sum(span.seconds for span in spans if span.kind == CLIENT or span.name == "receive")


def test_a_slow_request_is_explained_by_its_trace(served: Served, collector: Collector) -> None:
    # On a busy machine the ingress may have to wait for its turn, too, which no span tells: not each of three times.
    found = [traced(served, collector, "/api/v1/face/extract-embedding") for _ in range(3)]
    spans, took_s = max(found, key=lambda one: told_s(one[0]) / root_of(one[0]).seconds)
    by_id = {span.span_id: span for span in spans}
    root = root_of(spans)
    assert root.name == "POST /api/v1/face/extract-embedding" and root.attributes["http.response.status_code"] == 200
    # In milliseconds, rounded. The span may end after the client has all of it.
    assert root.attributes["kinlens.until_answer_ms"] <= took_s * 1000 + 0.1  # type: ignore[operator]

    def chain(span: SentSpan) -> list[str]:
        """From the request down to it, each with the deployment that it happened in."""
        above = chain(by_id[span.parent_id]) if span is not root else []
        return [*above, f"{span.resource['kinlens.deployment']}:{span.name}"]

    request = "Ingress:POST /api/v1/face/extract-embedding"
    chains = {"/".join(chain(span)[1:]) for span in spans if span is not root}
    assert {chain(span)[0] for span in spans} == {request}
    detect, embed = "Ingress:Detection.detect/Detection:Detection.detect", "Ingress:Embedding.embed/Embedding:Embedding.embed"
    for expected in ("Ingress:receive", f"{detect}/Detection:queue", f"{detect}/Detection:decode", f"{detect}/Detection:detect",
                     f"{detect}/Detection:align", f"{embed}/Embedding:queue", f"{embed}/Embedding:embed"):  # fmt: skip
        assert expected in chains
    # Each replica has its own name, and says whom it shared the model with.
    served_by = [span for span in spans if span.kind == SERVER and span is not root]
    assert len({span.resource["service.instance.id"] for span in [root, *served_by]}) == 3
    assert all(span.attributes["kinlens.batch.items"] == 1 for span in served_by)
    assert all(span.attributes["kinlens.batch.weight"] >= 1 for span in served_by)  # type: ignore[operator]
    # Nothing is missing: what the trace does not tell is the ingress itself, and the way.
    assert 0.5 * root.seconds < told_s(spans) <= root.seconds * 1.02
    for span in spans:
        above = by_id.get(span.parent_id)
        if above is not None:
            assert span.started >= above.started - 0.005 and span.ended <= above.ended + 0.005, (span.name, above.name)
    assert not [span for span in spans if "anna" in text_of(span) or KEY in text_of(span)]


def test_the_faces_of_several_requests_share_a_call_and_each_tells_it(served: Served, collector: Collector) -> None:
    spans, _ = traced(served, collector, "/api/v1/face/analyze-face-advanced")
    (called,) = [span for span in spans if span.name == "Analysis.analyze" and span.kind == CLIENT]
    (there,) = [span for span in spans if span.name == "Analysis.analyze" and span.kind == SERVER]
    assert there.parent_id == called.span_id and there.resource["kinlens.deployment"] == "Analysis"
    assert "analyze" in [span.name for span in spans if span.parent_id == there.span_id]


def test_the_secret_of_the_collector_is_in_no_log(served: Served, collector: Collector) -> None:
    traced(served, collector, "/api/v1/face/extract-embedding")
    assert any(one.get("authorization") == "Bearer of-the-collector" for one in collector.headers)
    assert "of-the-collector" not in served.output.read_text()
