"""The part that runs beside the service when no DATABASE_URL is given: an embedded Postgres.

Any number of processes may use one folder; the last one out stops the server. One that is killed leaves it running, and the
next start adopts it. Beside what `serve_app.postgres.cluster` keeps there lie

    start.lock      held while the server is started or stopped
    users.lock      shared by the processes that use it
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from serve_app.errors import ConfigurationError, DatabaseUnavailable
from serve_app.ports import HOST
from serve_app.postgres.address import Address
from serve_app.postgres.cluster import Cluster, try_lock
from serve_app.postgres.config import APP_ROLE
from serve_app.postgres.programs import binaries

__all__ = ["EmbeddedPostgres", "binaries", "dsn"]

logger = logging.getLogger("ray.serve")

_POLL_S = 0.25
"""How often the supervisor looks: it reads one file and one line of /proc."""
_RETRY_S = 10


def dsn(folder: Path, role: str = APP_ROLE) -> str:
    """postgresql:// with the password and the port of now: call it for each new connection, a restart may move the port.

    `role`: `kinlens` for the application's database, `postgres` for the superuser's. Does not ask whether the server
    answers. Raises DatabaseUnavailable when it was never started here, or its files cannot be read.
    """
    try:
        address = Address.read(folder / "address")
        password = (folder / "password").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        address, password = None, ""
    except (OSError, UnicodeDecodeError) as error:
        raise DatabaseUnavailable(f"The embedded Postgres in {folder} cannot be used: {error}.") from error
    if address is None or not password:
        raise DatabaseUnavailable(f"The embedded Postgres in {folder} was never started.")
    return f"postgresql://{role}:{password}@{HOST}:{address.port}/{role}"


class EmbeddedPostgres:
    """A Postgres of our own in `folder`, shared by every process that enters it.

        with EmbeddedPostgres(settings.data_dir / "postgres") as postgres:
            postgres.supervise()

    Run as root, the server runs as the owner of `folder`, or as `kinlens` or `nobody` when that is root too; only
    `folder/cluster` belongs to it, and no directory above needs to be open to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._cluster = Cluster(self._folder)
        self._users: int | None = None
        self._leaving = threading.Event()
        self._supervisor: threading.Thread | None = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.leave()

    @property
    def running(self) -> bool:
        """The server process is alive, whoever started it."""
        return self._cluster.running

    def start(self) -> None:
        """Adopts the running server, else starts one, else makes one; returns when it accepts connections.

        After a crash that is when its recovery is done, which may take a minute. Raises ConfigurationError with the
        reason, in the server's own words where it has any.
        """
        try:
            self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with self._locked():
                self._cluster.ensure_running()
                if self._users is None:
                    self._users = self._cluster.open("users.lock")
                    fcntl.flock(self._users, fcntl.LOCK_SH)
        except OSError as error:
            raise ConfigurationError(
                f"The embedded Postgres cannot run in {self._folder}: {error}. "
                "Set DATA_DIR to a folder on a local disk, or DATABASE_URL."
            ) from error

    def supervise(self) -> None:
        """From now until `leave`, a thread starts a server that died again, within about a second."""
        if self._supervisor is None:
            self._leaving.clear()
            self._supervisor = threading.Thread(target=self._watch, name="postgres-supervisor", daemon=True)
            self._supervisor.start()

    def leave(self) -> None:
        """Stops the server and waits for its end, unless another process uses it. A second call does nothing."""
        self._leaving.set()
        if self._supervisor is not None:
            self._supervisor.join()
            self._supervisor = None
        if self._users is None:
            return
        users, self._users = self._users, None
        try:
            with self._locked():
                if try_lock(users):
                    self._cluster.stop()
        except FileNotFoundError:
            logger.warning("%s was removed; its Postgres notices within a minute and ends.", self._folder)
        finally:
            os.close(users)

    def _watch(self) -> None:
        pause_s = _POLL_S
        while not self._leaving.wait(pause_s):
            pause_s = _POLL_S
            try:
                if not self.running:
                    logger.warning("The embedded Postgres died; it is started again.")
                    with self._locked():
                        self._cluster.ensure_running()
                self._cluster.rotate_log()
            except (ConfigurationError, OSError) as error:
                logger.error("The embedded Postgres does not run: %s", error)
                pause_s = _RETRY_S

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._cluster.opened("start.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
