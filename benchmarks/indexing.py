"""Scan and index of a folder beside the bare pipeline, in one run: uv run python -m benchmarks.indexing

Each round has files of its own, which neither has seen: bare processes on all cores read, hash, decode, detect, measure, align
and embed every face; then the service scans the folder as a job, and its Indexing replicas find the faces, keep originals,
crops and vectors, and group the faces, until no job is open. Rounds alternate, so that a noisy neighbour hits both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.bare import BarePipeline
from benchmarks.faces import KEY, package_image, service, spread
from benchmarks.processes import spent, usage
from config.settings import Settings
from deployments.models.packs import PackLocation
from serve_app.postgres.address import Address

_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Measured:
    photos: int
    elapsed_s: float
    cpu_by_process_s: Mapping[str, float]

    @property
    def cpu_s(self) -> float:
        return sum(self.cpu_by_process_s.values())

    @property
    def per_second(self) -> float:
        return self.photos / self.elapsed_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a photo."""
        return self.cpu_s / self.photos * 1e3


class BareIndexers:
    """One process a core, with the models; each takes its share of the files."""

    def __init__(self, location: PackLocation, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            context.Process(target=_index, args=(theirs, location), daemon=True).start()
            self._connections.append(ours)
        for connection in self._connections:
            connection.recv()

    def run(self, files: Sequence[Path]) -> Measured:
        started = time.perf_counter()
        for place, connection in enumerate(self._connections):
            connection.send(list(files[place :: len(self._connections)]))
        cpu_s = sum(float(connection.recv()) for connection in self._connections)
        return Measured(len(files), time.perf_counter() - started, {"bare": cpu_s})

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)


def _index(connection: Connection, location: PackLocation) -> None:
    pipeline = BarePipeline(location)
    connection.send("ready")
    while (files := connection.recv()) is not None:
        cpu = time.process_time()
        for file in files:
            data = file.read_bytes()
            hashlib.sha256(data).digest()
            pipeline(data, all_faces=True, qualities=True)
        connection.send(time.process_time() - cpu)


def pictures(folder: Path | None) -> list[bytes]:
    """The JPEGs of the labelled test photos, else two that come with insightface."""
    if folder is not None:
        found = sorted(path for path in (folder / "facedata" / "dev").rglob("*.jpg") if "corrupt" not in path.parts)
        if found:
            return [path.read_bytes() for path in found]
    return [package_image("t1.jpg"), package_image("Tom_Hanks_54745.png")]


def lay_out(folder: Path, images: Sequence[bytes], count: int, mark: str) -> list[Path]:
    """`count` files that nobody has seen: what stands behind a picture's end is not looked at, but counts for its hash."""
    folder.mkdir()
    files = []
    for number in range(count):
        file = folder / f"{number:05d}.jpg"
        file.write_bytes(images[number % len(images)] + f"{mark} {number}".encode())
        files.append(file)
    return files


def call(port: int, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1{path}",
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, object] = json.load(response)
        return found


def postgres(data_dir: Path) -> list[int]:
    """The embedded one, which is nobody's child; none where another is used."""
    address = Address.read(data_dir / "postgres" / "address")
    return [] if address is None else [address.pid]


def scan(port: int, pid: int, folder: Path, count: int) -> Measured:
    pids = (pid, *postgres(Path(os.environ["DATA_DIR"])))
    before, started = usage(*pids), time.perf_counter()
    call(port, "/photos/scan-path", {"path": str(folder)})
    while call(port, "/jobs?state=queued&state=running&limit=1")["items"]:
        if time.perf_counter() - started > _TIMEOUT_S:
            raise RuntimeError("the jobs do not end")
        time.sleep(0.5)  # each look costs the service a few milliseconds
    elapsed_s = time.perf_counter() - started
    return Measured(count, elapsed_s, spent(before, usage(*pids)))


def failures(port: int) -> Iterator[object]:
    jobs = call(port, "/jobs")["items"]
    assert isinstance(jobs, list)
    for job in jobs:
        items = call(port, f"/jobs/{job['job_id']}/items?state=failed")["items"]
        assert isinstance(items, list)
        yield from items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="opencv")
    parser.add_argument("--photos", type=int, default=240, help="a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--config", type=Path, help="a Serve config to measure instead of serve_config.yaml")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    test_data = os.environ.get("KINLENS_TEST_DATA")
    images = pictures(Path(test_data) if test_data else None)
    settings = Settings()
    location = PackLocation(options.pack, settings.model_root, settings.data_dir / "models", settings.model_download)
    bare = BareIndexers(location, os.cpu_count() or 1)
    rounds: list[tuple[Measured, Measured]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "photos")
        root.mkdir()
        os.environ.update(SCAN_ROOTS=str(root), DATA_DIR=str(Path(temporary, "data")))
        with service(options.pack, options.config) as (pid, port):
            for number in range(-1, options.rounds):
                # The first is not counted: caches fill, the second replica of Indexing comes up.
                count = options.photos if number >= 0 else options.photos // 4
                folder = root / f"round{number}"
                files = lay_out(folder, images, count, folder.name)
                pair = bare.run(files), scan(port, pid, folder, count)
                if number >= 0:
                    rounds.append(pair)
                    print(f"round {number}: bare {pair[0].per_second:.1f}/s, Kinlens {pair[1].per_second:.1f}/s", flush=True)
            failed = list(failures(port))
            persons = call(port, "/persons?limit=500")["items"]
    bare.close()
    report(rounds, len(images), failed, len(persons) if isinstance(persons, list) else 0)
    if options.json:
        options.json.write_text(
            json.dumps([[one.per_second, other.per_second, one.cpu_ms, other.cpu_ms] for one, other in rounds], indent=1)
        )


def beside_bare(name: str, rounds: Sequence[tuple[Measured, Measured]], made: str = "") -> None:
    """A table of `rounds`, each the bare pipeline and what is called `name`, and where its CPU went in the last one."""
    print(f"| {made} | photos/s | CPU ms a photo | throughput / bare | CPU / bare |")
    print("|---|---|---|---|---|")
    bare, ours = [one for one, _ in rounds], [one for _, one in rounds]
    print(f"| bare | {spread([one.per_second for one in bare], 1)} | {spread([one.cpu_ms for one in bare], 1)} | 1 | 1 |")
    ratio = [one.per_second / reference.per_second for reference, one in rounds]
    cpu = [one.cpu_ms / reference.cpu_ms for reference, one in rounds]
    print(
        f"| {name} | {spread([one.per_second for one in ours], 1)} | {spread([one.cpu_ms for one in ours], 1)} "
        f"| {spread(ratio)} | {spread(cpu)} |"
    )
    last = ours[-1]
    shares = ", ".join(f"{name} {cpu_s / last.photos * 1e3:.1f}" for name, cpu_s in list(last.cpu_by_process_s.items())[:9])
    print(f"\nCPU ms a photo in the last round: {shares}; median ratio {statistics.median(ratio):.2f}")


def report(rounds: Sequence[tuple[Measured, Measured]], pictures_known: int, failed: Sequence[object], persons: int) -> None:
    photos = sum(served.photos for _, served in rounds)
    print(f"\n## Scan and index: {len(rounds)} rounds, {photos} files of {pictures_known} pictures\n")
    beside_bare("Kinlens", rounds)
    print(f"\n{len(failed)} items failed; at least {persons} persons")


if __name__ == "__main__":
    main()
