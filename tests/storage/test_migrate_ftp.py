"""`kinlens migrate-ftp`: from a real FTP server, which fails in every way it can, into the library through its API."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from serve_app.errors import ConfigurationError
from serve_app.imports.ftp_connection import FtpAddress
from serve_app.imports.migrating import FtpMigration, MigrationOptions, Outcome, Summary
from serve_app.imports.migration_ledger import Ledger
from serve_app.imports.photo_sending import PhotoSender
from serve_app.imports.service_client import ServiceClient
from serve_app.services.garbage import GarbageCollector
from tests.api.conftest import JPEG
from tests.storage.conftest import StoredWorld
from tests.storage.ftp_server import FtpServer

OPTIONS = MigrationOptions(workers=3, give_up_after_s=60)
MakeServer = Callable[..., FtpServer]


def photo(number: int, size: int = 64) -> bytes:
    return (JPEG + number.to_bytes(4, "big") + hashlib.sha256(bytes([number % 251])).digest() * (size // 32 + 1))[:size]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    servers: list[FtpServer] = []
    root, folder = tmp_path / "ftp", tmp_path / "server"
    root.mkdir()
    folder.mkdir()

    def make(*, tls: bool = True, **faults: int) -> FtpServer:
        servers.append(FtpServer(root, folder, tls, faults).start())
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


def fill(root: Path, photos: int = 6) -> dict[str, bytes]:
    """Photos in nested folders with names of all kinds, and what is none."""
    names = ["a.jpg", "Italien/Rom/b.jpg", "Italien/Müller & Söhne/c d.jpg", "मुंबई/d.jpg", "-la/e.jpg", " f/ f.jpg"]
    files = {name: photo(index) for index, name in enumerate(names[:photos])}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


async def migrate(
    world: StoredWorld,
    server: FtpServer | FtpAddress,
    options: MigrationOptions = OPTIONS,
    client: httpx.AsyncClient | None = None,
    *,
    read_back: bool = False,
) -> tuple[Summary, dict[str, Outcome]]:
    told: dict[str, Outcome] = {}

    def record(outcome: Outcome) -> None:
        assert outcome.path not in told
        told[outcome.path] = outcome

    address = server if isinstance(server, FtpAddress) else server.address()
    with Ledger(world.folder / "state" / "ledger.jsonl") as ledger:
        sender = PhotoSender(ServiceClient(client or world.client, 20), read_back=read_back)
        summary = await FtpMigration(address, sender, ledger, options, record).run()
    return summary, told


async def library(world: StoredWorld) -> dict[str, str]:
    """Path to SHA-256 of every photo there, as the object store has it."""
    found: dict[str, str] = {}
    rows = await world.rows("SELECT p.folder, p.file_name, i.object_key FROM photos p JOIN images i ON i.id = p.image_id")
    for row in rows:
        data = await world.gallery.objects.get(row["object_key"])
        path = f"{row['folder']}/{row['file_name']}".lstrip("/")
        assert path not in found
        found[path] = hashlib.sha256(data).hexdigest()
    return found


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


class TestCopying:
    @pytest.mark.parametrize("faults", [{}, {"no_mlsd": 1}, {"no_mlsd": 1, "no_list": 1}, {"no_mlsd": 1, "no_size": 1}])
    async def test_a_tree_is_copied_and_a_second_run_reads_nothing(
        self, stored: StoredWorld, make_server: MakeServer, faults: dict[str, int]
    ) -> None:
        server = make_server(**faults)
        files = fill(server.root)
        if "no_mlsd" in faults:
            # LIST has no way to tell spaces before a name from those of its columns.
            files = {name: data for name, data in files.items() if not name.startswith(" ") or "no_list" in faults}
        summary, told = await migrate(stored, server, read_back=True)
        copied = {name.lstrip(): digest for name, digest in digests(files).items()}
        if "no_list" in faults:
            copied = {name.replace("/ ", "/"): digest for name, digest in copied.items()}
        found = await library(stored)
        assert {name: found[name] for name in found if not name.startswith("f/")} == {
            name: digest for name, digest in copied.items() if not name.startswith("f/")
        }
        assert summary.statuses["copied"] == len(found) >= 5
        read = len(server.retrieved())
        again, told = await migrate(stored, server)
        assert again.complete and again.statuses["known"] == len(found), told
        # A server that tells neither size nor date gives nothing to know a file by.
        assert len(server.retrieved()) == (read * 2 if "no_size" in faults else read)

    async def test_plain_and_below_a_path(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(tls=False)
        fill(server.root)
        options = replace(OPTIONS, path="Italien", folder="/Alt/FTP/")
        summary, told = await migrate(stored, server, options)
        assert summary.complete and set(told) == {"/Italien/Rom/b.jpg", "/Italien/Müller & Söhne/c d.jpg"}
        assert set(await library(stored)) == {"Alt/FTP/Rom/b.jpg", "Alt/FTP/Müller & Söhne/c d.jpg"}

    async def test_what_is_no_photo_is_told_of(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        fill(server.root, 1)
        (server.root / "raw.cr2").write_bytes(b"II*\x00\x10\x00\x00\x00CR\x02\x00")
        (server.root / "film.mp4").write_bytes(b"\x00\x00\x00\x14ftypisom" + b"x" * 100_000)
        (server.root / "large.mov").touch()
        os.truncate(server.root / "large.mov", 5 << 30)
        (server.root / "large.jpg").touch()
        os.truncate(server.root / "large.jpg", 61 << 20)
        (server.root / "notes.txt").write_text("hello")
        (server.root / "empty.jpg").touch()
        (server.root / "broken.jpg").write_bytes(JPEG + b"broken")
        (server.root / ".hidden.jpg").write_bytes(photo(9))
        (server.root / "copy.jpg").write_bytes(photo(0))
        summary, told = await migrate(stored, server)
        assert {path: (one.status, one.code) for path, one in told.items()} == {
            "/a.jpg": ("copied", ""),
            "/copy.jpg": ("known", ""),
            "/raw.cr2": ("unsupported", "unsupported_image"),
            "/film.mp4": ("unsupported", "unsupported_image"),
            "/large.mov": ("unsupported", "unsupported_image"),
            "/large.jpg": ("failed", "image_too_large"),
            "/notes.txt": ("unsupported", "not_a_picture"),
            "/empty.jpg": ("failed", "invalid_image"),
            "/broken.jpg": ("failed", "invalid_image"),
            "/.hidden.jpg": ("skipped", "hidden"),
        } or told["/empty.jpg"].code == "not_a_picture"
        assert not summary.complete
        read = server.retrieved()
        assert read.count("/large.mov") == 0
        await migrate(stored, server)
        again = server.retrieved()[len(read) :]
        assert sorted(set(again)) == ["/broken.jpg", "/empty.jpg"]  # what was settled is not read again

    async def test_dates_of_files_serve_pictures_without_one(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        fill(server.root, 1)
        os.utime(server.root / "a.jpg", (1_600_000_000, 1_600_000_000))
        await migrate(stored, server)
        (row,) = await stored.rows("SELECT taken_at FROM photos")
        assert row["taken_at"].timestamp() == 1_600_000_000

    async def test_erased_photos_come_back_and_changed_ones_are_copied(
        self, stored: StoredWorld, make_server: MakeServer
    ) -> None:
        server = make_server()
        fill(server.root, 2)
        _, told = await migrate(stored, server)
        await stored.client.delete(f"/api/v1/photos/{told['/a.jpg'].photo_id}")
        (server.root / "Italien/Rom/b.jpg").write_bytes(photo(77, 99))
        summary, told = await migrate(stored, server)
        assert {one.status for one in told.values()} == {"copied"} and summary.complete
        assert len(await stored.rows("SELECT 1 FROM photos")) == 3


class TestLinks:
    async def test_loops_end_and_each_folder_is_looked_into_once(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        fill(server.root, 2)
        (server.root / "Italien/loop").symlink_to(server.root)
        (server.root / "Italien/Rom/again").symlink_to(server.root / "Italien")
        summary, told = await migrate(stored, server)
        assert summary.complete and summary.statuses["copied"] == 2
        assert len(server.commands()) < 200
        links = {path for path, one in told.items() if one.code == "link"}
        assert links and summary.statuses["copied"] + summary.statuses["known"] + len(links) == len(told)

    async def test_links_in_a_list_are_not_followed(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(no_mlsd=1)
        fill(server.root, 2)
        (server.root / "Italien/loop").symlink_to(server.root)
        (server.root / "link.jpg").symlink_to(server.root / "a.jpg")
        summary, told = await migrate(stored, server)
        assert summary.complete and summary.statuses == {"copied": 2, "skipped": 2}, told
        assert {path for path, one in told.items() if one.status == "skipped"} == {"/Italien/loop", "/link.jpg"}


class TestInterruptions:
    async def test_a_server_that_dies_in_the_middle_of_a_file(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(kill_at=300_000, slow=16_384)
        files = fill(server.root, 3)
        files["big.jpg"] = photo(7, 1_000_000)
        (server.root / "big.jpg").write_bytes(files["big.jpg"])

        async def revive() -> None:
            await asyncio.to_thread(server.wait)
            await asyncio.to_thread(server.restart)

        revival = asyncio.create_task(revive())
        summary, told = await migrate(stored, server, replace(OPTIONS, give_up_after_s=60))
        await revival
        assert summary.complete and summary.statuses["copied"] == 4, told
        assert await library(stored) == digests(files)
        offsets = [int(line.split()[1]) for line in server.commands() if line.startswith("REST ")]
        assert offsets and max(offsets) > 100_000  # it went on, not from the beginning

    async def test_connections_that_drop_again_and_again(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(drop_at=250_000)
        data = photo(7, 1_000_000)
        (server.root / "big.jpg").write_bytes(data)
        summary, told = await migrate(stored, server, replace(OPTIONS, give_up_after_s=60))
        assert summary.complete and told["/big.jpg"].status == "copied"
        assert set((await library(stored)).values()) == {hashlib.sha256(data).hexdigest()}

    async def test_a_server_that_is_gone_is_given_up_and_the_next_run_ends_it(
        self, stored: StoredWorld, make_server: MakeServer
    ) -> None:
        server = make_server(kill_at=1)
        files = fill(server.root, 4)
        files["big.jpg"] = photo(7, 100_000)
        (server.root / "big.jpg").write_bytes(files["big.jpg"])
        summary, _ = await migrate(stored, server, replace(OPTIONS, give_up_after_s=1))
        assert not summary.complete and summary.gave_up is not None and "did not answer" in summary.gave_up
        server.restart()
        summary, _ = await migrate(stored, server)
        assert summary.complete and summary.statuses["known"] + summary.statuses["copied"] == 5
        assert await library(stored) == digests(files)

    async def test_the_command_may_be_broken_off_at_any_time(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(slow=200)
        files = {f"{number}.jpg": photo(number, 4000) for number in range(20)}
        for name, data in files.items():
            (server.root / name).write_bytes(data)
        for after_s in (0.05, 0.3, 0.6):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(after_s):
                    await migrate(stored, server)
        before = len(await library(stored))
        server.restart()
        summary, _ = await migrate(stored, server)
        assert summary.complete and summary.statuses["copied"] + summary.statuses["known"] == 20
        assert before < 20 and await library(stored) == digests(files)
        # Broken off in a commit, whose outcome nobody knows then, an upload leaves its object to `kinlens gc`.
        garbage = GarbageCollector(stored.gallery.database, stored.gallery.objects)
        left = await garbage.find_orphans(timedelta(), delete=True)
        assert left.orphans == left.deleted <= 3 * OPTIONS.workers
        assert await stored.object_keys() == {row["object_key"] for row in await stored.rows("SELECT object_key FROM images")}

    async def test_a_ledger_that_was_cut_off_only_costs_a_reading(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        files = fill(server.root, 4)
        await migrate(stored, server)
        ledger = stored.folder / "state" / "ledger.jsonl"
        text = ledger.read_text()
        ledger.write_text(text[:-20] + "")
        summary, _ = await migrate(stored, server)
        assert summary.statuses == {"known": 4} and await library(stored) == digests(files)
        ledger.write_bytes(b"\xff\xfe{}\n[1]\n\0" + ledger.read_bytes())
        summary, _ = await migrate(stored, server)
        assert summary.statuses == {"known": 4}

    async def test_a_service_that_is_away_for_a_while(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        fill(server.root, 3)
        calls = 0

        async def flaky(request: httpx.Request) -> httpx.Response:
            nonlocal calls
            calls += 1
            if calls in (2, 3):
                raise httpx.ConnectError("away")
            if calls == 4:
                return httpx.Response(503, json={"code": "overloaded", "detail": "Later."})
            return await stored.client.request(
                request.method,
                request.url.path,
                params=request.url.params,
                content=await request.aread(),
                headers={"content-type": request.headers.get("content-type", "")},
            )

        async with httpx.AsyncClient(transport=httpx.MockTransport(flaky), base_url="http://test") as client:
            summary, told = await migrate(stored, server, client=client)
        assert summary.complete and summary.statuses["copied"] == 3, told

    async def test_few_connections_are_enough(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(max_cons_per_ip=2)
        fill(server.root)
        summary, told = await migrate(stored, server, replace(OPTIONS, workers=4, give_up_after_s=30))
        assert summary.complete and summary.statuses["copied"] == 6, told


class TestChecksums:
    async def test_a_transfer_cut_short_without_a_word(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(truncate=30_000, no_rest=1)
        (server.root / "a.jpg").write_bytes(photo(1, 70_000))
        summary, told = await migrate(stored, server)
        assert not summary.complete and told["/a.jpg"].status == "failed", told
        assert await library(stored) == {}

    async def test_what_is_missing_is_read_where_the_server_can(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(truncate=30_000)
        data = photo(1, 70_000)
        (server.root / "a.jpg").write_bytes(data)
        summary, told = await migrate(stored, server)
        assert summary.complete, told
        assert await library(stored) == digests({"a.jpg": data})

    async def test_a_server_that_ignores_where_to_begin(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(drop_at=200_000, ignores_rest=1)
        (server.root / "a.jpg").write_bytes(os.urandom(0) + photo(1, 64) + os.urandom(300_000))
        summary, told = await migrate(stored, server, replace(OPTIONS, give_up_after_s=30))
        assert not summary.complete and await library(stored) == {}
        server.restart(ignores_rest=1)
        summary, told = await migrate(stored, server)
        assert summary.complete, told

    async def test_bytes_that_change_on_the_way_are_noticed_by_the_servers_own_hash(
        self, stored: StoredWorld, make_server: MakeServer
    ) -> None:
        server = make_server(sha256=1, corrupt_once=1)
        files = {"a.jpg": photo(1, 5000)}
        (server.root / "a.jpg").write_bytes(files["a.jpg"])
        summary, told = await migrate(stored, server)
        assert summary.complete and await library(stored) == digests(files), told
        server.restart(sha256=1, corrupt=1)
        (server.root / "b.jpg").write_bytes(photo(2, 5000))
        summary, told = await migrate(stored, server)
        assert told["/b.jpg"].code == "corrupted" and await library(stored) == digests(files)

    async def test_and_by_reading_twice(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(corrupt_once=1)
        files = {"a.jpg": photo(1, 5000)}
        (server.root / "a.jpg").write_bytes(files["a.jpg"])
        summary, _ = await migrate(stored, server, replace(OPTIONS, twice=True))
        assert summary.complete and await library(stored) == digests(files)

    async def test_a_file_that_changes_while_it_is_read(self, stored: StoredWorld, make_server: MakeServer) -> None:
        # Three seconds a reading: it is in the middle of one when the file is changed.
        server = make_server(slow=200)
        path = server.root / "a.jpg"
        path.write_bytes(photo(1, 60_000))
        migration = asyncio.create_task(migrate(stored, server))
        for number in range(2):
            await _retrieved(server, number + 1)
            await asyncio.sleep(0.2)
            path.write_bytes(photo(50 + number, 60_000))
            os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
        summary, told = await migration
        assert summary.complete, told
        assert await library(stored) == digests({"a.jpg": photo(51, 60_000)})

    async def test_a_service_that_stores_something_else(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        fill(server.root, 1)

        async def lying(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json={"items": []})
            photo = {"id": "0" * 32, "sha256": "0" * 64, "size_bytes": 64}
            return httpx.Response(200, json={"results": [{"status": "created", "photo": photo, "problem": None}]})

        async with httpx.AsyncClient(transport=httpx.MockTransport(lying), base_url="http://test") as client:
            summary, told = await migrate(stored, server, client=client)
        assert not summary.complete and told["/a.jpg"].code == "checksum_mismatch"


class TestTrust:
    async def test_a_certificate_nobody_vouches_for_is_refused(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        fill(server.root, 1)
        with pytest.raises(ConfigurationError, match="not trusted"):
            await migrate(stored, server.address(ca_file=None))
        assert not any(line.startswith("USER") for line in server.commands())

    async def test_a_fingerprint_is_enough_and_must_be_right(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        fill(server.root, 1)
        with pytest.raises(ConfigurationError, match="fingerprint"):
            await migrate(stored, server.address(ca_file=None, fingerprint="0" * 64))
        assert not any(line.startswith("USER") for line in server.commands())
        summary, _ = await migrate(stored, server.address(ca_file=None, fingerprint=server.fingerprint, host="localhost"))
        assert summary.complete and summary.statuses["copied"] == 1

    async def test_a_server_without_tls_gets_no_password(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server(tls=False)
        with pytest.raises(ConfigurationError, match="--plain"):
            await migrate(stored, server.address(tls=True))
        assert not any(line.startswith("USER") for line in server.commands())

    async def test_a_wrong_password_is_tried_once(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        with pytest.raises(ConfigurationError, match="refuses the user"):
            await migrate(stored, server.address(password="wrong"))
        assert sum(line.startswith("USER") for line in server.commands()) == 1

    async def test_a_path_that_is_not_there(self, stored: StoredWorld, make_server: MakeServer) -> None:
        server = make_server()
        with pytest.raises(ConfigurationError, match="cannot be listed"):
            await migrate(stored, server, replace(OPTIONS, path="/nowhere"))


async def _retrieved(server: FtpServer, files: int) -> None:
    """Until so many were begun."""
    async with asyncio.timeout(60):
        while len(server.retrieved()) < files:  # noqa: ASYNC110  the server is another process
            await asyncio.sleep(0.02)
