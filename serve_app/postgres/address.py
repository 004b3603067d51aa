"""Where an embedded Postgres listens, and which process it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

_STARTED_FIELD = 19
"""starttime in /proc/PID/stat (proc_pid_stat(5)), counted from the state."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server was started. `started` names its process: boot and clock tick, so that a reused `pid` is another one."""

    port: int
    pid: int
    started: str

    @classmethod
    def read(cls, path: Path) -> Address | None:
        """None when there is none, or not a whole one. Raises OSError when it cannot be read."""
        try:
            raw = json.loads(path.read_text(encoding="ascii"))
            return cls(int(raw["port"]), int(raw["pid"]), str(raw["started"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def text(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @property
    def alive(self) -> bool:
        return start_of(self.pid) == self.started


def start_of(pid: int) -> str | None:
    """When a process started: no two with one number have this in common. None when it is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in ("Z", "X"):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # a sandbox without it
        boot = ""
    return f"{boot}/{fields[_STARTED_FIELD]}"
