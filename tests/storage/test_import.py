"""`kinlens import` against the whole API: folders, CSVs, interruptions; and vectors straight into the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import TypeAdapter

from serve_app.api.person_fields import ExternalId
from serve_app.errors import AlreadyExists, ConfigurationError, Overloaded
from serve_app.faces import FloatArray, l2_normalize
from serve_app.identity.people import Collection, EmbeddingContract, SearchFilter
from serve_app.imports.import_sources import CsvSource, FolderSource, Source, open_source
from serve_app.imports.importing import Importer, ImportOptions, Outcome, Summary
from serve_app.services import vector_import
from serve_app.services.checks import check_all
from serve_app.services.vector_import import LoadedVectors, load_vectors, read_vectors
from serve_app.storage import bulk, collections, maintenance, search
from serve_app.storage.database import Database
from tests.api.conftest import image
from tests.storage.conftest import StoredWorld

OPTIONS = ImportOptions("people", create=True, review=False, give_up_after_s=120)


async def run(
    world: StoredWorld, source: Source, options: ImportOptions = OPTIONS, client: httpx.AsyncClient | None = None
) -> tuple[Summary, list[Outcome]]:
    told: list[Outcome] = []
    summary = await Importer(client or world.client, options, told.append).run(source)
    return summary, told


def fill(root: Path, persons: int = 6, each: int = 3) -> FolderSource:
    for person in range(persons):
        (root / f"p{person}").mkdir(parents=True)
        for index in range(each):
            # The bytes behind make them different files of one identity.
            (root / f"p{person}" / f"{index}.jpg").write_bytes(image(1, person) + bytes([index, person]))
    return FolderSource(root)


async def test_a_folder_is_enrolled_and_a_second_run_changes_nothing(stored: StoredWorld, tmp_path: Path) -> None:
    source = fill(tmp_path / "photos")
    summary, told = await run(stored, source)
    assert summary.statuses == {"enrolled": 18} and summary.complete, told
    persons = (await stored.client.get("/api/v1/collections/people/persons")).json()["items"]
    assert {person["external_id"]: (person["name"], person["face_count"]) for person in persons} == {
        f"p{index}": (f"p{index}", 3) for index in range(6)
    }
    looked_at = len(stored.detector.calls)
    keys = await stored.object_keys()
    again, told = await run(stored, source)
    assert again.statuses == {"exists": 18} and again.complete
    assert len(stored.detector.calls) == looked_at and await stored.object_keys() == keys
    assert {one.code for one in told} == {"duplicate_face"}


async def test_a_csv_brings_names_dates_and_metadata(stored: StoredWorld, tmp_path: Path) -> None:
    fill(tmp_path / "photos", 2, 1)
    table = tmp_path / "people.csv"
    table.write_text(
        "file,external_id,name,taken_at,metadata\n"
        'photos/p0/0.jpg,e-0,Anna Müller,2020-05-01T10:00:00+02:00,"{""team"": ""x""}"\n'
        "photos/p1/0.jpg,e-1,,,\n"
        "photos/none.jpg,e-2,,,\n"
        "photos/p1/0.jpg,,,,\n",
        encoding="utf-8",
    )
    summary, told = await run(stored, CsvSource(table))
    assert summary.statuses == {"enrolled": 2, "failed": 1, "refused": 1} and not summary.complete
    assert {one.code for one in told if one.status != "enrolled"} == {"unreadable", "invalid_row"}
    persons = (await stored.client.get("/api/v1/collections/people/persons")).json()["items"]
    assert [(one["external_id"], one["name"], one["metadata"]) for one in persons] == [
        ("e-0", "Anna Müller", {"team": "x"}),
        ("e-1", "", {}),
    ]
    faces = (await stored.client.get(f"/api/v1/collections/people/persons/{persons[0]['id']}/faces")).json()["items"]
    assert faces[0]["taken_at"].startswith("2020-05-01T08:00:00")


async def test_refusals_are_told_for_each_file(stored: StoredWorld, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    fill(root, 2, 1)
    (root / "p0" / "nobody.jpg").write_bytes(image(0))
    (root / "p0" / "two.jpg").write_bytes(image(2))
    (root / "p1" / "damaged.jpg").write_bytes(image(1) + b"broken")
    summary, told = await run(stored, open_source(root))
    assert summary.statuses == {"enrolled": 2, "refused": 3}
    assert {one.shown: one.code for one in told if one.status == "refused"} == {
        "p0/nobody.jpg": "no_face_detected",
        "p0/two.jpg": "multiple_faces",
        "p1/damaged.jpg": "invalid_image",
    }
    largest, told = await run(stored, open_source(root), replace(OPTIONS, face="largest"))
    assert largest.statuses == {"exists": 2, "refused": 2, "enrolled": 1}, told


async def test_an_answer_that_is_lost_is_made_good(stored: StoredWorld, tmp_path: Path) -> None:
    """The connection breaks after the server has done its work: sent again, the pictures are there already."""
    source = fill(tmp_path / "photos")
    inner = httpx.ASGITransport(stored.api, raise_app_exceptions=False)
    begun = lost = 0
    both = asyncio.Event()

    class Lossy(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal begun, lost
            begun += (batch := request.url.path.endswith(":batch"))
            first = batch and begun <= 2
            if begun == 2:
                both.set()
            response = await inner.handle_async_request(request)
            if first:
                await response.aread()
                # Else the second could be the first that is sent again.
                await both.wait()
                lost += 1
                raise httpx.RemoteProtocolError("peer closed connection")
            return response

    async with httpx.AsyncClient(transport=Lossy(), base_url="http://test", headers=dict(stored.client.headers)) as client:
        summary, _ = await run(stored, source, replace(OPTIONS, workers=2, batch_files=5), client)
    assert lost == 2 and summary.complete
    assert summary.statuses["enrolled"] + summary.statuses["exists"] == 18 and summary.statuses["exists"] == 10
    rows = await stored.rows("SELECT count(*) AS faces, count(DISTINCT person_id) AS persons FROM faces")
    assert (rows[0]["faces"], rows[0]["persons"]) == (18, 6)


async def test_a_part_that_is_down_for_a_moment_costs_nothing(stored: StoredWorld, tmp_path: Path) -> None:
    source = fill(tmp_path / "photos", 3, 2)
    stored.detector.error = Overloaded("Every place is taken.", retry_after_s=0)
    calls = 0
    real = stored.detector.detect

    async def detect(*args: object) -> object:
        nonlocal calls
        calls += 1
        stored.detector.error = stored.detector.error if calls <= 6 else None
        return await real(*args)  # type: ignore[arg-type]

    stored.detector.detect = detect  # type: ignore[method-assign,assignment]
    summary, told = await run(stored, source)
    assert summary.statuses == {"enrolled": 6}, told


async def test_a_wrong_key_and_a_missing_collection_end_it(stored: StoredWorld, tmp_path: Path) -> None:
    source = fill(tmp_path / "photos", 1, 1)
    with pytest.raises(ConfigurationError, match="--create"):
        await run(stored, source, replace(OPTIONS, create=False))
    transport = httpx.ASGITransport(stored.api)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"Authorization": "Bearer no"}
    ) as client:
        with pytest.raises(ConfigurationError, match="API key"):
            await run(stored, source, client=client)
    await stored.collection()
    await stored.rows("UPDATE embedding_models SET name = 'older-model'")
    with pytest.raises(ConfigurationError, match="older-model"):
        await run(stored, source)


# Vectors


DIM = 16
CONTRACT = EmbeddingContract("test-model", DIM, "v1")


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(lambda: database_dsn, 4)
    yield database
    await database.close()


@pytest.fixture
async def people(database: Database) -> Collection:
    return await database.run(lambda tx: collections.create(tx, "people", "", {}, CONTRACT))


def vectors_of(persons: int, each: int) -> FloatArray:
    """(persons * each, DIM), the faces of a person apart from each other in the file."""
    rng = np.random.default_rng(2)
    centers = l2_normalize(rng.standard_normal((persons, DIM)))
    noise = l2_normalize(rng.standard_normal((each * persons, DIM)))
    return l2_normalize(0.9 * np.tile(centers, (each, 1)) + 0.3 * noise)


def save(path: Path, embeddings: object, persons: object) -> Path:
    np.savez(path, embeddings=np.asarray(embeddings), persons=np.asarray(persons))
    return path


def external_id(name: str) -> str:
    adapter: TypeAdapter[str] = TypeAdapter(ExternalId)
    return adapter.validate_python(name)


async def put(
    database: Database, people: Collection, path: Path, present: Callable[[str], None] = lambda _: None
) -> LoadedVectors:
    return await load_vectors(database, people, read_vectors(path, DIM, external_id), lambda _: None, present, chunk_faces=50)


async def test_vectors_become_persons_that_are_found(
    database: Database, people: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "EXACT_MAX_FACES", 100)
    monkeypatch.setattr(search, "HNSW_MIN_TEMPLATES", 50)
    embeddings = vectors_of(80, 3)
    path = save(tmp_path / "v.npz", embeddings * 7, [f"e{index}" for index in range(80)] * 3)
    loaded = await put(database, people, path)
    assert loaded == LoadedVectors(80, 240, 0, "templates")
    async with database.connection() as connection:
        now = await collections.get(connection, "people")
        assert (await maintenance.index_state(connection, now)).index_valid
        for index in (0, 33, 79):
            found = await search.nearest(connection, now, embeddings[index], 3, SearchFilter())
            assert found[0].external_id == f"e{index}" and found[0].name == f"e{index}" and found[0].similarity > 0.999
    reports = [one async for one in check_all(database.dedicated, "people", 40, lambda *_: None)]
    assert reports[0].findings == () and reports[0].state.faces == 240


async def test_it_goes_on_where_it_broke_off(
    database: Database, people: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "v.npz", vectors_of(80, 3).astype(np.float16), np.tile(np.arange(80), 3))
    real, chunks = bulk.load, 0

    async def load(*args: object) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 3:
            raise ConnectionError("the server is gone")
        await real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(vector_import, "load", load)
    with pytest.raises(Exception, match="does not answer"):
        await put(database, people, path)
    told: list[str] = []
    loaded = await put(database, people, path, told.append)
    assert (loaded.persons, loaded.faces, loaded.present) == (48, 144, 32) and len(told) == 32
    assert await put(database, people, path) == LoadedVectors(0, 0, 80, "exact")
    async with database.connection() as connection:
        assert (await collections.size(connection, people)).faces == 240


async def test_a_person_made_meanwhile_is_left_alone(
    database: Database, people: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "v.npz", vectors_of(5, 1), list("abcde"))
    real, raced = bulk.load, False

    async def load(*args: object) -> None:
        nonlocal raced
        if not raced:
            raced = True
            async with database.connection() as connection:
                await connection.execute(
                    "INSERT INTO persons (id, collection_key, external_id, name, metadata)"
                    " VALUES (gen_random_uuid(), $1, 'c', 'somebody else', '{}')",
                    people.key,
                )
        await real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(vector_import, "load", load)
    assert (await put(database, people, path)).present == 1

    async def always(*_: object) -> None:
        raise AlreadyExists("Again.")

    monkeypatch.setattr(vector_import, "load", always)
    with pytest.raises(AlreadyExists):
        await put(database, people, save(tmp_path / "w.npz", vectors_of(1, 1), ["z"]))


def test_a_person_is_never_divided_between_transactions() -> None:
    starts = np.cumsum([0, 3, 500, 2, 2, 40, 9, 1, 1])
    chunks = list(vector_import._chunks(starts, 50))
    assert chunks == [(0, 1), (1, 2), (2, 5), (5, 8)]
    assert list(vector_import._chunks(np.array([0]), 50)) == []


@pytest.mark.parametrize(
    ("embeddings", "persons", "message"),
    [
        (np.ones((3, DIM + 1)), ["a", "b", "c"], "17 values"),
        (np.ones(DIM), ["a"], r"\(N, D\)"),
        (np.ones((3, DIM), dtype=int), ["a", "b", "c"], "floats"),
        (np.ones((3, DIM)), ["a", "b"], r"\(N,\)"),
        (np.ones((2, DIM)), [1.5, 2.5], "text or whole numbers"),
        (np.vstack([np.ones(DIM), np.zeros(DIM)]), ["a", "b"], "Row 1"),
        (np.vstack([np.full(DIM, np.nan), np.ones(DIM)]), ["a", "b"], "Row 0"),
        (np.full((1, DIM), np.inf), ["a"], "Row 0"),
        (np.ones((1, DIM)), [""], "external_id"),
        (np.ones((1, DIM)), ["x" * 201], "external_id"),
        (np.ones((1, DIM)), ["a\nb"], "external_id"),
        (np.ones((1, DIM)), [b"caf\xe9"], "external_id"),
    ],
)
def test_vectors_that_are_wrong_are_refused_before_anything_is_stored(
    tmp_path: Path, embeddings: object, persons: object, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_vectors(save(tmp_path / "v.npz", embeddings, persons), DIM, external_id)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", embeddings=np.array([{}], dtype=object), persons=np.array(["a"]))
    np.savez(tmp_path / "other.npz", vectors=np.ones((1, DIM)))
    (tmp_path / "text.npz").write_text("x")
    np.save(tmp_path / "single.npy", np.ones((1, DIM)))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    for name in ("objects.npz", "other.npz", "text.npz", "nothing.npz", "single.npz"):
        with pytest.raises(ConfigurationError, match="arrays"):
            read_vectors(tmp_path / name, DIM, external_id)


def test_bytes_numbers_and_spaces_name_persons(tmp_path: Path) -> None:
    rows = vectors_of(4, 1)
    assert read_vectors(save(tmp_path / "b.npz", rows, [b"b", b"a", b"b", b"a"]), DIM, external_id).names == ("a", "b")
    assert read_vectors(save(tmp_path / "n.npz", rows, [7, 7, 10, 2]), DIM, external_id).names == ("2", "7", "10")
    spaced = read_vectors(save(tmp_path / "s.npz", rows, ["a", " a", "a ", "b"]), DIM, external_id)
    assert spaced.names == ("a", "b") and spaced.starts.tolist() == [0, 3, 4] and sorted(spaced.order[:3]) == [0, 1, 2]
