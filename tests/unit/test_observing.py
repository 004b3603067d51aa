"""Stages, the last minutes, metrics and log lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import pickle
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.batching import BatchConfig, Batcher
from serve_app.errors import InvalidRequest, Overloaded, RateLimited
from serve_app.jobs import JobKind
from serve_app.observing import recent
from serve_app.observing.logs import JsonFormatter
from serve_app.observing.recent import BOUNDS_S, Recent, Slot, merged, summed
from serve_app.observing.stages import Stage, StageTimes, collecting, note, stage
from serve_app.observing.telemetry import Snapshot, Telemetry, exposition, state_family


class TestStages:
    def test_tasks_and_threads_of_whoever_collects_add_to_it(self) -> None:
        async def work() -> None:
            with stage(Stage.DATABASE):
                await asyncio.sleep(0.01)

        def blocking() -> None:
            with stage(Stage.OBJECTS):
                time.sleep(0.01)

        async def run() -> StageTimes:
            with collecting() as times:
                await asyncio.gather(work(), asyncio.create_task(work()), asyncio.to_thread(blocking))
                note(Stage.DETECT, 0.5)
            note(Stage.DETECT, 100)
            return times

        times = asyncio.run(run())
        assert times.seconds[Stage.DATABASE] >= 0.02
        assert times.seconds[Stage.OBJECTS] >= 0.01
        assert times.seconds[Stage.DETECT] == 0.5
        assert list(times.milliseconds()) == ["detect", "database", "objects"]

    def test_a_request_knows_nothing_of_another(self) -> None:
        async def one(seconds: float) -> dict[Stage, float]:
            with collecting() as times:
                await asyncio.sleep(0)
                note(Stage.EMBED, seconds)
                await asyncio.sleep(0)
                return times.seconds

        async def run() -> list[dict[Stage, float]]:
            return await asyncio.gather(*(one(float(number)) for number in range(20)))

        assert asyncio.run(run()) == [{Stage.EMBED: float(number)} for number in range(20)]

    def test_a_stage_counts_what_failed(self) -> None:
        with collecting() as times, pytest.raises(ValueError, match="x"), stage(Stage.DECODE):
            raise ValueError("x")
        assert Stage.DECODE in times.seconds

    async def test_a_batch_tells_how_long_its_items_waited_and_took(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, free = threading.Event(), threading.Event()
        # Of both clocks: so much more than a busy machine could take.
        more_s = [0.0]

        def later(clock: Callable[[], float]) -> Callable[[], float]:
            return lambda: clock() + more_s[0]

        monkeypatch.setattr(time, "monotonic", later(time.monotonic))
        monkeypatch.setattr(time, "perf_counter", later(time.perf_counter))

        def run(items: Sequence[int]) -> Sequence[int]:
            with stage(Stage.DETECT):
                begun.set()
                free.wait(60)
            return items

        batcher: Batcher[int, int] = Batcher(run, BatchConfig(max_batch_size=1))
        first = asyncio.create_task(batcher.submit_timed(1))
        await asyncio.sleep(0)
        second = asyncio.create_task(batcher.submit_timed(2))
        assert await asyncio.to_thread(begun.wait, 60)
        more_s[0] = 1000
        free.set()
        one, two = await first, await second
        assert (one.value, two.value) == (1, 2)
        assert one.seconds[Stage.QUEUE] < 500 <= one.seconds[Stage.DETECT]
        assert two.seconds[Stage.DETECT] < 500 <= two.seconds[Stage.QUEUE]
        assert pickle.loads(pickle.dumps(two)) == two


class TestRecent:
    @pytest.mark.parametrize("share", [0.5, 0.95])
    def test_percentiles_are_within_a_bucket_of_the_true_ones(self, share: float) -> None:
        made = random.Random(7)
        seconds = [made.lognormvariate(-3, 1) for _ in range(2000)]
        slot = Slot(0)
        for one in seconds:
            slot.add(200, one, {})
        true = statistics.quantiles(seconds, n=100)[round(share * 100) - 1]
        found = slot.percentile_s(share)
        assert found is not None and true / 1.25 <= found <= true * 1.25

    def test_extremes(self) -> None:
        slot = Slot(0)
        assert slot.percentile_s(0.5) is None
        slot.add(200, 1e9, {})
        assert slot.percentile_s(0.5) == BOUNDS_S[-1]
        fast = Slot(0)
        fast.add(200, 0.0, {})
        assert fast.percentile_s(0.95) == BOUNDS_S[0]

    def test_slots_of_several_processes_add_up_and_old_ones_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1_000_000.0]
        monkeypatch.setattr(time, "time", lambda: now[0])
        one, other = Recent(), Recent()
        for process in (one, other):
            process.add(200, 0.01, {Stage.DETECT: 0.25})
            process.add(503, 0.001, {})
        now[0] += recent.SLOT_S
        one.add(429, 0.001, {})
        both = merged([one.slots(), other.slots()])
        assert [(slot.at, slot.count, slot.failed, slot.refused) for slot in both] == [
            (1_000_000, 4, 2, 2),
            (1_000_010, 1, 0, 1),
        ]
        total = summed(both, 1_000_000)
        assert total.count == 5 and total.stages == {Stage.DETECT: 0.5} and sum(total.latencies) == 5
        assert summed(both, 1_000_010).count == 1
        now[0] += recent.KEPT_S
        one.add(200, 0.01, {})
        assert [slot.count for slot in one.slots()] == [1] and other.slots() == []

    def test_a_clock_that_is_set_back_leaves_nothing_of_the_future(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [2_000_000.0]
        monkeypatch.setattr(time, "time", lambda: now[0])
        one = Recent()
        one.add(200, 0.01, {})
        now[0] = 1_000_000.0
        one.add(200, 0.01, {})
        assert [slot.at for slot in one.slots()] == [1_000_000]


class TestTelemetry:
    def test_series_of_processes_stay_apart_and_can_be_parsed(self) -> None:
        snapshots = []
        for replica in ("a", "b"):
            one = Telemetry("Ingress", replica)
            one.begun()
            one.ended("GET", "/api/v1/photos/{photo_id}", 200, 0.02, {Stage.DATABASE: 0.01})
            one.problem(Overloaded("full", deployment="Detection"))
            one.problem(Overloaded("full"))
            one.problem(InvalidRequest("no"))
            one.problem(RateLimited("too often"))
            one.item(JobKind.FACES, "done", 0.3, {Stage.DETECT: 0.2})
            one.calls.change("Detection", 1)
            one.gauge("kinlens_database_connections", "x", lambda: 2.0, state="used")
            snapshots.append(pickle.loads(pickle.dumps(one.snapshot())))
        text = exposition(snapshots, [state_family("kinlens_replicas", "x", [({"of": "Ingress", "state": "target"}, 2.0)])])
        found = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

        def value(name: str, **labels: str) -> float:
            return found[name, frozenset(labels.items())]

        own = {"deployment": "Ingress", "replica": "b"}
        assert value("kinlens_requests_total", method="GET", route="/api/v1/photos/{photo_id}", status="200", **own) == 1
        assert value("kinlens_refusals_total", part="Detection", **own) == 1
        assert value("kinlens_refusals_total", part="ingress", **own) == 1
        assert value("kinlens_problems_total", code="overloaded", **own) == 2
        assert value("kinlens_stage_seconds_count", stage="detect", **own) == 1
        assert value("kinlens_job_items_total", kind="faces", outcome="done", **own) == 1
        assert value("kinlens_calls_in_progress", to="Detection", **own) == 1
        assert value("kinlens_requests_in_progress", **own) == 0
        assert value("kinlens_database_connections", state="used", **own) == 2
        assert value("kinlens_replicas", of="Ingress", state="target") == 2
        assert value("process_resident_memory_bytes", **own) > 1e6
        assert not [name for name, _ in found if name.endswith("_created")]
        assert len([name for name, _ in found if name == "kinlens_requests_total"]) == 2

    def test_it_costs_little(self) -> None:
        one = Telemetry()
        stages = {Stage.DECODE: 0.01, Stage.DETECT: 0.02, Stage.EMBED: 0.01}
        began = time.thread_time()
        for _ in range(2000):
            one.begun()
            one.ended("GET", "/x", 200, 0.01, stages)
        assert (time.thread_time() - began) / 2000 < 0.0005
        assert isinstance(one.snapshot(), Snapshot)


def test_a_json_line_holds_one_object_whatever_is_in_it() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("Ingress", "abc"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.info("x", extra={"fields": {"event": "request", "route": 'a"\n\u2028\x00', "status": 200}})
    try:
        raise ValueError("line\none")
    except ValueError:
        logger.exception("it %s", "failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["route"] == 'a"\n\u2028\x00' and first["deployment"] == "Ingress" and "message" not in first
    assert second["message"] == "it failed" and "ValueError: line\none" in second["exception"]
