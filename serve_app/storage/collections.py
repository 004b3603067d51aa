"""Collections: rows, contracts, and their vector tables."""

from __future__ import annotations

import re

import asyncpg

from serve_app.errors import AlreadyExists, EmbeddingModelMismatch, NotFound
from serve_app.identity.people import Collection, CollectionSize, EmbeddingContract, Erased, Metadata
from serve_app.storage import api_keys, objects_outbox, photo_embeddings, vectors
from serve_app.storage.database import Connection, Row
from serve_app.storage.objects import collection_prefix

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LOCK = 0x6B6C636F
"""First half of the advisory lock; the second is the collection's key."""

_COLUMNS = """
    SELECT c.key, c.id, c.name, c.metadata, c.model_key, m.name AS model, m.dim, c.preprocessing, c.search_mode, c.ef_search,
           c.created_at, c.updated_at
    FROM collections c JOIN embedding_models m ON m.key = c.model_key
"""


async def create(tx: Connection, collection_id: str, name: str, metadata: Metadata, contract: EmbeddingContract) -> Collection:
    """Raises AlreadyExists for an id that is taken."""
    key = await model_key(tx, contract)
    try:
        await tx.execute(
            "INSERT INTO collections (id, name, metadata, model_key, preprocessing) VALUES ($1, $2, $3, $4, $5)",
            collection_id, name, metadata, key, contract.preprocessing,
        )  # fmt: skip
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists(f"There is a collection {collection_id!r} already.", collection_id=collection_id) from error
    collection = await get(tx, collection_id)
    await vectors.create_tables(tx, collection)
    return collection


async def model_key(tx: Connection, contract: EmbeddingContract) -> int:
    """Given to the model now if it has none. Raises EmbeddingModelMismatch where it has another dimension here."""
    # Looked up first: an insert that conflicts uses up a number each time.
    for _ in range(2):
        row = await tx.fetchrow("SELECT key, dim FROM embedding_models WHERE name = $1", contract.model)
        if row is not None:
            if row["dim"] != contract.dim:
                raise EmbeddingModelMismatch(
                    f"{contract.model!r} made vectors of {row['dim']} values until now, and of {contract.dim} at present.",
                    model=contract.model,
                    dim=row["dim"],
                    loaded_dim=contract.dim,
                )
            return int(row["key"])
        await tx.execute(
            "INSERT INTO embedding_models (name, dim) VALUES ($1, $2) ON CONFLICT DO NOTHING", contract.model, contract.dim
        )
    raise AssertionError("unreachable")


async def get(connection: Connection, collection_id: str) -> Collection:
    """Raises NotFound."""
    _check_id(collection_id)
    row = await connection.fetchrow(_COLUMNS + " WHERE c.id = $1", collection_id)
    if row is None:
        raise missing(collection_id)
    return _collection(row)


async def lock(tx: Connection, collection_id: str, *, for_deletion: bool = False) -> Collection:
    """The collection, kept from being deleted until the transaction ends; with `for_deletion` from being written to.

    Always the first lock of a transaction, and one a transaction: who has the one and asks for the other waits for himself.
    Whoever asks for it stands in one queue, so that neither those who write nor who deletes wait for ever. Raises NotFound.
    """
    _check_id(collection_id)
    # The row's own lock has no queue: others go on sharing it while somebody waits to have it alone.
    queue, row_lock = ("", "UPDATE") if for_deletion else ("_shared", "KEY SHARE")
    statement = (
        f"{_COLUMNS} WHERE c.id = $1 AND (SELECT pg_advisory_xact_lock{queue}({_LOCK:d}, k.key) IS NOT NULL"
        f" FROM collections k WHERE k.id = $1) FOR {row_lock} OF c"
    )
    # Again: who waited while it was switched to another model is shown its new row with the old model, which do not fit;
    # who waited while it was deleted finds it made anew.
    for _ in range(3):
        row = await tx.fetchrow(statement, collection_id)
        if row is not None:
            return _collection(row)
    raise missing(collection_id)


async def page(connection: Connection, after: str | None, limit: int, only: frozenset[str] | None = None) -> list[Collection]:
    """Ordered by id. `only`: no others; None for all."""
    rows = await connection.fetch(
        _COLUMNS + " WHERE c.id > $1 AND ($3::text[] IS NULL OR c.id = ANY($3)) ORDER BY c.id LIMIT $2",
        after or "",
        limit,
        None if only is None else sorted(only),
    )
    return [_collection(row) for row in rows]


async def all_collections(connection: Connection) -> list[Collection]:
    return [_collection(row) for row in await connection.fetch(_COLUMNS + " ORDER BY c.key")]


async def update(tx: Connection, collection_id: str, name: str | None, metadata: Metadata | None) -> Collection:
    """Raises NotFound."""
    await lock(tx, collection_id)
    await tx.execute(
        "UPDATE collections SET name = coalesce($2, name), metadata = coalesce($3, metadata), updated_at = now()"
        " WHERE id = $1",
        collection_id,
        name,
        metadata,
    )
    return await get(tx, collection_id)


async def set_search_mode(connection: Connection, collection: Collection, mode: str, ef_search: int) -> None:
    await connection.execute(
        "UPDATE collections SET search_mode = $2, ef_search = $3 WHERE key = $1", collection.key, mode, ef_search
    )


async def set_model(tx: Connection, collection: Collection, model: int, preprocessing: str) -> None:
    """Searched exactly until `maintenance` looks at it. It must be locked for deletion."""
    await tx.execute(
        "UPDATE collections SET model_key = $2, preprocessing = $3, search_mode = DEFAULT, ef_search = DEFAULT,"
        " updated_at = now() WHERE key = $1",
        collection.key,
        model,
        preprocessing,
    )


async def size(connection: Connection, collection: Collection) -> CollectionSize:
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM persons WHERE collection_key = $1) AS persons,"
        " (SELECT count(*) FROM faces WHERE collection_key = $1) AS faces,"
        " (SELECT count(*) FROM images WHERE collection_key = $1) AS images",
        collection.key,
    )
    assert row is not None
    return CollectionSize(row["persons"], row["faces"], row["images"])


async def delete(tx: Connection, collection: Collection) -> Erased:
    """The collection must be locked for deletion. Its objects are handed to the outbox, and all that may
    lie beside them: thumbnails, and what uploads that were broken off have left."""
    embeddings, templates = await vectors.count(tx, collection)
    rows = await tx.fetch("DELETE FROM faces WHERE collection_key = $1 RETURNING crop_key", collection.key)
    crops = [row["crop_key"] for row in rows if row["crop_key"] is not None]
    photos = await tx.execute("DELETE FROM photos WHERE collection_key = $1", collection.key)
    images = await tx.fetch("DELETE FROM images WHERE collection_key = $1 RETURNING object_key", collection.key)
    persons = await tx.execute("DELETE FROM persons WHERE collection_key = $1", collection.key)
    await tx.execute("DELETE FROM journal WHERE collection_key = $1", collection.key)
    await tx.execute("DELETE FROM jobs WHERE collection_key = $1", collection.key)
    semantic = await photo_embeddings.forget(tx, collection)
    await tx.execute("DELETE FROM collections WHERE key = $1", collection.key)
    await api_keys.forget_collection(tx, collection.id)
    named = (*(row["object_key"] for row in images), *crops)
    await objects_outbox.add(tx, named)
    prefix = collection_prefix(collection.key)
    await objects_outbox.add_prefix(tx, prefix)
    keys = (*named, prefix)
    await vectors.drop_tables(tx, collection)
    await photo_embeddings.drop_tables(tx, semantic)
    removed = vectors.affected(persons), len(rows), embeddings, templates, len(images), len(crops), keys
    return Erased(*removed, photos=vectors.affected(photos))


async def remaining_rows(connection: Connection, collection: Collection) -> int:
    """Rows and tables of a deleted collection that are still there."""
    tables = vectors.VectorTables.of(collection)
    return len(await vectors.others(connection, collection)) + int(
        await connection.fetchval(
            "SELECT (SELECT count(*) FROM persons WHERE collection_key = $1)"
            " + (SELECT count(*) FROM faces WHERE collection_key = $1)"
            " + (SELECT count(*) FROM images WHERE collection_key = $1)"
            " + (SELECT count(*) FROM photos WHERE collection_key = $1)"
            " + (SELECT count(*) FROM photo_tags WHERE collection_key = $1)"
            " + (SELECT count(*) FROM photo_texts WHERE collection_key = $1)"
            " + (SELECT count(*) FROM photo_vocabulary WHERE collection_key = $1)"
            " + (SELECT count(*) FROM indexed_files WHERE collection_key = $1)"
            " + (SELECT count(*) FROM journal WHERE collection_key = $1)"
            " + (SELECT count(*) FROM jobs WHERE collection_key = $1)"
            " + (SELECT count(*) FROM semantic_collections WHERE collection_key = $1)"
            " + (to_regclass($2) IS NOT NULL)::int + (to_regclass($3) IS NOT NULL)::int",
            collection.key,
            tables.embeddings,
            tables.templates,
        )
    )


def _check_id(collection_id: str) -> None:
    """What cannot be an id is not there; it may be what Postgres cannot even read."""
    if not _ID.fullmatch(collection_id):
        raise missing(collection_id)


def missing(collection_id: str) -> NotFound:
    shown = collection_id[:63].encode("ascii", "backslashreplace").decode("ascii")
    return NotFound(f"There is no collection {shown!r}.", collection_id=shown)


def _collection(row: Row) -> Collection:
    return Collection(
        row["key"],
        row["id"],
        row["name"],
        row["metadata"],
        row["model_key"],
        EmbeddingContract(row["model"], row["dim"], row["preprocessing"]),
        row["search_mode"],
        row["ef_search"],
        row["created_at"],
        row["updated_at"],
    )
