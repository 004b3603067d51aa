"""One Postgres cluster in a folder, and the server process that works on it. `postgres.local` says who starts and stops it.

In the folder lie

    cluster/        Postgres' own data directory
    password        of both roles
    address         port and process of the server that was last started
    server.log      what the server said; server.log.1 what it said before
    server.lock     inherited by every server process: held for as long as one of them lives
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve_app.errors import ConfigurationError
from serve_app.ports import free_port
from serve_app.postgres.address import Address, start_of
from serve_app.postgres.config import (
    APP_ROLE,
    CREATE_DATABASE,
    CREATE_EXTENSIONS,
    HOST_ACCESS,
    SUPERUSER,
    Machine,
    config_text,
    password_statements,
    server_settings,
)
from serve_app.postgres.programs import HERE, Owner, Programs, tail

logger = logging.getLogger("ray.serve")

_STOP_TIMEOUT_S = 60
_LEFTOVERS_TIMEOUT_S = 30
_START_ATTEMPTS = 3
_MAX_LOG_BYTES = 10 << 20
_STATUS_LINE = 7
"""Of postmaster.pid (LOCK_FILE_LINE_PM_STATUS in miscadmin.h), counted from zero."""


class Cluster:
    """Its methods raise ConfigurationError and OSError. `ensure_running` and `stop` are for one caller at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "cluster"

    @property
    def running(self) -> bool:
        """A server that once accepted connections is alive."""
        address = Address.read(self._folder / "address")
        return address is not None and address.alive

    def ensure_running(self) -> None:
        """Returns when the server accepts connections; after a crash, when its recovery is done."""
        if self.running:
            if (self._folder / "password").exists():
                return
            self.stop()  # lost: a new one can be set only while no server runs
        with self.opened("server.lock") as lock:
            free = try_lock(lock)
            programs = Programs.find(self._data)
            if not free:
                self._end_leftovers(programs, lock)
            for draft in self._folder.glob(".new-*"):
                shutil.rmtree(draft)
            if not self._data.exists():
                self._initialise(programs, lock)
            self._check_version(programs)
            if foreign := programs.servers_in(self._data):
                raise ConfigurationError(f"A Postgres that Kinlens did not start (process {foreign[0]}) uses {self._data}.")
            # Left by a crash. Its number may be another process' by now, and Postgres would then refuse to start.
            (self._data / "postmaster.pid").unlink(missing_ok=True)
            self._configure(self._data, programs)
            if not (self._folder / "password").exists():
                self._set_password(self._data, programs, lock)
            self._launch(programs, lock)

    def _end_leftovers(self, programs: Programs, lock: int) -> None:
        """The postmaster is gone, but backends of it live, in a long statement, or an initdb that was left alone."""
        deadline = time.monotonic() + _LEFTOVERS_TIMEOUT_S
        while True:
            if self._data.exists():
                for pid in programs.servers_in(self._data):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)  # to the data that is one crash more, from which it recovers
            if try_lock(lock):
                return
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{self._folder} is in use by a Postgres that cannot be reached from here, perhaps in another container."
                )
            time.sleep(0.05)

    def _initialise(self, programs: Programs, lock: int) -> None:
        """A new cluster, made aside and renamed when it is whole."""
        draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=".new-"))
        try:
            if programs.account is not None:
                os.chown(draft, programs.account.uid, programs.account.gid)
            programs.run(
                "initdb",
                *("-D", HERE, "-U", SUPERUSER, "--auth=reject", "--encoding=UTF8", "--data-checksums", "--no-instructions"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                cwd=draft,
                lock=lock,
            )
            self._configure(draft, programs)
            _execute(programs, draft, SUPERUSER, CREATE_DATABASE, lock)
            _execute(programs, draft, APP_ROLE, CREATE_EXTENSIONS, lock)
            self._set_password(draft, programs, lock)
            draft.rename(self._data)
            _sync_folder(self._folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _set_password(self, cluster: Path, programs: Programs, lock: int) -> None:
        """A new one. Without the file, nobody knows the old one."""
        password = secrets.token_urlsafe(32)
        _execute(programs, cluster, SUPERUSER, password_statements(password), lock)
        self._write(self._folder / "password", password + "\n", self._owner)

    def _check_version(self, programs: Programs) -> None:
        try:
            version = (self._data / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise ConfigurationError(f"{self._data} is not a Postgres data directory; move it away.") from None
        if version != str(programs.version):
            raise ConfigurationError(
                f"{self._data} was made by Postgres {version}, this Kinlens brings Postgres {programs.version}. Dump it "
                f"with the Kinlens that made it, move {self._folder} away, start, and restore; or set DATABASE_URL."
            )

    def _configure(self, cluster: Path, programs: Programs) -> None:
        self._write(cluster / "postgresql.conf", config_text(server_settings(Machine.this())), programs.account)
        self._write(cluster / "pg_hba.conf", HOST_ACCESS, programs.account)

    def _launch(self, programs: Programs, lock: int) -> None:
        last = Address.read(self._folder / "address")
        port = free_port(last.port if last is not None else 0)
        for _ in range(_START_ATTEMPTS):
            with self.opened("server.log", os.O_APPEND) as log:
                said_before = os.fstat(log).st_size
                pid = programs.spawn("-D", HERE, "-p", str(port), cwd=self._data, log=log, lock=lock)
            if self._wait_until_recorded(pid, port):
                return
            if free_port(port) == port:
                break
            port = free_port(0)  # somebody took it in between
        raise ConfigurationError(f"The embedded Postgres does not start:\n{self._said_since(said_before)}")

    def _wait_until_recorded(self, pid: int, port: int) -> bool:
        """False when the server ended. One that nobody would find is not left behind."""
        recorded = False
        try:
            started = start_of(pid)
            if started is not None and self._wait_until_ready(pid):
                self._write(self._folder / "address", Address(port, pid, started).text(), self._owner)
                recorded = True
        finally:
            if not recorded and start_of(pid) is not None:
                os.kill(pid, signal.SIGQUIT)
        return recorded

    def _wait_until_ready(self, pid: int) -> bool:
        """False when the process ended. Recovery has no time limit: to start it over would not make it faster."""
        patience = time.monotonic() + 10
        while start_of(pid) is not None:
            try:
                lines = (self._data / "postmaster.pid").read_text(encoding="ascii").splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) > _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready":
                return True
            if time.monotonic() > patience:
                logger.warning("The embedded Postgres is still starting; after a crash it first recovers.")
                patience = float("inf")
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """A fast shutdown: clients are disconnected, a checkpoint is written. Returns when no process of it is left."""
        address = Address.read(self._folder / "address")
        if address is None:
            return
        with self.opened("server.lock") as lock:
            for request, timeout_s in ((signal.SIGINT, _STOP_TIMEOUT_S), (signal.SIGQUIT, 10)):
                if not address.alive:
                    return
                os.kill(address.pid, request)
                deadline = time.monotonic() + timeout_s
                while time.monotonic() < deadline:
                    if not address.alive and try_lock(lock):
                        return
                    time.sleep(0.02)
        logger.error("The embedded Postgres (process %d) does not stop.", address.pid)

    def _said_since(self, offset: int) -> str:
        with (self._folder / "server.log").open("rb") as stream:
            stream.seek(offset)
            return tail(stream.read().decode("utf-8", "replace"))

    def rotate_log(self) -> None:
        """The server goes on writing to the same file, at its new end."""
        log = self._folder / "server.log"
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            shutil.copyfile(log, self._folder / "server.log.1")
            os.truncate(log, 0)

    def open(self, name: str, flags: int = 0) -> int:
        """A descriptor of a file in the folder, made with mode 0600 if missing."""
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)
        if (owner := self._owner) is not None:
            os.fchown(descriptor, owner.uid, owner.gid)
        return descriptor

    @contextmanager
    def opened(self, name: str, flags: int = 0) -> Iterator[int]:
        descriptor = self.open(name, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @property
    def _owner(self) -> Owner | None:
        """Whom root makes files for; None: nobody else runs Kinlens here."""
        return Owner.of(self._folder) if os.geteuid() == 0 else None

    def _write(self, path: Path, text: str, owner: Owner | None) -> None:
        """Whole or not at all, mode 0600."""
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                if owner is not None:
                    os.fchown(descriptor, owner.uid, owner.gid)
                stream.write(text)
                stream.flush()
                os.fsync(descriptor)
            Path(draft).replace(path)
        finally:
            Path(draft).unlink(missing_ok=True)
        _sync_folder(path.parent)


def _execute(programs: Programs, cluster: Path, database: str, statements: str, lock: int) -> None:
    """In single-user mode: no port, no password needed."""
    programs.run(
        "postgres", "--single", "-j", "-D", HERE, "-c", "exit_on_error=on", database, cwd=cluster, stdin=statements, lock=lock
    )


def try_lock(descriptor: int) -> bool:
    """Takes the file's lock alone, unless anybody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
