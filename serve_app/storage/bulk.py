"""Bulk load of external vectors by binary COPY, in one transaction: ten times the rate of INSERT."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt

from serve_app.faces import FloatArray, mean_templates, templates_of
from serve_app.people import Collection, Metadata, new_id
from serve_app.storage.database import Connection
from serve_app.storage.vectors import VectorTables

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
"""Of COPY's binary format: docs of PostgreSQL, COPY, "Binary Format"."""
_ROWS_A_CHUNK = 20_000


@dataclass(frozen=True, slots=True)
class BulkPerson:
    id: UUID
    external_id: str | None
    name: str
    metadata: Metadata


async def load(
    connection: Connection,
    collection: Collection,
    people: Sequence[BulkPerson],
    person_of: npt.NDArray[np.integer],
    embeddings: FloatArray,
    split_below: float,
) -> None:
    """New persons with their faces. `person_of`: (N,) index into `people` for each row of `embeddings` (N, D), unit norm.

    All or nothing. The collection should be without an index, which is built faster after than kept up meanwhile. Give
    a dedicated connection: it takes as long as it takes. Raises ValueError where the arrays do not fit each other.
    """
    if embeddings.shape != (len(person_of), collection.contract.dim):
        raise ValueError(
            f"embeddings {embeddings.shape} do not fit {len(person_of)} faces of {collection.contract.dim} values"
        )
    if len(person_of) and not 0 <= int(person_of.min()) <= int(person_of.max()) < len(people):
        raise ValueError("person_of points beyond the persons")
    # By person: a person's faces then lie beside each other, and are read together when it is a candidate.
    order = np.argsort(person_of, kind="stable")
    owners, embeddings = person_of[order], embeddings[order]
    face_ids = _ids(len(owners))
    person_ids = np.frombuffer(b"".join(person.id.bytes for person in people), dtype="V16")
    tables = VectorTables.of(collection)
    async with connection.transaction():
        await _copy(connection, "persons", ("id", "collection_key", "external_id", "name", "metadata"),
                    _persons(collection, people))  # fmt: skip
        await _copy(connection, "faces", ("id", "collection_key", "person_id", "taken_at"),
                    await _faces(connection, collection, face_ids, person_ids[owners]))  # fmt: skip
        await _copy(connection, tables.embeddings, ("collection_key", "face_id", "person_id", "embedding"),
                    _vectors(collection, face_ids, person_ids[owners], embeddings))  # fmt: skip
        template_owners, ordinals, counts, templates = _templates(owners, embeddings, split_below)
        await _copy(connection, tables.templates, ("collection_key", "person_id", "ordinal", "face_count", "embedding"),
                    _template_rows(collection, person_ids[template_owners], ordinals, counts, templates))  # fmt: skip
    await connection.execute(f"ANALYZE {tables.embeddings}, {tables.templates}, persons, faces")


async def _copy(connection: Connection, table: str, columns: Sequence[str], chunks: Iterator[bytes]) -> None:
    async def source() -> object:
        yield _HEADER
        for chunk in chunks:
            yield chunk
        yield _TRAILER

    await connection.copy_to_table(table, source=source(), columns=columns, format="binary")


def _ids(count: int) -> npt.NDArray[np.void]:
    """UUIDs of version 7 that sort in the order they are made here."""
    first = new_id()
    raw = np.empty((count, 16), dtype=np.uint8)
    raw[:] = np.frombuffer(first.bytes, dtype=np.uint8)
    # rand_b of RFC 9562 as a counter of 32 bits over 30 random ones.
    raw[:, 12:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    return raw.view("V16").ravel()


def _persons(collection: Collection, people: Sequence[BulkPerson]) -> Iterator[bytes]:
    for start in range(0, len(people), _ROWS_A_CHUNK):
        buffer = io.BytesIO()
        for person in people[start : start + _ROWS_A_CHUNK]:
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


def _rows(count: int, fields: Sequence[tuple[str, npt.NDArray[np.generic]]]) -> Iterator[bytes]:
    """Rows of fields of fixed width. `fields`: dtype of a value on the wire, and the values."""
    layout: list[tuple[str, str]] = [("count", ">i2")]
    for index, (kind, _) in enumerate(fields):
        layout += [(f"length{index}", ">i4"), (f"value{index}", kind)]
    for start in range(0, count, _ROWS_A_CHUNK):
        stop = min(count, start + _ROWS_A_CHUNK)
        rows = np.zeros(stop - start, dtype=layout)
        rows["count"] = len(fields)
        for index, (kind, values) in enumerate(fields):
            rows[f"length{index}"] = np.dtype(kind).itemsize
            rows[f"value{index}"] = values[start:stop]
        yield rows.tobytes()


async def _faces(
    connection: Connection, collection: Collection, face_ids: npt.NDArray[np.void], owners: npt.NDArray[np.void]
) -> Iterator[bytes]:
    # Microseconds since 2000-01-01, as timestamptz is on the wire.
    now = int(await connection.fetchval("SELECT (extract(epoch FROM now() - '2000-01-01Z'::timestamptz) * 1000000)::bigint"))
    count = len(face_ids)
    return _rows(
        count,
        [
            ("V16", face_ids),
            (">i4", np.full(count, collection.key)),
            ("V16", owners),
            (">i8", np.full(count, now, dtype=np.int64)),
        ],
    )


def _vectors(
    collection: Collection, face_ids: npt.NDArray[np.void], owners: npt.NDArray[np.void], embeddings: FloatArray
) -> Iterator[bytes]:
    keys = np.full(len(face_ids), collection.key)
    return _rows(len(face_ids), [(">i4", keys), ("V16", face_ids), ("V16", owners), _halfvec(embeddings)])


def _template_rows(
    collection: Collection,
    owners: npt.NDArray[np.void],
    ordinals: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    templates: FloatArray,
) -> Iterator[bytes]:
    keys = np.full(len(owners), collection.key)
    return _rows(len(owners), [(">i4", keys), ("V16", owners), (">i2", ordinals), (">i4", counts), _halfvec(templates)])


def _halfvec(vectors: FloatArray) -> tuple[str, npt.NDArray[np.generic]]:
    """pgvector's halfvec on the wire: dimension and a zero as int16, then big-endian halves."""
    count, dim = vectors.shape
    wire = np.zeros((count, dim + 2), dtype=">u2")
    wire[:, 0] = dim
    wire[:, 2:] = vectors.astype(">f2").view(">u2")
    return f"V{2 * (dim + 2)}", wire.view(f"V{2 * (dim + 2)}").ravel()


def _templates(
    owners: npt.NDArray[np.integer], embeddings: FloatArray, split_below: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], FloatArray]:
    """Of faces sorted by owner: each template's owner, ordinal, face count, and the (T, D) templates."""
    if not len(owners):
        nothing = np.empty(0, np.int64)
        return nothing, nothing, nothing, embeddings
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    sizes = np.diff(np.append(starts, len(owners)))
    means, enough = mean_templates(embeddings, starts, split_below)
    found_owners, ordinals = [owners[starts][enough]], [np.zeros(int(enough.sum()), np.int64)]
    counts, templates = [sizes[enough]], [means[enough]]
    for person in np.flatnonzero(~enough):
        several, theirs = templates_of(embeddings[starts[person] : starts[person] + sizes[person]], split_below)
        found_owners.append(np.full(len(several), owners[starts[person]]))
        ordinals.append(np.arange(len(several)))
        counts.append(np.array(theirs))
        templates.append(several)
    return np.concatenate(found_owners), np.concatenate(ordinals), np.concatenate(counts), np.concatenate(templates)
