"""`kinlens index` beside the bare pipeline, in one run: uv run python -m benchmarks.bulk

Each round has files of its own, which neither has seen: bare processes on all cores read, hash, decode, detect, measure, align
and embed every face; then as many workers of `kinlens index` do the same, and keep originals, crops, rows, words and vectors,
until the last transaction is committed. Rounds alternate and the order changes, so that a noisy neighbour hits both. Workers
are started before; grouping is not part of it. Ray makes its workers nice, so the bare processes are made as nice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.indexing import BareIndexers, Measured, beside_bare, lay_out, pictures
from benchmarks.processes import spent, usage
from config.settings import SECRET_SETTINGS, Settings
from serve_app.backends import open_database, prepare_objects, running_database
from serve_app.bulk.files import FolderPlace, Outcome, Status
from serve_app.bulk.folder import FolderSource
from serve_app.bulk.run import BulkRun, Pool, RunOptions
from serve_app.commands.index import models_of, prepare_ray
from serve_app.postgres.address import Address
from serve_app.storage.database import Dsn


async def bulk(pool: Pool, dsn: Dsn, root: Path, expected: int) -> None:
    """Everything below `root`. Raises RuntimeError unless `expected` photos come in."""
    others: list[Outcome] = []

    def record(outcome: Outcome) -> None:
        if outcome.status is not Status.INDEXED:
            others.append(outcome)

    async with open_database(dsn) as database:
        summary = await BulkRun(pool, FolderSource(root), database, RunOptions("library"), record).run()
    if others or summary.statuses[Status.INDEXED] != expected:
        raise RuntimeError(f"not everything came in: {summary}, {others[:3]}")


def measured(pool: Pool, dsn: Dsn, pids: Sequence[int], root: Path, count: int) -> Measured:
    before, started = usage(*pids), time.perf_counter()
    asyncio.run(bulk(pool, dsn, root, count))
    elapsed_s = time.perf_counter() - started
    return Measured(count, elapsed_s, spent(before, usage(*pids)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="opencv")
    parser.add_argument("--photos", type=int, default=400, help="a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="and bare processes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare_ray(None)
    from deployments.bulk import RayPool

    test_data = os.environ.get("KINLENS_TEST_DATA")
    images = pictures(Path(test_data) if test_data else None)
    rounds: list[tuple[Measured, Measured]] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["DATA_DIR"] = str(Path(temporary, "data"))
        settings = Settings()
        location, model, automatic = models_of(settings, options.pack, "cpu")
        bare = BareIndexers(location, options.workers)
        spawned = psutil.Process().children(recursive=True)
        root = Path(temporary, "photos")
        root.mkdir()
        public = settings.model_copy(update=dict.fromkeys(SECRET_SETTINGS))
        place = FolderPlace(root)
        with running_database(settings) as dsn:
            prepare_objects(settings)
            with RayPool(None, options.workers, (public, model, location, place, "library", automatic)) as pool:
                (niceness,) = {psutil.Process(pid).nice() for pid in pool.pids}
                for process in spawned:
                    process.nice(niceness)
                address = Address.read(settings.data_dir / "postgres" / "address")
                pids = [os.getpid(), *([] if address is None else [address.pid])]
                for number in range(-1, options.rounds):
                    # The first is not counted: caches fill, tables are made.
                    count = options.photos if number >= 0 else options.photos // 4
                    folder = root / f"round{number}"
                    files = lay_out(folder, images, count, folder.name)
                    if number % 2:
                        ours = measured(pool, dsn, pids, root, count)
                        theirs = bare.run(files)
                    else:
                        theirs = bare.run(files)
                        ours = measured(pool, dsn, pids, root, count)
                    shutil.rmtree(folder)
                    if number >= 0:
                        rounds.append((theirs, ours))
                        print(f"round {number}: bare {theirs.per_second:.1f}/s, index {ours.per_second:.1f}/s", flush=True)
                memory = usage(*pids).rss_bytes
        bare.close()
    print()
    beside_bare("`kinlens index`", rounds, f"{rounds[0][1].photos} photos a round, made of {len(images)}")
    print(f"RSS MiB at the end: {', '.join(f'{name} {size >> 20}' for name, size in memory.items())}")
    if options.json:
        options.json.write_text(
            json.dumps([[one.per_second, other.per_second, one.cpu_ms, other.cpu_ms] for one, other in rounds], indent=1)
        )


if __name__ == "__main__":
    main()
