"""Items of jobs in traces and in reports of failures, worked off on a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from config.settings import Settings
from serve_app.errors import InvalidImage
from serve_app.jobs import Job, JobKind
from serve_app.observing.outlets import Outlets, open_outlets
from serve_app.services.work import WorkItem
from serve_app.services.worker import Worker
from serve_app.storage.database import Database
from tests.collector import Collector, collecting_server, text_of
from tests.storage.jobs_world import Recorder, ended, make_job, make_library

CONSUMER = 5
Before = Callable[[WorkItem], Awaitable[None]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting_server() as made:
        yield made


@dataclass
class TracedWorld:
    database: Database
    dsn: str
    outlets: Outlets

    async def work(self, subjects: list[str], before: Before | None = None) -> Job:
        """A job that is brought to its end; what is told of it has been sent then."""
        job = await make_job(self.database, await make_library(self.database), subjects)
        handlers = {JobKind.FACES: Recorder(self.database, before)}
        worker = Worker(self.database, lambda: self.dsn, handlers, 2, outlets=self.outlets)
        worker.start()
        job = await ended(self.database, job.id)
        await worker.stop(30)
        await asyncio.to_thread(self.outlets.close)
        return job


@pytest.fixture
async def world(database_dsn: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TracedWorld]:
    # A busy machine may need longer to send what is left than a replica that ends may wait.
    monkeypatch.setattr("serve_app.observing.tracing._CLOSE_MS", 60_000)
    monkeypatch.setattr("serve_app.observing.failures._FLUSH_S", 60.0)
    database = Database(lambda: database_dsn, 10)
    settings = Settings.model_validate({"otel_exporter_otlp_endpoint": collector.url, "sentry_dsn": collector.dsn})
    yield TracedWorld(database, database_dsn, open_outlets(settings, "Indexing", "replica-1"))
    await database.close()


async def test_every_item_is_a_trace(world: TracedWorld, collector: Collector) -> None:
    job = await world.work(["anna.jpg", "photo-2"])
    roots = [span for span in collector.spans if not span.parent_id]
    assert [span.name for span in roots] == ["item faces", "item faces"] and len({span.trace_id for span in roots}) == 2
    for root in roots:
        assert root.kind == CONSUMER and not root.failed and root.resource["kinlens.deployment"] == "Indexing"
        assert root.attributes == {
            "kinlens.job.kind": "faces", "kinlens.job.id": str(job.id), "kinlens.outcome": "done"
        }  # fmt: skip
        children = [span for span in collector.spans if span.parent_id == root.span_id]
        assert {span.name for span in children} == {"connect", "database"}
    assert not [span for span in collector.spans if "anna" in text_of(span)] and collector.events == []


async def test_a_picture_that_cannot_be_read_is_a_failed_item_and_no_report(world: TracedWorld, collector: Collector) -> None:
    async def refuse(item: WorkItem) -> None:
        raise InvalidImage(f"secret {item.subject}")

    await world.work(["anna.jpg"], refuse)
    (root,) = [span for span in collector.spans if not span.parent_id]
    assert root.failed and root.attributes["kinlens.outcome"] == "failed"
    assert collector.events == [] and b"secret" not in b"".join(collector.bodies)


async def test_what_nobody_foresaw_is_reported_once_for_an_item(world: TracedWorld, collector: Collector) -> None:
    async def fail(item: WorkItem) -> None:
        raise KeyError(f"secret {item.subject}")

    job = await world.work(["anna.jpg"], fail)
    assert job.progress.failed == 1
    (event,) = collector.events
    assert event["tags"] == {
        "deployment": "Indexing", "replica": "replica-1", "job_kind": "faces", "job_id": str(job.id)
    }  # fmt: skip
    sent = b"".join(collector.bodies)
    assert b"secret" not in sent and b"anna" not in sent
