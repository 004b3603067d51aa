"""A gallery in a collection of the database, loaded, maintained and searched as the service does it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast
from uuid import UUID

import numpy as np

from benchmarks.gallery import Gallery, Ranking
from serve_app.faces import BoolArray, FloatArray
from serve_app.identity.people import Candidate, Collection, EmbeddingContract, SearchFilter, new_id
from serve_app.services.vector_import import CHUNK_FACES
from serve_app.storage import collections, maintenance, search
from serve_app.storage.bulk import BulkPerson, load
from serve_app.storage.database import Connection, Database
from serve_app.storage.vectors import VectorTables

TOP_K = 10
_DAYS = 1000
_FIRST_DAY = datetime(2023, 1, 1, tzinfo=UTC)
_PERSON_SET = 200

Search = Callable[[FloatArray], Awaitable[Sequence[Candidate]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A filter, and the faces that fulfil it."""

    name: str
    wanted: SearchFilter
    eligible: BoolArray


class Stored:
    """A gallery in a collection of its own."""

    def __init__(self, database: Database, name: str, gallery: Gallery) -> None:
        self._database = database
        self._name = name
        self.gallery = gallery
        self._person_ids = [new_id() for _ in range(gallery.persons)]
        self._days = np.random.default_rng(len(gallery.faces)).integers(0, _DAYS, len(gallery.faces))
        self._person_at = {identifier: index for index, identifier in enumerate(self._person_ids)}
        self._face_at: dict[UUID, int] = {}
        self.collection: Collection

    async def load(self) -> float:
        """As an import does it, a hundred thousand faces a transaction; returns seconds."""
        contract = EmbeddingContract("benchmark", self.gallery.faces.shape[1], "none")
        self.collection = await self._database.run(lambda tx: collections.create(tx, self._name, "", {}, contract))
        people = [
            BulkPerson(identifier, f"{self._name}-{index:07d}", f"Person {index}", _metadata(index))
            for index, identifier in enumerate(self._person_ids)
        ]
        taken_at = np.datetime64(_FIRST_DAY.replace(tzinfo=None), "us") + self._days.astype("timedelta64[D]")
        begun = time.perf_counter()
        async with self._database.dedicated() as connection:
            for first, last in _chunks(self.gallery):
                faces = slice(self.gallery.starts[first], _end(self.gallery, last))
                await load(
                    connection,
                    self.collection,
                    people[first:last],
                    self.gallery.person_of[faces] - first,
                    self.gallery.faces[faces],
                    taken_at[faces],
                )
        return time.perf_counter() - begun

    async def maintain(self) -> float:
        """Chooses the path and builds its index; returns seconds."""
        begun = time.perf_counter()
        async with self._database.dedicated() as connection:
            await maintenance.choose_search_mode(connection, self.collection)
        elapsed_s = time.perf_counter() - begun
        async with self._database.dedicated() as connection:
            self.collection = await collections.get(connection, self._name)
            tables = VectorTables.of(self.collection)
            # As autovacuum will within minutes; here it would come in the middle of something.
            await connection.execute(f"VACUUM (ANALYZE) {tables.embeddings}, {tables.templates}, persons, faces")
            rows = await connection.fetch(f"SELECT face_id FROM {tables.embeddings} ORDER BY face_id")
        # Ids rise in the order of loading.
        self._face_at = {row["face_id"]: index for index, row in enumerate(rows)}
        return elapsed_s

    def nearest(self, wanted: SearchFilter) -> Search:
        async def run(probe: FloatArray) -> Sequence[Candidate]:
            async with self._database.connection() as connection:
                return await search.nearest(connection, self.collection, probe, TOP_K, wanted)

        return run

    def exact(self) -> Search:
        async def run(probe: FloatArray) -> Sequence[Candidate]:
            async with self._database.connection() as connection:
                return await search.exact(connection, self.collection, probe, TOP_K, SearchFilter())

        return run

    def ranking(self, found: Sequence[Sequence[Candidate]]) -> Ranking:
        """Candidates as indices into the gallery."""
        persons = np.full((len(found), TOP_K), -1)
        faces = np.full((len(found), TOP_K), -1)
        similarities = np.full((len(found), TOP_K), -2, dtype=np.float32)
        for row, candidates in enumerate(found):
            for column, one in enumerate(candidates):
                persons[row, column], faces[row, column] = self._person_at[one.person_id], self._face_at[one.face_id]
                similarities[row, column] = one.similarity
        return Ranking(persons, faces, similarities)

    def cases(self) -> list[Case]:
        persons = np.arange(self.gallery.persons)
        some = np.random.default_rng(1).choice(persons, min(_PERSON_SET, len(persons) // 2), replace=False)
        some_ids = tuple(self._person_ids[index] for index in some)
        return [
            self._by_persons("metadata, 1 % of persons", SearchFilter(metadata={"site": "s07"}), persons % 100 == 7),
            self._by_persons("metadata, 5 %", SearchFilter(metadata={"team": "t03"}), persons // 100 % 20 == 3),
            self._by_persons("metadata, 50 %", SearchFilter(metadata={"shift": "day"}), persons // 3 % 2 == 0),
            self._by_dates("dates, 1 % of faces", _DAYS // 100),
            self._by_dates("dates, 50 %", _DAYS // 2),
            self._by_persons(f"{len(some)} persons", SearchFilter(person_ids=some_ids), np.isin(persons, some)),
            self._by_persons(
                f"all but {len(some)} persons", SearchFilter(exclude_person_ids=some_ids), ~np.isin(persons, some)
            ),
        ]

    def _by_persons(self, name: str, wanted: SearchFilter, eligible: BoolArray) -> Case:
        return Case(name, wanted, eligible[self.gallery.person_of])

    def _by_dates(self, name: str, days: int) -> Case:
        first = (_DAYS - days) // 2
        begin = _FIRST_DAY + timedelta(days=first)
        wanted = SearchFilter(taken_from=begin, taken_to=begin + timedelta(days=days))
        return Case(name, wanted, (self._days >= first) & (self._days < first + days))

    async def plans(self, probe: FloatArray) -> dict[str, dict[str, object]]:
        """Of every statement, its parameters unknown. `keeps_its_indexes`: each that should serve it does, and none of the
        large tables is read from end to end."""
        tables = VectorTables.of(self.collection)
        one = (probe, TOP_K)
        by_site, by_team, _, by_day, by_half, by_set, but_set = [case.wanted for case in self.cases()]
        person, face = f"{tables.embeddings}_person", f"{tables.embeddings}_pkey"
        counts = search._matching_persons(self.collection, by_site), search._matching_faces(self.collection, by_day)

        def exact(wanted: SearchFilter) -> tuple[str, list[object]]:
            return search.exact_sql(self.collection, *one, wanted)

        def candidates(wanted: SearchFilter) -> tuple[str, list[object]]:
            return search.templates_sql(self.collection, *one, wanted)

        statements: dict[str, tuple[tuple[str, list[object]], tuple[str, ...]]] = {
            "every face": (exact(SearchFilter()), ()),
        }
        if self.collection.search_mode == "templates":
            statements |= {
                "templates": (candidates(SearchFilter()), (tables.index, person)),
                "templates, metadata": (candidates(by_team), (tables.index, person)),
                "templates, dates": (candidates(by_half), (tables.index, person)),
                "templates, persons excluded": (candidates(but_set), (tables.index, person)),
                "faces of some persons": (exact(by_set), (person,)),
                "faces of persons by metadata": (exact(by_site), (person, "persons_by_metadata")),
                "faces by dates": (exact(by_day), (face, "faces_by_date")),
                "number of persons by metadata": (counts[0], ("persons_by_metadata",)),
                "number of faces by dates": (counts[1], ("faces_by_date",)),
            }
        plans: dict[str, dict[str, object]] = {}
        async with self._database.dedicated() as connection:
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            for name, ((sql, values), indexes) in statements.items():
                plan = await _generic_plan(connection, sql, len(values))
                read_whole = [
                    table
                    for table in (tables.embeddings, tables.templates, "faces", "persons")
                    if any(f"Seq Scan on {table} " in f"{line} " for line in plan)
                ]
                kept = not indexes or (not read_whole and all(any(index in line for line in plan) for index in indexes))
                plans[name] = {"plan": plan, "indexes": indexes, "read_whole": read_whole, "keeps_its_indexes": kept}
        return plans


async def _generic_plan(connection: Connection, sql: str, parameters: int) -> list[str]:
    # Not EXPLAIN with arguments: that plans with their values, whatever plan_cache_mode says.
    statement = await cast("Any", connection).prepare(sql)
    nulls = ", ".join(["NULL"] * parameters)
    rows = await connection.fetch(f"EXPLAIN EXECUTE {statement.get_name()}({nulls})")
    return [row["QUERY PLAN"] for row in rows]


def _metadata(index: int) -> dict[str, str]:
    """`site`: 1 % of the persons each, `team`: 5 %, `shift`: 50 %."""
    return {"site": f"s{index % 100:02d}", "team": f"t{index // 100 % 20:02d}", "shift": ("day", "night")[index // 3 % 2]}


def _chunks(gallery: Gallery) -> list[tuple[int, int]]:
    """Persons from and to."""
    cuts = [0]
    while cuts[-1] < gallery.persons:
        reached = gallery.starts[cuts[-1]] + CHUNK_FACES
        cuts.append(int(np.searchsorted(np.append(gallery.starts, len(gallery.faces)), reached, side="right")) - 1)
    return list(pairwise(cuts))


def _end(gallery: Gallery, person: int) -> int:
    return int(gallery.starts[person]) if person < gallery.persons else len(gallery.faces)
