"""`kinlens migrate-ftp` and `kinlens import-sqlite` as they are typed, against the API on a port."""

from __future__ import annotations

import asyncio
import csv
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn

from tests.api.conftest import KEY, image
from tests.storage.conftest import StoredWorld
from tests.storage.ftp_program import PASSWORD
from tests.storage.ftp_server import FtpServer
from tests.storage.test_import_sqlite import SCHEMA
from tests.storage.test_migrate_ftp import fill


@pytest.fixture
async def address(stored: StoredWorld) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(stored.api, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[FtpServer]:
    (tmp_path / "ftp").mkdir()
    (tmp_path / "server").mkdir()
    server = FtpServer(tmp_path / "ftp", tmp_path / "server").start()
    yield server
    server.kill()


async def started(address: str, *arguments: str | Path, folder: Path, **environment: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from serve_app.cli import main; main()", *map(str, arguments), "--url", address,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "KINLENS_API_KEY": KEY, "DATA_DIR": str(folder / "data"), **environment},
    )  # fmt: skip


async def kinlens(
    address: str, *arguments: str | Path, folder: Path, code: int = 0, **environment: str
) -> tuple[str, str]:  # fmt: skip
    process = await started(address, *arguments, folder=folder, **environment)
    out, errors = await process.communicate()
    assert process.returncode == code, (out.decode(), errors.decode())
    return out.decode(), errors.decode()


async def test_migrate_ftp(stored: StoredWorld, address: str, ftp: FtpServer, tmp_path: Path) -> None:
    fill(ftp.root, 3)
    (ftp.root / "notes.txt").write_text("hello")
    report = tmp_path / "report.csv"
    command = ("migrate-ftp", "127.0.0.1", "--port", str(ftp.port), "--user", "anna", "--report", report)
    _, errors = await kinlens(address, *command, folder=tmp_path, code=2)
    assert "KINLENS_FTP_PASSWORD" in errors
    _, errors = await kinlens(address, *command, folder=tmp_path, code=2, KINLENS_FTP_PASSWORD=PASSWORD)
    assert "not trusted" in errors and "--fingerprint" in errors
    trusted = (*command, "--fingerprint", ftp.fingerprint)
    out, _ = await kinlens(address, *trusted, folder=tmp_path, KINLENS_FTP_PASSWORD=PASSWORD)
    assert out.startswith("3 copied, 0 known, 1 unsupported, 0 failed, 0 skipped"), out
    with report.open(encoding="utf-8", newline="") as stream:
        rows = {row["path"]: row["status"] for row in csv.DictReader(stream)}
    assert rows == {
        "/a.jpg": "copied", "/Italien/Rom/b.jpg": "copied", "/Italien/Müller & Söhne/c d.jpg": "copied", "/notes.txt": "unsupported",
    }  # fmt: skip
    (state,) = (tmp_path / "data" / "migrations").iterdir()
    assert state.stat().st_mode & 0o077 == 0 and "geheim" not in state.read_text(encoding="utf-8")
    (ftp.root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    out, errors = await kinlens(
        address, *trusted, "--read-back", folder=tmp_path, code=1, KINLENS_FTP_PASSWORD=PASSWORD
    )  # fmt: skip
    assert out.startswith("0 copied, 3 known, 1 unsupported, 1 failed"), out
    ftp.kill()
    out, errors = await kinlens(
        address, *trusted, "--give-up-after", "1", folder=tmp_path, code=1, KINLENS_FTP_PASSWORD=PASSWORD
    )  # fmt: skip
    assert "did not answer for 1 s" in errors


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_migration_that_is_killed(
    stored: StoredWorld, address: str, ftp: FtpServer, tmp_path: Path, how: signal.Signals
) -> None:
    ftp.restart(slow=200)
    for number in range(40):
        (ftp.root / f"{number}.jpg").write_bytes(image(1, number) + bytes(4000))
    command = ("migrate-ftp", "127.0.0.1", "--port", str(ftp.port), "--user", "anna", "--fingerprint", ftp.fingerprint)
    process = await started(address, *command, folder=tmp_path, KINLENS_FTP_PASSWORD=PASSWORD)
    async with asyncio.timeout(120):
        while len(await stored.rows("SELECT 1 FROM photos")) < 5:  # noqa: ASYNC110  another process makes them
            await asyncio.sleep(0.02)
    process.send_signal(how)
    await process.communicate()
    assert process.returncode == (130 if how is signal.SIGINT else -9)
    before = len(await stored.rows("SELECT 1 FROM photos"))
    ftp.restart()
    out, _ = await kinlens(address, *command, folder=tmp_path, KINLENS_FTP_PASSWORD=PASSWORD)
    counts = {status: int(count) for count, status in (part.split()[:2] for part in out.split(" in ")[0].split(", "))}
    assert counts["copied"] + counts["known"] == 40 and counts["failed"] == 0 and before < 40
    assert len(await stored.rows("SELECT 1 FROM photos")) == len(await stored.object_keys()) == 40


async def test_import_sqlite(stored: StoredWorld, address: str, tmp_path: Path) -> None:
    path, root = tmp_path / "former.db", tmp_path / "photos"
    root.mkdir()
    (root / "a.jpg").write_bytes(image(1, 1))
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA)
        database.execute("INSERT INTO photos (id, file_path) VALUES (1, '/old/a.jpg'), (2, '/old/b.jpg'), (3, ?)", ["n" * 300])
        database.execute("INSERT INTO persons VALUES (7, 'Anna', '')")
    database.close()
    command = ("import-sqlite", path, "--photos-root", root, "--path-prefix", "/old")
    out, _ = await kinlens(address, *command, "--dry-run", folder=tmp_path)
    assert (
        "3 rows of photos: id = id, path = file_path" in out and "files: 1 are there, 2 are not, 0 would lie elsewhere" in out
    )
    assert not await stored.object_keys()
    out, errors = await kinlens(address, *command, folder=tmp_path, code=1)
    assert "photo: 2 failed, 1 imported" in out and "person: 1 imported" in out and "photo 2: There is no such file" in errors
    out, _ = await kinlens(address, "import-sqlite", tmp_path / "nothing", folder=tmp_path, code=2)
