"""New faces are looked at soon; and how many replicas a deep queue gets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployments.scaling import DEPTH, by_depth
from serve_app.errors import DatabaseUnavailable
from serve_app.jobs import JobKind
from serve_app.services import settling
from serve_app.services.settling import Settling


class Clustering:
    def __init__(self) -> None:
        self.settled: list[str] = []
        self.error: Exception | None = None

    async def settle(self, collection_id: str) -> None:
        self.settled.append(collection_id)
        if self.error is not None:
            raise self.error


async def wait_for(clustering: Clustering, count: int) -> None:
    async with asyncio.timeout(60):
        while len(clustering.settled) < count:  # noqa: ASYNC110  the fake has no event to wait for
            await asyncio.sleep(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_PAUSE_S", 0.01)


async def test_faces_are_looked_at_when_a_chunk_of_faces_ended(quick: None) -> None:
    clustering = Clustering()
    found = Settling(clustering, "library")
    found.start()
    found.chunk_ended(JobKind.EMBEDDINGS, "library")
    await asyncio.sleep(0.05)
    assert clustering.settled == []
    found.chunk_ended(JobKind.FACES, "people")
    await wait_for(clustering, 2)
    await found.stop()
    assert clustering.settled == ["library", "people"]


@pytest.mark.parametrize("error", [DatabaseUnavailable("It does not answer."), ValueError("unforeseen")])
async def test_it_goes_on_whatever_happens_and_without_being_woken(
    error: Exception, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_INTERVAL_S", 0.01)
    clustering = Clustering()
    clustering.error = error
    found = Settling(clustering, "library")
    found.start()
    await wait_for(clustering, 3)
    await found.stop()


@pytest.mark.parametrize(("said", "replicas"), [({}, 0.0), ({"a": 4.0}, 0.5), ({"a": 16.0, "b": 24.0}, 3.0)])
def test_replicas_follow_the_depth_of_the_queue(said: dict[str, float], replicas: float) -> None:
    context = cast("Any", SimpleNamespace(aggregated_metrics={DEPTH: said}))
    assert by_depth(context) == (replicas, {})
    assert by_depth(cast("Any", SimpleNamespace(aggregated_metrics=None))) == (0.0, {})
