"""Ids that sort by the time they were made at."""

from __future__ import annotations

import time
import uuid

import pytest

from serve_app.identity.people import new_id

MORNING_NS = 1_790_000_000_123_000_000


def test_within_a_millisecond_the_later_is_the_greater(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(MORNING_NS, MORNING_NS + 1_000_000, 1_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    made = [new_id() for _ in range(1_000)]
    assert made == sorted(made) and len(set(made)) == 1_000
    assert {one.int >> 80 for one in made} == {MORNING_NS // 1_000_000}


def test_of_one_moment_no_two_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: MORNING_NS + 999_999)
    made = {new_id() for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(one.version == 7 and one.variant == uuid.RFC_4122 for one in made)
    assert {one.int >> 64 & 0xFFF for one in made} == {0xFFF}
