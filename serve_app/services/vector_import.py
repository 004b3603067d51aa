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
from serve_app.people import Collection, new_id
from serve_app.storage import collections, maintenance, persons
from serve_app.storage.bulk import BulkPerson, load
from serve_app.storage.database import Database

CHUNK_FACES = 100_000
"""Of one transaction: what a broken import has to do again."""
_NORMALIZED_ROWS = 50_000
_LOOKED_UP = 10_000
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Vectors:
    """`embeddings`: (N, D) float32, unit norm, person by person. `starts`: (P + 1,) where each of `names` (P) begins, and N."""

    embeddings: FloatArray
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
    unit = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(unit), _NORMALIZED_ROWS):
        rows = slice(start, start + _NORMALIZED_ROWS)
        unit[rows] = _directions(embeddings[rows], start)
    names, owner_of = _names(owners, check_name)
    order = np.argsort(owner_of, kind="stable")
    counts = np.bincount(owner_of, minlength=len(names))
    return Vectors(unit[order], names, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


async def load_vectors(
    database: Database,
    collection: Collection,
    vectors: Vectors,
    split_below: float,
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
                    count = await _load(connection, collection, vectors, range(first, last), known, split_below)
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
