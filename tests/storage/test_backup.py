"""Backup and restore: the same answers after it, from one kind of store into another; and files that must be refused."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import stat
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest

from serve_app import archive
from serve_app.archive import End, Manifest
from serve_app.backup import BackupReport, RestoreReport, back_up, restore
from serve_app.errors import ConfigurationError
from serve_app.services.erasure import Eraser
from serve_app.storage import dumps, object_rows, schema
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.minio_objects import MinioObjectStore
from serve_app.storage.objects import ObjectStore
from tests.api.conftest import image
from tests.storage.conftest import TEMPLATE, MakeStoredWorld, StoredWorld, execute, with_database
from tests.storage.object_servers import SIGNING_KEY, ObjectServer

PROBES = [[1.0, 0.2, 0.0, 0.1], [0.0, 1.0, 0.3, 0.0], [0.1, 0.0, 0.2, 1.0]]


@pytest.fixture
async def empty_dsn(template_dsn: str) -> AsyncIterator[str]:
    """Another database, migrated and empty."""
    name = f"other_{uuid.uuid4().hex}"
    await execute(template_dsn, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    yield with_database(template_dsn, name)
    await execute(template_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def other_objects(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "elsewhere" / "objects", SIGNING_KEY)


async def populate(world: StoredWorld) -> None:
    """Two collections with pictures and vectors, metadata and an erased person."""
    for name in ("people", "staff"):
        address = await world.collection(name)
        for index in range(3):
            person = await world.person(address, external_id=f"p{index}", name=f"Zoë {index}", metadata={"n": [index]})
            vector = [float(index == axis) + 0.1 * axis for axis in range(4)]
            await world.enrol_vector(address, person, vector)
            picture = {"files": ("a.jpg", image(1, index) + os.urandom(2000))}
            added = await world.client.post(f"{address}/persons/{person}/faces", files=picture, params={"review": "false"})
            assert added.status_code == 201, added.text
    gone = await world.person("/api/v1/collections/people", external_id="gone")
    await world.client.delete(f"/api/v1/collections/people/persons/{gone}")


async def answers(world: StoredWorld) -> list[object]:
    """What a client sees: every listing, searches, and the bytes of every crop and picture."""
    seen: list[object] = []
    for name in ("people", "staff"):
        address = f"/api/v1/collections/{name}"
        for path in ("", "/persons", "/faces"):
            response = await world.client.get(address + path)
            assert response.status_code == 200, response.text
            seen.append(response.json())
        for probe in PROBES:
            response = await world.client.post(f"{address}/search", json={"model": "fake-model", "embedding": probe})
            assert response.status_code == 200, response.text
            seen.append(response.json())
    for row in await world.rows("SELECT object_key AS key FROM images UNION ALL SELECT crop_key FROM faces ORDER BY 1"):
        if row["key"] is not None:
            seen.append((row["key"], hashlib.sha256(await world.gallery.objects.get(row["key"])).hexdigest()))
    return seen


async def write(world: StoredWorld, path: Path) -> BackupReport:
    return await back_up(world.gallery.database, lambda: world.dsn, world.gallery.objects, path, lambda *_: None)


async def read(world: StoredWorld, path: Path, *, force: bool = False) -> RestoreReport:
    return await restore(
        world.gallery.database,
        lambda: world.dsn,
        world.gallery.objects,
        path,
        force=force,
        verifying=lambda *_: None,
        restoring=lambda *_: None,
    )


@pytest.fixture
async def backed_up(stored: StoredWorld, tmp_path: Path) -> Path:
    await populate(stored)
    path = tmp_path / "kinlens.tar"
    await write(stored, path)
    return path


async def test_everything_is_the_same_in_another_place(
    stored: StoredWorld, backed_up: Path, make_stored: MakeStoredWorld, empty_dsn: str, other_objects: ObjectStore
) -> None:
    before = await answers(stored)
    other = make_stored(objects=other_objects, dsn=lambda: empty_dsn)
    await other_objects.prepare()
    report = await read(other, backed_up)
    assert await answers(other) == before
    assert report.counts.collections == 2 and report.counts.faces == 12 and report.end.objects == report.counts.objects == 12
    # It goes on from there: keys of tables and rows continue where they were.
    address = await other.collection("third")
    await other.enrol_vector(address, await other.person(address), PROBES[0])
    assert files_beside(backed_up) == {"kinlens.tar": 0o600}


async def test_from_a_folder_into_s3_and_back(
    stored: StoredWorld,
    backed_up: Path,
    make_stored: MakeStoredWorld,
    empty_dsn: str,
    seaweedfs_server: ObjectServer,
    tmp_path: Path,
) -> None:
    before = await answers(stored)
    objects = MinioObjectStore(seaweedfs_server.config)
    await objects.prepare()
    other = make_stored(objects=objects, dsn=lambda: empty_dsn)
    await read(other, backed_up)
    assert await answers(other) == before
    keys = {row["key"] for row in await other.rows("SELECT object_key AS key FROM images")}
    assert (await objects.stat(sorted(keys)[0])).size_bytes > 2000
    again = tmp_path / "again.tar"
    await write(other, again)
    await read(stored, again, force=True)
    assert await answers(stored) == before


async def test_force_replaces_what_is_there(stored: StoredWorld, backed_up: Path) -> None:
    before = await answers(stored)
    await stored.client.delete("/api/v1/collections/staff")
    address = await stored.collection("later")
    await stored.enrol_vector(address, await stored.person(address), PROBES[1])
    key = (await stored.rows("SELECT key FROM collections WHERE id = 'later'"))[0]["key"]
    assert f"embeddings_m1_c{key}" in await table_names(stored)
    with pytest.raises(ConfigurationError, match="--force"):
        await read(stored, backed_up)
    assert (await stored.client.get("/api/v1/collections/later")).status_code == 200
    await read(stored, backed_up, force=True)
    assert await answers(stored) == before
    assert (await stored.client.get("/api/v1/collections/later")).status_code == 404
    assert f"embeddings_m1_c{key}" not in await table_names(stored)


async def test_no_object_vanishes_while_a_backup_runs(
    stored: StoredWorld, tmp_path: Path, make_stored: MakeStoredWorld, empty_dsn: str, other_objects: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A person erased after the snapshot is in the backup whole, and its pictures go once the backup is done."""
    await populate(stored)
    before = await answers(stored)
    real = dumps.dump

    async def dump(dsn: str, moment: str) -> AsyncIterator[bytes]:
        async for piece in real(dsn, moment):
            yield piece
        for name in ("people", "staff"):
            deleted = await stored.client.delete(f"/api/v1/collections/{name}")
            assert deleted.status_code == 200, deleted.text
            # What may lie beside the six counts as one.
            assert deleted.json()["objects_pending"] == 7

    monkeypatch.setattr(dumps, "dump", dump)
    path = tmp_path / "kinlens.tar"
    report = await write(stored, path)
    assert report.missing == 0 and report.counts.collections == 2
    assert await Eraser(stored.gallery.database, stored.gallery.objects).sweep() == 12
    other = make_stored(objects=other_objects, dsn=lambda: empty_dsn)
    await other_objects.prepare()
    await read(other, path)
    assert await answers(other) == before


async def test_photos_are_counted(
    stored: StoredWorld, tmp_path: Path, make_stored: MakeStoredWorld, empty_dsn: str, other_objects: ObjectStore
) -> None:
    await stored.client.post("/api/v1/photos/upload", files={"files": ("a.jpg", image())}, params={"tags": "a"})
    path, former = tmp_path / "kinlens.tar", tmp_path / "former.tar"
    assert (await write(stored, path)).counts.photos == 1
    with pytest.raises(ConfigurationError, match="0 faces and 1 photos"):
        await read(stored, path)
    other = make_stored(objects=other_objects, dsn=lambda: empty_dsn)
    await other_objects.prepare()
    report = await read(other, path)
    assert report.counts.photos == report.manifest.photos == 1
    assert (await other.client.get("/api/v1/photos")).json()["items"][0]["tags"] == ["a"]
    # A file of before there were photos does not say.
    former.write_bytes(manifest(photos=None)(path.read_bytes()))
    assert (await read(other, former, force=True)).counts.photos == 1
    former.write_bytes(manifest(photos=2)(path.read_bytes()))
    with pytest.raises(ConfigurationError, match="backup names"):
        await read(other, former, force=True)


async def test_missing_objects_are_told_and_the_rest_is_kept(
    stored: StoredWorld, tmp_path: Path, make_stored: MakeStoredWorld, empty_dsn: str, other_objects: ObjectStore
) -> None:
    await populate(stored)
    lost = sorted(await object_keys(stored))[:2]
    await stored.gallery.objects.delete_many(lost)
    report = await write(stored, tmp_path / "kinlens.tar")
    assert report.missing == 2 and sorted(report.missing_keys) == lost
    other = make_stored(objects=other_objects, dsn=lambda: empty_dsn)
    await other_objects.prepare()
    assert (await read(other, tmp_path / "kinlens.tar")).end.objects == 10


async def test_two_backups_do_not_run_at_once(stored: StoredWorld, tmp_path: Path) -> None:
    await populate(stored)
    await asyncio.gather(*(write(stored, tmp_path / f"{index}.tar") for index in range(2)))
    sums = [archive_objects(tmp_path / f"{index}.tar") for index in range(2)]
    assert sums[0] == sums[1] and len(sums[0]) == 12


def test_any_tar_program_reads_it(backed_up: Path) -> None:
    with tarfile.open(backed_up) as tar:
        names = tar.getnames()
        assert names[0] == "manifest.json" and names[-1] == "end.json" and "database/00000000" in names
        manifest = json.loads(extract(tar, "manifest.json"))
        assert manifest["faces"] == 12 and manifest["schema_version"] == schema.newest_version()
        assert extract(tar, "database/00000000").startswith(b"PGDMP")


async def test_many_pages_and_pieces(
    stored: StoredWorld, tmp_path: Path, make_stored: MakeStoredWorld, empty_dsn: str, other_objects: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(object_rows, "PAGE", 5)
    monkeypatch.setattr(dumps, "CHUNK_BYTES", 1000)
    await populate(stored)
    before = await answers(stored)
    await write(stored, tmp_path / "kinlens.tar")
    with tarfile.open(tmp_path / "kinlens.tar") as tar:
        assert "database/00000005" in tar.getnames()
    other = make_stored(objects=other_objects, dsn=lambda: empty_dsn)
    await other_objects.prepare()
    await read(other, tmp_path / "kinlens.tar")
    assert await answers(other) == before


Alter = Callable[[bytes], bytes]


def flip(at: float) -> Alter:
    """In the content of a member: behind it lie zeros up to a whole block, which mean nothing."""

    def alter(data: bytes) -> bytes:
        changed = bytearray(data)
        wanted = int(len(data) * at)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            place = next(max(wanted, one.offset_data) for one in tar if wanted < one.offset_data + one.size)
        changed[place] ^= 0x55
        return bytes(changed)

    return alter


def cut(at: float) -> Alter:
    return lambda data: data[: int(len(data) * at)]


def without(prefix: str) -> Alter:
    """As somebody who knows the format would take a member out."""

    def alter(data: bytes) -> bytes:
        members = list(unpack(data))
        taken = next(info.name for info, _ in members if info.name.startswith(prefix))
        return pack([(info, content) for info, content in members if info.name != taken])

    return alter


def doubled(data: bytes) -> bytes:
    members = list(unpack(data))
    return pack([*members[:3], members[2], *members[3:]])


def swapped(data: bytes) -> bytes:
    members = list(unpack(data))
    return pack([*members[:2], members[3], members[2], *members[4:]])


def renamed(old: str, new: str) -> Alter:
    def alter(data: bytes) -> bytes:
        members = []
        for info, content in unpack(data):
            if info.name.startswith(old):
                info.name, old_name = new, info.name
                assert old_name
            members.append((info, content))
        return pack(members)

    return alter


def typed(kind: bytes, target: str) -> Alter:
    """The first object as a link or a device."""

    def alter(data: bytes) -> bytes:
        members = []
        for index, (info, content) in enumerate(unpack(data)):
            if index == 3:
                info.type, info.linkname, info.size, content = kind, target, 0, b""
            members.append((info, content))
        return pack(members)

    return alter


def manifest(**fields: object) -> Alter:
    """A well formed file that says something else about itself."""

    def alter(data: bytes) -> bytes:
        given: list[tuple[str, bytes]] = [(info.name, content) for info, content in unpack(data)]
        changed = Manifest.model_validate(json.loads(given[0][1]) | fields)
        stream = io.BytesIO()
        writer = archive.ArchiveWriter(stream, 0)
        writer.begin(changed)
        for name, content in given[1:-1]:
            if name.startswith(archive.DATABASE):
                writer.add_database(content)
            else:
                writer.add_object(name.removeprefix(archive.OBJECTS), content)
        writer.finish()
        return stream.getvalue()

    return alter


def with_dump(backup: Path, path: Path, alter: Alter) -> Path:
    """A well formed file with another dump in it."""
    stream = io.BytesIO()
    given = unpack(backup.read_bytes())
    writer = archive.ArchiveWriter(stream, 0)
    writer.begin(Manifest.model_validate_json(given[0][1]))
    writer.add_database(alter(given[1][1]))
    for info, content in given[2:-1]:
        writer.add_object(info.name.removeprefix(archive.OBJECTS), content)
    writer.finish()
    path.write_bytes(stream.getvalue())
    return path


def unpack(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info, extract(tar, info.name)) for info in tar.getmembers()]


def pack(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def extract(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


ALTERED: dict[str, Alter] = {
    "empty": lambda _: b"",
    "text": lambda _: b"not a backup\n" * 1000,
    "another tar": lambda _: pack([(tarfile.TarInfo("a"), b"")]),
    "cut in the database": cut(0.2),
    "cut in the middle": cut(0.6),
    "cut near the end": cut(0.97),
    "one byte short": lambda data: data[:-1],
    "half of the end": lambda data: data[: len(data.rstrip(b"\0")) - 20],
    "a flipped bit early": flip(0.15),
    "a flipped bit in the middle": flip(0.5),
    "a flipped bit late": flip(0.9),
    "something behind the end": lambda data: data + pack([(tarfile.TarInfo("objects/a"), b"")]),
    "no end": without("end.json"),
    "no manifest": without("manifest.json"),
    "no database": without("database/"),
    "an object less": without("objects/"),
    "an object twice": doubled,
    "objects in another order": swapped,
    "a path upwards": renamed("objects/collections/1/crops", "objects/../../../etc/passwd"),
    "an absolute path": renamed("objects/collections/1/crops", "/etc/passwd"),
    "a path upwards in the database": renamed("database/", "database/../../x"),
    "an unknown member": renamed("end.json", "evil.json"),
    "a symbolic link": typed(tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": typed(tarfile.LNKTYPE, "manifest.json"),
    "a folder": typed(tarfile.DIRTYPE, ""),
    "a device": typed(tarfile.CHRTYPE, ""),
    "a newer format": manifest(format=2),
    "a newer schema": manifest(schema_version="9999"),
}


@pytest.mark.parametrize("kind", ALTERED)
async def test_a_damaged_or_hostile_file_changes_nothing(
    kind: str, stored: StoredWorld, altered_base: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "altered.tar"
    path.write_bytes(ALTERED[kind](altered_base))
    with pytest.raises(ConfigurationError) as refused:
        await read(stored, path)
    assert str(refused.value)
    assert await object_keys(stored) == set()
    assert await stored.rows("SELECT 1 FROM collections") == []


BASE: list[bytes] = []


@pytest.fixture
async def altered_base(stored: StoredWorld, make_stored: MakeStoredWorld, tmp_path: Path, empty_dsn: str) -> bytes:
    """One backup for all cases, made by another instance than the one it is restored into."""
    if not BASE:
        objects = LocalObjectStore(tmp_path / "source" / "objects", SIGNING_KEY)
        source = make_stored(objects=objects, dsn=lambda: empty_dsn)
        (tmp_path / "source").mkdir()
        await objects.prepare()
        await populate(source)
        await write(source, tmp_path / "source.tar")
        BASE.append((tmp_path / "source.tar").read_bytes())
    return BASE[0]


async def test_a_dump_that_fails_changes_no_row(stored: StoredWorld, backed_up: Path, tmp_path: Path) -> None:
    """Well formed outside, and pg_restore or the server refuse what is inside."""
    before = await answers(stored)
    alterations: dict[str, Alter] = {"cut": cut(0.5), "empty": lambda _: b"PGDMP", "none": lambda _: b""}
    for name, alter in alterations.items():
        with pytest.raises(ConfigurationError, match="pg_restore"):
            await read(stored, with_dump(backed_up, tmp_path / f"{name}.tar", alter), force=True)
        assert await answers(stored) == before, name


async def test_a_server_that_cannot_be_written_to_is_said_so(
    stored: StoredWorld, backed_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await answers(stored)
    monkeypatch.setattr(dumps, "_REMOVE_TABLES", "SELECT 1 / 0;")
    with pytest.raises(ConfigurationError, match="division by zero"):
        await read(stored, backed_up, force=True)
    assert await answers(stored) == before


async def test_what_cannot_be_written_leaves_nothing(
    stored: StoredWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await populate(stored)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        await write(stored, tmp_path / "nowhere" / "kinlens.tar")
    old = tmp_path / "kinlens.tar"
    old.write_bytes(b"the backup of yesterday")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.ArchiveWriter, "add_object", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        await write(stored, old)
    assert old.read_bytes() == b"the backup of yesterday"
    assert list(files_beside(old)) == ["kinlens.tar"]


async def test_a_failing_pg_dump_is_told_in_its_words(stored: StoredWorld, tmp_path: Path) -> None:
    objects = stored.gallery.objects
    wrong = stored.dsn.replace("/test_", "/nothing_")
    with pytest.raises(ConfigurationError, match="does not exist"):
        await back_up(stored.gallery.database, lambda: wrong, objects, tmp_path / "a.tar", lambda *_: None)
    assert not (tmp_path / "a.tar").exists()


async def test_every_table_of_the_schema_is_known_to_a_restore(database_dsn: str) -> None:
    connection = await asyncpg.connect(database_dsn)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    assert sorted(row["tablename"] for row in rows) == sorted(dumps.OUR_TABLES)


@pytest.mark.parametrize(
    ("dsn", "address", "password"),
    [
        ("postgresql://u:p%40ss@h:1/d", "postgresql://u@h:1/d", "p@ss"),
        ("postgresql://h/d", "postgresql://h/d", None),
        ("postgresql:///d?host=/run/pg&password=secret", "postgresql:///d?host=%2Frun%2Fpg", "secret"),
        ("postgresql://u:x@h1:1,h2:2/d?sslmode=require", "postgresql://u@h1:1,h2:2/d?sslmode=require", "x"),
        ("postgres://u:a:b@[::1]:5/d?application_name=a%20b", "postgres://u@[::1]:5/d?application_name=a%20b", "a:b"),
    ],
)
def test_the_password_is_never_an_argument(
    dsn: str, address: str, password: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("MINIO_SECRET_KEY", "not for psql")
    given, environment = dumps._client(dsn)
    assert given == address and environment.get("PGPASSWORD") == password
    assert "MINIO_SECRET_KEY" not in environment


async def object_keys(world: StoredWorld) -> set[str]:
    return {info.key async for info in world.gallery.objects.list("")}


def files_beside(path: Path) -> dict[str, int]:
    """Name and mode of every file in its folder."""
    return {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir() if one.is_file()}


async def table_names(world: StoredWorld) -> set[str]:
    return {row["tablename"] for row in await world.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def archive_objects(path: Path) -> set[str]:
    with path.open("rb") as stream:
        _, end = archive.verify(stream, lambda _: None)
        assert isinstance(end, End)
        return {member.name for member in archive.members(stream) if member.part is archive.Part.OBJECTS}
