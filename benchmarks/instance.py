"""A whole Kinlens in processes of its own: `kinlens up` on a folder and a free port, started, watched, and stopped with
everything it started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from serve_app.ports import HOST, free_port

KEY = "benchmark-instance-key-0123456789"
ROOT = Path(__file__).resolve().parents[1]
_COMMAND = [sys.executable, "-c", "from serve_app.cli import main; main()"]
_READY_S = 240
_STOPS_S = 100
"""It answers what is under way before it ends."""
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Instance:
    """`folder`: its DATA_DIR is `data` in there. `environment`: what it was started with."""

    folder: Path
    port: int
    pid: int
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def processes(self) -> list[psutil.Process]:
        """All of it, the Postgres included, which is nobody's child."""
        found = []
        for root in (self.pid, self.postmaster()):
            try:
                process = psutil.Process(root)
                found += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return [one for one in found if _title(one)]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        return [one for one in self.processes() if f"ServeReplica:kinlens:{deployment}" in _title(one)]

    def haproxy(self) -> list[psutil.Process]:
        return [one for one in self.processes() if Path(_title(one).partition(" ")[0]).name == "haproxy"]

    def postmaster(self) -> int:
        """Its process id; 0 where there is none now."""
        try:
            return int((self.data / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            return 0

    def kinlens(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command beside it, on the same data."""
        command = [*_COMMAND, *arguments]
        environment = dict(self.environment)
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def _title(process: psutil.Process) -> str:
    """Empty for one that ended."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running(folder: Path, config: Path | None = None, **settings: str) -> Iterator[Instance]:
    """`config`: another Serve config. Tried three times: on a busy machine Ray does not always start. Raises RuntimeError
    with the end of its output."""
    for attempt in range(_ATTEMPTS):
        process, instance = _start(folder, config, settings)
        if _ready(process, folder / "up.log"):
            break
        _stop(process, instance)
        if attempt == _ATTEMPTS - 1:
            raise RuntimeError(f"kinlens up did not get ready:\n{_output(folder)[-3000:]}")
    try:
        yield instance
    finally:
        _stop(process, instance)


def _start(folder: Path, config: Path | None, settings: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], Instance]:
    port = free_port()
    environment = {
        **os.environ, "API_KEY": KEY, "HOST": HOST, "PORT": str(port), "DATA_DIR": str(folder / "data"), "LOG_REQUESTS_S": "5",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0", **settings,
    }  # fmt: skip
    command = [*_COMMAND, "up", *(() if config is None else ("--config", str(config)))]
    with (folder / "up.log").open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    return process, Instance(folder, port, process.pid, environment)


def _ready(process: subprocess.Popen[bytes], output: Path) -> bool:
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        if "\nready" in output.read_text(errors="replace"):
            return True
        time.sleep(0.3)
    return False


def _output(folder: Path) -> str:
    return (folder / "up.log").read_text(errors="replace")


def _stop(process: subprocess.Popen[bytes], instance: Instance) -> None:
    family = instance.processes()
    process.terminate()
    try:
        process.wait(_STOPS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
