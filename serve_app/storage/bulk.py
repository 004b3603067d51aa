"""Bulk load of external vectors by binary COPY, in one transaction: many times the rate of INSERT."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import numpy as np
import numpy.typing as npt

from serve_app.errors import AlreadyExists, EmbeddingModelMismatch, NotFound
from serve_app.faces import FloatArray, mean_templates, templates_of
from serve_app.identity.people import Collection, Metadata, new_id
from serve_app.storage import collections
from serve_app.storage.database import Connection
from serve_app.storage.vectors import VectorTables, stack

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
"""Of COPY's binary format: docs of PostgreSQL, COPY, "Binary Format"."""
_ROWS_A_BLOCK = 20_000
_PERSONS_A_STEP = 2_000
_MESSAGE_BYTES = 1 << 18
"""Of a block, sent at a time: the server works on it while the next is on its way."""


@dataclass(frozen=True, slots=True)
class BulkPerson:
    id: UUID
    external_id: str | None
    name: str
    metadata: Metadata


@contextmanager
def conflicts(collection: Collection) -> Iterator[None]:
    """Around `load`, while others write as well. Raises AlreadyExists for an external_id that was taken meanwhile, NotFound
    for a collection that was deleted."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists("Somebody made one of the persons at the same time.") from error
    except (asyncpg.UndefinedTableError, asyncpg.ForeignKeyViolationError) as error:
        raise NotFound(f"The collection {collection.id!r} was deleted meanwhile.", collection_id=collection.id) from error


async def load(
    connection: Connection,
    collection: Collection,
    people: Sequence[BulkPerson],
    person_of: npt.NDArray[np.integer],
    embeddings: FloatArray,
    taken_at: npt.NDArray[np.datetime64] | None = None,
) -> None:
    """New persons with their faces. `person_of`: (N,) index into `people` for each row of `embeddings` (N, D), unit norm.
    `taken_at`: (N,) UTC; None: now.

    All or nothing. The collection should be without an index, which is built faster after than kept up meanwhile. Give
    a dedicated connection: it takes as long as it takes. Raises ValueError where the arrays do not fit each other,
    EmbeddingModelMismatch where the collection was switched to another model since it was looked up.
    """
    if embeddings.shape != (len(person_of), collection.contract.dim):
        raise ValueError(
            f"embeddings {embeddings.shape} do not fit {len(person_of)} faces of {collection.contract.dim} values"
        )
    if len(person_of) and not 0 <= int(person_of.min()) <= int(person_of.max()) < len(people):
        raise ValueError("person_of points beyond the persons")
    if taken_at is not None and taken_at.shape != person_of.shape:
        raise ValueError(f"taken_at {taken_at.shape} does not fit {len(person_of)} faces")
    faces = _Faces(collection.key, people, person_of, embeddings)
    tables = VectorTables.of(collection)
    templates: list[bytes] = []
    async with connection.transaction():
        if (await collections.lock(connection, collection.id)).contract != collection.contract:
            raise EmbeddingModelMismatch(f"The collection {collection.id!r} was switched to another model meanwhile.")
        dates = await _dates(connection, taken_at, len(person_of))
        await _copy(connection, "persons", ("id", "collection_key", "external_id", "name", "metadata"),
                    _persons(collection, people))  # fmt: skip
        await _copy(connection, "faces", ("collection_key", "id", "person_id", "taken_at"), faces.rows(dates))
        await _copy(connection, tables.embeddings, ("face_id", "person_id", "embedding"),
                    faces.vectors(templates))  # fmt: skip
        await _copy(connection, tables.templates, ("person_id", "ordinal", "face_count", "embedding"),
                    iter(templates))  # fmt: skip
    await _analyze(connection, tables)


async def fill_templates(tx: Connection, collection: Collection) -> int:
    """Templates of every person from the embeddings, into the collection's empty table; returns how many. As
    `vectors.refresh_templates` makes them, but by COPY and many persons at a time. The collection must be locked for
    deletion."""
    tables = VectorTables.of(collection)
    columns = ("person_id", "ordinal", "face_count", "embedding")
    last, total = UUID(int=0), 0
    while True:
        persons = await tx.fetch(
            f"SELECT person_id, count(*) AS faces FROM {tables.embeddings} WHERE person_id > $1"
            f" GROUP BY person_id ORDER BY person_id LIMIT {_PERSONS_A_STEP:d}",
            last,
        )
        if not persons:
            return total
        # Whole persons, and no more faces than fit: at least one.
        ends = np.cumsum([row["faces"] for row in persons])
        few = max(1, int(np.searchsorted(ends, _ROWS_A_BLOCK, side="right")))
        first, last = persons[0]["person_id"], persons[few - 1]["person_id"]
        rows = await tx.fetch(
            f"SELECT embedding FROM {tables.embeddings} WHERE person_id BETWEEN $1 AND $2 ORDER BY person_id, face_id",
            first,
            last,
        )
        owners = np.repeat(np.arange(few), [row["faces"] for row in persons[:few]])
        ids = np.frombuffer(b"".join(row["person_id"].bytes for row in persons[:few]), dtype="V16")
        embeddings = stack([row["embedding"] for row in rows], collection.contract.dim)
        of, ordinals, counts, vectors = await asyncio.to_thread(_templates, owners, embeddings)
        wire = _wire(("V16", ids[of]), (">i2", ordinals), (">i4", counts), _halfvec(vectors))
        await _copy(tx, tables.templates, columns, iter([wire]))
        total += len(of)


async def _analyze(connection: Connection, tables: VectorTables) -> None:
    """When the collection has doubled: what the planner wants to know are shares, not counts."""
    doubled = await connection.fetchval(
        "SELECT pg_relation_size(oid) > 2 * relpages * current_setting('block_size')::bigint FROM pg_class"
        " WHERE oid = to_regclass($1)",
        tables.embeddings,
    )
    if doubled:
        await connection.execute(f"ANALYZE {tables.embeddings}, {tables.templates}, persons, faces")


async def _dates(connection: Connection, taken_at: npt.NDArray[np.datetime64] | None, count: int) -> npt.NDArray[np.int64]:
    """Microseconds since 2000-01-01, as timestamptz is on the wire."""
    if taken_at is not None:
        return (taken_at.astype("datetime64[us]") - np.datetime64("2000-01-01", "us")).astype(np.int64)
    now = await connection.fetchval("SELECT (extract(epoch FROM now() - '2000-01-01Z'::timestamptz) * 1000000)::bigint")
    return np.full(count, now, dtype=np.int64)


async def _copy(connection: Connection, table: str, columns: Sequence[str], blocks: Iterator[bytes]) -> None:
    async def source() -> AsyncIterator[bytes | memoryview]:
        yield _HEADER
        async for block in _ahead(blocks):
            view = memoryview(block)
            for start in range(0, len(view), _MESSAGE_BYTES):
                yield view[start : start + _MESSAGE_BYTES]
        yield _TRAILER

    await connection.copy_to_table(table, source=source(), columns=columns, format="binary")


async def _ahead(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each block is made in a thread while the one before is sent."""
    loop = asyncio.get_running_loop()
    upcoming = loop.run_in_executor(None, next, blocks, b"")
    while block := await upcoming:
        upcoming = loop.run_in_executor(None, next, blocks, b"")
        yield block


def _ids(count: int) -> npt.NDArray[np.void]:
    """UUIDs of version 7 that sort in the order they are made here."""
    first = new_id()
    raw = np.empty((count, 16), dtype=np.uint8)
    raw[:] = np.frombuffer(first.bytes, dtype=np.uint8)
    # rand_b of RFC 9562 as a counter of 32 bits over 30 random ones.
    raw[:, 12:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    return raw.view("V16").ravel()


def _persons(collection: Collection, people: Sequence[BulkPerson]) -> Iterator[bytes]:
    for start in range(0, len(people), _ROWS_A_BLOCK):
        buffer = io.BytesIO()
        for person in people[start : start + _ROWS_A_BLOCK]:
            fields = (
                person.id.bytes,
                collection.key.to_bytes(4, "big"),
                None if person.external_id is None else person.external_id.encode(),
                person.name.encode(),
                # jsonb's binary form begins with its version.
                b"\x01" + json.dumps(dict(person.metadata), allow_nan=False).encode(),
            )
            buffer.write(len(fields).to_bytes(2, "big"))
            for field in fields:
                buffer.write(b"\xff\xff\xff\xff" if field is None else len(field).to_bytes(4, "big") + field)
        yield buffer.getvalue()


class _Faces:
    """Person by person: a person's faces then lie beside each other, and are read together when it is a candidate."""

    def __init__(
        self, collection_key: int, people: Sequence[BulkPerson], person_of: npt.NDArray[np.integer], embeddings: FloatArray
    ) -> None:
        self._collection_key = collection_key
        self._embeddings = embeddings
        self._order = np.argsort(person_of, kind="stable")
        self._owners = person_of[self._order]
        self._ids = _ids(len(person_of))
        self._person_ids = np.frombuffer(b"".join(person.id.bytes for person in people), dtype="V16")

    def rows(self, dates: npt.NDArray[np.int64]) -> Iterator[bytes]:
        for block in self._blocks():
            owners = self._person_ids[self._owners[block]]
            keys = np.full(len(owners), self._collection_key)
            yield _wire((">i4", keys), ("V16", self._ids[block]), ("V16", owners), (">i8", dates[self._order[block]]))

    def vectors(self, templates: list[bytes]) -> Iterator[bytes]:
        """The rows of the embeddings. Those of the templates are appended to `templates` meanwhile."""
        for block in self._blocks():
            owners, embeddings = self._owners[block], self._embeddings[self._order[block]]
            of, ordinals, counts, vectors = _templates(owners, embeddings)
            templates.append(_wire(("V16", self._person_ids[of]), (">i2", ordinals), (">i4", counts), _halfvec(vectors)))
            yield _wire(("V16", self._ids[block]), ("V16", self._person_ids[owners]), _halfvec(embeddings))

    def _blocks(self) -> Iterator[slice]:
        """No person's faces are in two."""
        ends = np.append(np.flatnonzero(np.diff(self._owners)) + 1, len(self._owners))
        start = 0
        while start < len(self._owners):
            stop = int(ends[np.searchsorted(ends, min(start + _ROWS_A_BLOCK, len(self._owners)))])
            yield slice(start, stop)
            start = stop


def _wire(*fields: tuple[str, npt.NDArray[np.generic]]) -> bytes:
    """Rows of `fields` of fixed width: dtype of a value on the wire, and the values."""
    count = len(fields[0][1])
    layout: list[tuple[str, str]] = [("count", ">i2")]
    for index, (kind, _) in enumerate(fields):
        layout += [(f"length{index}", ">i4"), (f"value{index}", kind)]
    rows = np.empty(count, dtype=layout)
    rows["count"] = len(fields)
    for index, (kind, values) in enumerate(fields):
        rows[f"length{index}"] = np.dtype(kind).itemsize
        rows[f"value{index}"] = values
    return rows.tobytes()


def _halfvec(vectors: FloatArray) -> tuple[str, npt.NDArray[np.generic]]:
    """pgvector's halfvec on the wire: dimension and a zero as int16, then big-endian halves."""
    count, dim = vectors.shape
    wire = np.zeros((count, dim + 2), dtype=">u2")
    wire[:, 0] = dim
    wire[:, 2:] = vectors.astype(">f2").view(">u2")
    return f"V{2 * (dim + 2)}", wire.view(f"V{2 * (dim + 2)}").ravel()


def _templates(
    owners: npt.NDArray[np.integer], embeddings: FloatArray
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.int64], FloatArray]:
    """Of faces sorted by owner, at least one: each template's owner, ordinal, face count, and the (T, D) templates."""
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    sizes = np.diff(np.append(starts, len(owners)))
    means, enough = mean_templates(embeddings, starts)
    found_owners, ordinals = [owners[starts][enough]], [np.zeros(int(enough.sum()), np.int64)]
    counts, templates = [sizes[enough]], [means[enough]]
    for person in np.flatnonzero(~enough):
        several, theirs = templates_of(embeddings[starts[person] : starts[person] + sizes[person]])
        found_owners.append(np.full(len(several), owners[starts[person]]))
        ordinals.append(np.arange(len(several)))
        counts.append(np.array(theirs))
        templates.append(several)
    return np.concatenate(found_owners), np.concatenate(ordinals), np.concatenate(counts), np.concatenate(templates)
