"""CPU time and memory of a process, everything it started, and the Postgres it runs."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """`cpu_s` by process name, summed over processes of that name; `rss_bytes` likewise."""

    cpu_s: dict[str, float]
    rss_bytes: dict[str, int]

    @property
    def total_cpu_s(self) -> float:
        return sum(self.cpu_s.values())

    @property
    def total_rss_bytes(self) -> int:
        return sum(self.rss_bytes.values())


def usage(*root_pids: int) -> Usage:
    """Of `root_pids` and their descendants, living ones; and of what those were that a Postgres has waited for."""
    cpu_s: dict[str, float] = {}
    rss_bytes: dict[str, int] = {}
    roots = [psutil.Process(pid) for pid in root_pids]
    for process in [one for root in roots for one in (root, *root.children(recursive=True))]:
        try:
            with process.oneshot():
                name = _name(process)
                times = process.cpu_times()
                memory = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        ended_s = times.children_user + times.children_system if name == "postgres" else 0.0
        cpu_s[name] = cpu_s.get(name, 0.0) + times.user + times.system + ended_s
        rss_bytes[name] = rss_bytes.get(name, 0) + memory
    return Usage(cpu_s, rss_bytes)


def _name(process: psutil.Process) -> str:
    """Ray workers name themselves by their actor: `ray::ServeReplica:kinlens:Detection.handle_request`."""
    title = (process.cmdline() or [process.name()])[0]
    if title.startswith("ray::"):
        return title.removeprefix("ray::").partition(".")[0].partition(" ")[0]
    return process.name()


def spent(before: Usage, after: Usage) -> dict[str, float]:
    """CPU seconds by name between two readings, largest first."""
    names = sorted(after.cpu_s, key=lambda name: before.cpu_s.get(name, 0.0) - after.cpu_s[name])
    return {name: after.cpu_s[name] - before.cpu_s.get(name, 0.0) for name in names}
