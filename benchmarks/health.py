"""What `health` costs beside few faces and beside a million:

    uv run python -m benchmarks.health --faces 1000 1000000

On an embedded Postgres in a temporary folder, as the service sets it up, through the functions the service calls: what
`GET /api/v1/ready` and `GET /api/health` ask of the database and of the object store. The models are left out: they do not
know how much is stored. Photos and jobs grow with the faces. Beside the times stand the plans, and the blocks they read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from benchmarks.search import Timed, postgres, say
from serve_app.identity.people import EmbeddingContract
from serve_app.services.health import HealthChecks
from serve_app.services.pictures import PictureReader
from serve_app.services.pipeline import FacePipeline
from serve_app.storage import backlog, collections
from serve_app.storage.database import Database
from serve_app.storage.local_objects import LocalObjectStore

# Reproducible: every id comes from the number of its row. Every job but the last four has ended.
_FILL = (
    "INSERT INTO persons (id, collection_key, name, metadata)"
    " SELECT md5('person' || n)::uuid, $1, 'Person ' || n, '{}' FROM generate_series(0, $2::int - 1, 5) n",
    "INSERT INTO images (id, collection_key, sha256, object_key, size_bytes, format, width_px, height_px)"
    " SELECT md5('image' || n)::uuid, $1, sha256(n::text::bytea), 'o/' || n, 4000000, 'JPEG', 4000, 3000"
    " FROM generate_series(0, $2::int - 1, 4) n",
    "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, orientation, created_at)"
    " SELECT md5('photo' || n)::uuid, $1, md5('image' || n)::uuid, n || '.jpg', '', now(), 1, now()"
    " FROM generate_series(0, $2::int - 1, 4) n",
    "INSERT INTO faces (id, collection_key, person_id, image_id, taken_at)"
    " SELECT md5('face' || n)::uuid, $1, md5('person' || n - n % 5)::uuid, md5('image' || n - n % 4)::uuid, now()"
    " FROM generate_series(0, $2::int - 1) n",
    "INSERT INTO jobs (id, collection_key, kind, options, automatic, state)"
    " SELECT md5('job' || n)::uuid, $1, 'faces', '{}', false, CASE WHEN n < $2::int - 4000 THEN 'done' ELSE 'running' END"
    " FROM generate_series(0, $2::int - 1, 1000) n",
    "INSERT INTO job_progress (job_id, shard, total, done)"
    " SELECT md5('job' || n)::uuid, k, 250, CASE WHEN n < $2::int - 4000 THEN 250 ELSE 100 END"
    " FROM generate_series(0, $2::int - 1, 1000) n, generate_series(0, 3) k WHERE $1::int > 0",
)


async def fill(database: Database, faces: int) -> None:
    contract = EmbeddingContract("benchmark", 4, "none")
    collection = await database.run(lambda tx: collections.create(tx, "library", "", {}, contract))
    async with database.dedicated() as connection:
        for statement in _FILL:
            await connection.execute(statement, collection.key, faces)
        await connection.execute("ANALYZE")


async def timed(rounds: int, ask: Callable[[], Awaitable[object]]) -> Timed:
    found = Timed()
    for _ in range(rounds):
        begun = time.perf_counter()
        await ask()
        found.latencies_s.append(time.perf_counter() - begun)
    return found


async def plans(database: Database) -> dict[str, str]:
    """Each statement's plan with the blocks it read, without its times."""
    found: dict[str, str] = {}
    asked: list[tuple[str, tuple[object, ...]]] = []

    class Told:
        """A connection that tells what it is asked."""

        def __init__(self, connection: Any) -> None:
            self._connection = connection

        async def fetch(self, statement: str, *values: object) -> Any:
            asked.append((statement, values))
            return await self._connection.fetch(statement, *values)

    async with database.connection() as connection:
        await backlog.waiting(cast("Any", Told(connection)))
        for statement, values in asked:
            rows = await connection.fetch(
                f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) {statement}", *values
            )
            found[statement] = "\n".join(row["QUERY PLAN"] for row in rows)
    return found


async def measure(faces: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        async with postgres() as (database, _):
            begun = time.perf_counter()
            await fill(database, faces)
            say(f"{faces:,} faces in {time.perf_counter() - begun:.0f} s")
            objects = LocalObjectStore(Path(folder), b"a signing key of the benchmark")
            await objects.prepare()
            checks = HealthChecks(database, objects, cast("PictureReader", None), cast("FacePipeline", None))

            async def waiting() -> object:
                async with database.connection() as connection:
                    return await backlog.waiting(connection)

            await timed(20, checks.reachable)
            await timed(20, waiting)
            result: dict[str, object] = {"faces": faces, "items": sum((await _items(database)).values())}
            for name, ask in (("database and object store", checks.reachable), ("depth of the queue", waiting)):
                its = await timed(rounds, ask)
                result[name] = {"p50_ms": its.percentile_ms(0.5), "p99_ms": its.percentile_ms(0.99)}
            result["plans"] = await plans(database)
            await objects.close()
            return result


async def _items(database: Database) -> dict[str, int]:
    async with database.connection() as connection:
        return {kind.value: count for kind, count in (await backlog.waiting(connection)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/health.json"))
    options = parser.parse_args()
    results = [asyncio.run(measure(faces, options.rounds)) for faces in options.faces]
    print("| faces | asked | p50 ms | p99 ms |\n|---|---|---|---|")
    for result in results:
        for name in ("database and object store", "depth of the queue"):
            times = cast("dict[str, float]", result[name])
            print(f"| {result['faces']:,} | {name} | {times['p50_ms']:.2f} | {times['p99_ms']:.2f} |")
    for result in results:
        for plan in cast("dict[str, str]", result["plans"]).values():
            print(f"\n{result['faces']:,} faces:\n{plan}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
