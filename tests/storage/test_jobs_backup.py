"""Jobs in a backup: what was left to do is done after a restore, in this place or another."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.jobs import JobKind
from serve_app.services.worker import Worker
from serve_app.storage.objects import ObjectStore
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.jobs_world import until
from tests.storage.test_backup import empty_dsn, other_objects, read, write  # noqa: F401  fixtures
from tests.storage.test_jobs_api import JOBS, Handler, over, upload, working


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_a_job_goes_on_after_a_restore(
    elsewhere: bool,
    stored: StoredWorld,
    make_stored: MakeStoredWorld,
    empty_dsn: str,
    other_objects: ObjectStore,
    tmp_path: Path,
) -> None:
    ids = await upload(stored, 12)
    (made,) = (await stored.client.get(JOBS)).json()["items"]
    handler = Handler(stored)
    handler.fail = set(ids[:1])
    handler.gate.clear()
    worker = Worker(stored.gallery.database, lambda: stored.dsn, {JobKind.FACES: handler}, 2)
    worker.start()

    async def begun() -> bool:
        return await stored.rows("SELECT 1 FROM job_items WHERE state = 'running'") != []

    await until(begun)
    # In the middle of the job: some chunks are leased, some items begun.
    await write(stored, tmp_path / "kinlens.tar")
    handler.gate.set()
    assert (await over(stored, made["job_id"]))["progress"]["done"] == 11
    await worker.stop(5)

    place = make_stored(objects=other_objects, dsn=lambda: empty_dsn) if elsewhere else stored
    await place.gallery.objects.prepare()
    await read(place, tmp_path / "kinlens.tar", force=not elsewhere)
    job = (await place.client.get(f"{JOBS}/{made['job_id']}")).json()
    assert (job["state"], job["progress"]["done"], job["progress"]["remaining"]) == ("running", 0, 12)
    again = Handler(place)
    async with working(place, again):
        job = await over(place, made["job_id"])
        assert (job["state"], job["progress"]["done"]) == ("done", 12)
        # And another one: sequences, triggers and types are there.
        more = await upload(place, 2, folder="later")
        (newest, *_) = (await place.client.get(JOBS)).json()["items"]
        assert (await over(place, newest["job_id"]))["progress"]["done"] == len(more)
