"""Jobs on a real Postgres, with handlers of the tests' own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.jobs import ItemState, Job, JobItem, JobKind
from serve_app.services.work import WorkItem
from serve_app.storage import collections, jobs
from serve_app.storage.database import Connection, Database

Run = Callable[[WorkItem], Awaitable[None]]


class Recorder:
    """A handler that keeps a row for each item that is done: the effect that must happen once."""

    def __init__(self, database: Database, before: Run | None = None) -> None:
        self.database = database
        self.before = before
        self.begun: list[str] = []

    async def run(self, item: WorkItem) -> None:
        self.begun.append(item.subject)
        if self.before is not None:
            await self.before(item)

        async def keep(tx: Connection) -> None:
            await tx.execute("INSERT INTO effects (subject) VALUES ($1)", item.subject)
            await item.finish(tx)

        await self.database.run(keep)


async def make_library(database: Database) -> Collection:
    async def make(tx: Connection) -> Collection:
        await tx.execute("CREATE TABLE effects (subject text NOT NULL)")
        return await collections.create(tx, "library", "Library", {}, EmbeddingContract("fake-model", 4, "fake"))

    return await database.run(make)


async def make_job(database: Database, collection: Collection, subjects: Sequence[str], kind: JobKind = JobKind.FACES) -> Job:
    return await database.run(lambda tx: jobs.create(tx, collection, kind, {}, subjects))


async def look(database: Database, job_id: UUID) -> Job:
    async with database.connection() as connection:
        return await jobs.get(connection, job_id)


async def items_of(database: Database, job_id: UUID, *states: ItemState) -> list[JobItem]:
    async with database.connection() as connection:
        return await jobs.items(connection, job_id, states, None, 100_000)


async def effects(database: Database) -> list[str]:
    async with database.connection() as connection:
        return [row["subject"] for row in await connection.fetch("SELECT subject FROM effects ORDER BY subject")]


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 120) -> float:
    """Seconds it took."""
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < timeout_s, "it did not come to pass"
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


async def ended(database: Database, job_id: UUID, timeout_s: float = 120) -> Job:
    async def over() -> bool:
        return not (await look(database, job_id)).state.open

    await until(over, timeout_s)
    return await look(database, job_id)
