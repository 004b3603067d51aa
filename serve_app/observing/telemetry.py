"""The metrics of one process. Labels are names of our own making and few: routes, codes, stages, kinds; never who or what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.samples import Sample

from serve_app.errors import KinlensError, Overloaded
from serve_app.jobs import JobKind
from serve_app.observing.outlets import Outlets
from serve_app.observing.recent import Recent, Slot
from serve_app.observing.stages import Stage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STAGE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_ITEM_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)

ALL_OF_IT = "ingress"
"""The part that refuses a request before any other part is asked."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, ready to travel: its samples are (name, labels, value)."""

    name: str
    kind: str
    help: str
    samples: list[tuple[str, dict[str, str], float]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process knows at one moment. `replica`: names the process among those of `deployment`."""

    deployment: str
    replica: str
    families: list[Family]
    slots: list[Slot]
    calls: dict[str, int]
    """Calls to model deployments that are under way or waiting there, by deployment."""


class Calls:
    """Calls to other deployments that this process waits for."""

    def __init__(self) -> None:
        self.under_way: dict[str, int] = {}

    def change(self, deployment: str, by: int) -> None:
        self.under_way[deployment] = self.under_way.get(deployment, 0) + by


class Telemetry:
    """The instruments of one process. Cheap: a request costs some ten microseconds of it."""

    def __init__(self, deployment: str = "Ingress", replica: str = "local", outlets: Outlets | None = None) -> None:
        self.deployment = deployment
        self.replica = replica
        self.outlets = outlets or Outlets()
        self.calls = Calls()
        self.recent = Recent()
        self.unanswered = 0
        """Requests that have begun and not ended, without streams that go on as long as somebody listens."""
        self._registry = CollectorRegistry()
        # Memory, CPU, open files and start of this process.
        ProcessCollector(registry=self._registry)
        self._requests = self._counter("kinlens_requests", "Requests answered", "method", "route", "status")
        self._request_s = self._histogram("kinlens_request_seconds", "Until the answer begins", _REQUEST_S, "method", "route")
        self._stage_s = self._histogram(
            "kinlens_stage_seconds", "Time of a request, or of an item of a job, in a stage", _STAGE_S, "stage"
        )
        self._problems = self._counter("kinlens_problems", "Errors answered, by their code", "code")
        self._refusals = self._counter("kinlens_refusals", "Requests refused for lack of room, by what was full", "part")
        self._items = self._counter("kinlens_job_items", "Items of jobs that were worked on", "kind", "outcome")
        self._item_s = self._histogram("kinlens_job_item_seconds", "Work on an item of a job", _ITEM_S, "kind")
        self._routes: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._by_stage: dict[Stage, Histogram] = {}
        self._gauges: dict[str, Gauge] = {}
        self._open = Gauge("kinlens_requests_in_progress", "Requests that have begun and not ended", registry=self._registry)
        self._under_way = Gauge(
            "kinlens_calls_in_progress",
            "Calls to a deployment that are under way or wait there",
            ["to"],
            registry=self._registry,
        )

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, labels, registry=self._registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, help_, labels, buckets=buckets, registry=self._registry)

    def gauge(self, name: str, help_: str, read: Callable[[], float], **labels: str) -> None:
        """One that is read when somebody asks. The same name once more, with the same keys of labels: another series."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, help_, sorted(labels), registry=self._registry)
        made = self._gauges[name]
        (made.labels(**labels) if labels else made).set_function(read)

    def begun(self) -> None:
        self._open.inc()

    def ended(
        self,
        method: str,
        route: str,
        status: int,
        until_answer_s: float,
        stages: Mapping[Stage, float],
        *,
        counts: bool = True,
    ) -> None:
        """`counts`: whether it stands among the recent ones, from which rates and percentiles are told."""
        self._open.dec()
        # Found once: a look-up by labels costs more than what is done then.
        found = self._routes.get((method, route, status))
        if found is None:
            found = self._requests.labels(method, route, str(status)), self._request_s.labels(method, route)
            self._routes[method, route, status] = found
        answered, seconds = found
        answered.inc()
        seconds.observe(until_answer_s)
        self._stages(stages)
        if counts:
            self.recent.add(status, until_answer_s, stages)

    def item(self, kind: JobKind, outcome: str, seconds: float, stages: Mapping[Stage, float]) -> None:
        """An item of a job was worked on; `outcome`: done, failed, put_off or withdrawn."""
        self._items.labels(kind.value, outcome).inc()
        self._item_s.labels(kind.value).observe(seconds)
        self._stages(stages)

    def _stages(self, stages: Mapping[Stage, float]) -> None:
        for which, seconds in stages.items():
            found = self._by_stage.get(which)
            if found is None:
                found = self._by_stage[which] = self._stage_s.labels(which.value)
            found.observe(seconds)

    def problem(self, error: KinlensError) -> None:
        self._problems.labels(error.code).inc()
        # A key over its limit says nothing of how full anything is: it is among the problems only.
        if isinstance(error, Overloaded):
            part = error.details.get("deployment") or error.details.get("part") or ALL_OF_IT
            self._refusals.labels(str(part)).inc()

    def snapshot(self) -> Snapshot:
        for deployment, count in self.calls.under_way.items():
            self._under_way.labels(deployment).set(count)
        families = [_family(metric) for metric in self._registry.collect()]
        return Snapshot(self.deployment, self.replica, families, self.recent.slots(), dict(self.calls.under_way))


def _family(metric: Metric) -> Family:
    samples = [(one.name, dict(one.labels), float(one.value)) for one in metric.samples if not one.name.endswith("_created")]
    return Family(metric.name, metric.type, metric.documentation, samples)


def state_family(name: str, help_: str, samples: list[tuple[dict[str, str], float]]) -> Family:
    """A gauge of the whole service, not of one process."""
    return Family(name, "gauge", help_, [(name, labels, value) for labels, value in samples])


def build_family(pack: str) -> Family:
    return state_family("kinlens_build_info", "Version and model pack", [({"version": version("kinlens"), "pack": pack}, 1.0)])


def exposition(snapshots: list[Snapshot], more: list[Family]) -> bytes:
    """The text that Prometheus reads: every process's own series, told apart by `deployment` and `replica`, so that a counter
    never goes back; and `more`, of the whole service."""
    metrics: dict[str, Metric] = {}

    def add(family: Family, labels: dict[str, str]) -> None:
        metric = metrics.setdefault(family.name, Metric(family.name, family.help, family.kind))
        for name, own, value in family.samples:
            metric.samples.append(Sample(name, {**labels, **own}, value))

    for one in snapshots:
        for family in one.families:
            add(family, {"deployment": one.deployment, "replica": one.replica})
    for family in more:
        add(family, {})
    return generate_latest(_Collected(list(metrics.values())))


class _Collected(CollectorRegistry):
    """Metrics that are there already."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)
