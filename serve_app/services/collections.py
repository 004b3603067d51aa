"""Collections: persons whose embeddings can be compared, because one contract made them all."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import AlreadyExists, EmbeddingModelMismatch, NotFound
from serve_app.identity.people import Collection, CollectionSize, EmbeddingContract, Metadata
from serve_app.services.erasure import Eraser, Receipt
from serve_app.services.writing import Once
from serve_app.storage import collections, idempotency
from serve_app.storage.database import Connection, Database


@dataclass(frozen=True, slots=True)
class NewCollection:
    """`embedding_model`: what the client expects; None for what is loaded."""

    id: str
    name: str
    metadata: Metadata
    embedding_model: str | None = None


class Collections:
    """Every method raises NotFound for a collection that is not there, DatabaseUnavailable and Overloaded."""

    def __init__(self, database: Database, eraser: Eraser, contract: EmbeddingContract) -> None:
        self._database = database
        self._eraser = eraser
        self._contract = contract

    async def create(self, new: NewCollection, once: Once[Collection]) -> Collection:
        """Pins the contract of the loaded model. Raises AlreadyExists, EmbeddingModelMismatch."""
        if new.embedding_model is not None and new.embedding_model != self._contract.model:
            raise EmbeddingModelMismatch(
                f"The collection asks for {new.embedding_model!r}; {self._contract.model!r} is loaded.",
                model=new.embedding_model,
                loaded_model=self._contract.model,
            )

        async def work(tx: Connection) -> Collection:
            return await collections.create(tx, new.id, new.name, new.metadata, self._contract)

        return await once.run(self._database, work)

    async def ensure(self, collection_id: str, name: str) -> Collection:
        """The collection, made if it is not there: by one of those who ask at the same time."""
        for _ in range(2):
            try:
                async with self._database.connection() as connection:
                    return await collections.get(connection, collection_id)
            except NotFound:
                pass
            try:
                return await self._database.run(lambda tx: collections.create(tx, collection_id, name, {}, self._contract))
            except AlreadyExists:
                # Unless it was deleted since, the next look finds it.
                pass
        raise NotFound(f"The collection {collection_id!r} was deleted meanwhile.", collection_id=collection_id)

    async def get(self, collection_id: str) -> tuple[Collection, CollectionSize]:
        async with self._database.connection() as connection:
            collection = await collections.get(connection, collection_id)
            return collection, await collections.size(connection, collection)

    async def require(self, collection_id: str) -> None:
        """Raises NotFound, and EmbeddingModelMismatch for one that nothing can be added to now."""
        async with self._database.connection() as connection:
            check_contract(await collections.get(connection, collection_id), self._contract)

    async def page(self, after: str | None, limit: int, only: frozenset[str] | None = None) -> list[Collection]:
        """`only`: no others; None for all."""
        async with self._database.connection() as connection:
            return await collections.page(connection, after, limit, only)

    async def update(
        self, collection_id: str, name: str | None, metadata: Metadata | None, once: Once[Collection]
    ) -> Collection:
        async def work(tx: Connection) -> Collection:
            return await collections.update(tx, collection_id, name, metadata)

        return await once.run(self._database, work)

    async def delete(self, collection_id: str, once: Once[Receipt]) -> Receipt:
        """With everything in it; the receipt is of what a second look found."""

        async def work(tx: Connection) -> Receipt:
            collection = await collections.lock(tx, collection_id, for_deletion=True)
            erased = await collections.delete(tx, collection)
            await idempotency.erase_collection(tx, collection_id)
            return Receipt.of(erased, await collections.remaining_rows(tx, collection), collections=1)

        return await self._eraser.finish(await once.run(self._database, work), once)


def check_contract(collection: Collection, loaded: EmbeddingContract) -> None:
    """Raises EmbeddingModelMismatch unless embeddings made now can be compared with those of the collection."""
    if collection.contract != loaded:
        pinned = collection.contract
        raise EmbeddingModelMismatch(
            f"The collection {collection.id!r} holds embeddings of {pinned.model!r} ({pinned.preprocessing});"
            f" {loaded.model!r} ({loaded.preprocessing}) is loaded.",
            collection_id=collection.id,
            model=pinned.model,
            dim=pinned.dim,
            loaded_model=loaded.model,
            loaded_dim=loaded.dim,
        )
