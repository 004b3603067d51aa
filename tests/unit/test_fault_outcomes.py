"""How the fault suite judges, and how growth is measured."""

from __future__ import annotations

import math

import pytest

from benchmarks.faulting.outcome import Outcome, judge, pause_s, recovery_s, settled
from benchmarks.memory import slope
from benchmarks.mixed import GOOD, Answer
from benchmarks.plot import lines
from benchmarks.soak import labels


def answers(*outcomes: str, kind: str = "list", begun: float = 0.0) -> list[Answer]:
    """One a second, each taking half of it."""
    return [Answer(kind, begun + at, begun + at + 0.5, outcome) for at, outcome in enumerate(outcomes)]


def test_recovery_ends_with_the_first_good_answer_that_no_failing_one_follows() -> None:
    assert recovery_s(answers(GOOD, GOOD), 0.0) == 0.0
    assert recovery_s(answers(GOOD, "503", GOOD, "503", GOOD, GOOD), 0.0) == 3.0
    assert recovery_s(answers(GOOD, "503"), 0.0) == math.inf
    # Of an outage, what lies behind its end.
    assert recovery_s(answers("503", "503", "503", GOOD), 2.0) == 1.5
    assert recovery_s(answers("503", GOOD, GOOD), 3.0) == 0.0


def test_a_pause_is_counted_only_where_something_was_late() -> None:
    assert pause_s([Answer("index", 0, 1, GOOD), Answer("index", 8, 9, GOOD)], 0.0, 0.0) == 0.0
    late = [Answer("index", 0, 1, GOOD), Answer("index", 2, 2, "late"), Answer("index", 8, 9, GOOD)]
    assert pause_s(late, 0.0, 0.0) == 8.0
    assert pause_s(late, 0.0, 6.0) == 3.0
    assert pause_s([Answer("index", 2, 2, "late")], 0.0, 0.0) == math.inf


def test_all_is_well_after_three_good_answers_and_a_while() -> None:
    its = answers("503", GOOD, GOOD, GOOD, GOOD)
    assert settled(its, ["list"], 0.0, 10.0)
    assert not settled(its, ["list"], 0.0, 4.0)
    assert not settled(its, ["list", "upload"], 0.0, 10.0)
    assert not settled(answers(GOOD, GOOD, GOOD, GOOD, "503"), ["list"], 0.0, 10.0)


def test_what_fails_a_scenario() -> None:
    outcome = Outcome("x")
    its = answers(GOOD, "503 overloaded", "connection: ReadError", "timeout", GOOD)
    judge(outcome, its, 0.0, 0.0)
    assert (outcome.requests, dict(outcome.errors), outcome.disconnected) == (5, {"503 overloaded": 1}, 2)
    assert outcome.recovery_s == {"list": 3.0} and outcome.passed
    assert "1 x 503 overloaded" in outcome.row() and "3.0 (list)" in outcome.row()
    outcome.lost.append("photo 1")
    assert not outcome.passed
    slow = Outcome("y", recovery_s={"list": 15.1})
    assert not slow.passed


def test_growth_does_not_follow_single_readings() -> None:
    times = [float(at) for at in range(20)]
    values = [100 + 0.5 * at for at in times]
    values[3] = values[11] = 1000
    assert slope(times, values) == pytest.approx(0.5, rel=0.05)


def test_lines_are_drawn_inside_and_names_are_escaped() -> None:
    drawn = lines("a < b", "minutes", "MiB", {"<x>": [(0, 0), (30, 310)], "y": [(0, 5)]})
    assert "&lt;x&gt;" in drawn and "<x>" not in drawn and drawn.count("<svg") == 1


def test_processes_are_named_without_their_ids() -> None:
    names = labels(["Embedding 12", "Embedding 7", "Ingress 3", "postgres, all"])
    assert list(names.values()) == ["Embedding 1", "Embedding 2", "Ingress", "postgres, all"]
