"""Memory and open files of every process of a running instance, over time; and by how much they grow."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil

from benchmarks.instance import Instance

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """`at_s`: since the beginning. MiB: resident; private to the process (USS); resident with shared pages divided by those
    that share them (PSS)."""

    at_s: float
    rss_mib: float
    private_mib: float
    shared_out_mib: float
    files: int


@dataclass(frozen=True, slots=True)
class Growth:
    """In per cent of the median, over the part that was looked at."""

    name: str
    rss_mib: float
    rss_percent: float
    private_percent: float
    files_from: int
    files_to: int
    seconds: float

    def json(self) -> dict[str, object]:
        return asdict(self)


class Recorder:
    """Readings by process: its name and id. The processes of Postgres are one, because connections come and go; each page is
    counted once there."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._begun = time.monotonic()
        self.readings: dict[str, list[Reading]] = defaultdict(list)

    def read(self) -> None:
        at_s = time.monotonic() - self._begun
        postgres = [0.0, 0.0, 0.0, 0]
        for process in self._instance.processes():
            try:
                name = _name(process)
                memory = process.memory_full_info()
                files = process.num_fds()
            except psutil.Error:
                continue
            values = (memory.rss / _MIB, memory.uss / _MIB, memory.pss / _MIB)
            if name == "postgres":
                # Resident memory of each holds the same shared buffers: their sum would say nothing.
                postgres = [postgres[0] + values[2], postgres[1] + values[1], postgres[2] + values[2], postgres[3] + files]
            else:
                self.readings[f"{name} {process.pid}"].append(Reading(at_s, *values, files))
        self.readings["postgres, all"].append(Reading(at_s, postgres[0], postgres[1], postgres[2], int(postgres[3])))

    def growths(self, since_s: float) -> list[Growth]:
        """Of processes that lived from `since_s` until the end, the largest first."""
        last = max(readings[-1].at_s for readings in self.readings.values())
        found = []
        for name, readings in self.readings.items():
            part = [one for one in readings if one.at_s >= since_s]
            if len(part) < 3 or readings[0].at_s > since_s or part[-1].at_s < last:
                continue
            found.append(
                Growth(
                    name,
                    statistics.median(one.rss_mib for one in part),
                    _percent([one.at_s for one in part], [one.rss_mib for one in part]),
                    _percent([one.at_s for one in part], [one.private_mib for one in part]),
                    part[0].files,
                    part[-1].files,
                    part[-1].at_s - part[0].at_s,
                )
            )
        return sorted(found, key=lambda one: -one.rss_mib)


def _percent(times: Sequence[float], values: Sequence[float]) -> float:
    return slope(times, values) * (times[-1] - times[0]) / statistics.median(values) * 100


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs: up to 29 % of the readings may be anything (Theil 1950, Sen 1968)."""
    slopes = [
        (values[later] - values[earlier]) / (times[later] - times[earlier])
        for later in range(len(values))
        for earlier in range(later)
        if times[later] > times[earlier]
    ]
    return statistics.median(slopes)


def _name(process: psutil.Process) -> str:
    command = process.cmdline()
    title = command[0] if command else process.name()
    if title.startswith("ray::ServeReplica:"):
        return title.split(":")[4].partition(".")[0].partition(" ")[0]
    if title.startswith("ray::"):
        return title.removeprefix("ray::").partition(".")[0].partition(" ")[0]
    script = next((one for one in command[1:] if one.endswith(".py")), "")
    if process.name().startswith("python"):
        return script.rpartition("/")[2].removesuffix(".py") or "kinlens up"
    return "postgres" if title.startswith("postgres") or process.name() == "postgres" else process.name()
