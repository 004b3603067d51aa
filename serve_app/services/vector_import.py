"""External vectors in bulk: new persons with their faces from an .npz file, straight into the database."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.errors import AlreadyExists, ConfigurationError
from serve_app.faces import FloatArray, l2_normalize
from serve_app.identity.people import Collection, new_id
from serve_app.storage import collections, maintenance, persons
from serve_app.storage.bulk import BulkPerson, conflicts, load
from serve_app.storage.database import Connection, Database

CHUNK_FACES = 100_000
"""Of one transaction: what a broken import has to do again."""
_NORMALIZED_ROWS = 50_000
_LOOKED_UP = 10_000
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Vectors:
    """`embeddings`: (N, D) float32, unit norm. `order`: (N,) its rows, person by person. `starts`: (P + 1,) where in `order`
    each of `names` (P) begins, and N."""

    embeddings: FloatArray
    order: npt.NDArray[np.int64]
    names: tuple[str, ...]
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LoadedVectors:
    """`present`: persons that were there already, and were left as they are."""

    persons: int
    faces: int
    present: int
    search_mode: str


def read_vectors(path: Path, dim: int, check_name: Callable[[str], str]) -> Vectors:
    """The arrays `embeddings` (N, D) and `persons` (N,). `check_name`: an external_id as it is stored; ValueError for one
    that cannot be.

    Raises ConfigurationError where the file is not such a file, the dimension is another, or a vector has no direction.
    """
    if not zipfile.is_zipfile(path):
        raise ConfigurationError(f"{path} is no .npz file with the arrays `embeddings` and `persons`.")
    try:
        # Never pickled objects: they would run code.
        with np.load(path, allow_pickle=False) as arrays:
            embeddings, owners = arrays["embeddings"], arrays["persons"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} has no arrays `embeddings` and `persons`: {error}.") from error
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f":
        raise ConfigurationError(f"`embeddings` must be (N, D) floats, not {embeddings.dtype} {embeddings.shape}.")
    if embeddings.shape[1] != dim:
        raise ConfigurationError(f"The embeddings have {embeddings.shape[1]} values; the collection holds those of {dim}.")
    if owners.shape != embeddings.shape[:1] or owners.dtype.kind not in "USiu":
        raise ConfigurationError(f"`persons` must be (N,) text or whole numbers, not {owners.dtype} {owners.shape}.")
    # In its place where it can be: a million faces of 512 values are 2 GB.
    unit = embeddings if embeddings.dtype == np.float32 else np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(unit), _NORMALIZED_ROWS):
        rows = slice(start, start + _NORMALIZED_ROWS)
        unit[rows] = _directions(embeddings[rows], start)
    names, owner_of = _names(owners, check_name)
    order = np.argsort(owner_of, kind="stable").astype(np.int64)
    counts = np.bincount(owner_of, minlength=len(names))
    return Vectors(unit, order, names, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


async def load_vectors(
    database: Database,
    collection: Collection,
    vectors: Vectors,
    progress: Callable[[int], None],
    present: Callable[[str], None],
    chunk_faces: int = CHUNK_FACES,
) -> LoadedVectors:
    """Makes the persons that are not there yet, each with all its faces, a hundred thousand faces a transaction; then builds
    the index, where one is due. `progress`: faces that are done. `present`: told of a person that is there already.

    What breaks off is finished by calling it again. Raises NotFound, AlreadyExists when others make the same persons at the
    same time, DatabaseUnavailable, Overloaded.
    """
    made = faces = skipped = 0
    async with database.dedicated() as connection:
        for first, last in _chunks(vectors.starts, chunk_faces):
            for attempt in range(1, _ATTEMPTS + 1):
                names = vectors.names[first:last]
                known: set[str] = set()
                for start in range(0, len(names), _LOOKED_UP):
                    known |= (await persons.by_external_ids(connection, collection, names[start : start + _LOOKED_UP])).keys()
                try:
                    count = await _load(connection, collection, vectors, range(first, last), known)
                except AlreadyExists:
                    if attempt == _ATTEMPTS:
                        raise
                else:
                    break
            for name in names:
                if name in known:
                    present(name)
            made, faces, skipped = made + len(names) - len(known), faces + count, skipped + len(known)
            progress(int(vectors.starts[last]))
        async with maintenance.only_one(connection) as mine:
            found = await collections.get(connection, collection.id)
            # Where somebody else maintains, that will find it as well.
            mode = await maintenance.choose_search_mode(connection, found) if mine else found.search_mode
    return LoadedVectors(made, faces, skipped, mode)


def _directions(rows: npt.NDArray[np.floating], first: int) -> FloatArray:
    # In float64, and scaled first: as faces.parse_embedding does.
    wide = rows.astype(np.float64)
    largest = np.abs(wide).max(axis=1)
    wrong = ~np.isfinite(largest) | (largest < 1e-12)
    if wrong.any():
        raise ConfigurationError(f"Row {first + int(wrong.argmax())} of `embeddings` is zero, infinite or NaN.")
    return l2_normalize(wide / largest[:, None])


def _names(owners: npt.NDArray[np.generic], check_name: Callable[[str], str]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The external_ids, and for each face which of them is its person's."""
    different, inverse = np.unique(owners, return_inverse=True)
    names: dict[str, int] = {}
    places = np.empty(len(different), dtype=np.int64)
    for index, value in enumerate(different.tolist()):
        try:
            name = check_name(value.decode() if isinstance(value, bytes) else str(value))
        except ValueError as error:
            raise ConfigurationError(f"`persons` has {value!r}, which cannot be an external_id.") from error
        # Two may be one once spaces at their ends are gone.
        places[index] = names.setdefault(name, len(names))
    return tuple(names), places[inverse]


def _chunks(starts: npt.NDArray[np.int64], chunk_faces: int) -> Iterator[tuple[int, int]]:
    """Persons from and to, of about so many faces together; a person is never divided."""
    first, count = 0, len(starts) - 1
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + chunk_faces, side="right")) - 1
        last = max(first + 1, min(last, count))
        yield first, last
        first = last


async def _load(
    connection: Connection,
    collection: Collection,
    vectors: Vectors,
    chosen: Sequence[int],
    known: set[str],
) -> int:
    """Faces of the chosen persons that are not known. Raises AlreadyExists when one came to be meanwhile, NotFound."""
    fresh = [index for index in chosen if vectors.names[index] not in known]
    if not fresh:
        return 0
    sizes = (vectors.starts[1:] - vectors.starts[:-1])[fresh]
    rows = np.concatenate([vectors.order[vectors.starts[index] : vectors.starts[index + 1]] for index in fresh])
    people = [BulkPerson(new_id(), vectors.names[index], vectors.names[index], {}) for index in fresh]
    with conflicts(collection):
        await load(connection, collection, people, np.repeat(np.arange(len(fresh)), sizes), vectors.embeddings[rows])
    return len(rows)
