"""Jobs and their worker on a real Postgres: what is done, once; what failed, and why; what is cancelled, waits, is erased."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment
from pgqueuer.queries import Queries

from serve_app.errors import InvalidImage, ModelUnavailable, NotFound, ObjectStoreUnavailable, Overloaded
from serve_app.identity.people import Collection, new_id
from serve_app.jobs import ItemState, ItemWithdrawn, JobFilter, JobKind, JobState
from serve_app.services.work import ItemHandler, WorkItem
from serve_app.services.worker import Worker
from serve_app.storage import job_items, jobs, queue
from serve_app.storage.database import Connection, Database
from tests.storage.jobs_world import Recorder, effects, ended, items_of, look, make_job, make_library, until


@dataclass
class JobsWorld:
    database: Database
    dsn: str
    library: Collection
    workers: list[Worker]

    def work(self, handler: ItemHandler, *kinds: JobKind, at_once: int = 2) -> Worker:
        handlers: dict[JobKind, ItemHandler] = dict.fromkeys(kinds or (JobKind.FACES,), handler)
        worker = Worker(self.database, lambda: self.dsn, handlers, at_once)
        worker.start()
        self.workers.append(worker)
        return worker


@pytest.fixture
async def world(database_dsn: str) -> AsyncIterator[JobsWorld]:
    database = Database(lambda: database_dsn, 10)
    made = JobsWorld(database, database_dsn, await make_library(database), [])
    yield made
    for worker in made.workers:
        await worker.stop(5)
    await database.close()


def names(count: int) -> list[str]:
    return [f"photo-{number:04d}" for number in range(count)]


async def test_the_installed_queue_wants_the_schema_that_we_pinned(database_dsn: str) -> None:
    connection = await asyncpg.connect(database_dsn)
    try:
        settings = queue.queue_settings()
        plan = await Queries(AsyncpgDriver(connection), QueryBuilderEnvironment(settings)).plan_upgrade()
    finally:
        await connection.close()
    assert not plan.statements and not plan.notes, "write a migration: what PgQueuer wants has changed"


async def test_names_of_the_queue_are_not_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGQUEUER_PREFIX", "QUEUE_TABLE", "CHANNEL", "FUNCTION", "PGQUEUER_SCHEMA", "TRIGGER"):
        monkeypatch.setenv(name, "elsewhere")
    settings = queue.queue_settings()
    assert (settings.queue_table, settings.channel, settings.db_schema) == ("kinlens_pgqueuer", "kinlens_ch_pgqueuer", None)


async def test_every_item_is_done_once(world: JobsWorld) -> None:
    job = await make_job(world.database, world.library, names(100))
    assert job.state is JobState.QUEUED and job.progress.total == 100
    first, second = Recorder(world.database), Recorder(world.database)
    both = asyncio.Event()

    async def before(_: WorkItem) -> None:
        # Neither may be done with all of them before the other has connected.
        if first.begun and second.begun:
            both.set()
        await both.wait()

    first.before = second.before = before
    world.work(first)
    world.work(second)
    job = await ended(world.database, job.id)
    assert job.state is JobState.DONE and job.progress.done == 100 and job.progress.rate_per_s
    assert await effects(world.database) == names(100)
    assert sorted(first.begun + second.begun) == names(100)
    assert first.begun and second.begun
    # Nothing is left in the queue.
    async with world.database.connection() as connection:
        await until(lambda: _empty(connection))


async def _empty(connection: Connection) -> bool:
    return await queue.depth(connection) == {}


async def test_a_worker_is_woken_up(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    # It does not look by itself.
    monkeypatch.setattr(queue, "_POLL_S", 600.0)
    world.work(Recorder(world.database))
    await asyncio.sleep(1)
    job = await make_job(world.database, world.library, ["one"])
    await ended(world.database, job.id)


async def test_what_is_not_committed_is_not_enqueued(world: JobsWorld) -> None:
    async def work(tx: Connection) -> None:
        await jobs.create(tx, world.library, JobKind.FACES, {}, names(20))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await world.database.run(work)
    async with world.database.connection() as connection:
        assert await queue.depth(connection) == {} and await jobs.page(connection, JobFilter(), None, 10) == []


async def test_failures_say_why_and_are_tried_again_on_demand(world: JobsWorld) -> None:
    broken = True

    async def before(item: WorkItem) -> None:
        if broken and item.subject.endswith(("3", "7")):
            raise InvalidImage("It is damaged.", byte=7)
        if broken and item.subject == "photo-0001":
            raise ValueError("a secret")

    job = await make_job(world.database, world.library, names(20))
    world.work(Recorder(world.database, before))
    job = await ended(world.database, job.id)
    assert job.state is JobState.DONE
    assert (job.progress.done, job.progress.failed, job.progress.remaining) == (15, 5, 0)
    failed = await items_of(world.database, job.id, ItemState.FAILED)
    assert [item.subject for item in failed] == ["photo-0001", "photo-0003", "photo-0007", "photo-0013", "photo-0017"]
    error = failed[1].error
    assert error is not None and (error.code, error.detail, error.details) == ("invalid_image", "It is damaged.", {"byte": 7})
    assert failed[0].error is not None and failed[0].error.code == "internal_error"
    assert "secret" not in failed[0].error.detail
    broken = False
    again = await world.database.run(lambda tx: jobs.retry_failed(tx, job.id))
    assert again.state is JobState.QUEUED and again.progress.failed == 0
    job = await ended(world.database, job.id)
    assert (job.state, job.progress.done, job.progress.failed) == (JobState.DONE, 20, 0)
    assert await effects(world.database) == names(20)
    assert [item.error for item in await items_of(world.database, job.id)] == [None] * 20
    # There is nothing more to try.
    assert await world.database.run(lambda tx: jobs.retry_failed(tx, job.id)) == job


async def test_a_job_of_which_all_fails_has_failed(world: JobsWorld) -> None:
    async def before(_: WorkItem) -> None:
        raise InvalidImage("No.")

    job = await make_job(world.database, world.library, names(3))
    world.work(Recorder(world.database, before))
    assert (await ended(world.database, job.id)).state is JobState.FAILED


async def test_a_part_that_is_down_is_waited_for(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than the look below takes, on any machine.
    monkeypatch.setattr("serve_app.services.worker._DELAY_S", 8.0)
    down = True

    async def before(_: WorkItem) -> None:
        if down:
            raise ObjectStoreUnavailable("The object store does not answer.")

    job = await make_job(world.database, world.library, names(40))
    handler = Recorder(world.database, before)
    world.work(handler)

    async def delayed() -> bool:
        return (await look(world.database, job.id)).delayed is not None

    await until(delayed)
    await asyncio.sleep(2)
    now = await look(world.database, job.id)
    assert now.state is JobState.RUNNING and now.progress.ended == 0
    # It was not asked for with every item.
    assert len(handler.begun) < 20
    down = False
    job = await ended(world.database, job.id)
    assert (job.progress.done, job.progress.failed, job.delayed) == (40, 0, None)
    assert await effects(world.database) == names(40)


async def test_a_full_queue_is_waited_for_by_those_it_refused(world: JobsWorld) -> None:
    refused: set[str] = set()

    async def before(item: WorkItem) -> None:
        if item.subject.endswith("5") and item.subject not in refused:
            refused.add(item.subject)
            raise Overloaded("The queue is full.", retry_after_s=1)

    job = await make_job(world.database, world.library, names(16))
    world.work(Recorder(world.database, before))
    assert (await ended(world.database, job.id)).progress.done == 16
    assert len(refused) == 2


async def test_a_part_that_is_down_for_all_fails_nobody(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.services.worker._DELAY_S", 0.05)
    monkeypatch.setattr("serve_app.services.worker._MAX_DELAY_S", 0.1)
    down = False
    handler = Recorder(world.database)

    async def before(_: WorkItem) -> None:
        if len(handler.begun) > 5 and down:
            # Others that had begun before succeed meanwhile.
            raise ObjectStoreUnavailable("The object store does not answer.")

    handler.before = before
    job = await make_job(world.database, world.library, names(7))
    down = True
    world.work(handler)

    async def tried_often() -> bool:
        async with world.database.connection() as connection:
            return int(await connection.fetchval("SELECT max(waits) FROM job_items")) > job_items.MAX_WAITS

    await until(tried_often)
    down = False
    job = await ended(world.database, job.id)
    assert (job.progress.done, job.progress.failed) == (7, 0)


@pytest.mark.parametrize("others", [True, False])
async def test_an_item_that_takes_a_model_down_fails(others: bool, world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.services.worker._DELAY_S", 0.05)
    monkeypatch.setattr("serve_app.services.worker._MAX_DELAY_S", 0.3)

    async def before(item: WorkItem) -> None:
        if item.subject == "photo-0002":
            raise ModelUnavailable("Detection has no replica that answers.")
        await asyncio.sleep(0.04 if others else 0)

    job = await make_job(world.database, world.library, names(240 if others else 4))
    world.work(Recorder(world.database, before), at_once=1)
    job = await ended(world.database, job.id, 240)
    assert (job.progress.remaining, job.progress.failed) == (0, 1)
    (failed,) = await items_of(world.database, job.id, ItemState.FAILED)
    assert failed.error is not None and failed.error.code == "model_unavailable"
    # Where others succeed it is known sooner.
    assert (failed.attempts < job_items.MAX_WAITS) is others, failed.attempts


async def test_cancelling_leaves_every_item_done_or_untouched(world: JobsWorld) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def before(item: WorkItem) -> None:
        if item.subject == "photo-0010":
            inside.set()
            await go.wait()

    job = await make_job(world.database, world.library, names(100))
    handler = Recorder(world.database, before)
    world.work(handler, at_once=1)
    await inside.wait()
    begun = list(handler.begun)
    # It does not wait for the item that is being worked on, which waits for us.
    cancelled = await world.database.run(lambda tx: jobs.cancel(tx, job.id))
    go.set()
    assert cancelled.state is JobState.CANCELLED and cancelled.finished_at is not None
    await asyncio.sleep(1)
    done = await effects(world.database)
    assert "photo-0010" not in done and handler.begun == begun
    states = {item.subject: item.state for item in await items_of(world.database, job.id)}
    assert sorted(subject for subject, state in states.items() if state is ItemState.DONE) == done
    assert set(states.values()) == {ItemState.DONE, ItemState.CANCELLED}
    progress = (await look(world.database, job.id)).progress
    assert (progress.done, progress.cancelled, progress.remaining) == (len(done), 100 - len(done), 0)
    async with world.database.connection() as connection:
        await until(lambda: _empty(connection))
    # Again: it is over already.
    assert (await world.database.run(lambda tx: jobs.cancel(tx, job.id))).progress == progress


async def test_cancelling_waits_for_a_part_of_a_result_and_lets_no_other_be_kept(world: JobsWorld) -> None:
    """Of an item that takes several transactions."""
    kept, cancelled = asyncio.Event(), asyncio.Event()

    class InParts:
        async def run(self, item: WorkItem) -> None:
            async def part(tx: Connection) -> None:
                await tx.execute("INSERT INTO effects (subject) VALUES ('part')")
                await item.check(tx)
                kept.set()
                await asyncio.sleep(0.3)
                assert not cancelled.is_set()

            await world.database.run(part)
            await cancelled.wait()
            await world.database.run(part)

    job = await make_job(world.database, world.library, ["one"])
    world.work(InParts(), at_once=1)
    await kept.wait()
    kept.clear()
    await world.database.run(lambda tx: jobs.cancel(tx, job.id))
    cancelled.set()
    async with world.database.connection() as connection:
        await until(lambda: _empty(connection))
    assert await effects(world.database) == ["part"] and not kept.is_set()
    assert (await look(world.database, job.id)).progress.cancelled == 1


async def test_a_worker_whose_lease_was_taken_cannot_keep_its_result(world: JobsWorld) -> None:
    job = await make_job(world.database, world.library, ["one"])
    async with world.database.connection() as connection:
        chunk = await connection.fetchval("SELECT chunk FROM job_items")
    slow, quick = new_id(), new_id()
    (item,) = await world.database.run(lambda tx: job_items.open_chunk(tx, chunk))
    assert not item.suspect
    async with world.database.connection() as connection:
        assert await job_items.start(connection, item.id, slow)
    (item,) = await world.database.run(lambda tx: job_items.open_chunk(tx, chunk))
    assert item.suspect
    async with world.database.connection() as connection:
        assert await job_items.start(connection, item.id, quick)
    await world.database.run(lambda tx: job_items.check(tx, item.id, quick))
    await world.database.run(lambda tx: job_items.finish(tx, item.id, quick))
    for late in (slow, quick):
        with pytest.raises(ItemWithdrawn):
            await world.database.run(lambda tx: job_items.check(tx, item.id, late))  # noqa: B023  awaited here
        with pytest.raises(ItemWithdrawn):
            await world.database.run(lambda tx: job_items.finish(tx, item.id, late))  # noqa: B023  awaited here
    assert (await look(world.database, job.id)).progress.done == 1


async def test_an_item_that_workers_die_of_fails(world: JobsWorld) -> None:
    job = await make_job(world.database, world.library, ["poison"])
    async with world.database.connection() as connection:
        chunk = await connection.fetchval("SELECT chunk FROM job_items")
    for _ in range(job_items.MAX_DEATHS):
        (item,) = await world.database.run(lambda tx: job_items.open_chunk(tx, chunk))
        async with world.database.connection() as connection:
            assert await job_items.start(connection, item.id, new_id())
    assert await world.database.run(lambda tx: job_items.open_chunk(tx, chunk)) == []
    assert await world.database.run(lambda tx: jobs.settle(tx, job.id))
    (failed,) = await items_of(world.database, job.id, ItemState.FAILED)
    assert failed.error is not None and failed.error.code == "worker_died"
    assert (await look(world.database, job.id)).state is JobState.FAILED


@pytest.mark.parametrize("deaths", [job_items.MAX_DEATHS - 1, None])
async def test_a_job_ends_though_whoever_ended_its_last_item_did_not_look(world: JobsWorld, deaths: int | None) -> None:
    """Killed between an item and its job; or over the item, for the last time."""
    job = await make_job(world.database, world.library, ["last"])
    async with world.database.connection() as connection:
        chunk = await connection.fetchval("SELECT chunk FROM job_items")
        item_id = await connection.fetchval("SELECT id FROM job_items")
        claim = new_id()
        await world.database.run(lambda tx: job_items.open_chunk(tx, chunk))
        assert await job_items.start(connection, item_id, claim)
        if deaths is None:
            await job_items.finish(connection, item_id, claim)
        else:
            await connection.execute("UPDATE job_items SET deaths = $1", deaths)
    world.work(Recorder(world.database))
    assert (await ended(world.database, job.id)).state is (JobState.DONE if deaths is None else JobState.FAILED)


async def test_a_suspect_is_worked_on_alone(world: JobsWorld) -> None:
    now: set[str] = set()
    beside: dict[str, int] = {}

    async def before(item: WorkItem) -> None:
        now.add(item.subject)
        await asyncio.sleep(0.02)
        beside[item.subject] = len(now)
        now.discard(item.subject)

    await make_job(world.database, world.library, names(40))
    async with world.database.connection() as connection:
        await connection.execute("UPDATE job_items SET deaths = 1 WHERE subject = 'photo-0020'")
    world.work(Recorder(world.database, before), at_once=4)

    async def all_done() -> bool:
        return len(await effects(world.database)) == 40

    await until(all_done)
    assert beside["photo-0020"] == 1
    assert max(beside.values()) > 1


async def test_items_can_be_added_by_items_until_the_job_is_over(world: JobsWorld) -> None:
    async def before(item: WorkItem) -> None:
        if item.subject in ("root", "root/a"):
            await world.database.run(lambda tx: item.add(tx, [f"{item.subject}/{name}" for name in "abc"]))

    job = await make_job(world.database, world.library, ["root"], JobKind.SCAN)
    world.work(Recorder(world.database, before), JobKind.SCAN)
    job = await ended(world.database, job.id)
    assert job.progress.done == job.progress.total == 7
    with pytest.raises(ItemWithdrawn):
        await world.database.run(lambda tx: jobs.add_items(tx, job.id, ["late"]))


async def test_automatic_items_go_into_the_open_job_and_come_first(world: JobsWorld) -> None:
    order: list[str] = []

    async def before(item: WorkItem) -> None:
        order.append(item.subject)
        await asyncio.sleep(0.005)

    await make_job(world.database, world.library, names(200))

    async def upload(name: str) -> None:
        await world.database.run(lambda tx: jobs.add_automatic(tx, world.library, JobKind.FACES, [name]))

    # At once: one of them makes the job, the others find it.
    await asyncio.gather(*(upload(f"new-{number}") for number in range(8)))
    async with world.database.connection() as connection:
        (automatic,) = await jobs.page(connection, JobFilter(automatic=True), None, 10)
    assert automatic.progress.total == 8 and automatic.options == {"only_new": True}
    world.work(Recorder(world.database, before))
    assert (await ended(world.database, automatic.id)).progress.done == 8
    assert sorted(order[:9]) >= sorted(f"new-{number}" for number in range(8)) or order.index("new-7") < 40
    # The next one makes another: that job is over.
    await upload("later")
    async with world.database.connection() as connection:
        assert len(await jobs.page(connection, JobFilter(automatic=True), None, 10)) == 2


async def test_a_job_does_not_end_under_those_who_add_to_it(world: JobsWorld) -> None:
    """Uploads that commit while the job's last item ends are in it, or in another one."""
    world.work(Recorder(world.database))
    for round_ in range(40):
        await world.database.run(lambda tx: jobs.add_automatic(tx, world.library, JobKind.FACES, [f"item-{round_:02d}"]))  # noqa: B023
        await asyncio.sleep(0.01 * (round_ % 7))

    async def all_done() -> bool:
        return len(await effects(world.database)) == 40

    await until(all_done)

    async def none_open() -> bool:
        async with world.database.connection() as connection:
            return await jobs.open_jobs(connection) == []

    await until(none_open)


async def test_erasing_a_subject_ends_its_items_and_what_they_say(world: JobsWorld) -> None:
    async def before(item: WorkItem) -> None:
        if item.subject == "photo-0001":
            raise InvalidImage("photo-0001 is damaged", name="photo-0001")

    first = await make_job(world.database, world.library, names(4))
    worker = world.work(Recorder(world.database, before))
    await ended(world.database, first.id)
    await worker.stop(5)
    second = await make_job(world.database, world.library, names(4))
    await world.database.run(lambda tx: job_items.erase_subjects(tx, world.library, ["photo-0001", "photo-0002", ""]))
    async with world.database.connection() as connection:
        assert await job_items.remaining_subjects(connection, ["photo-0001", "photo-0002"]) == 0
        rows = await connection.fetch("SELECT * FROM job_items")
    assert "photo-0001" not in json.dumps([dict(row) for row in rows], default=str)  # type: ignore[call-overload]
    progress = (await look(world.database, second.id)).progress
    assert (progress.skipped, progress.remaining) == (2, 2)
    assert (await look(world.database, first.id)).progress.failed == 1


async def test_a_chunk_that_the_queue_lost_is_put_back(world: JobsWorld) -> None:
    job = await make_job(world.database, world.library, names(20))
    async with world.database.connection() as connection:
        await connection.execute("DELETE FROM kinlens_pgqueuer")
    world.work(Recorder(world.database))
    assert await world.database.run(jobs.requeue_lost) == 3
    assert await world.database.run(jobs.requeue_lost) == 0
    assert (await ended(world.database, job.id)).progress.done == 20


async def test_stopping_gives_back_what_was_not_begun(world: JobsWorld) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def before(_: WorkItem) -> None:
        inside.set()
        await go.wait()

    job = await make_job(world.database, world.library, names(40))
    handler = Recorder(world.database, before)
    worker = world.work(handler)
    await inside.wait()
    stopping = asyncio.create_task(worker.stop(60))
    await asyncio.sleep(0)
    go.set()
    await stopping
    # Two at once are what it had in hand: those are done, and no others.
    done = len(await effects(world.database))
    assert done == len(handler.begun) in (1, 2)
    async with world.database.connection() as connection:
        counted = await connection.fetch("SELECT state, count(*) AS n, max(deaths) AS deaths FROM job_items GROUP BY state")
        kept = await connection.fetchval(
            "SELECT count(*) FROM kinlens_pgqueuer WHERE status <> 'queued' OR execute_after > now()"
        )
    assert {row["state"]: row["n"] for row in counted} == {"done": done, "pending": 40 - done}
    # Another one takes over at once.
    assert kept == 0
    world.work(Recorder(world.database))
    assert (await ended(world.database, job.id)).progress.done == 40


async def test_an_item_that_does_not_end_is_given_back_when_the_worker_stops(world: JobsWorld) -> None:
    inside = asyncio.Event()

    async def before(_: WorkItem) -> None:
        inside.set()
        await asyncio.sleep(60)

    await make_job(world.database, world.library, ["one"])
    worker = world.work(Recorder(world.database, before))
    await inside.wait()
    # For so long it waits for the item, and once more for it to be given back.
    await worker.stop(3)
    async with world.database.connection() as connection:
        row = await connection.fetchrow("SELECT state, deaths, claim FROM job_items")
    assert row is not None and (row["state"], row["deaths"], row["claim"]) == ("pending", 0, None)


async def test_jobs_are_listed_newest_first_and_old_ones_go(world: JobsWorld) -> None:
    made = [await make_job(world.database, world.library, names(1), kind) for kind in (JobKind.FACES, JobKind.SCAN) * 2]
    empty = await make_job(world.database, world.library, [])
    assert empty.state is JobState.DONE and empty.progress.total == 0
    async with world.database.connection() as connection:
        listed = await jobs.page(connection, JobFilter(), None, 3)
        assert [job.id for job in listed] == [empty.id, made[3].id, made[2].id]
        rest = await jobs.page(connection, JobFilter(), listed[-1].id, 10)
        assert [job.id for job in rest] == [made[1].id, made[0].id]
        scans = await jobs.page(connection, JobFilter(kinds=(JobKind.SCAN,), states=(JobState.QUEUED,)), None, 10)
        assert [job.id for job in scans] == [made[3].id, made[1].id]
        await connection.execute("UPDATE jobs SET finished_at = now() - interval '91 days' WHERE id = $1", empty.id)
        assert await jobs.purge(connection, 90) == 1
        with pytest.raises(NotFound):
            await jobs.get(connection, empty.id)


async def test_a_large_old_job_is_purged_in_parts(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PURGED_AT_ONCE", 10)
    old = await make_job(world.database, world.library, names(25))
    kept = await make_job(world.database, world.library, names(3))
    async with world.database.connection() as connection:
        await connection.execute("UPDATE jobs SET state = 'done', finished_at = now()")
        await connection.execute("UPDATE jobs SET finished_at = now() - interval '91 days' WHERE id = $1", old.id)
        assert [await jobs.purge(connection, 90) for _ in range(5)] == [10, 10, 5, 1, 0]
        assert [job.id for job in await jobs.page(connection, JobFilter(), None, 3)] == [kept.id]
        assert len(await jobs.items(connection, kept.id, (), None, 10)) == 3
