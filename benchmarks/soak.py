"""Half an hour of mixed load on a whole Kinlens: what grows, and how fast trivial requests are meanwhile:

    uv run python -m benchmarks.soak --minutes 30

For the first sixth of the time clients without a pause keep every model busy: then the times of trivial requests are taken.
After that the load is bounded, and whatever is stored is erased again, so that the library does not grow. The memory of every
process is read all the while; by how much it grew is told of the last two thirds. Exit status 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from benchmarks.instance import KEY, ROOT, Instance, running
from benchmarks.memory import Growth, Recorder
from benchmarks.mixed import API, COLLECTION, Load
from benchmarks.plot import lines

GROWTH_BAR_PERCENT = 2.0
TRIVIAL_BAR_MS = 50.0
_READ_EVERY_S = 10.0
_SATURATING_CLIENTS = 12
_KEPT = 40
_DRAWN_MIB = 20.0
_PAUSE_S = 0.25
_MIX = {
    "churn": 2, "churn of persons": 1, "identify": 1, "verify-face": 1, "extract": 1, "analyze": 1, "photo": 1, "list": 1,
    "thumbnail": 1,
}  # fmt: skip
_PROBED = (f"{API}/health", "/api/health", f"{API}/me")


class SoakLoad(Load):
    """As many photos and persons are erased as are added."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance, _MIX, _PAUSE_S)
        self._kinds |= {
            "churn": self._churn, "churn of persons": self._churn_of_persons, "extract": self._extract,
            "thumbnail": self._thumbnail,
        }  # fmt: skip

    async def saturate(self, seconds: float) -> None:
        """Twelve clients, no pause."""
        end = time.monotonic() + seconds

        async def client() -> None:
            async with self.client() as one:
                while time.monotonic() < end:
                    await self._extract(one)

        await asyncio.gather(*(client() for _ in range(_SATURATING_CLIENTS)))

    async def _churn(self, client: httpx.AsyncClient) -> None:
        await self._index(client)
        while len(self.book.photos) > _KEPT:
            oldest = next(iter(self.book.photos))
            del self.book.photos[oldest]
            await self.ask(client, "delete", "DELETE", f"{API}/photos/{oldest}")

    async def _churn_of_persons(self, client: httpx.AsyncClient) -> None:
        await self._enrol(client)
        while len(self.book.faces) > _KEPT:
            oldest = next(iter(self.book.faces))
            person, _ = self.book.faces.pop(oldest)
            await self.ask(client, "delete", "DELETE", f"{API}/collections/{COLLECTION}/persons/{person}")

    async def _extract(self, client: httpx.AsyncClient) -> None:
        await self.ask(client, "extract", "POST", f"{API}/face/extract-embedding", content=self.pictures.plain)

    async def _thumbnail(self, client: httpx.AsyncClient) -> None:
        # The newest are not erased while they are asked for.
        newest = list(self.book.photos)[-1]
        await self.ask(client, "thumbnail", "GET", f"{API}/photos/{newest}/thumbnail?size=320")


async def soak(
    instance: Instance, seconds: float
) -> tuple[SoakLoad, Recorder, dict[str, list[float]], dict[str, list[float]]]:
    """The load, what was read of the processes, and the times of trivial requests while saturated and after that."""
    load, recorder = SoakLoad(instance), Recorder(instance)
    await load.prepare()
    end = time.monotonic() + seconds
    saturated_s = seconds / 6
    # Not before everything has been used once.
    warm_s = min(20.0, saturated_s / 5)
    probes = [await _probe(instance, warm_s, saturated_s - warm_s), await _probe(instance, saturated_s, seconds - saturated_s)]
    # Only the clients: what is measured, and what measures, keep their places.
    os.nice(19)

    async def record() -> None:
        while True:
            await asyncio.to_thread(recorder.read)
            await asyncio.sleep(_READ_EVERY_S)

    recording = asyncio.create_task(record())
    async with load.going():
        await load.saturate(saturated_s)
        await asyncio.sleep(max(0.0, end - time.monotonic()))
    recording.cancel()
    recorder.read()
    saturated, bounded = [json.loads((await probe.communicate())[0]) for probe in probes]
    return load, recorder, saturated, bounded


async def _probe(instance: Instance, delay_s: float, seconds: float) -> asyncio.subprocess.Process:
    """See `benchmarks.probe`."""
    arguments = (str(instance.port), str(delay_s), str(seconds), KEY, *_PROBED)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.probe", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def times_table(saturated: dict[str, list[float]], bounded: dict[str, list[float]]) -> str:
    rows = ["| | load | requests | p50 ms | p99 ms | most ms |", "|---|---|---|---|---|---|"]
    for load, found in (("saturated", saturated), ("bounded", bounded)):
        for name, values in found.items():
            shown = "(a sleep of 10 ms, too long by)" if name == "sleep" else f"`GET {name}`"
            rows.append(
                f"| {shown} | {load} | {len(values):,} | {statistics.median(values):.1f} | {percentile(values, 0.99):.1f}"
                f" | {max(values):.0f} |"
            )
    return "\n".join(rows)


def labels(names: Sequence[str]) -> dict[str, str]:
    """Without process ids; several of a kind are numbered."""
    kinds = {name: name.rpartition(" ")[0] if name.rpartition(" ")[2].isdigit() else name for name in names}
    count, seen = Counter(kinds.values()), Counter[str]()
    found: dict[str, str] = {}
    for name, kind in kinds.items():
        seen[kind] += 1
        found[name] = kind if count[kind] == 1 else f"{kind} {seen[kind]}"
    return found


def drawing(growths: list[Growth], readings: Mapping[str, Sequence[tuple[float, ...]]]) -> str:
    """`readings`: seconds and MiB come first."""
    names = labels([one.name for one in growths])
    large = [one for one in growths if one.rss_mib >= _DRAWN_MIB]
    series = {names[one.name]: [(reading[0] / 60, reading[1]) for reading in readings[one.name]] for one in large}
    return lines("Resident memory under load", "minutes", "MiB", series)


def growth_table(growths: list[Growth]) -> str:
    rows = ["| process | RSS MiB | RSS grows by % | private memory grows by % | open files |", "|---|---|---|---|---|"]
    names = labels([one.name for one in growths])
    for one in growths:
        files = f"{one.files_from} -> {one.files_to}"
        rows.append(
            f"| {names[one.name]} | {one.rss_mib:.0f} | {one.rss_percent:+.1f} | {one.private_percent:+.1f} | {files} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/soak.json"))
    parser.add_argument("--svg", type=Path, default=Path("docs/images/soak.svg"))
    options = parser.parse_args()
    seconds = options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="kinlens-soak-") as folder:
        Path(folder).chmod(0o711)
        with running(Path(folder)) as instance:
            load, recorder, saturated, bounded = asyncio.run(soak(instance, seconds))
            check = instance.kinlens("db", "check")
    growths = recorder.growths(seconds / 3)
    answers = Counter((one.kind, one.outcome) for one in load.answers)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        name: [(round(one.at_s), round(one.rss_mib, 1), round(one.private_mib, 1), one.files) for one in its]
        for name, its in recorder.readings.items()
    }
    result = {
        "minutes": options.minutes,
        "growth": [one.json() for one in growths],
        "answers": {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(answers.items())},
        "readings": kept,
    }
    options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    options.svg.write_text(drawing(growths, kept), encoding="utf-8")
    good = sum(count for (_, outcome), count in answers.items() if outcome == "ok")
    print(f"{options.minutes:g} minutes, {len(load.answers):,} requests, {good:,} of them good; the rest:")
    for (kind, outcome), count in answers.most_common():
        if outcome != "ok":
            print(f"  {count} x {kind}: {outcome}")
    print(f"\n{times_table(saturated, bounded)}\n\n{growth_table(growths)}\n")
    print(f"kinlens db check: exit status {check.returncode}; load of the machine at the end {os.getloadavg()[0]:.1f}")
    slow = [name for name in _PROBED if percentile(saturated.get(name, []), 0.99) > TRIVIAL_BAR_MS]
    grown = [one.name for one in growths if one.rss_percent > GROWTH_BAR_PERCENT]
    if slow or grown or check.returncode:
        print(f"missed: {', '.join([*slow, *grown]) or 'kinlens db check'}")
        sys.exit(1)


if __name__ == "__main__":
    main()
