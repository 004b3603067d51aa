"""One write: a transaction, its answer kept under the client's key, and objects deleted after the commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve_app.storage import audit, idempotency
from serve_app.storage.audit import Line
from serve_app.storage.database import Connection, Database
from serve_app.storage.idempotency import WriteKey

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Audited:
    """A line that is due, and whether a change has brought it along."""

    line: Line
    written: bool = False


@dataclass(frozen=True, slots=True)
class Once(Generic[ResultT]):
    """How often a write may happen: once a `key`, or each time where that is None.

    `render`: the result as the status and body that a repetition of the request is answered with. `audited`: the line of the
    audit log that is written with the change, or not at all.
    """

    key: WriteKey | None
    render: Callable[[ResultT], tuple[int, bytes]]
    audited: Audited | None = field(default=None, kw_only=True)

    async def check(self, database: Database) -> None:
        """Before expensive work. Raises Replayed, IdempotencyKeyReused."""
        if self.key is not None:
            async with database.connection() as connection:
                await idempotency.look_up(connection, self.key)

    async def run(self, database: Database, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """`work` in a transaction that also keeps the answer. Raises Replayed, IdempotencyKeyReused and what `work` raises;
        nothing is kept then, so that the key may be used again."""

        async def attempt(tx: Connection) -> ResultT:
            if self.key is not None:
                await idempotency.claim(tx, self.key)
            result = await work(tx)
            if self.key is not None:
                await idempotency.keep(tx, self.key, *self.render(result))
            if self.audited is not None and not self.audited.written:
                await audit.write(tx, self.audited.line)
            return result

        result = await database.run(attempt)
        if self.audited is not None:
            self.audited.written = True
        return result

    async def amend(self, database: Database, result: ResultT) -> None:
        """Keeps a fuller answer: what became known after the commit."""
        if self.key is not None:
            async with database.connection() as connection:
                await idempotency.keep(connection, self.key, *self.render(result))
