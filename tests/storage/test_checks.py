"""`kinlens db check`: rows that do not belong together, and an index that misses somebody, on real pgvector."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from serve_app.errors import NotFound, Overloaded
from serve_app.faces import l2_normalize
from serve_app.identity.people import Collection, EmbeddingContract, new_id
from serve_app.jobs import Job, JobKind
from serve_app.services.checks import CollectionReport, check_all, recall, reindex
from serve_app.storage import checks, collections, jobs, maintenance, search
from serve_app.storage.bulk import BulkPerson, load
from serve_app.storage.database import Connection, Database
from serve_app.storage.vectors import VectorTables
from tests.api.conftest import image
from tests.storage.conftest import StoredWorld

DIM = 32
PERSONS = 3_000


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(lambda: database_dsn, 4)
    yield database
    await database.close()


@pytest.fixture
async def people(database: Database, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """3,000 persons of two faces each; no index yet."""
    monkeypatch.setattr(search, "EXACT_MAX_FACES", 2_000)
    monkeypatch.setattr(search, "HNSW_MIN_TEMPLATES", 1_000)
    monkeypatch.setattr("serve_app.services.checks.MIN_BLOAT_BYTES", 0)
    contract = EmbeddingContract("test-model", DIM, "v1")
    made = await database.run(lambda tx: collections.create(tx, "people", "", {}, contract))
    async with database.connection() as connection:
        # It would come at any time, and take dead rows away before they are counted.
        await connection.execute(f"ALTER TABLE {VectorTables.of(made).templates} SET (autovacuum_enabled = off)")
    rng = np.random.default_rng(1)
    centers = l2_normalize(rng.standard_normal((PERSONS, DIM)))
    noise = l2_normalize(rng.standard_normal((2 * PERSONS, DIM)))
    async with database.dedicated() as connection:
        everybody = [BulkPerson(new_id(), None, "", {}) for _ in range(PERSONS)]
        faces = l2_normalize(0.85 * np.repeat(centers, 2, axis=0) + 0.5 * noise)
        await load(connection, made, everybody, np.repeat(np.arange(PERSONS), 2), faces)
    return made


async def report(database: Database, sample: int = 30) -> CollectionReport:
    found = [one async for one in check_all(database.dedicated, "people", sample, lambda *_: None)]
    return found[0]


def test_recall_counts_equals_as_found() -> None:
    assert recall([0.9, 0.5], [0.9, 0.8], 1) == 1.0
    assert recall([0.9, 0.5], [0.9, 0.8], 2) == 0.5
    assert recall([0.7, 0.7, 0.7], [0.7, 0.7, 0.7], 2) == 1.0
    assert recall([0.9], [0.9, 0.8, 0.7], 10) == pytest.approx(1 / 3)
    assert recall([], [], 10) == 1.0 and recall([], [0.5], 1) == 0.0


async def test_a_large_collection_gets_the_index_it_lacks(database: Database, people: Collection) -> None:
    before = await report(database, sample=0)
    assert [finding.reindex for finding in before.findings] == [True] and before.persons is None
    await reindex(database.dedicated, people)
    # Whole blocks are drawn: of the hundred there are, twenty; of five it may be that none is.
    after = await report(database, sample=120)
    assert after.findings == () and after.collection.search_mode == "templates"
    assert after.sampled == 120 and after.state.index_valid
    assert after.persons is not None and after.persons.at_1 == 1.0 and after.persons.at_10 > 0.9
    assert after.index is not None and after.index.at_10 > 0.95
    assert after.state.index_bytes == pytest.approx(after.fresh_index_bytes, rel=0.1)


async def test_a_bloated_index_is_built_anew(database: Database, people: Collection) -> None:
    await reindex(database.dedicated, people)
    tables = VectorTables.of(people)
    async with database.dedicated() as connection:
        # Most of the persons go, as after a mass erasure.
        gone = f"(SELECT person_id FROM {tables.templates} ORDER BY person_id LIMIT {PERSONS * 6 // 10})"
        await connection.execute(f"CREATE TEMPORARY TABLE gone AS {gone}")
        for statement in (
            f"DELETE FROM {tables.embeddings} WHERE person_id IN (SELECT person_id FROM gone)",
            f"DELETE FROM {tables.templates} WHERE person_id IN (SELECT person_id FROM gone)",
            "DELETE FROM faces WHERE person_id IN (SELECT person_id FROM gone)",
            "DELETE FROM persons WHERE id IN (SELECT person_id FROM gone)",
            "SELECT pg_stat_force_next_flush()",
        ):
            await connection.execute(statement)
        bloated = await report(database)
        assert any("times the size" in finding.detail for finding in bloated.findings)
        assert any("dead rows" in finding.detail for finding in bloated.findings) and bloated.reindex
        await reindex(database.dedicated, people)
    fresh = await report(database)
    assert fresh.findings == () and fresh.state.templates == PERSONS * 4 // 10
    assert fresh.state.index_bytes == pytest.approx(fresh.fresh_index_bytes, rel=0.1)


async def test_templates_that_do_not_stand_for_their_faces_are_told(database: Database, people: Collection) -> None:
    await reindex(database.dedicated, people)
    tables = VectorTables.of(people)
    async with database.dedicated() as connection:
        await connection.execute(f"DROP INDEX {tables.index}")
        # Every second person, so that each block of faces has as many.
        await connection.execute(
            f"UPDATE {tables.templates} t SET embedding = array_fill(0.1::real, ARRAY[{DIM}])::vector::halfvec"
            f" FROM (SELECT person_id, row_number() OVER (ORDER BY person_id) AS n FROM {tables.templates}) p"
            " WHERE p.person_id = t.person_id AND p.n % 2 = 0"
        )
        await maintenance.build_index(connection, people)
    wrong = await report(database, sample=60)
    assert wrong.persons is not None and wrong.persons.at_1 < 0.9
    assert any("of the persons it should" in finding.detail for finding in wrong.findings)


async def test_what_a_broken_build_left_is_found_and_removed(database: Database, people: Collection) -> None:
    await reindex(database.dedicated, people)
    tables = VectorTables.of(people)
    async with database.dedicated() as connection:
        await connection.execute(f"CREATE INDEX {tables.index}_ccnew ON {tables.templates} (face_count)")
        await connection.execute(
            f"UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ('{tables.index}_ccnew'::regclass, '{tables.index}'::regclass)"
        )
        found = await report(database, sample=5)
        assert len([one for one in found.findings if "not valid" in one.detail]) == 2 and found.index is None
        await reindex(database.dedicated, people)
        assert await checks.invalid_indexes(connection, people) == []
        assert (await maintenance.index_state(connection, people)).index_valid


async def test_only_one_maintains_at_a_time(database: Database, people: Collection) -> None:
    async with database.dedicated() as connection, maintenance.only_one(connection):
        with pytest.raises(Overloaded):
            await reindex(database.dedicated, people)


async def test_rows_that_do_not_belong_together_are_counted(stored: StoredWorld) -> None:
    address = await stored.collection()
    persons = [await stored.person(address) for _ in range(6)]
    faces = [
        (await stored.enrol_vector(address, person, [float(index == axis) + 0.1 for axis in range(4)]))[0]
        for index, person in enumerate(persons)
    ]
    database = stored.gallery.database
    assert (await report(database)).findings == ()
    async with database.connection() as connection:
        tables = VectorTables.of(await collections.get(connection, "people"))
        for statement, value in (
            (f"DELETE FROM {tables.embeddings} WHERE face_id = $1", faces[0]),
            ("DELETE FROM faces WHERE id = $1", faces[1]),
            (f"UPDATE {tables.embeddings} SET person_id = gen_random_uuid() WHERE face_id = $1", faces[2]),
            (f"DELETE FROM {tables.templates} WHERE person_id = $1", persons[3]),
            (f"UPDATE {tables.templates} SET person_id = gen_random_uuid() WHERE person_id = $1", persons[4]),
        ):
            await connection.execute(statement, value)
    found = (await report(database, sample=0)).mismatches
    assert found.faces_without_embedding == 1
    assert found.embeddings_without_face == 1
    assert found.embeddings_of_another_person == 1
    assert found.persons_without_templates == 2
    # Of the face that is gone, and the one that lost its person.
    assert found.templates_without_person == 2
    assert len((await report(database, sample=0)).findings) == 5


@pytest.fixture
async def library(stored: StoredWorld) -> StoredWorld:
    """Four photos in the library `library`, each with a tag of its own."""
    for number, tag in enumerate(("harbour", "garden", "kitchen", "staircase")):
        files = {"files": (f"IMG_{number}.jpg", image(0) + bytes([number]))}
        answer = await stored.client.post("/api/v1/photos/upload", files=files, params={"tags": tag})
        assert answer.json()["results"][0]["status"] == "created", answer.text
    return stored


async def library_report(world: StoredWorld, sample: int = 30) -> tuple[str, ...]:
    (found,) = [one async for one in check_all(world.gallery.database.dedicated, "library", sample, lambda *_: None)]
    return tuple(finding.detail for finding in found.findings)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM photo_texts WHERE photo_id = $1", "1 photos have no words"),
        ("UPDATE photo_texts SET taken_at = now() + interval '1 day' WHERE photo_id = $1", "1 photos are another collection's"),
        ("UPDATE photo_texts SET image_id = gen_random_uuid() WHERE photo_id = $1", "1 photos are another collection's"),
        ("UPDATE photo_texts SET collection_key = 12345 WHERE photo_id = $1", "1 photos are another collection's"),
        ("UPDATE photos SET folder = 'Elsewhere' WHERE id = $1", "1 of 4 photos are found by other words than theirs"),
        ("UPDATE photo_tags SET tag = 'cellar' WHERE photo_id = $1", "1 of 4 photos are found by other words than theirs"),
        ("DELETE FROM photo_vocabulary WHERE word = 'garden' AND $1::uuid IS NOT NULL", "1 words of 4 photos are not in the vocab"),
        (
            "INSERT INTO photo_vocabulary SELECT collection_key, 'erased' FROM photos WHERE id = $1",
            "1 words of the vocabulary are no photo's",
        ),
        ("UPDATE photos SET tag_count = 7 WHERE id = $1", "1 photos count their tags wrong"),
    ],
)  # fmt: skip
async def test_words_that_are_not_their_photos_are_told(library: StoredWorld, statement: str, told: str) -> None:
    assert await library_report(library) == ()
    photo_id = (await library.rows("SELECT photo_id FROM photo_tags WHERE tag = 'garden'"))[0]["photo_id"]
    await library.rows(statement, photo_id)
    found = await library_report(library)
    assert any(one.startswith(told) for one in found), found
    # What is only seen of photos that are read again is not seen without a sample.
    assert any(one.startswith(told) for one in await library_report(library, sample=0)) is (" 4 photos" not in told)


async def test_photos_that_are_still_to_be_read_are_no_fault(library: StoredWorld) -> None:
    await library.rows("UPDATE photos SET words_version = 0")
    await library.rows("DELETE FROM photo_texts")
    found = await library_report(library)
    assert len(found) == 1 and "of the vocabulary are no photo's" in found[0]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE job_progress SET total = total + 1 WHERE shard = 0",
        "UPDATE job_progress SET done = done + 1 WHERE shard = 0",
        "UPDATE job_progress SET failed = failed - 1 WHERE shard = 0",
        "UPDATE job_items SET state = 'skipped' WHERE subject = 'a'",
        "DELETE FROM job_items WHERE subject = 'a'",
        "DELETE FROM job_progress",
    ],
)
async def test_jobs_that_count_wrong_are_told(library: StoredWorld, statement: str) -> None:
    database = library.gallery.database

    async def make(tx: Connection) -> Job:
        collection = await collections.lock(tx, "library")
        made = await jobs.create(tx, collection, JobKind.FACES, {}, ["a", "b", "c"])
        await jobs.create(tx, collection, JobKind.FACES, {}, [])
        return made

    job = await database.run(make)
    await database.run(lambda tx: jobs.cancel(tx, job.id))
    assert await library_report(library) == ()
    await library.rows(statement)
    found = await library_report(library)
    assert len(found) == 1 and "jobs count their items wrong" in found[0]


async def test_a_collection_that_is_not_there_is_said_so(database: Database) -> None:
    with pytest.raises(NotFound):
        await report(database)
    assert [one async for one in check_all(database.dedicated, None, 10, lambda *_: None)] == []


async def test_empty_collections_are_sound(stored: StoredWorld) -> None:
    await stored.collection()
    found = await report(stored.gallery.database)
    assert found.findings == () and found.sampled == 0 and found.persons is None
