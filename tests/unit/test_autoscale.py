"""What the benchmark of autoscaling makes of its readings."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from benchmarks.autoscale import Answer, Course, Reading, drawing, scaled_config, turns, verdicts
from serve_app.service import Address, load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("counts", "found"),
    [([], 0), ([1, 1, 1], 0), ([1, 2, 3, 3], 0), ([1, 1, 2, 3, 2, 1], 1), ([1, 2, 1, 2, 1], 3), ([3, 1, 2, 2, 1], 2)],
)
def test_turns(counts: list[int], found: int) -> None:
    assert turns(counts) == found


def course(counts: list[int], *answers: Answer) -> Course:
    readings = [Reading(float(at), 1, {"Detection": count, "Embedding": count}) for at, count in enumerate(counts)]
    return Course(list(answers), readings)


def test_a_hill_is_met_and_whatever_else_is_missed() -> None:
    good = Answer(1, 0.1, 200, False)
    assert all(met for _, met in verdicts(course([1, 2, 3, 2, 1], good)))
    for bad in (Answer(1, 0.1, 503, True), Answer(1, 0.1, 503, False), Answer(1, 0.1, 0, False)):
        assert [met for _, met in verdicts(course([1, 2, 1], good, bad))].count(False) == 1
    for counts in ([1, 1, 1], [1, 2, 2], [1, 2, 1, 2, 1]):
        assert not all(met for _, met in verdicts(course(counts, good)))


def test_its_config_is_one_that_serve_takes(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(scaled_config(ROOT / "serve_config.yaml")))
    (application,) = load_config(path, Address("127.0.0.1", 8000)).applications
    least = {
        one.name: one.autoscaling_config["min_replicas"]
        for one in application.deployments
        if isinstance(one.autoscaling_config, dict)
    }
    assert (least["Detection"], least["Embedding"], least["Analysis"]) == (1, 1, 0)


def test_the_figure_is_an_svg_with_a_line_for_each_series() -> None:
    root = ElementTree.fromstring(drawing(course([1, 2, 3], Answer(1, 0.1, 200, False))))
    names = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"clients", "Detection", "Embedding", "p95", "200", "503 with Retry-After", "other errors"} <= names
