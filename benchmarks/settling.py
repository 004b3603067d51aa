"""What it costs until new faces have their persons:

    OMP_NUM_THREADS=1 uv run python -m benchmarks.settling --faces 20000 --new 16

With one thread, as Ray gives a replica: on two cores more of them take three times the CPU. On an embedded Postgres in a
temporary folder. Seven of ten faces are persons', of whom the first have hundreds and most a few; the others are nobody's,
half of them too small to be grouped. Of the new ones a fifth are strangers.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.processes import usage
from benchmarks.search import postgres, say
from serve_app.faces import FloatArray, OperatingPoint, l2_normalize
from serve_app.identity.people import Collection, EmbeddingContract, new_id
from serve_app.services.clustering import Clustering
from serve_app.storage import bulk, collections, vectors
from serve_app.storage.bulk import BulkPerson
from serve_app.storage.database import Database

LIBRARY = "library"
POINT = OperatingPoint("benchmark", "made up", 0.36, 0.30, None, None)
LIKENESS = 0.6
"""Cosine of two faces of one person."""


class People:
    """Directions of persons, and how many faces each has: the person of rank r about r ** -0.8 of them."""

    def __init__(self, faces: int, dim: int) -> None:
        self.random = np.random.default_rng(1)
        self.dim = dim
        self.centres = self.strangers(max(20, faces // 25))
        self.shares = 1 / np.arange(1, len(self.centres) + 1) ** 0.8
        self.shares /= self.shares.sum()

    def strangers(self, count: int) -> FloatArray:
        return l2_normalize(self.random.normal(size=(count, self.dim)).astype(np.float32))

    def faces(self, persons: npt.NDArray[np.integer]) -> FloatArray:
        noise = self.strangers(len(persons))
        return l2_normalize(np.sqrt(LIKENESS) * self.centres[persons] + np.sqrt(1 - LIKENESS) * noise)

    def some(self, count: int) -> npt.NDArray[np.integer]:
        return self.random.choice(len(self.centres), count, p=self.shares)


async def insert(database: Database, embeddings: FloatArray, code: str | None) -> None:
    """Faces that nobody has: they wait, or have a reason."""
    async with database.transaction() as tx:
        collection = await collections.lock(tx, LIBRARY)
        ids = [new_id() for _ in embeddings]
        await tx.executemany(
            "INSERT INTO faces (id, collection_key, bbox, landmarks, detection_score, taken_at, found_by, decided_by,"
            " unassigned) VALUES ($1, $2, '{0,0,9,9}', '{}', 0.9, now(), 'indexing', 'machine', $3)",
            [(one, collection.key, None if code is None else {"code": code}) for one in ids],
        )
        await vectors.insert_embeddings(tx, collection, None, list(zip(ids, embeddings, strict=True)))


async def fill(database: Database, people: People, faces: int) -> Collection:
    contract = EmbeddingContract(POINT.embedding_model, people.dim, "none")
    collection = await database.run(lambda tx: collections.create(tx, LIBRARY, "", {}, contract))
    sizes = np.maximum(2, (people.shares * 0.7 * faces).astype(int))
    owners = np.repeat(np.arange(len(sizes)), sizes)
    everybody = [BulkPerson(new_id(), None, "", {}) for _ in sizes]
    async with database.dedicated() as connection:
        await bulk.load(connection, collection, everybody, owners, people.faces(owners))
        await connection.execute("UPDATE persons SET founded_by = 'machine'")
        await connection.execute("UPDATE faces SET decided_by = 'machine'")
    for code in ("no_neighbour", "too_small"):
        await insert(database, people.strangers(int(0.15 * faces)), code)
    async with database.dedicated() as connection:
        await connection.execute("VACUUM (ANALYZE)")
    return collection


def server_cpu_s(pid: int) -> float:
    """Also of its processes that have ended: there is one for each connection."""
    ended = psutil.Process(pid).cpu_times()
    return usage(pid).total_cpu_s + ended.children_user + ended.children_system


async def measure(faces: int, new: int, looks: int, dim: int) -> None:
    people = People(faces, dim)
    async with postgres() as (database, pid):
        collection = await fill(database, people, faces)
        grouping = Clustering(database, collection.contract, POINT)
        own_s = server_s = wall_s = 0.0
        # The first reads all that nobody has.
        for look in range(looks + 1):
            known = people.some(new - new // 5)
            await insert(database, np.concatenate((people.faces(known), people.strangers(new // 5))), None)
            before = time.perf_counter(), time.process_time(), server_cpu_s(pid)
            settled = await grouping.settle(LIBRARY)
            took = time.perf_counter() - before[0], time.process_time() - before[1], server_cpu_s(pid) - before[2]
            if look:
                wall_s, own_s, server_s = wall_s + took[0], own_s + took[1], server_s + took[2]
            else:
                say(f"the first of {new:,} among {faces:,}: {took[0]:.2f} s, CPU {took[1]:.2f} s and Postgres {took[2]:.2f} s")
        each = 1e3 / (looks * new)
        say(
            f"{looks} times {new:,} new faces of {dim} values among {faces:,}: {wall_s / looks:.2f} s each time; for a face"
            f" {own_s * each:.2f} ms of CPU, and of Postgres {server_s * each:.2f} ms; the last time {settled}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--new", type=int, default=16, help="at a time")
    parser.add_argument("--looks", type=int, default=10)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    asyncio.run(measure(options.faces, options.new, options.looks, options.dim))


if __name__ == "__main__":
    main()
