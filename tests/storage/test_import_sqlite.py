"""`kinlens import-sqlite`: a former application's file, well made or malicious, into the library through its API."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.errors import ConfigurationError
from serve_app.imports import former_schema
from serve_app.imports.former_import import FormerImport, FormerOptions, Outcome, Summary, parts_of
from serve_app.imports.library_client import LibraryClient
from serve_app.imports.photo_sending import PhotoSender
from serve_app.imports.service_client import ServiceClient
from serve_app.jobs import JobKind
from serve_app.services.worker import Worker
from serve_app.storage.former_database import FormerDatabase
from serve_app.workshop import open_workshop
from tests.api.conftest import image
from tests.storage.conftest import StoredWorld

SCHEMA = """
    CREATE TABLE photos (id INTEGER PRIMARY KEY, file_path TEXT, filename TEXT, folder TEXT, sha256 TEXT, taken_at TEXT,
                         tags TEXT, thumbnail BLOB);
    CREATE TABLE persons (id INTEGER PRIMARY KEY, name TEXT, created_at TEXT);
    CREATE TABLE faces (id INTEGER PRIMARY KEY, photo_id INTEGER, person_id INTEGER, bbox TEXT, embedding BLOB);
    CREATE TABLE settings (key TEXT, value TEXT);
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "old" / "photos"
    found.mkdir(parents=True)
    return found


@pytest.fixture
def file(tmp_path: Path, root: Path) -> Path:
    """Four photos: of Anna and Ben, of Anna, of nobody, and one whose file is gone. Faces lie where the fake detector finds
    them: boxes of 20 and 10 pixels in the corner."""
    path = tmp_path / "former.db"
    for name, data in {"a.jpg": image(2, 1), "2024/b.jpg": image(1, 1) + b"b", "2024/c.jpg": image(0, 0)}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA)
        database.executemany(
            "INSERT INTO photos VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (1, "a.jpg", "Anna und Ben.jpg", None, None, "2020-05-01 12:00:00", '["urlaub", "2020"]', b"\0" * 100_000),
                (2, "2024/b.jpg", None, "Berlin/2024", hashlib.sha256(image(1, 1) + b"b").hexdigest(), None, "a,b", None),
                (3, "2024/c.jpg", None, None, None, "2021:06:01 10:00:00", None, None),
                (4, "2024/gone.jpg", None, None, None, None, None, None),
            ],
        )
        database.executemany("INSERT INTO persons VALUES (?, ?, ?)", [(7, "Anna", ""), (8, "Ben", ""), (9, None, "")])
        database.executemany(
            "INSERT INTO faces (photo_id, person_id, bbox) VALUES (?, ?, ?)",
            [
                (1, 7, "[0, 0, 20, 20]"),
                (1, 8, "[0, 0, 10, 11]"),
                (1, None, "[0, 0, 9, 9]"),
                (2, 7, '{"x": 0, "y": 0, "width": 0.0156, "height": 0.0208}'),  # parts of 640 x 480
                (2, 8, "[300, 300, 400, 400]"),
                (4, 7, "[0, 0, 10, 10]"),
            ],
        )
    database.close()
    return path


@asynccontextmanager
async def working(world: StoredWorld) -> AsyncIterator[None]:
    services = world.services
    workshop = open_workshop(services.settings, services.pipeline, world.gallery, services.model, lambda: world.dsn)
    worker = Worker(world.gallery.database, lambda: world.dsn, {JobKind.FACES: workshop.indexer}, 2)
    worker.start()
    try:
        yield
    finally:
        await worker.stop(60)
        await workshop.indexer.settle(60)


async def bring(
    world: StoredWorld, file: Path, options: FormerOptions, **given: str
) -> tuple[Summary, Counter[tuple[str, str]], list[Outcome]]:
    told: list[Outcome] = []
    service = ServiceClient(world.client, 120)
    with FormerDatabase(file, given) as database:
        async with working(world):
            summary = await FormerImport(
                database, LibraryClient(service), PhotoSender(service), options, told.append
            ).run()  # fmt: skip
    return summary, summary.counts, told


async def state(world: StoredWorld) -> list[object]:
    """All that an import may change."""
    found: list[object] = []
    for query in (
        "SELECT file_name, folder, taken_at, updated_at FROM photos ORDER BY id",
        "SELECT photo_id, tag FROM photo_tags ORDER BY 1, 2",
        "SELECT id, name, external_id, updated_at FROM persons ORDER BY id",
        "SELECT id, person_id, decided_by FROM faces ORDER BY id",
        "SELECT id FROM journal ORDER BY id",
    ):
        found.append([tuple(row) for row in await world.rows(query)])
    return found


class TestImport:
    async def test_photos_tags_persons_and_faces(self, stored: StoredWorld, file: Path, root: Path) -> None:
        options = FormerOptions(root, wait_s=120)
        summary, counts, told = await bring(stored, file, options)
        assert counts == {
            ("photo", "imported"): 3, ("photo", "failed"): 1, ("person", "imported"): 3, ("face", "imported"): 3,
            ("face", "unmatched"): 2, ("face", "of nobody"): 1,
        }, told  # fmt: skip
        assert not summary.complete and summary.reasons["photo", "failed", "no_file"] == 1
        photos = {one["file_name"]: one for one in (await stored.client.get("/api/v1/photos")).json()["items"]}
        assert {name: (one["folder"], one["tags"]) for name, one in photos.items()} == {
            "Anna und Ben.jpg": ("", ["2020", "urlaub"]), "b.jpg": ("Berlin/2024", ["a", "b"]), "c.jpg": ("2024", []),
        }  # fmt: skip
        assert photos["c.jpg"]["taken_at"] == "2021-06-01T10:00:00Z"
        persons = {one["external_id"]: one for one in (await stored.client.get("/api/v1/persons")).json()["items"]}
        assert {key: (one["name"], one["face_count"]) for key, one in persons.items()} == {
            "former:7": ("Anna", 2), "former:8": ("Ben", 1), "former:9": ("", 0),
        }  # fmt: skip
        faces = (await stored.client.get(f"/api/v1/photos/{photos['Anna und Ben.jpg']['id']}/faces")).json()["faces"]
        assert {(face["bbox"][2], face["person_name"], face["decided_by"]) for face in faces} == {
            (20.0, "Anna", "user"), (10.0, "Ben", "user"),
        }  # fmt: skip

        before = await state(stored)
        summary, counts, told = await bring(stored, file, options)
        assert counts == {
            ("photo", "known"): 3, ("photo", "failed"): 1, ("person", "known"): 3, ("face", "known"): 3,
            ("face", "unmatched"): 2, ("face", "of nobody"): 1,
        }, told  # fmt: skip
        assert await state(stored) == before

    async def test_what_a_user_decided_since_stays(self, stored: StoredWorld, file: Path, root: Path) -> None:
        options = FormerOptions(root, wait_s=120)
        await bring(stored, file, options)
        persons = {one["external_id"]: one["id"] for one in (await stored.client.get("/api/v1/persons")).json()["items"]}
        (face,) = (await stored.client.get(f"/api/v1/persons/{persons['former:8']}/faces")).json()["items"]
        await stored.client.post(f"/api/v1/faces/{face['id']}/assign-person", json={"name": "Carla"})
        await stored.client.put(f"/api/v1/persons/{persons['former:7']}", json={"name": "Anna Meier"})
        before = await state(stored)
        _, counts, _ = await bring(stored, file, options)
        assert counts["face", "kept"] == 1 and counts["face", "known"] == 2
        assert await state(stored) == before

    async def test_without_files_photos_are_known_by_their_sha256(
        self, stored: StoredWorld, file: Path, root: Path
    ) -> None:  # fmt: skip
        await stored.client.post("/api/v1/photos/upload", files={"files": ("x.jpg", image(1, 1) + b"b")})
        _, counts, _ = await bring(stored, file, FormerOptions(None, wait_s=120))
        assert counts["photo", "known"] == 1 and counts["photo", "failed"] == 3
        assert counts["tags", "imported"] == 1 and counts["face", "imported"] == 1

    async def test_when_faces_are_not_found_in_time_the_next_run_ends_it(
        self, stored: StoredWorld, file: Path, root: Path
    ) -> None:  # fmt: skip
        service = ServiceClient(stored.client, 120)
        with FormerDatabase(file, {}) as database:
            options = FormerOptions(root, wait_s=0)
            record: list[Outcome] = []
            summary = await FormerImport(
                database, LibraryClient(service), PhotoSender(service), options, record.append
            ).run()  # fmt: skip
        assert summary.gave_up is not None and not summary.complete
        _, counts, _ = await bring(stored, file, replace(options, wait_s=120))
        assert counts["face", "imported"] == 3

    async def test_other_names_of_tables_and_columns(self, stored: StoredWorld, tmp_path: Path, root: Path) -> None:
        path = tmp_path / "other.db"
        (root / "a.jpg").write_bytes(image(1, 1))
        with sqlite3.connect(path) as database:
            database.executescript(
                """
                CREATE TABLE Pictures (ID TEXT PRIMARY KEY, Full_Path TEXT);
                CREATE TABLE "who is who" (id TEXT, display_name TEXT);
                CREATE TABLE face (picture_id TEXT, "wem" TEXT, bbox_x REAL, bbox_y REAL, bbox_w REAL, bbox_h REAL);
                CREATE TABLE tags (id INTEGER, name TEXT);
                CREATE TABLE photo_tags (photo_id TEXT, tag_id INTEGER);
                INSERT INTO Pictures VALUES ('p-1', '/volume1/photos/a.jpg');
                INSERT INTO "who is who" VALUES ('w', 'Wanda');
                INSERT INTO face VALUES ('p-1', 'w', 0, 0, 10, 10);
                INSERT INTO tags VALUES (5, 'alt');
                INSERT INTO photo_tags VALUES ('p-1', 5), ('p-1', 6);
                """
            )
        database.close()
        given = {"persons": "who is who", "faces.person_id": "wem"}
        options = FormerOptions(root, "/volume1/photos/", wait_s=120)
        summary, counts, told = await bring(stored, path, options, **given)
        assert summary.complete and counts["face", "imported"] == 1, told
        (photo,) = (await stored.client.get("/api/v1/photos")).json()["items"]
        assert photo["tags"] == ["alt"] and photo["folder"] == ""


class TestMalice:
    async def test_paths_lead_nowhere_else(self, stored: StoredWorld, tmp_path: Path, root: Path) -> None:
        (tmp_path / "secret.jpg").write_bytes(image(1, 1))
        (root / "link").symlink_to(tmp_path)
        (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
        path = tmp_path / "evil.db"
        paths = ["../../secret.jpg", f"{tmp_path}/secret.jpg", f"{root}/../../secret.jpg", "link/secret.jpg", "link.jpg",
                 "/etc/passwd", "a\0b", "", ".", "..", "C:\\secret.jpg", "..\\..\\secret.jpg", "x/" * 500 + "y",
                 "\\\\host\\share\\s.jpg", "/proc/self/environ"]  # fmt: skip
        with sqlite3.connect(path) as database:
            database.executescript(SCHEMA)
            database.executemany("INSERT INTO photos (id, file_path) VALUES (?, ?)", list(enumerate(paths)))
        database.close()
        _, counts, told = await bring(stored, path, FormerOptions(root, wait_s=5))
        assert counts == {("photo", "failed"): len(paths)}, told
        assert not await stored.object_keys()

    async def test_values_that_are_none(self, stored: StoredWorld, tmp_path: Path, root: Path) -> None:
        (root / "a.jpg").write_bytes(image(1, 1))
        path = tmp_path / "evil.db"
        with sqlite3.connect(path) as database:
            database.executescript(SCHEMA.replace("INTEGER PRIMARY KEY", "").replace("INTEGER", ""))
            database.execute("INSERT INTO photos (id, file_path, tags, taken_at) VALUES (1, 'a.jpg', ?, ?)",
                             (json.dumps(["ok", 1, None, "\0", "x" * 200, "\u202e"]), "9" * 400))  # fmt: skip
            database.executemany("INSERT INTO photos (id, file_path) VALUES (?, 'a.jpg')",
                                 [(None,), (1,), (b"\0\1",), ("x" * 10_000,), (1.5,), ("\x1b[2J",)])  # fmt: skip
            database.executemany("INSERT INTO persons VALUES (?, ?, '')",
                                 [(None, "n"), (1, "\0\x1b"), (2, "x" * 100_000), (3, b"\xff"), (1, "again")])  # fmt: skip
            boxes = ["", "[]", "[1,2,3]", "[NaN, 0, 1, 1]", "[1e999, 0, 1, 1]", "[" * 900, '{"x": 1}', "null", b"\0" * 16, 7,
                     "[10, 10, 0, 0]", "1 2 3", "--,,..", "9" * 5000, '["a", "b", "c", "d"]', "[true, true, true, true]"]  # fmt: skip
            database.executemany("INSERT INTO faces (photo_id, person_id, bbox) VALUES (1, 3, ?)", [(one,) for one in boxes])
        database.close()
        summary, counts, told = await bring(stored, path, FormerOptions(root, wait_s=120))
        assert counts["photo", "imported"] == 1 and counts["photo", "failed"] == 6 and summary.gave_up is None, told
        assert counts["face", "failed"] == len(boxes), [one for one in told if one.what == "face"]
        assert (await stored.client.get("/api/v1/photos")).json()["items"][0]["tags"] == ["ok"]

    def test_views_virtual_and_computed_columns_are_not_looked_into(self, tmp_path: Path) -> None:
        path = tmp_path / "evil.db"
        with sqlite3.connect(path) as database:
            database.executescript(
                """
                CREATE TABLE x (id INTEGER, path TEXT, name TEXT GENERATED ALWAYS AS (hex(zeroblob(100000000))) VIRTUAL);
                CREATE VIEW photos AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)
                    SELECT id, 'a' AS path FROM n;
                CREATE VIRTUAL TABLE images USING fts5(id, path);
                INSERT INTO x (id, path) VALUES (1, 'a.jpg');
                """
            )
        database.close()
        with pytest.raises(ConfigurationError, match="no table of photos"), FormerDatabase(path, {}):
            pass
        with pytest.raises(ConfigurationError, match="no such table"), FormerDatabase(path, {"photos": "images"}):
            pass
        begun = time.monotonic()
        with FormerDatabase(path, {"photos": "x"}) as found:
            assert "file_name" not in found.tables["photos"].columns
            assert [row["id"] for row in found.rows("photos")] == [1]
        assert time.monotonic() - begun < 60

    def test_the_file_is_never_written(self, file: Path) -> None:
        before = (file.read_bytes(), sorted(one.name for one in file.parent.iterdir()))
        with FormerDatabase(file, {}) as database:
            list(database.rows("photos"))
            for statement in ("DELETE FROM photos", "ATTACH ':memory:' AS m", "PRAGMA query_only = OFF; DELETE FROM photos",
                              "CREATE TEMP TABLE t (x)", "SELECT load_extension('x')", "SELECT readfile('/etc/passwd')",
                              "SELECT hex(zeroblob(1000))", "VACUUM INTO '/tmp/x'"):  # fmt: skip
                assert database._connection is not None
                with pytest.raises((sqlite3.Error, sqlite3.Warning)):
                    database._connection.execute(statement)
        assert (file.read_bytes(), sorted(one.name for one in file.parent.iterdir())) == before

    def test_values_larger_than_memory_should_hold(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.db"
        with sqlite3.connect(path) as database:
            database.executescript(SCHEMA)
            database.execute("INSERT INTO photos (id, file_path) VALUES (1, CAST(zeroblob(100000000) AS TEXT))")
        database.close()
        with FormerDatabase(path, {}) as found, pytest.raises(ConfigurationError, match="too big"):
            list(found.rows("photos"))

    @pytest.mark.parametrize("place", range(0, 20_480, 1024))
    def test_damage_is_a_message(self, file: Path, place: int) -> None:
        data = bytearray(file.read_bytes())
        for offset in range(place, min(place + 700, len(data))):
            if offset >= 16:
                data[offset] ^= 0x5A
        file.write_bytes(data)
        try:
            with FormerDatabase(file, {}) as database:
                for kind in ("photos", "faces", "persons"):
                    list(database.rows(kind))
        except ConfigurationError:
            pass

    def test_what_is_no_database(self, tmp_path: Path, file: Path) -> None:
        (tmp_path / "text").write_text("hello")
        for name in ("text", "nothing", "."):
            with pytest.raises(ConfigurationError), FormerDatabase(tmp_path / name, {}):
                pass
        (tmp_path / "former.db-wal").write_bytes(b"x")
        with pytest.raises(ConfigurationError, match="not in the file yet"), FormerDatabase(file, {}):
            pass


class TestSchema:
    @pytest.mark.parametrize(
        ("path", "prefix", "found"),
        [
            ("a/b.jpg", "", ("a", "b.jpg")),
            ("/r/a/b.jpg", "", ("a", "b.jpg")),
            ("/old/a/b.jpg", "/old", ("a", "b.jpg")),
            ("/older/b.jpg", "/old", None),
            ("D:\\Fotos\\a\\b.jpg", "D:\\Fotos", ("a", "b.jpg")),
            ("a\\b.jpg", "", ("a", "b.jpg")),
            ("a/./b.jpg", "", ("a", "b.jpg")),
            ("a/../b.jpg", "", None),
            ("/x/b.jpg", "", None),
        ],
    )
    def test_where_a_path_leads(self, path: str, prefix: str, found: tuple[str, ...] | None) -> None:
        parts = parts_of(path, Path("/r"), prefix)
        assert (None if parts is None else tuple(part.decode() for part in parts)) == found

    def test_what_cannot_be_mapped_is_said(self, file: Path) -> None:
        for given in ({"photos": "nothing"}, {"photos.path": "nothing"}, {"photo": "photos"}, {"photos.shoe": "id"}):
            with pytest.raises(ConfigurationError, match="--map"), FormerDatabase(file, given):
                pass

    def test_ignored_columns_and_tables_are_named(self, file: Path) -> None:
        with FormerDatabase(file, {}) as database:
            assert database.others == ["settings"]
            assert database.tables["photos"].ignored == ("thumbnail",)
            assert database.tables["faces"].ignored == ("id", "embedding")
            assert database.count("photos") == 4 and database.count("tags") == 0

    def test_boxes(self) -> None:
        read = former_schema.box
        assert read({"box": "[1, 2, 3, 4]"}, sized=False) == (1, 2, 3, 4)
        assert read({"box": "1,2,3,4"}, sized=True) == (1, 2, 4, 6)
        assert read({"box": '{"left": 1, "top": 2, "width": 3, "height": 4}'}, sized=False) == (1, 2, 4, 6)
        assert read({"x1": 1, "y1": 2, "x2": 3.5, "y2": "4"}, sized=True) == (1, 2, 3.5, 4)
        assert former_schema.in_pixels((0.1, 0.2, 0.3, 0.4), 1000, 100) == pytest.approx((100, 20, 300, 40))
        assert former_schema.in_pixels((1, 2, 3, 4), 1000, 100) == (1, 2, 3, 4)
