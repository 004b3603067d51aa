"""Clustering of a collection: new faces find their persons within seconds, and a job groups all of them anew."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from collections.abc import Collection as Some
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar
from uuid import UUID

from serve_app.errors import EmbeddingModelMismatch, InvalidRequest, NotFound
from serve_app.faces import FloatArray, OperatingPoint
from serve_app.grouping.clustering import GroupingLimits
from serve_app.grouping.group_plans import GroupedFace, Move, Plan, joined, plan_regrouping, plan_settling
from serve_app.grouping.unclaimed import Unclaimed
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.services.collections import check_contract
from serve_app.services.work import WorkItem
from serve_app.storage import clustering, collections
from serve_app.storage.database import Connection, Database

PlanT = TypeVar("PlanT")
Check = Callable[[Connection], Awaitable[None]]
"""In each transaction that changes something; what it raises undoes that."""

_BATCH = 64
"""Waiting faces that are looked at together."""
_PERSONS_EACH, _FACES_EACH, _PERSON_FACES = 4, 24, 32
"""For each waiting face: persons and faces nobody has that are looked at; and of each person so many faces."""
_WRITE = 200
"""Faces of a transaction."""
_PAGE = 2_000
_READ = 10_000
_PASSES = 3
"""Two faces of one picture may have to change places."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of faces that waited: given to persons, of which some are new; left alone, with the reason.
    `busy`: somebody else is at it; nothing was done."""

    assigned: int = 0
    founded: int = 0
    deferred: int = 0
    busy: bool = False

    def __add__(self, other: Settled) -> Settled:
        return Settled(
            self.assigned + other.assigned,
            self.founded + other.founded,
            self.deferred + other.deferred,
            self.busy or other.busy,
        )


class _Stopped(Exception):
    """Nobody waits for the result any more."""


async def _unasked(_: Connection) -> None:
    """Nobody can withdraw it."""


class Clustering:
    """Also the handler of jobs that cluster. What a user decides meanwhile, or did before, stands.

    Nothing of it is in the users' journal. Every method raises DatabaseUnavailable and Overloaded.
    """

    def __init__(self, database: Database, contract: EmbeddingContract, point: OperatingPoint | None) -> None:
        self._database = database
        self._contract = contract
        self._limits = None if point is None else GroupingLimits.of(point)
        self._unclaimed: tuple[tuple[int, int], Unclaimed] | None = None

    async def settle(self, collection_id: str) -> Settled:
        """Looks at the faces that wait: each is given to the nearest person, founds one with others that nobody has, or is
        left alone with a reason, until others come near it. A look-up where none waits.

        Does nothing for a collection that is not there, and for one whose embeddings are another model's.
        """
        limits = self._limits
        if limits is None:
            return Settled()
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, collection_id)
                check_contract(collection, self._contract)
            except (NotFound, EmbeddingModelMismatch):
                return Settled()
            if not await clustering.waiting(connection, collection, 1):
                return Settled()
        async with self._alone(collection, wait=False) as connection:
            if connection is None:
                return Settled(busy=True)
            total = Settled()
            last: UUID | None = None
            unclaimed = await self._nobodys(connection, collection)
            # Each once: what somebody else was quicker with waits for the next call, and holds up nobody.
            while faces := await clustering.waiting(connection, collection, _BATCH, last):
                total += await self._settle(connection, collection, faces, unclaimed, limits)
                last = faces[-1]
            return total

    async def run(self, item: WorkItem) -> None:
        """Groups all faces of the collection anew. Done twice, the second time changes nothing.

        Withdrawn, it changes nothing more. Raises NotFound, EmbeddingModelMismatch, InvalidRequest (no operating point),
        ItemWithdrawn.
        """
        await self.recluster(item.collection_id, item.check)
        await self._database.run(item.finish)

    async def recluster(self, collection_id: str, check: Check = _unasked) -> Settled:
        """See `run`. Persons keep their ids where most of their faces stay; those of whom a user has said anything are never
        given up, merged or renamed. Raises what `check` raises; what was written before stays."""
        limits = self._limits
        if limits is None:
            raise InvalidRequest("Faces are not grouped: the loaded model has no operating point; set MATCH_THRESHOLD.")
        async with self._database.connection() as connection:
            collection = await collections.get(connection, collection_id)
        check_contract(collection, self._contract)
        async with self._alone(collection, wait=True) as connection:
            assert connection is not None
            faces, embeddings = await self._all(connection, collection)
            kept = await clustering.kept(connection, collection)
            rejected = await clustering.rejections(connection, collection)
            plan = await _on_thread(lambda check: plan_regrouping(faces, embeddings, kept, rejected, limits, check))
            made = {one.person_id for one in faces if one.person_id is not None} - kept
            done = await self._write(collection, plan, made, check)
            await self._database.run(partial(self._remove_empty, collection=collection, check=check))
            return done

    @asynccontextmanager
    async def _alone(self, collection: Collection, *, wait: bool) -> AsyncIterator[Connection | None]:
        """A connection for as long as nobody else groups the collection; None where somebody does."""
        async with (
            self._database.dedicated() as connection,
            clustering.one_at_a_time(connection, collection, wait=wait) as mine,
        ):
            yield connection if mine else None

    async def _nobodys(self, connection: Connection, collection: Collection) -> Unclaimed:
        """All that nobody has now. Of those that were there the last time only the ids are read."""
        whose = collection.key, collection.model_key
        if self._unclaimed is None or self._unclaimed[0] != whose:
            self._unclaimed = whose, Unclaimed(collection.contract.dim)
        unclaimed = self._unclaimed[1]
        lacking = unclaimed.keep(await clustering.unclaimed(connection, collection))
        for start in range(0, len(lacking), _READ):
            unclaimed.add(*await clustering.embeddings_of(connection, collection, lacking[start : start + _READ]))
        return unclaimed

    async def _settle(
        self,
        connection: Connection,
        collection: Collection,
        waiting: Sequence[UUID],
        unclaimed: Unclaimed,
        limits: GroupingLimits,
    ) -> Settled:
        new, embeddings = await clustering.some(connection, collection, waiting)
        ids = [one.id for one in new]
        # Also of those that are there: they may wait because they have another embedding.
        unclaimed.add(ids, embeddings)
        near = await asyncio.to_thread(unclaimed.nearest, ids, embeddings, limits.floor, _FACES_EACH)
        beside, theirs = await clustering.some(connection, collection, sorted(near.difference(ids)))
        faces, embeddings = [*new, *beside], joined([embeddings, theirs], collection.contract.dim)
        ids = [one.id for one in faces]
        persons = await clustering.nearest_persons(connection, collection, waiting, _PERSONS_EACH)
        known = await clustering.person_sums(connection, collection, persons, _PERSON_FACES)
        rejected = await clustering.rejections(connection, collection, ids)
        present = await clustering.present(connection, collection, ids)
        plan = await _on_thread(lambda check: plan_settling(faces, embeddings, rejected, present, limits, check, known))
        unclaimed.remove([move.face_id for move in plan.moves if move.after is not None])
        try:
            return await self._write(collection, plan, frozenset(), _unasked)
        except NotFound:
            return Settled()

    async def _all(self, connection: Connection, collection: Collection) -> tuple[list[GroupedFace], FloatArray]:
        """Not of one moment: what changes while it is read is seen when it is written."""
        faces: list[GroupedFace] = []
        parts: list[FloatArray] = []
        while True:
            some, embeddings = await clustering.page(connection, collection, faces[-1].id if faces else None, _PAGE)
            if not some:
                return faces, joined(parts, collection.contract.dim)
            faces += some
            parts.append(embeddings)

    async def _write(self, collection: Collection, plan: Plan, made: Some[UUID], check: Check) -> Settled:
        """In many transactions, after each of which the collection is whole. Raises NotFound."""
        deferred = await self._release(collection, [move for move in plan.moves if move.after is None], made, check)
        left = [move for move in plan.moves if move.after is not None]
        founded: set[UUID] = set()
        for _ in range(_PASSES):
            given: set[UUID] = set()
            for some in _by_target(left):
                fresh = plan.founded - founded
                given |= await self._database.run(
                    partial(self._give, collection=collection, moves=some, made=made, fresh=fresh, check=check)
                )
                founded |= {move.after for move in some if move.face_id in given and move.after in fresh}
            left = [move for move in left if move.face_id not in given]
            if not given:
                break
        # What waits for a face that waits for it is let go: whoever settles next decides.
        released = [Move(move.face_id, move.before, None) for move in left if move.before]
        await self._release(collection, released, made, check)
        assigned = sum(move.after is not None for move in plan.moves) - len(left)
        return Settled(assigned, len(founded), len(deferred))

    async def _release(self, collection: Collection, moves: Sequence[Move], made: Some[UUID], check: Check) -> set[UUID]:
        done: set[UUID] = set()
        for start in range(0, len(moves), _WRITE):
            some = moves[start : start + _WRITE]

            async def work(tx: Connection, some: Sequence[Move] = some) -> set[UUID]:
                released = await clustering.release(tx, await _locked(tx, collection), some, made)
                await check(tx)
                return released

            done |= await self._database.run(work)
        return done

    async def _give(
        self, tx: Connection, collection: Collection, moves: Sequence[Move], made: Some[UUID], fresh: Some[UUID], check: Check
    ) -> set[UUID]:
        given = await clustering.give(tx, await _locked(tx, collection), moves, made, fresh)
        await check(tx)
        return given

    async def _remove_empty(self, tx: Connection, collection: Collection, check: Check) -> int:
        removed = await clustering.remove_empty(tx, await _locked(tx, collection))
        await check(tx)
        return removed


async def _locked(tx: Connection, collection: Collection) -> Collection:
    """Raises NotFound where it is not the same any more."""
    locked = await collections.lock(tx, collection.id)
    if locked.key != collection.key:
        raise NotFound(f"The collection {collection.id!r} was deleted meanwhile.", collection_id=collection.id)
    return locked


def _by_target(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """In parts of a transaction each; those of one person together, unless they are more."""
    part: list[Move] = []
    for _, group in groupby(sorted(moves, key=_target), lambda move: move.after):
        theirs = list(group)
        if part and len(part) + len(theirs) > _WRITE:
            yield part
            part = []
        for start in range(0, len(theirs), _WRITE):
            part += theirs[start : start + _WRITE]
            if len(part) >= _WRITE:
                yield part
                part = []
    if part:
        yield part


def _target(move: Move) -> tuple[UUID, UUID]:
    return move.after or UUID(int=0), move.face_id


async def _on_thread(plan: Callable[[Callable[[], None]], PlanT]) -> PlanT:
    """The loop goes on meanwhile. Cancelled, the thread stops soon."""
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    try:
        return await asyncio.to_thread(plan, check)
    finally:
        stop.set()
