"""The lock of a collection: many share it to write, one has it alone to delete it or switch its model, and nobody overtakes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from deployments.models.crop_embedding import CropEmbedding
from serve_app.errors import NotFound
from serve_app.identity.people import Collection, EmbeddingContract, new_id
from serve_app.services.model_change import Drops, ModelChange
from serve_app.storage import collections, persons
from serve_app.storage.database import Connection, Database
from serve_app.storage.persons import PersonChange
from tests.storage.conftest import StoredWorld
from tests.storage.jobs_world import until
from tests.storage.test_switch_model import NEW, NewRecognizer

CONTRACT = EmbeddingContract("fake-model", 4, "v1")
WRITERS = 10
HELD_S = 0.1
"""Much longer than a transaction takes to begin: of so many that write, some have the lock at any time."""
SOON_S = 20.0
"""It takes as long as the longest that has the lock; on a busy machine seconds. Without a queue it was up to 90 s."""


@pytest.fixture
async def database(stored: StoredWorld) -> AsyncIterator[Database]:
    dsn = stored.dsn
    made = Database(lambda: dsn, WRITERS + 4)
    async with made.transaction() as tx:
        await collections.create(tx, "people", "", {}, CONTRACT)
        await collections.create(tx, "others", "", {}, CONTRACT)
    yield made
    await made.close()


@dataclass
class Holder:
    """A transaction that locks the collection, and ends when told."""

    database: Database
    alone: bool = False
    name: str = "people"
    then: Callable[[Connection], Awaitable[None]] | None = None
    collection: Collection | None = None
    session: int | None = None
    end: asyncio.Event = field(default_factory=asyncio.Event)
    got: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with self.database.transaction() as tx:
            self.session = await tx.fetchval("SELECT pg_backend_pid()")
            self.collection = await collections.lock(tx, self.name, for_deletion=self.alone)
            self.got.set()
            await self.end.wait()
            if self.then is not None:
                await self.then(tx)

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[Holder]:
        task = asyncio.create_task(self.run())
        try:
            yield self
        finally:
            self.end.set()
            await asyncio.wait_for(task, 60)

    async def waits(self) -> bool:
        """Whether it waits: seen in the database, and half a second after."""
        await until(self._got_or_blocked)
        return not await self.has(0.5)

    async def _got_or_blocked(self) -> bool:
        if self.session is None or self.got.is_set():
            return self.got.is_set()
        async with self.database.connection() as connection:
            return bool(await connection.fetchval("SELECT pg_blocking_pids($1) <> '{}'", self.session))

    async def has(self, timeout_s: float = SOON_S) -> bool:
        try:
            await asyncio.wait_for(self.got.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


async def test_nobody_overtakes_who_waits_to_have_it_alone(database: Database) -> None:
    first, alone, late = Holder(database), Holder(database, alone=True), Holder(database)
    async with first.under_way():
        assert await first.has()
        async with Holder(database).under_way() as beside:
            assert await beside.has(), "who writes does not wait for who writes"
        async with alone.under_way():
            assert await alone.waits()
            async with late.under_way():
                assert await late.waits()
                async with Holder(database, name="others").under_way() as elsewhere:
                    assert await elsewhere.has()
                first.end.set()
                assert await alone.has()
                assert await late.waits()
                alone.end.set()
                assert await late.has()


async def test_asked_for_twice_it_does_not_wait_for_itself(database: Database) -> None:
    """Even if somebody waits to have it alone in between."""
    waiting = Holder(database, alone=True)
    async with database.transaction() as tx:
        await collections.lock(tx, "people")
        task = asyncio.create_task(waiting.run())
        assert await waiting.waits()
        await asyncio.wait_for(collections.lock(tx, "people"), SOON_S)
    waiting.end.set()
    await asyncio.wait_for(task, 60)


async def test_deleted_and_made_anew_meanwhile(database: Database) -> None:
    """Who waited writes to the new one, with the new one's lock."""

    async def anew(tx: Connection) -> None:
        await collections.delete(tx, await collections.get(tx, "people"))
        await collections.create(tx, "people", "again", {}, CONTRACT)

    async with Holder(database, alone=True, then=anew).under_way() as deleting:
        assert await deleting.has()
        async with Holder(database).under_way() as late:
            assert await late.waits()
            deleting.end.set()
            assert await late.has()
            assert late.collection is not None and deleting.collection is not None
            assert late.collection.name == "again" and late.collection.key != deleting.collection.key
            async with Holder(database, alone=True).under_way() as next_one:
                assert await next_one.waits()
                late.end.set()
                assert await next_one.has()


@dataclass
class Writing:
    """Several who write without a pause, until they are refused or told to end."""

    database: Database
    written: int = 0
    refused: list[Exception] = field(default_factory=list)
    ended: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def _write(self, tx: Connection) -> None:
        collection = await collections.lock(tx, "people")
        await persons.create(tx, collection, new_id(), PersonChange("Anna"))
        await asyncio.sleep(HELD_S * random.uniform(1, 2))

    async def _run(self) -> None:
        while not self.ended:
            try:
                await self.database.run(self._write)
            except NotFound as error:
                self.refused.append(error)
                return
            self.written += 1
            if self.written >= 5 * WRITERS:
                self.begun.set()

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[Writing]:
        tasks = [asyncio.create_task(self._run()) for _ in range(WRITERS)]
        try:
            await asyncio.wait_for(self.begun.wait(), 60)
            yield self
        finally:
            self.ended = True
            await asyncio.wait_for(asyncio.gather(*tasks), 60)


async def test_a_deletion_does_not_starve(database: Database) -> None:
    async with Writing(database).under_way() as writing:
        async with database.transaction() as tx:
            before = writing.written
            collection = await collections.lock(tx, "people", for_deletion=True)
            meanwhile = writing.written - before
            erased = await collections.delete(tx, collection)
            assert await collections.remaining_rows(tx, collection) == 0
        # Those who had the lock, and who came until the question was there: not who came after it, again and again.
        assert meanwhile <= 5 * WRITERS, meanwhile
    # Everything that was acknowledged is erased, and nothing was written after.
    assert erased.persons == writing.written
    assert len(writing.refused) == WRITERS


async def test_a_switch_of_the_model_does_not_starve_nor_starves_others(stored: StoredWorld, database: Database) -> None:
    objects = stored.gallery.objects
    async with Writing(database).under_way() as writing:
        begun = time.monotonic()
        change = ModelChange(database, objects, CropEmbedding(NewRecognizer()), NEW)
        outcome = await change.run("people", Drops(), lambda done, total: None)
        took_s = time.monotonic() - begun
        # It is locked twice.
        assert outcome.done and took_s < 2 * SOON_S, took_s
        written = writing.written

        async def goes_on() -> bool:
            return writing.written > written + WRITERS

        await until(goes_on)
    assert not writing.refused
