"""A collection's embeddings by another model: made beside those in use, and put in their place in one transaction.

The tables of embeddings of every model that a collection had stay until they are forgotten, so that the way back is short;
templates are of the model in use only. A comment on a table that is not in use says by which preprocessing it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from serve_app.faces import FloatArray
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.storage import bulk, collections, vectors
from serve_app.storage.database import Connection
from serve_app.storage.vectors import VectorTables


@dataclass(frozen=True, slots=True)
class Backlog:
    """Faces that lack an embedding by the other model: with a crop, and `vectors` that came without a picture."""

    crops: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Crop:
    face_id: UUID
    key: str


async def prepare(tx: Connection, collection: Collection, contract: EmbeddingContract) -> Collection:
    """The collection as it will be, with its table of embeddings; what is in it already is kept where it was made the same
    way. The collection must be locked for deletion: whoever erases from then on knows of the table.

    Raises EmbeddingModelMismatch.
    """
    target = replace(collection, model_key=await collections.model_key(tx, contract), contract=contract)
    tables = VectorTables.of(target)
    row = await tx.fetchrow(
        "SELECT to_regclass($1) IS NOT NULL AS there, obj_description(to_regclass($1), 'pg_class') AS preprocessing",
        tables.embeddings,
    )
    assert row is not None
    if row["there"] and row["preprocessing"] == contract.preprocessing:
        return target
    if row["there"]:
        await vectors.drop(tx, [tables.embeddings])
    await vectors.create_embeddings(tx, target)
    await _describe(tx, target)
    return target


async def backlog(connection: Connection, target: Collection) -> Backlog:
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE crop_key IS NOT NULL) AS crops, count(*) FILTER (WHERE crop_key IS NULL) AS vectors"
        f" FROM faces f WHERE collection_key = $1 AND NOT {_embedded(target)}",
        target.key,
    )
    assert row is not None
    return Backlog(row["crops"], row["vectors"])


async def vectors_only(connection: Connection, collection: Collection) -> int:
    """Faces without a crop."""
    return int(
        await connection.fetchval("SELECT count(*) FROM faces WHERE collection_key = $1 AND crop_key IS NULL", collection.key)
    )


async def waiting(connection: Connection, target: Collection, after: UUID, limit: int) -> list[Crop]:
    """Crops that are to be embedded, in the order of their faces."""
    rows = await connection.fetch(
        "SELECT id, crop_key FROM faces f WHERE collection_key = $1 AND id > $2 AND crop_key IS NOT NULL"
        f" AND NOT {_embedded(target)} ORDER BY id LIMIT $3",
        target.key,
        after,
        limit,
    )
    return [Crop(row["id"], row["crop_key"]) for row in rows]


async def keep(tx: Connection, target: Collection, made: Sequence[tuple[Crop, FloatArray]]) -> int:
    """Embeddings of faces that are still there with the same crop; how many. The collection must be locked."""
    # Whoever erases one of them waits, and then finds the embedding; or was first, and the face is not here any more.
    rows = await tx.fetch(
        "SELECT id, person_id, crop_key FROM faces WHERE id = ANY($1::uuid[]) AND collection_key = $2"
        " ORDER BY id FOR KEY SHARE",
        [crop.face_id for crop, _ in made],
        target.key,
    )
    found = {row["id"]: row for row in rows}
    kept = [
        (crop.face_id, found[crop.face_id]["person_id"], embedding)
        for crop, embedding in made
        if crop.face_id in found and found[crop.face_id]["crop_key"] == crop.key
    ]
    await tx.executemany(
        f"INSERT INTO {VectorTables.of(target).embeddings} (face_id, person_id, embedding) VALUES ($1, $2, $3)"
        " ON CONFLICT DO NOTHING",
        kept,
    )
    return len(kept)


async def lacking(tx: Connection, target: Collection, limit: int) -> list[tuple[UUID, UUID | None]]:
    """Faces without an embedding by the other model, and the picture of each."""
    rows = await tx.fetch(
        f"SELECT id, image_id FROM faces f WHERE collection_key = $1 AND NOT {_embedded(target)} ORDER BY id LIMIT $2",
        target.key,
        limit,
    )
    return [(row["id"], row["image_id"]) for row in rows]


async def switch(tx: Connection, collection: Collection, target: Collection) -> int:
    """Makes `target` what the collection is; returns the number of templates. Every face must have an embedding there, and
    the collection must be locked for deletion. Faces, persons and decisions are not touched."""
    used, new = VectorTables.of(collection), VectorTables.of(target)
    await tx.execute(
        f"DELETE FROM {new.embeddings} e"
        " WHERE NOT EXISTS (SELECT 1 FROM faces f WHERE f.id = e.face_id AND f.collection_key = $1)",
        target.key,
    )
    await tx.execute(
        f"UPDATE {new.embeddings} e SET person_id = f.person_id FROM faces f"
        " WHERE f.id = e.face_id AND e.person_id IS DISTINCT FROM f.person_id"
    )
    await tx.execute(f"ANALYZE {new.embeddings}")
    await vectors.create_templates(tx, target)
    templates = await bulk.fill_templates(tx, target)
    await vectors.drop(tx, [used.templates])
    await _describe(tx, collection)
    await collections.set_model(tx, collection, target.model_key, target.contract.preprocessing)
    return templates


async def forget_others(tx: Connection, collection: Collection) -> int:
    """The embeddings of every model but the one in use; of how many. The collection must be locked for deletion."""
    tables = await vectors.others(tx, collection)
    if tables:
        await vectors.drop(tx, tables)
    return len(tables)


def _embedded(target: Collection) -> str:
    return f"EXISTS (SELECT 1 FROM {VectorTables.of(target).embeddings} e WHERE e.face_id = f.id)"


async def _describe(tx: Connection, collection: Collection) -> None:
    statement = await tx.fetchval(
        "SELECT format('COMMENT ON TABLE %I IS %L', $1::text, $2::text)",
        VectorTables.of(collection).embeddings,
        collection.contract.preprocessing,
    )
    await tx.execute(statement)
