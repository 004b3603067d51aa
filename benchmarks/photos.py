"""Listing and filtering of a large photo library, at the database:

    uv run python -m benchmarks.photos --photos 100000

On an embedded Postgres in a temporary folder, as the service sets it up, through the functions the service calls: pages of
100, from the newest, in rounds that alternate between the filters. Beside each filter stands what its plan begins with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from benchmarks.search import Timed, postgres, say
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.photos import PersonsMatch, PhotoFilter, PhotoSort
from serve_app.storage import collections, photo_tags, photos
from serve_app.storage.database import Connection, Database
from serve_app.storage.photo_pages import Order, Position, page_query, smallest

PAGE = 100
PERSONS = 500
FIRST = datetime(2005, 1, 1, tzinfo=UTC)
DAYS = 7300

# Reproducible: every figure comes from the number of the photo, mixed by hashint4. Persons are as unequal as in a family's
# library: the first is in a third of the photos that show anybody. `old` is on the oldest twentieth, `new` on the newest.
_FILL = (
    "INSERT INTO persons (id, collection_key, name, metadata)"
    " SELECT md5('person' || n)::uuid, $1, 'Person ' || n, '{}' FROM generate_series(0, $2 - 1) n",
    "INSERT INTO images (id, collection_key, sha256, object_key, size_bytes, format, width_px, height_px)"
    " SELECT md5('image' || n)::uuid, $1, sha256(n::text::bytea), 'o/' || n, 4000000, 'JPEG', 4000, 3000"
    " FROM generate_series(0, $2 - 1) n",
    "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, orientation, created_at)"
    " SELECT md5('photo' || n)::uuid, $1, md5('image' || n)::uuid, n || '.jpg', 'Year/' || (n * 2000::bigint / $2),"
    " timestamptz '2005-01-01Z' + interval '1 day' * (7300.0 * n / $2), 1, now() - interval '1 second' * n"
    " FROM generate_series(0, $2 - 1) n",
    "INSERT INTO faces (id, collection_key, person_id, image_id, taken_at)"
    " SELECT md5('face' || n || '/' || k)::uuid, $1,"
    " md5('person' || floor(500 * power((abs(hashint4(n * 7 + k)::bigint) % 1000000) / 1000000.0, 6))::int)::uuid,"
    " md5('image' || n)::uuid, now() FROM generate_series(0, $2 - 1) n, generate_series(1, 3) k"
    " WHERE abs(hashint4(n)::bigint) % 4 >= k",
    "INSERT INTO photo_tags (photo_id, collection_key, tag)"
    " SELECT md5('photo' || n)::uuid, $1, t.tag FROM generate_series(0, $2 - 1) n, LATERAL (VALUES"
    " ('half', abs(hashint4(n)::bigint) % 2 = 0), ('tenth', abs(hashint4(n + 1)::bigint) % 10 = 0),"
    " ('hundredth', abs(hashint4(n + 2)::bigint) % 100 = 0), ('rare', n % ($2 / 20) = 7),"
    " ('old', n < $2 / 20), ('new', n >= $2 - $2 / 20), ('many ' || n % 1000, abs(hashint4(n + 3)::bigint) % 2 = 0)"
    ") t (tag, has) WHERE has AND n <> 3 AND n <> 4",
    # Somebody of old photos only, in a tenth of all.
    "INSERT INTO faces (id, collection_key, person_id, image_id, taken_at)"
    " SELECT md5('old face' || n)::uuid, $1, md5('person499')::uuid, md5('image' || n)::uuid, now()"
    " FROM generate_series(0, $2 / 10 - 1) n",
    # All but two have a tag: to find those without is then the most work.
    "INSERT INTO photo_tags (photo_id, collection_key, tag)"
    " SELECT md5('photo' || n)::uuid, $1, 'any' FROM generate_series(5, $2 - 1) n ON CONFLICT DO NOTHING",
    "UPDATE photos SET tag_count = (SELECT count(*) FROM photo_tags t WHERE t.photo_id = photos.id)"
    " WHERE collection_key = $1 AND $2::int > 0",
)


_NEWEST = Order()
_TAGS = ("half", "tenth", "hundredth", "rare", "old", "new", "of nobody")


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    wanted: PhotoFilter
    order: Order = _NEWEST
    after: Position | None = None


async def fill(database: Database, count: int) -> Collection:
    contract = EmbeddingContract("benchmark", 4, "none")
    collection = await database.run(lambda tx: collections.create(tx, "library", "", {}, contract))
    async with database.dedicated() as connection:
        for statement in _FILL:
            await connection.execute(statement, collection.key, PERSONS if "INTO persons" in statement else count)
        await connection.execute("VACUUM (ANALYZE) photos, photo_tags, images, faces, persons")
    return collection


async def cases(connection: Connection, collection: Collection) -> list[Case]:
    rows = await connection.fetch(
        "SELECT person_id, count(*) AS photos FROM faces WHERE collection_key = $1 GROUP BY 1 ORDER BY 2 DESC, 1",
        collection.key,
    )
    often, middle, seldom = (cast("UUID", rows[place]["person_id"]) for place in (0, len(rows) // 4, -1))
    late = cast("UUID", await connection.fetchval("SELECT md5('person499')::uuid"))
    half = FIRST + timedelta(days=DAYS // 2)
    everybody = tuple(row["person_id"] for row in rows[:100])
    a, b = PersonsMatch.ALL, PersonsMatch.NONE
    return [
        Case("none", PhotoFilter()),
        Case("none, oldest first", PhotoFilter(), Order(descending=False)),
        Case("none, by upload", PhotoFilter(), Order(PhotoSort.ADDED)),
        Case("none, a page from the middle", PhotoFilter(), after=Position(half, UUID(int=0))),
        Case("a year", PhotoFilter(taken_from=half, taken_to=half + timedelta(days=365))),
        Case("a year, by upload", PhotoFilter(taken_from=half, taken_to=half + timedelta(days=365)), Order(PhotoSort.ADDED)),
        Case("folder", PhotoFilter(folder="Year/1000")),
        Case("folder, by upload", PhotoFilter(folder="Year/1000"), Order(PhotoSort.ADDED)),
        *(Case(f"tag `{tag}`", PhotoFilter(tags=(tag,))) for tag in _TAGS),
        Case("tag `old`, by upload", PhotoFilter(tags=("old",)), Order(PhotoSort.ADDED, descending=False)),
        Case("tags `half` and `tenth`", PhotoFilter(tags=("half", "tenth"))),
        Case("tags `old` and `new`", PhotoFilter(tags=("old", "new"))),
        Case("untagged", PhotoFilter(untagged=True)),
        Case("person in most photos", PhotoFilter(person_ids=(often,))),
        Case("person in some photos", PhotoFilter(person_ids=(middle,))),
        Case("person in few photos", PhotoFilter(person_ids=(seldom,))),
        Case("person in old photos only", PhotoFilter(person_ids=(late,))),
        Case("any of 100 persons", PhotoFilter(person_ids=everybody)),
        Case("all of two persons", PhotoFilter(person_ids=(often, middle), persons=a)),
        Case("all of two who seldom meet", PhotoFilter(person_ids=(middle, seldom), persons=a)),
        Case("not the most frequent person", PhotoFilter(person_ids=(often,), persons=b)),
        Case("none of 100 persons", PhotoFilter(person_ids=everybody, persons=b)),
        Case("person, tag and date", PhotoFilter(person_ids=(often,), tags=("old",), taken_to=half)),
    ]  # fmt: skip


async def plan(connection: Connection, collection: Collection, case: Case) -> str:
    """What chooses the photos of the page: the nodes from the limit down to the first that reads a table."""
    leading = await smallest(connection, collection, case.wanted)
    query, values = page_query(collection, case.wanted, case.order, case.after, PAGE, leading)
    text = await connection.fetchval("EXPLAIN (FORMAT JSON) " + query, *values)
    root: dict[str, Any] = (json.loads(text) if isinstance(text, str) else text)[0]["Plan"]
    node = _limit(root) or root
    names = []
    while True:
        names.append(str(node.get("Node Type")) + (f" {node['Index Name']}" if "Index Name" in node else ""))
        if not node.get("Plans"):
            return " > ".join(names[1:])
        node = node["Plans"][0]


def _limit(node: dict[str, Any]) -> dict[str, Any] | None:
    if node["Node Type"] == "Limit":
        return node
    return next((found for child in node.get("Plans", ()) if (found := _limit(child)) is not None), None)


async def measure(count: int, rounds: int, repeats: int) -> list[dict[str, object]]:
    async with postgres() as (database, _):
        begun = time.perf_counter()
        collection = await fill(database, count)
        say(f"{count:,} photos in {time.perf_counter() - begun:.0f} s")
        async with database.connection() as connection:
            wanted = await cases(connection, collection)
            times = {case.name: Timed() for case in wanted}
            found = {case.name: 0 for case in wanted}
            tags = Timed()
            for _ in range(rounds):
                for case in wanted:
                    for _ in range(repeats):
                        begun = time.perf_counter()
                        page = await photos.page(connection, collection, case.wanted, case.order, case.after, PAGE)
                        times[case.name].latencies_s.append(time.perf_counter() - begun)
                        found[case.name] = len(page)
                begun = time.perf_counter()
                await photo_tags.counted(connection, collection, None, 1001)
                tags.latencies_s.append(time.perf_counter() - begun)
            results: list[dict[str, object]] = []
            print("\n| filter | photos | p50 ms | p95 ms | plan |\n|---|---|---|---|---|")
            for case in wanted:
                timed = times[case.name]
                row = {"filter": case.name, "photos": found[case.name], "p50_ms": timed.percentile_ms(0.5),
                       "p95_ms": timed.percentile_ms(0.95), "plan": await plan(connection, collection, case)}  # fmt: skip
                results.append(row)
                print(f"| {case.name} | {row['photos']} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {row['plan']} |")
            print(f"| (list of tags) | | {tags.percentile_ms(0.5):.1f} | {tags.percentile_ms(0.95):.1f} | |\n", flush=True)
            return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10, help="of each filter a round")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/photos.json"))
    options = parser.parse_args()
    results = asyncio.run(measure(options.photos, options.rounds, options.repeats))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"photos": options.photos, "filters": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
