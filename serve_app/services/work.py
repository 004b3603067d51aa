"""Working off jobs: what a handler is given, and what it has to do with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from serve_app.jobs import ItemWithdrawn, JobKind, Options
from serve_app.storage.database import Connection

__all__ = ["ItemHandler", "ItemWithdrawn", "WorkItem"]


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One item, to be worked on by one worker at a time; now and then by two, when one was thought dead.

    Each of the functions is called inside the transaction that keeps the item's result, as its last statements: `add` before
    `finish` or `skip`. They raise ItemWithdrawn; the transaction then rolls back, and nothing is kept.
    """

    job_id: UUID
    kind: JobKind
    collection_id: str
    subject: str
    options: Options
    finish: Callable[[Connection], Awaitable[None]]
    """Done, with this transaction. Exactly one transaction of an item succeeds in this."""
    skip: Callable[[Connection, str], Awaitable[None]]
    """Likewise, with nothing done, and a reason: one word, such as `erased`."""
    add: Callable[[Connection, Sequence[str]], Awaitable[None]]
    """Further items for the same job: their subjects."""
    check: Callable[[Connection], Awaitable[None]]
    """For a result that takes several transactions, in each but the last: nobody withdraws the item until it is committed."""


class ItemHandler(Protocol):
    async def run(self, item: WorkItem) -> None:
        """Does it, and calls `item.finish` or `item.skip`.

        A KinlensError fails the item, and is kept with it: code, detail, details. CapacityError and PartUnavailable do not:
        the item is tried again later. ItemWithdrawn may pass.
        """
        ...
