"""Damaged pictures by the thousand, read as the service reads them, in processes that may die of it.

`python -m tests.fuzz images --files 50000`
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil

from tests.fuzz.reading import LIMITS, Outcome, file_of, work

MAX_CPU_S = 20.0
"""Of one file; the largest pictures within the limits take two. A file that takes more hangs."""
MAX_WALL_S = 300.0
"""The same by the clock, for what waits instead of computing."""
MAX_PEAK_BYTES = 24 * LIMITS.max_pixels
"""Above what the process held before: WebP's decoder takes 22 bytes a pixel, all others less."""
_TYPED = frozenset({"invalid_image", "unsupported_image", "image_too_large"})


@dataclass(frozen=True, slots=True)
class Finding:
    """`kind`: crash, hang, memory or error."""

    kind: str
    number: int
    mutation: str
    detail: str


@dataclass(slots=True)
class Report:
    """`results`: files by the format they were read as, or by the code they were refused with."""

    results: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    peaks: list[tuple[int, str]] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    resident: dict[str, list[int]] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def files(self) -> int:
        return len(self.took_s) + sum(one.kind in ("crash", "hang") for one in self.findings)


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    number: int | None = None
    """The file it has; None before it is ready."""
    since: float = 0.0
    cpu_s: float = 0.0


def run(files: int, seed: int, workers: int, cache: Path, keep: Path | None, start: int = 0) -> Report:
    """`cache`: of the detector's weights. `keep`: folder for the files that were findings."""
    report, began = Report(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    numbers = deque(range(start, start + files))

    def started() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, seed, cache), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, None, time.monotonic())

    def replace(worker: _Worker) -> None:
        team.remove(worker)
        if numbers:
            team.append(started())

    team = [started() for _ in range(workers)]
    try:
        while team:
            for worker in _answered(team):
                try:
                    outcome = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    if worker.number is None:
                        raise RuntimeError(f"a reader did not start: {worker.process.exitcode}") from None
                    _lost(report, worker, seed, "crash", f"ended by {worker.process.exitcode}", keep)
                    replace(worker)
                    continue
                if outcome is not None:
                    _count(report, outcome, worker, seed, keep)
                _give(worker, numbers, team)
            for worker in [one for one in team if _hangs(one)]:
                worker.process.kill()
                worker.process.join()
                _lost(report, worker, seed, "hang", f"no answer after {MAX_CPU_S:g} s of computing", keep)
                replace(worker)
    finally:
        for worker in team:
            worker.process.kill()
    report.elapsed_s = time.monotonic() - began
    return report


def _answered(team: list[_Worker]) -> Iterator[_Worker]:
    ready = wait([one.pipe for one in team], timeout=1)
    yield from [one for one in team if one.pipe in ready]


def _give(worker: _Worker, numbers: deque[int], team: list[_Worker]) -> None:
    worker.number = numbers.popleft() if numbers else None
    worker.since, worker.cpu_s = time.monotonic(), _cpu_s(worker)
    worker.pipe.send(worker.number)
    if worker.number is None:
        worker.process.join(10)
        team.remove(worker)


def _hangs(worker: _Worker) -> bool:
    if worker.number is None:
        return False
    return _cpu_s(worker) - worker.cpu_s > MAX_CPU_S or time.monotonic() - worker.since > MAX_WALL_S


def _cpu_s(worker: _Worker) -> float:
    try:
        times = psutil.Process(worker.process.pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _count(report: Report, outcome: Outcome, worker: _Worker, seed: int, keep: Path | None) -> None:
    report.results[outcome.result or "another error"] += 1
    report.took_s.append(outcome.took_s)
    report.peaks = sorted([*report.peaks, (outcome.peak_bytes, outcome.mutation)], reverse=True)[:10]
    report.slowest = sorted([*report.slowest, (outcome.took_s, outcome.mutation)], reverse=True)[:10]
    report.resident.setdefault(str(worker.process.pid), []).append(outcome.resident_bytes)
    if outcome.result is None:
        _found(report, Finding("error", outcome.number, outcome.mutation, outcome.trouble), seed, keep)
    if outcome.peak_bytes > MAX_PEAK_BYTES:
        told = f"{outcome.peak_bytes >> 20} MiB"
        _found(report, Finding("memory", outcome.number, outcome.mutation, told), seed, keep)


def _lost(report: Report, worker: _Worker, seed: int, kind: str, detail: str, keep: Path | None) -> None:
    assert worker.number is not None
    what, _ = file_of(seed, worker.number)
    _found(report, Finding(kind, worker.number, what, detail), seed, keep)


def _found(report: Report, finding: Finding, seed: int, keep: Path | None) -> None:
    report.findings.append(finding)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{finding.kind}-{seed}-{finding.number}").write_bytes(file_of(seed, finding.number)[1])
        print(f"{finding.kind}: file {finding.number}, {finding.mutation}: {finding.detail}", flush=True)


def tell(report: Report) -> str:
    """For people."""
    took = sorted(report.took_s) or [0.0]
    lines = [f"{report.files} files in {report.elapsed_s:.0f} s; findings: {len(report.findings)}"]
    refused = sum(count for name, count in report.results.items() if name in _TYPED)
    lines.append(f"read: {sum(report.results.values()) - refused}, refused with a typed error: {refused}")
    lines += [f"  {count:7} {name}" for name, count in report.results.most_common()]
    lines.append(f"CPU a file: median {took[len(took) // 2] * 1e3:.1f} ms, most {took[-1]:.2f} s")
    lines.append("most time: " + "; ".join(f"{seconds:.2f} s {what}" for seconds, what in report.slowest[:5]))
    lines.append("most memory: " + "; ".join(f"{peak >> 20} MiB {what}" for peak, what in report.peaks[:5]))
    for name, held in report.resident.items():
        tenth = max(1, len(held) // 10)
        first, last = (sorted(part)[len(part) // 2] >> 20 for part in (held[:tenth], held[-tenth:]))
        lines.append(f"process {name}: {len(held)} files, holds {first} MiB in the first tenth, {last} MiB in the last")
    kinds = Counter(one.kind for one in report.findings)
    lines += [f"{kind}: {count}" for kind, count in kinds.items()]
    return "\n".join(lines)
