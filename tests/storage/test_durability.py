"""Postgres and the object store killed under load, for real: nothing acknowledged is lost, no row without its object, 503
meanwhile, and recovery without a restart of ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from serve_app.postgres.local import EmbeddedPostgres, dsn
from serve_app.storage import schema
from serve_app.storage.minio_objects import MinioObjectStore
from serve_app.storage.objects import ObjectMissing
from tests.api.conftest import image
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.object_servers import ObjectServer
from tests.storage.test_enrolment_api import enrol


@dataclass
class Writers:
    """Clients that enrol faces one after the other; every answer is recorded."""

    world: StoredWorld
    collection: str
    person: str
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    acknowledged: list[str] = field(default_factory=list)
    last_success_s: float = 0.0

    async def run(self, clients: int, during: Callable[[], Awaitable[None]]) -> None:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._client(number, stop)) for number in range(clients)]
        try:
            await during()
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            picture = image(identity=number % 4) + f"{number}-{turn}".encode()
            response = await enrol(self.world, self.collection, self.person, picture, review="false")
            self.statuses[response.status_code] += 1
            if response.status_code == 201:
                self.acknowledged.append(response.json()["faces"][0]["id"])
                self.last_success_s = time.monotonic()
            else:
                self.codes[response.json()["code"]] += 1
                await asyncio.sleep(0.05)

    async def wait_for_success(self, after_s: float, limit_s: float = 90) -> float:
        """Seconds from `after_s` to the next success."""
        while self.last_success_s < after_s:
            assert time.monotonic() < after_s + limit_s, f"no recovery: {self.statuses} {self.codes}"
            await asyncio.sleep(0.02)
        return self.last_success_s - after_s

    async def wait_for_refusal(self, limit_s: float = 60) -> None:
        """Until one more has been refused."""
        before, end = self.statuses[503], time.monotonic() + limit_s
        while self.statuses[503] == before:
            assert time.monotonic() < end, f"nothing was refused: {self.statuses} {self.codes}"
            await asyncio.sleep(0.02)

    async def check(self) -> None:
        """Every acknowledged face is there and searchable, and every row has its objects."""
        rows = await self.world.rows(
            "SELECT f.id, f.crop_key, i.object_key FROM faces f LEFT JOIN images i ON i.id = f.image_id"
        )
        assert set(self.acknowledged) <= {str(row["id"]) for row in rows}
        embedded = {str(row["face_id"]) for row in await self.world.rows("SELECT face_id FROM embeddings")}
        assert {str(row["id"]) for row in rows} == embedded
        for row in rows:
            for key in (row["crop_key"], row["object_key"]):
                try:
                    await self.world.gallery.objects.stat(key)
                except ObjectMissing:
                    pytest.fail(f"a row without its object: {key}")


@pytest.fixture
async def own_postgres(tmp_path: Path) -> AsyncIterator[Path]:
    """A supervised server of this test alone, to be killed."""
    folder = tmp_path / "postgres"
    with EmbeddedPostgres(folder) as server:
        server.supervise()
        await asyncio.to_thread(schema.upgrade, dsn(folder))
        yield folder


async def writers(world: StoredWorld) -> Writers:
    await world.gallery.objects.prepare()
    collection = await world.collection()
    return Writers(world, collection, await world.person(collection))


async def test_postgres_killed_under_load(own_postgres: Path, make_stored: MakeStoredWorld) -> None:
    world = make_stored(dsn=lambda: dsn(own_postgres))
    load = await writers(world)

    async def trouble() -> None:
        await asyncio.sleep(0.5)
        for _ in range(2):
            killed = await postmaster(own_postgres)
            os.kill(killed, signal.SIGKILL)
            await load.wait_for_success(await started_again(own_postgres, killed))
            await asyncio.sleep(0.5)

    await load.run(6, trouble)
    assert set(load.statuses) == {201, 503} and set(load.codes) <= {"database_unavailable", "overloaded"}, load.codes
    world.dsn = dsn(own_postgres)
    await load.check()


async def postmaster(folder: Path) -> int:
    pid = (folder / "cluster" / "postmaster.pid").read_text().split()[0]
    return int(pid)


async def started_again(folder: Path, before: int, limit_s: float = 60) -> float:
    """When another postmaster had come. Sessions of the one `before` may go on for a moment: what they answer says nothing."""
    end = time.monotonic() + limit_s
    while True:
        # There is no file, or an empty one, in between.
        with contextlib.suppress(FileNotFoundError, IndexError):
            if await postmaster(folder) != before:
                return time.monotonic()
        assert time.monotonic() < end, "no postmaster came"
        await asyncio.sleep(0.02)


async def test_postgres_restarted_under_load(own_postgres: Path, make_stored: MakeStoredWorld) -> None:
    """An orderly, fast restart: sessions are told to go, in the middle of whatever they do."""
    world = make_stored(dsn=lambda: dsn(own_postgres))
    load = await writers(world)

    async def trouble() -> None:
        await asyncio.sleep(0.3)
        told = await postmaster(own_postgres)
        os.kill(told, signal.SIGINT)
        await load.wait_for_success(await started_again(own_postgres, told))

    await load.run(6, trouble)
    assert set(load.statuses) <= {201, 503}, load.codes
    world.dsn = dsn(own_postgres)
    await load.check()


async def test_every_session_terminated_again_and_again(stored: StoredWorld) -> None:
    load = await writers(stored)

    async def trouble() -> None:
        connection = await asyncpg.connect(stored.dsn)
        for _ in range(15):
            await asyncio.sleep(0.05)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await connection.close()
        await load.wait_for_success(time.monotonic())

    await load.run(6, trouble)
    assert set(load.statuses) <= {201, 503}, load.codes
    await load.check()


async def test_object_store_killed_under_load(object_server: ObjectServer, make_stored: MakeStoredWorld) -> None:
    world = make_stored(objects=MinioObjectStore(object_server.config))
    load = await writers(world)

    async def trouble() -> None:
        await asyncio.sleep(0.5)
        object_server.kill()
        await load.wait_for_refusal()
        # What needs no object goes on.
        assert (await world.client.get(load.collection)).status_code == 200
        await asyncio.to_thread(object_server.restart)
        await load.wait_for_success(time.monotonic())
        await asyncio.sleep(0.5)

    try:
        await load.run(6, trouble)
    finally:
        await asyncio.to_thread(object_server.restart)
    assert set(load.statuses) == {201, 503} and set(load.codes) == {"object_store_unavailable"}, load.codes
    await load.check()
