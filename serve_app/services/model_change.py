"""Another model for a collection: its faces are embedded again from their crops, and all that is known of them stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from serve_app.errors import InvalidRequest
from serve_app.faces import FloatArray
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.storage import collections, faces, idempotency, journal, model_change, photo_faces
from serve_app.storage.database import Connection, Database
from serve_app.storage.model_change import Crop
from serve_app.storage.objects import ObjectMissing, ObjectStore

_BATCH = 256
"""Crops in memory, some 6 MiB."""
_READS_AT_ONCE = 8
_FEW = 64
_MOST_PASSES = 10
"""Faces that come while others are embedded are embedded in a further pass; the last few while nobody can write."""
_TOLD = 20

Progress = Callable[[int, int], None]


class CropRecognizer(Protocol):
    def embed_all(self, files: Sequence[bytes]) -> list[FloatArray | None]:
        """The (D,) embedding of each PNG; None for one that is damaged. Blocking."""
        ...


@dataclass(frozen=True, slots=True)
class Drops:
    """What is deleted where no embedding can be made of it: `vectors`, faces that came without a picture; `damaged`, faces
    whose crop is missing or damaged."""

    vectors: bool = False
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Switched:
    """`collection`: as it is now. `vectors`, `damaged`: faces that no embedding can be made of: deleted, or, where that was
    not allowed, the reason why it was not `done`. `keys`: of some damaged crops."""

    done: bool
    collection: Collection
    embedded: int = 0
    templates: int = 0
    vectors: int = 0
    damaged: int = 0
    keys: tuple[str, ...] = ()


class _Refused(Exception):
    def __init__(self, outcome: Switched) -> None:
        super().__init__()
        self.outcome = outcome


@dataclass(slots=True)
class ModelChange:
    """One change, of one collection. `contract`: of the `recognizer`."""

    database: Database
    objects: ObjectStore
    recognizer: CropRecognizer
    contract: EmbeddingContract
    _damaged: dict[UUID, str] = field(default_factory=dict)
    _embedded: int = 0

    async def run(self, collection_id: str, drops: Drops, progress: Progress) -> Switched:
        """While the old model serves, up to a last transaction; interrupted, it goes on where it was when run again.

        Raises NotFound, InvalidRequest (the model is in use already, or cannot be held beside it), EmbeddingModelMismatch,
        ObjectStoreUnavailable, DatabaseUnavailable, Overloaded.
        """
        async with self.database.connection() as connection:
            collection = await collections.get(connection, collection_id)
            self._check(collection)
            vectors = await model_change.vectors_only(connection, collection)
        if vectors and not drops.vectors:
            return Switched(False, collection, vectors=vectors)
        target = await self.database.run(lambda tx: self._prepare(tx, collection))
        for _ in range(_MOST_PASSES):
            if await self._fill(target, progress) <= _FEW:
                break
        try:
            async with self.database.dedicated() as connection, connection.transaction():
                return await self._switch(connection, collection, target, drops)
        except _Refused as refused:
            return refused.outcome

    def _check(self, collection: Collection) -> None:
        if collection.contract == self.contract:
            raise InvalidRequest(f"The collection {collection.id!r} holds embeddings of {self.contract.model!r} already.")
        if collection.contract.model == self.contract.model:
            raise InvalidRequest(
                f"The collection {collection.id!r} holds embeddings of {self.contract.model!r} of another preprocessing"
                f" ({collection.contract.preprocessing}): its crops are not what {self.contract.preprocessing} would cut."
            )

    async def _prepare(self, tx: Connection, seen: Collection) -> Collection:
        return await model_change.prepare(tx, await self._lock(tx, seen), self.contract)

    async def _lock(self, tx: Connection, seen: Collection) -> Collection:
        """Nobody writes to the collection from then on."""
        collection = await collections.lock(tx, seen.id, for_deletion=True)
        if (collection.key, collection.contract) != (seen.key, seen.contract):
            raise InvalidRequest(f"The collection {seen.id!r} was deleted or switched to another model meanwhile.")
        return collection

    async def _fill(self, target: Collection, progress: Progress) -> int:
        """Embeds what waits; returns how many came to be embedded."""
        async with self.database.connection() as connection:
            total = (await model_change.backlog(connection, target)).crops
        seen = kept = 0
        after = UUID(int=0)
        while True:
            async with self.database.connection() as connection:
                crops = await model_change.waiting(connection, target, after, _BATCH)
            if not crops:
                return kept
            after = crops[-1].face_id
            made = await self._embed(crops)
            kept += await self.database.run(lambda tx, made=made: self._keep(tx, target, made))  # type: ignore[misc]
            seen += len(crops)
            progress(seen, max(seen, total))

    async def _keep(self, tx: Connection, target: Collection, made: list[tuple[Crop, FloatArray]]) -> int:
        await collections.lock(tx, target.id)
        kept = await model_change.keep(tx, target, made)
        self._embedded += kept
        return kept

    async def _embed(self, crops: Sequence[Crop]) -> list[tuple[Crop, FloatArray]]:
        """Those that can be; the others are noted, and not looked at again while they are the same."""
        fresh = [crop for crop in crops if self._damaged.get(crop.face_id) != crop.key]
        gate = asyncio.Semaphore(_READS_AT_ONCE)
        files = await asyncio.gather(*(self._read(crop, gate) for crop in fresh))
        there = [(crop, data) for crop, data in zip(fresh, files, strict=True) if data is not None]
        embeddings = await asyncio.to_thread(self.recognizer.embed_all, [data for _, data in there])
        made = [(crop, one) for (crop, _), one in zip(there, embeddings, strict=True) if one is not None]
        done = {crop.face_id for crop, _ in made}
        for crop in fresh:
            if crop.face_id in done:
                self._damaged.pop(crop.face_id, None)
            else:
                self._damaged[crop.face_id] = crop.key
        return made

    async def _read(self, crop: Crop, gate: asyncio.Semaphore) -> bytes | None:
        async with gate:
            try:
                return await self.objects.get(crop.key)
            except ObjectMissing:
                return None

    async def _switch(self, tx: Connection, seen: Collection, target: Collection, drops: Drops) -> Switched:
        collection = await self._lock(tx, seen)
        after, keys, damaged = UUID(int=0), list[str](), 0
        while crops := await model_change.waiting(tx, target, after, _BATCH):
            after = crops[-1].face_id
            self._embedded += await model_change.keep(tx, target, await self._embed(crops))
            lost = [crop.key for crop in crops if crop.face_id in self._damaged]
            damaged += len(lost)
            keys += lost[: _TOLD - len(keys)]
        vectors = (await model_change.backlog(tx, target)).vectors
        if (vectors and not drops.vectors) or (damaged and not drops.damaged):
            raise _Refused(Switched(False, collection, self._embedded, 0, vectors, damaged, tuple(keys)))
        while lacking := await model_change.lacking(tx, target, _BATCH):
            ids = [face_id for face_id, _ in lacking]
            await faces.delete(tx, collection, ids)
            await idempotency.erase_subjects(tx, ids)
            await journal.erase_subjects(tx, collection, ids)
            # Whoever looks into these photos again may find the faces anew.
            await photo_faces.outdate(tx, [image_id for _, image_id in lacking if image_id is not None])
        templates = await model_change.switch(tx, collection, target)
        now = await collections.get(tx, seen.id)
        return Switched(True, now, self._embedded, templates, vectors, damaged, tuple(keys))


async def forget_others(database: Database, collection_id: str) -> tuple[Collection, int]:
    """The embeddings that models not in use made of the collection; of how many models. Raises NotFound."""

    async def work(tx: Connection) -> tuple[Collection, int]:
        collection = await collections.lock(tx, collection_id, for_deletion=True)
        return collection, await model_change.forget_others(tx, collection)

    return await database.run(work)
