"""The dashboard and the alert rules ask only for what the service tells: every metric, label and value in their expressions is
looked up in what a process really registers."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from serve_app.api import health
from serve_app.api.app import create_api
from serve_app.api.deps import FORMER_PREFIX
from serve_app.api.system import open_system
from serve_app.errors import Overloaded, error_classes
from serve_app.jobs import JobKind
from serve_app.observing.stages import Stage
from serve_app.observing.telemetry import build_family, exposition
from serve_app.services import worker
from serve_app.services.health import Health
from serve_app.services.system import DeploymentState, Disk, Snapshots, _missing, _states
from serve_app.storage.usage import Usage
from tests.api.conftest import FakeDetector, FakeEmbedder, make_services

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "docs/grafana/kinlens.json"
ALERTS = ROOT / "docs/grafana/alerts.yaml"
RUNBOOK = "docs/operations.md"

SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds to every series."""
FUNCTIONS = {
    "absent", "avg", "count", "deriv", "histogram_quantile", "increase", "label_values", "max", "max_over_time", "min",
    "min_over_time", "rate", "sum", "time", "vector",
}  # fmt: skip
"""Of PromQL; label_values is Grafana's."""
WITH_TELEMETRY = {"Ingress", "Indexing"}
"""Deployments whose replicas are asked for their metrics."""
OPERATORS = {"and", "or", "unless", "bool"}
OF_COUNTERS = {"rate", "increase"}

STRING = r'"(?:\\.|[^"\\])*"'
SELECTOR = re.compile(rf"(?P<name>[a-zA-Z_:][\w:]*)\s*\{{(?P<matchers>(?:[^\"{{}}]|{STRING})*)\}}")
MATCHER = re.compile(rf"\s*(?P<label>[a-zA-Z_]\w*)\s*(?P<how>=~|!~|!=|=)\s*(?P<value>{STRING})\s*(?:,|$)")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
WORD = re.compile(r"[a-zA-Z_:][\w:]*")


@dataclass
class Told:
    """One name of a sample: the values of its labels, and whether it only grows."""

    grows: bool
    labels: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What an expression names. `grouped`: labels in by, on, ignoring and the like."""

    selectors: list[tuple[str, list[tuple[str, str, str]]]]
    grouped: set[str]
    functions: set[str]


@pytest.fixture(scope="module")
def told() -> dict[str, Told]:
    """Of a process that has met every route, stage, kind and error, and of the service around it."""
    services = make_services(FakeDetector(), FakeEmbedder(), {})
    telemetry = services.telemetry
    open_system(services)
    deployments = [one["name"] for one in _yaml(ROOT / "serve_config.yaml")["applications"][0]["deployments"]]
    statuses = {200, 404, 429} | {one.status for one in error_classes()}
    for route in {"(none)", *_paths(create_api(services))}:
        for status in statuses:
            telemetry.begun()
            telemetry.ended("GET", route, status, 0.1, dict.fromkeys(Stage, 0.1))
    for kind in JobKind:
        for outcome in re.findall(r'\boutcome = (?:.*, )?"(\w+)"', inspect.getsource(worker)):
            telemetry.item(kind, outcome, 0.1, {})
    for error in error_classes():
        telemetry.problem(error("x"))
    for name in deployments:
        telemetry.calls.change(name, 1)
        telemetry.problem(Overloaded("x", deployment=name))
    whole = [
        build_family("fake"),
        _missing(Snapshots([], 0)),
        *_states(
            [DeploymentState(name, "healthy", 1, 0, 0, 1) for name in deployments],
            Health("ok", "ok", "ok", "ok", {}),
            Usage(1, 1, 1, 1, 1, 1, False),
            Disk(1, 2),
        ),
    ]
    found: dict[str, Told] = {}
    for family in text_string_to_metric_families(exposition([telemetry.snapshot()], whole).decode()):
        assert family.samples, f"{family.name} has no sample here, so that its labels are not known"
        for sample in family.samples:
            one = found.setdefault(sample.name, Told(family.type in ("counter", "histogram")))
            for label, value in sample.labels.items():
                one.labels.setdefault(label, set()).add(value)
    assert set(deployments) >= WITH_TELEMETRY
    for one in found.values():
        if "deployment" in one.labels:
            one.labels["deployment"] = WITH_TELEMETRY
    # Prometheus' own: whether a scrape succeeded.
    return {**found, "up": Told(False)}


def _paths(api: FastAPI) -> set[str]:
    """Of the routes, as metrics name them. The former application's photo routes, which repeat ours, are not among them."""
    former = {FORMER_PREFIX + route.path for route in health.former_router.routes if isinstance(route, Route)}
    return former | set(api.openapi()["paths"]) | {route.path for route in api.routes if isinstance(route, Route)}


def _yaml(path: Path) -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    found: dict[str, list[dict[str, list[dict[str, str]]]]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def asked(expression: str) -> Asked:
    """By looking for names, not by a grammar. Raises ValueError for what it does not understand."""
    selectors: list[tuple[str, list[tuple[str, str, str]]]] = []

    def take(found: re.Match[str]) -> str:
        matchers = found["matchers"]
        parts = list(MATCHER.finditer(matchers))
        if "".join(part[0] for part in parts) != matchers:
            raise ValueError(f"not understood: {found[0]}")
        selectors.append(
            (found["name"], [(part["label"], part["how"], part["value"][1:-1].replace("\\\\", "\\")) for part in parts])
        )
        return " "

    rest = SELECTOR.sub(take, expression)
    grouped = {label.strip() for labels in GROUPING.findall(rest) for label in labels.split(",") if label.strip()}
    rest = GROUPING.sub(" ", rest)
    # Durations: [5m], offset 1h, $__rate_interval.
    rest = re.sub(r"\[[^\[\]]*\]|\boffset\s+\w+", " ", rest)
    functions = set()
    for word in WORD.finditer(rest):
        if rest[word.end() :].lstrip().startswith("("):
            if word[0] not in OPERATORS:
                functions.add(word[0])
        elif word[0] not in OPERATORS | FUNCTIONS:
            selectors.append((word[0], []))
        elif word[0] in FUNCTIONS:
            functions.add(word[0])
    left = WORD.sub("", rest)
    if set(left) - set(" \n()+-*/<>=!,.0123456789") or left.count("(") != left.count(")"):
        raise ValueError(f"not understood: {left!r}")
    return Asked(selectors, grouped, functions)


def alternatives(pattern: str) -> list[str]:
    """Of a regular expression without groups."""
    if "(" in pattern:
        raise ValueError(f"write it without groups: {pattern}")
    return pattern.split("|")


def faults(expression: str, told: dict[str, Told]) -> list[str]:
    """What the expression asks for and the service does not tell."""
    try:
        wanted = asked(expression)
    except ValueError as error:
        return [str(error)]
    found = [f"no function {name}" for name in wanted.functions - FUNCTIONS]
    if not wanted.selectors:
        found.append("no metric")
    labels = set(SCRAPE)
    for name, matchers in wanted.selectors:
        if name not in told:
            found.append(f"no metric {name}")
            continue
        labels |= set(told[name].labels)
        for label, how, value in matchers:
            if label in SCRAPE or value.startswith("$"):
                if label not in SCRAPE | set(told[name].labels):
                    found.append(f"{name} has no label {label}")
            elif label not in told[name].labels:
                found.append(f"{name} has no label {label}")
            elif how in ("=", "!="):
                if value not in told[name].labels[label]:
                    found.append(f"{label} of {name} is never {value}")
            else:
                found += [
                    f"{label} of {name} never matches {one}"
                    for one in alternatives(value)
                    if not any(re.fullmatch(one, known) for known in told[name].labels[label])
                ]
    found += [f"nothing here has a label {label}" for label in wanted.grouped - labels]
    for function, name in re.findall(r"\b(\w+)\s*\(\s*([a-z_]\w*)\s*[{\[]", expression):
        if name in told and function in OF_COUNTERS and not told[name].grows:
            found.append(f"{function} of {name}, which is no counter")
        if name in told and function == "deriv" and told[name].grows:
            found.append(f"{function} of {name}, which is a counter")
    of_buckets = "le" in wanted.grouped and any(name.endswith("_bucket") for name, _ in wanted.selectors)
    if "histogram_quantile" in wanted.functions and not of_buckets:
        found.append("a quantile needs buckets, kept apart by le")
    return found


def left_over(expression: str, told: dict[str, Told]) -> set[str]:
    """Labels that what comes out may have, at most."""
    wanted = asked(expression)
    kept = re.findall(r"\bby\s*\(([^()]*)\)", expression)
    if kept:
        return {label.strip() for labels in kept for label in labels.split(",")} - {"le"}
    if {"sum", "max", "min", "avg", "count"} & wanted.functions:
        return set()
    return SCRAPE.union(*(told[name].labels for name, _ in wanted.selectors))


class Panel:
    def __init__(self, values: dict[str, object]) -> None:
        self.values = values
        self.title = str(values["title"])
        self.kind = str(values["type"])

    def targets(self) -> list[dict[str, object]]:
        found = self.values.get("targets", [])
        assert isinstance(found, list)
        return found

    def place(self) -> dict[str, int]:
        found = self.values["gridPos"]
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def board() -> dict[str, object]:
    found: dict[str, object] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def panels(board: dict[str, object]) -> list[Panel]:
    found = board["panels"]
    assert isinstance(found, list)
    return [Panel(one) for one in found]


def _rules() -> list[dict[str, object]]:
    document: dict[str, list[dict[str, list[dict[str, object]]]]] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    assert set(document) == {"groups"}
    found = []
    for group in document["groups"]:
        assert set(group) == {"name", "rules"}
        found += group["rules"]
    return found


def _texts(rule: dict[str, object], key: str) -> dict[str, str]:
    found = rule[key]
    assert isinstance(found, dict) and all(isinstance(one, str) for one in found.values())
    return found


def slugs(text: str) -> list[str]:
    """Anchors of the headings, as a forge makes them."""
    return [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    ]


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(kinlens_request_total[5m]))", "no metric kinlens_request_total"),
        ("kinlens_requests_in_progres", "no metric kinlens_requests_in_progres"),
        ('kinlens_part_up{name="database"}', "kinlens_part_up has no label name"),
        ('kinlens_part_up{name="$job"}', "kinlens_part_up has no label name"),
        ('kinlens_part_up{part="databse"}', "part of kinlens_part_up is never databse"),
        ('kinlens_problems_total{code=~"overloaded|full"}', "code of kinlens_problems_total never matches full"),
        ('kinlens_requests_total{route!~"/api/v1/helth"}', "route of kinlens_requests_total never matches /api/v1/helth"),
        ("sum by (rout) (kinlens_requests_total)", "nothing here has a label rout"),
        ("rate(kinlens_jobs_waiting[5m])", "rate of kinlens_jobs_waiting, which is no counter"),
        ("deriv(kinlens_requests_total[5m])", "deriv of kinlens_requests_total, which is a counter"),
        ("histogram_quantil(0.9, kinlens_request_seconds_bucket)", "no function histogram_quantil"),
        (
            "histogram_quantile(0.9, sum by (route) (rate(kinlens_request_seconds_bucket[5m])))",
            "a quantile needs buckets, kept apart by le",
        ),
        ('kinlens_part_up{part="x}', "not understood: "),
        ("sum(kinlens_part_up", "not understood: "),
        ("vector(1)", "no metric"),
    ],
)
def test_what_is_not_told_is_found(told: dict[str, Told], expression: str, fault: str) -> None:
    assert [one for one in faults(expression, told) if one.startswith(fault)]


def test_names_in_texts_and_odd_characters_are_read_rightly(told: dict[str, Told]) -> None:
    found = asked('a{x="} or b{", y=~"\\\\d(c)"} / ignoring (y, z) d > 5 and sum by (x) (e offset 1h) unless rate(f[5m])')
    assert found.selectors == [("a", [("x", "=", "} or b{"), ("y", "=~", "\\d(c)")]), ("d", []), ("e", []), ("f", [])]
    assert found.grouped == {"x", "y", "z"} and found.functions == {"sum", "rate"}
    assert faults('sum by (job, part) (kinlens_part_up{job="$job"} == 0) or vector(0)', told) == []


def test_the_dashboard_asks_for_what_is_told(panels: list[Panel], told: dict[str, Told]) -> None:
    wrong, asked_for = [], set()
    for panel in panels:
        for target in panel.targets():
            expression = str(target["expr"])
            wrong += [f"{panel.title}: {one}" for one in faults(expression, told)]
            asked_for |= {name for name, _ in asked(expression).selectors}
            unknown = set(re.findall(r"{{(\w+)}}", str(target["legendFormat"]))) - left_over(expression, told)
            wrong += [f"{panel.title}: its legend names {one}" for one in sorted(unknown)]
    assert wrong == []
    # And tells all that Kinlens counts, but for the rest of a histogram.
    ours = {name for name in told if name.startswith("kinlens_") and not name.endswith(("_bucket", "_sum", "_count"))}
    assert ours - asked_for == set()


def test_the_dashboard_can_be_imported(board: dict[str, object], panels: list[Panel], told: dict[str, Told]) -> None:
    assert board["schemaVersion"] == 42 and board["uid"] == "kinlens" and "__inputs" not in board and "id" not in board
    templating = board["templating"]
    assert isinstance(templating, dict)
    variables = {one["name"]: one for one in templating["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    for variable in variables.values():
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert match and variable["query"]["query"] == variable["definition"]
            assert faults(match[1], told) == []
            assert match[2] in SCRAPE | set(told[asked(match[1]).selectors[0][0]].labels)
    text = json.dumps(board)
    own = {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", text)) - own == set(variables)
    sources = {json.dumps(one) for panel in panels if panel.kind != "row" for one in _sources(panel)}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    ids = [panel.values["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel.place()
        cells = {
            (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel.title
        taken |= cells
        assert panel.kind == "row" or panel.targets(), panel.title
    assert {panel.kind for panel in panels} == {"row", "stat", "timeseries"}


def _sources(panel: Panel) -> Iterator[object]:
    yield panel.values["datasource"]
    for target in panel.targets():
        yield target["datasource"]


def test_alerts_ask_for_what_is_told(told: dict[str, Told]) -> None:
    wrong = []
    for rule in _rules():
        expression = str(rule["expr"])
        wrong += [f"{rule['alert']}: {one}" for one in faults(expression, told)]
        text = " ".join(_texts(rule, "annotations").values())
        unknown = set(re.findall(r"\$labels\.(\w+)", text)) - left_over(expression, told)
        wrong += [f"{rule['alert']}: its text names {one}" for one in sorted(unknown)]
    assert wrong == []


def test_every_alert_says_what_to_do_and_every_entry_has_its_alert() -> None:
    rules = _rules()
    names = [str(rule["alert"]) for rule in rules]
    assert len(set(names)) == len(names) > 0
    manual = (ROOT / RUNBOOK).read_text(encoding="utf-8")
    anchors = slugs(manual)
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"\d+[mh]", str(rule["for"])), rule["alert"]
        assert _texts(rule, "labels")["severity"] in ("warning", "critical")
        annotations = _texts(rule, "annotations")
        assert set(annotations) == {"summary", "description", "runbook"}
        assert all(text.strip() for text in annotations.values()), rule["alert"]
        path, _, anchor = annotations["runbook"].partition("#")
        assert path == RUNBOOK and anchor == str(rule["alert"]).lower() and anchors.count(anchor) == 1, rule["alert"]
    assert set(re.findall(r"^#+ (Kinlens[A-Z]\w+)$", manual, flags=re.M)) == set(names)
