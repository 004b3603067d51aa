"""Similarity search on real pgvector: both paths, filters, crowding, and the plans behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest

from serve_app.faces import FloatArray, l2_normalize
from serve_app.identity.people import Collection, EmbeddingContract, Metadata, NewFace, SearchFilter, new_id
from serve_app.storage import collections, faces, maintenance, persons, search, vectors
from serve_app.storage.bulk import BulkPerson, load
from serve_app.storage.database import Connection, Database
from serve_app.storage.persons import PersonChange
from serve_app.storage.vectors import VectorTables

DIM = 32
CONTRACT = EmbeddingContract("test-model", DIM, "v1")
DAY = datetime(2024, 8, 1, tzinfo=UTC)


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(lambda: database_dsn, 4)
    yield database
    await database.close()


@pytest.fixture
async def collection(database: Database) -> Collection:
    return await database.run(lambda tx: collections.create(tx, "people", "", {}, CONTRACT))


def unit(rng: np.random.Generator, *shape: int) -> FloatArray:
    return l2_normalize(rng.standard_normal((*shape, DIM)).astype(np.float32))


def near(rng: np.random.Generator, center: FloatArray, count: int, similarity: float) -> FloatArray:
    """(count, D) unit vectors with about that cosine to `center`."""
    noise = unit(rng, count)
    noise = l2_normalize(noise - (noise @ center)[:, None] * center)
    return np.asarray(similarity * center + np.sqrt(1 - similarity**2) * noise, dtype=np.float32)


async def enrol(
    tx: Connection, collection: Collection, embeddings: FloatArray, metadata: Metadata | None = None, day: int = 0
) -> UUID:
    person = await persons.create(tx, collection, new_id(), PersonChange("", metadata))
    new = [NewFace(new_id(), embedding, DAY + timedelta(days=day)) for embedding in embeddings]
    await faces.insert(tx, collection, person.id, new)
    await vectors.refresh_templates(tx, collection, person.id)
    return person.id


async def populate(database: Database, collection: Collection, count: int, seed: int = 1) -> tuple[list[UUID], FloatArray]:
    """`count` persons of three faces each; every tenth wears a hat, person i is dated on day i."""
    rng = np.random.default_rng(seed)
    centers = unit(rng, count)

    async def work(tx: Connection) -> list[UUID]:
        return [
            await enrol(tx, collection, near(rng, center, 3, 0.8), {"hat": index % 10 == 0}, index)
            for index, center in enumerate(centers)
        ]

    return await database.run(work), centers


MODES = pytest.mark.parametrize("mode", ["exact", "templates"])


@MODES
async def test_the_best_face_of_each_person_comes_first_and_once(
    database: Database, collection: Collection, mode: str
) -> None:
    ids, centers = await populate(database, collection, 60)
    collection = replace(collection, search_mode=mode)
    async with database.connection() as connection:
        for index in (0, 17, 59):
            found = await search.nearest(connection, collection, centers[index], 10, SearchFilter())
            assert found[0].person_id == ids[index]
            assert found[0].similarity == pytest.approx(0.8, abs=0.01)
            assert len({one.person_id for one in found}) == 10
            assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)


@MODES
async def test_one_person_with_many_faces_does_not_crowd_the_others_out(
    database: Database, collection: Collection, mode: str
) -> None:
    rng = np.random.default_rng(3)
    probe = unit(rng, 1)[0]
    crowd = await database.run(lambda tx: enrol(tx, collection, near(rng, probe, 500, 0.9)))
    others = [await database.run(lambda tx: enrol(tx, collection, near(rng, probe, 2, 0.6))) for _ in range(9)]
    collection = replace(collection, search_mode=mode)
    async with database.connection() as connection:
        found = await search.nearest(connection, collection, probe, 10, SearchFilter())
    assert found[0].person_id == crowd
    assert {one.person_id for one in found[1:]} == set(others)


@MODES
async def test_a_face_unlike_the_rest_of_its_person_is_found(database: Database, collection: Collection, mode: str) -> None:
    rng = np.random.default_rng(4)
    await populate(database, collection, 40)
    adult, child = unit(rng, 2)
    person = await database.run(lambda tx: enrol(tx, collection, np.vstack([near(rng, adult, 200, 0.85), child[None]])))
    async with database.connection() as connection:
        found = await search.nearest(connection, replace(collection, search_mode=mode), child, 3, SearchFilter())
    assert found[0].person_id == person and found[0].similarity > 0.99


@MODES
@pytest.mark.parametrize("indexed", [False, True])
async def test_filters_never_come_back_short(database: Database, collection: Collection, mode: str, indexed: bool) -> None:
    ids, centers = await populate(database, collection, 300)
    collection = replace(collection, search_mode=mode)
    hats = {person for index, person in enumerate(ids) if index % 10 == 0}
    async with database.dedicated() as connection:
        if indexed:
            await maintenance.build_index(connection, collection)
        probe = centers[5]
        cases = [
            (SearchFilter(metadata={"hat": True}), hats),
            (SearchFilter(metadata={"hat": False}), set(ids) - hats),
            (SearchFilter(person_ids=tuple(ids[:15])), set(ids[:15])),
            (SearchFilter(exclude_person_ids=tuple(ids[:280])), set(ids[280:])),
            (SearchFilter(taken_from=DAY + timedelta(days=290)), set(ids[290:])),
            (SearchFilter(taken_to=DAY + timedelta(days=12)), set(ids[:12])),
            (SearchFilter(taken_from=DAY + timedelta(days=3), metadata={"hat": True}), hats - set(ids[:3])),
            (SearchFilter(metadata={"hat": "none"}), set()),
            (SearchFilter(person_ids=()), set()),
        ]
        for wanted, matching in cases:
            found = [one.person_id for one in await search.nearest(connection, collection, probe, 20, wanted)]
            assert set(found) <= matching, wanted
            assert len(found) == min(20, len(matching)), wanted
            truth = [one.person_id for one in await search.exact(connection, collection, probe, 20, wanted)]
            assert found[:3] == truth[:3], wanted


async def test_unselective_filters_on_the_index_are_completed(
    database: Database, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a large collection: every filter counts as unselective, and the candidates alone do not fulfil it."""
    ids, centers = await populate(database, collection, 300)
    monkeypatch.setattr(search, "SELECTIVE_PERSONS", 0)
    monkeypatch.setattr(search, "SELECTIVE_FACES", 0)
    collection = replace(collection, search_mode="templates")
    async with database.dedicated() as connection:
        await maintenance.build_index(connection, collection)
        for wanted, count in (
            (SearchFilter(metadata={"hat": True}), 20),
            (SearchFilter(taken_from=DAY + timedelta(days=295)), 5),
            (SearchFilter(exclude_person_ids=tuple(ids[:290])), 10),
        ):
            found = await search.nearest(connection, collection, centers[7], 20, wanted)
            truth = await search.exact(connection, collection, centers[7], 20, wanted)
            assert len(found) == count
            assert [one.person_id for one in found[:3]] == [one.person_id for one in truth[:3]]


async def test_top_k_beyond_ef_search_is_not_cut_short(database: Database, collection: Collection) -> None:
    _, centers = await populate(database, collection, 400)
    collection = replace(collection, search_mode="templates")
    async with database.dedicated() as connection:
        await maintenance.build_index(connection, collection)
        await connection.execute("SET enable_seqscan = off")
        assert len(await search.by_templates(connection, collection, centers[0], 100, SearchFilter())) == 100


async def test_an_empty_collection_finds_nobody(database: Database, collection: Collection) -> None:
    async with database.connection() as connection:
        probe = unit(np.random.default_rng(0), 1)[0]
        for mode in ("exact", "templates"):
            assert await search.nearest(connection, replace(collection, search_mode=mode), probe, 5, SearchFilter()) == []


async def test_collections_do_not_see_each_other(database: Database, collection: Collection) -> None:
    other = await database.run(lambda tx: collections.create(tx, "others", "", {}, CONTRACT))
    rng = np.random.default_rng(5)
    probe = unit(rng, 1)
    await database.run(lambda tx: enrol(tx, other, probe))
    async with database.connection() as connection:
        for mode in ("exact", "templates"):
            assert await search.nearest(connection, replace(collection, search_mode=mode), probe[0], 5, SearchFilter()) == []


@pytest.fixture
async def large(database: Database, collection: Collection, monkeypatch: pytest.MonkeyPatch) -> tuple[Collection, FloatArray]:
    """4,200 persons of two faces each, loaded in bulk and maintained as a larger collection would be."""
    monkeypatch.setattr(search, "EXACT_MAX_FACES", 2_000)
    monkeypatch.setattr(search, "HNSW_MIN_TEMPLATES", 1_000)
    rng = np.random.default_rng(6)
    centers = unit(rng, 4_200)
    noise = unit(rng, 8_400)
    embeddings = l2_normalize(0.85 * np.repeat(centers, 2, axis=0) + 0.5 * noise)
    async with database.dedicated() as connection:
        await load(
            connection,
            collection,
            [BulkPerson(new_id(), None, f"p{index}", {"tens": index % 10}) for index in range(4_200)],
            np.repeat(np.arange(4_200), 2),
            embeddings,
        )
        assert await maintenance.choose_search_mode(connection, collection) == "templates"
        return await collections.get(connection, "people"), centers


async def test_a_grown_collection_gets_its_index_and_keeps_its_plans(
    database: Database, large: tuple[Collection, FloatArray]
) -> None:
    collection, centers = large
    assert collection.search_mode == "templates"
    tables = VectorTables.of(collection)
    async with database.dedicated() as connection:
        state = await maintenance.index_state(connection, collection)
        assert state.index_valid and state.templates == 4_200 and state.faces == 8_400
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        person = (await search.nearest(connection, collection, centers[0], 1, SearchFilter()))[0].person_id
        plain = await plan(connection, *search.templates_sql(collection, centers[0], 10, SearchFilter()))
        assert f"Index Scan using {tables.index}" in plain and f"Seq Scan on {tables.embeddings}" not in plain
        filtered = await plan(
            connection, *search.templates_sql(collection, centers[0], 10, SearchFilter(metadata={"tens": 3}))
        )
        assert tables.index in filtered and f"Seq Scan on {tables.embeddings}" not in filtered
        few = await plan(connection, *search.exact_sql(collection, centers[0], 10, SearchFilter(person_ids=(person,))))
        assert f"{tables.embeddings}_person" in few and "Seq Scan on embeddings" not in few
        whole = await plan(connection, *search.exact_sql(collection, centers[0], 10, SearchFilter()))
        assert tables.embeddings in whole and "hnsw" not in whole and tables.templates not in whole


async def test_recall_of_the_index(database: Database, large: tuple[Collection, FloatArray]) -> None:
    collection, centers = large
    async with database.connection() as connection:
        right = 0
        for center in centers[::42]:
            found = await search.nearest(connection, collection, center, 5, SearchFilter())
            truth = await search.exact(connection, collection, center, 1, SearchFilter())
            right += found[0].person_id == truth[0].person_id
        assert right >= 99, right
        for tens in range(3):
            found = await search.nearest(connection, collection, centers[0], 100, SearchFilter(metadata={"tens": tens}))
            assert len(found) == 100 and {one.metadata["tens"] for one in found} == {tens}


async def test_a_shrunk_collection_goes_back_to_exact(database: Database, large: tuple[Collection, FloatArray]) -> None:
    collection, _ = large
    async with database.dedicated() as connection:
        tables = VectorTables.of(collection)
        await connection.execute(
            f"DELETE FROM {tables.embeddings} WHERE ctid NOT IN (SELECT ctid FROM {tables.embeddings} LIMIT 50)"
        )
        assert await maintenance.choose_search_mode(connection, collection) == "exact"
        assert (await maintenance.index_state(connection, collection)).index_bytes is None


async def test_faces_that_nobody_has_are_neither_found_nor_counted(
    database: Database, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "EXACT_MAX_FACES", 500)
    rng = np.random.default_rng(8)
    ids, centers = await populate(database, collection, 40)
    tables = VectorTables.of(collection)
    async with database.dedicated() as connection:
        # The nearest of all are nobody's.
        nobodys = [(new_id(), embedding) for center in centers for embedding in near(rng, center, 50, 0.95)]
        await vectors.insert_embeddings(connection, collection, None, nobodys)
        await connection.execute(f"VACUUM ANALYZE {tables.embeddings}")
        assert await maintenance.choose_search_mode(connection, collection) == "exact"
        for index, center in enumerate(centers):
            found = await search.nearest(connection, collection, center, 3, SearchFilter())
            assert len(found) == 3 and found[0].person_id == ids[index]
        whole = await plan(connection, *search.exact_sql(collection, centers[0], 10, SearchFilter()))
        assert f"{tables.embeddings}_person" in whole and f"Seq Scan on {tables.embeddings}" not in whole
        sampled = await maintenance.sample_embeddings(connection, collection, 100)
        assert len(sampled) == 100 and {person_id for person_id, _ in sampled} <= set(ids)


async def plan(connection: Connection, sql: str, values: list[object]) -> str:
    """The plan of a prepared statement after it became generic."""
    rows = await connection.fetch(f"EXPLAIN {sql}", *values)
    return "\n".join(str(row["QUERY PLAN"]) for row in rows)
