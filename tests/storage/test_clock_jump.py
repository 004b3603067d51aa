"""A clock that was set back: what the queue wrote down before lies in the future then, and is done all the same."""

from __future__ import annotations

import pytest

from serve_app.jobs import JobState
from serve_app.storage import queue
from serve_app.storage.database import Database
from tests.storage.jobs_world import Recorder, effects, ended, make_job
from tests.storage.test_jobs import JobsWorld, names, world  # noqa: F401  a fixture


async def set_back(database: Database, written: str) -> None:
    async with database.connection() as connection:
        await connection.execute(f"UPDATE kinlens_pgqueuer SET {written}")


@pytest.mark.parametrize(
    "written",
    [
        "execute_after = now() + interval '1 hour'",
        # Taken by a worker that died since.
        "status = 'picked', queue_manager_id = gen_random_uuid(), heartbeat = now() + interval '1 hour',"
        " execute_after = now() - interval '1 second'",
        "status = 'picked', queue_manager_id = gen_random_uuid(), heartbeat = now() + interval '1 hour',"
        " execute_after = now() + interval '1 hour'",
    ],
)
async def test_items_do_not_wait_for_the_old_time(world: JobsWorld, written: str) -> None:
    job = await make_job(world.database, world.library, names(3))
    await set_back(world.database, written)
    world.work(Recorder(world.database))
    assert (await ended(world.database, job.id, timeout_s=queue.LEASE_S + 2 * queue.CLOCK_S + 100)).state is JobState.DONE
    assert await effects(world.database) == names(3)


async def test_what_was_put_off_stays_put_off(world: JobsWorld) -> None:
    await make_job(world.database, world.library, names(1))
    await set_back(world.database, "execute_after = now() + interval '30 seconds'")
    async with world.database.connection() as connection:
        before = await connection.fetchval("SELECT execute_after FROM kinlens_pgqueuer")
        await queue.set_right(connection)
        assert await connection.fetchval("SELECT execute_after FROM kinlens_pgqueuer") == before
