"""Text search in a large photo library, at the database:

    uv run python -m benchmarks.photo_search --photos 100000

On an embedded Postgres in a temporary folder, as the service sets it up, through the service: parsing, understanding, finding,
ranking, and the page of 100 with why each was found. The library is that of benchmarks.photos (500 persons, as unequal as in a
family), with folders, tags, places, cameras and file names of its own. Rounds alternate between the queries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from benchmarks.photos import fill
from benchmarks.search import Timed, postgres, say
from serve_app.identity.people import Collection
from serve_app.photos import PhotoFilter
from serve_app.services.photo_search import PersonsWanted, PhotoQuestion, PhotoSearch
from serve_app.services.selfies import Selfies
from serve_app.storage import photo_search, photo_words
from serve_app.storage.database import Database
from serve_app.text.text_queries import Form

PAGE = 100
_SIXTEEN = "img jpg familie reisen arbeit freunde geburtstag hochzeit wanderung konzert strand garten winter ausflug canon eos"

# Everything comes from the number of the photo, so it is the same each time. `k` is mixed, so that albums, cameras and places
# do not go together. 400 places, 2,000 albums of 50 photos, 1,000 tags of the other benchmark under names with letters.
_DESCRIBE = (
    "WITH n AS (SELECT id, row_number() OVER (ORDER BY taken_at, id) - 1 AS n FROM photos WHERE collection_key = $1)"
    " UPDATE photos p SET"
    " file_name = 'IMG_' || to_char(n.n % 10000, 'FM0000') || '.JPG',"
    " folder = (ARRAY['Familie','Reisen','Arbeit','Freunde'])[1 + (n.n / 50) % 4] || '/' ||"
    "   (ARRAY['Geburtstag','Hochzeit','Wanderung','Konzert','Strand','Garten','Winter','Ausflug'])[1 + (n.n / 50) % 8]"
    "   || ' ' || (n.n / 50),"
    " camera = (ARRAY['Canon EOS R5','Apple iPhone 13','Nikon Z6','SONY ILCE-7M3','Google Pixel 6'])"
    "   [1 + abs(hashint4(n.n::int)::bigint) % 5],"
    " taken_local = p.taken_at AT TIME ZONE 'UTC',"
    " texts = CASE WHEN abs(hashint4(n.n::int + 9)::bigint) % 3 = 0 THEN jsonb_build_object("
    "   'city', initcap(translate(md5('place' || abs(hashint4(n.n::int + 5)::bigint) % 400), '0123456789', 'aeiouaeiou')),"
    "   'country', (ARRAY['Deutschland','Italien','India','France','USA'])[1 + abs(hashint4(n.n::int + 5)::bigint) % 5]) END,"
    " words_version = 0 FROM n WHERE n.id = p.id",
    "UPDATE persons SET name = (ARRAY['Stefanie','Anna','Bob','Aditya','Priya','Jürgen','Łukasz','Deepak','Maria','Tom'])"
    "   [1 + n % 10] || ' ' || (ARRAY['Müller','Sharma','Schmidt','Nowak','Groß','Meier','Rossi'])[1 + n % 7] || ' ' || n"
    " FROM generate_series(0, 499) n WHERE persons.id = md5('person' || n)::uuid AND persons.collection_key = $1",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    question: PhotoQuestion


def cases(persons: Sequence[UUID]) -> list[Case]:
    def text(name: str, q: str, wanted: PhotoFilter | None = None) -> Case:
        return Case(name, PhotoQuestion(q, wanted or PhotoFilter(), limit=PAGE))

    year = PhotoFilter(taken_from=datetime(2015, 1, 1, tzinfo=UTC), taken_to=datetime(2016, 1, 1, tzinfo=UTC))
    return [
        text("a word of 50 photos", "1234"),
        text("a word of 12,500 photos", "hochzeit"),
        text("a word of 20,000 photos", "nikon"),
        text("a word of every photo", "img"),
        text("two words", "hochzeit nikon"),
        text("three words and a year", "familie geburtstag canon 2014"),
        text("a phrase", '"strand 1012"'),
        text("a beginning", "geb"),
        text("two letters", "ho"),
        text("a month", "august 2014"),
        text("a year", "2014"),
        text("a day", "17.8.2014"),
        text("a month of every year", "august"),
        text("a file's name", "IMG_1234"),
        text("misspelt", "hochziet"),
        text("misspelt name", "steffnie"),
        text("a frequent first name", "stefanie"),
        text("a person", "stefanie müller 0"),
        text("two persons", "stefanie und anna"),
        text("a person and a word", "stefanie hochzeit"),
        text("a person, a word and a year", "stefanie hochzeit 2014"),
        text("words, one unknown", "hochzeit qqqqqq"),
        text("words no photo has together", "hochzeit konzert strand"),
        text("nothing", "qqqqqq"),
        text("sixteen words", _SIXTEEN),
        text("a word in a year", "nikon", year),
        text("a word and a rare tag", "nikon", PhotoFilter(tags=("rare",))),
        text("a word and a frequent tag", "nikon", PhotoFilter(tags=("half",))),
        text("a word and a frequent person", "nikon", PhotoFilter(person_ids=(persons[0],))),
        text("a word and a person of old photos only", "nikon", PhotoFilter(person_ids=(persons[499],))),
        text("a word without a frequent person", "nikon", PhotoFilter(without=(persons[0],))),
        text("a word in folders below", "nikon", PhotoFilter(folder="Reisen", subfolders=True)),
        Case("persons all and none, by name, a word", PhotoQuestion(
            "garten", persons=PersonsWanted(all=("stefanie",), none=("bob",)), limit=PAGE)),
    ]  # fmt: skip


class NoModel:
    async def rank(self, collection_id: str, text: str, limit: int) -> list[UUID] | None:
        return None

    async def rank_among(self, collection_id: str, text: str, photo_ids: Sequence[UUID]) -> list[UUID] | None:
        return None


async def describe(database: Database, collection: Collection) -> float:
    """Returns the seconds that reading the words took."""
    async with database.dedicated() as connection:
        for statement in _DESCRIBE:
            await connection.execute(statement, collection.key)
        await connection.execute("VACUUM (FULL, ANALYZE) photos")
    begun = time.perf_counter()
    while await database.run(photo_words.read_some):
        pass
    elapsed_s = time.perf_counter() - begun
    async with database.dedicated() as connection:
        await connection.execute("VACUUM (ANALYZE) photos, photo_texts, photo_vocabulary, persons")
    return elapsed_s


async def plans(database: Database, collection: Collection) -> dict[str, list[str]]:
    """Of the statement that finds candidates, its words unknown, and known."""
    query = photo_search.tsquery([Form(("hochzeit",))])
    statement = (
        "SELECT t.photo_id FROM photo_texts t WHERE t.collection_key = $1 AND t.words @@ $2::text::tsquery"
        f" ORDER BY t.taken_at DESC, t.photo_id DESC LIMIT {photo_search.MAX_CANDIDATES:d}"
    )
    found = {}
    async with database.dedicated() as connection:
        for mode in ("force_generic_plan", "force_custom_plan"):
            await connection.execute(f"SET plan_cache_mode = {mode}")
            rows = await connection.fetch(f"EXPLAIN {statement}", collection.key, query)
            found[mode] = [cast("str", row["QUERY PLAN"]) for row in rows]
    return found


async def measure(count: int, rounds: int, repeats: int) -> dict[str, Any]:
    async with postgres() as (database, _):
        collection = await fill(database, count)
        read_s = await describe(database, collection)
        say(f"{count:,} photos; their words in {read_s:.0f} s")
        # Selfies have a benchmark of their own: that of person search.
        search = PhotoSearch(database, cast("Selfies", None), NoModel(), collection.id)
        async with database.connection() as connection:
            rows = await connection.fetch("SELECT md5('person' || n)::uuid AS id FROM generate_series(0, 499) n")
            sizes = await connection.fetchrow(
                "SELECT pg_total_relation_size('photo_texts') AS texts, pg_relation_size('photo_texts_by_word') AS words,"
                " pg_total_relation_size('photo_vocabulary') AS vocabulary, (SELECT count(*) FROM photo_vocabulary) AS known"
            )
        assert sizes is not None
        wanted = cases([row["id"] for row in rows])
        times = {case.name: Timed() for case in wanted}
        found = {}
        for _ in range(rounds):
            for case in wanted:
                for _ in range(repeats):
                    begun = time.perf_counter()
                    answer = await search.search(case.question)
                    times[case.name].latencies_s.append(time.perf_counter() - begun)
                    found[case.name] = answer
        results = []
        print("\n| query | text | photos | p50 ms | p95 ms |\n|---|---|---|---|---|")
        for case in wanted:
            timed, answer = times[case.name], found[case.name]
            row = {
                "query": case.name,
                "text": case.question.text,
                "photos": len(answer.hits),
                "more": answer.more,
                "complete": answer.complete,
                "p50_ms": timed.percentile_ms(0.5),
                "p95_ms": timed.percentile_ms(0.95),
            }
            results.append(row)
            photos = f"{len(answer.hits)}{'+' if answer.more else ''}{'' if answer.complete else ' (in part)'}"
            print(
                f"| {case.name} | {(case.question.text or '')[:40]} | {photos} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} |"
            )
        made = {
            "photos": count,
            "read_s": read_s,
            "bytes": {name: int(sizes[name]) for name in ("texts", "words", "vocabulary")},
            "vocabulary_words": int(sizes["known"]),
            "queries": results,
            "plans": await plans(database, collection),
        }
        print(json.dumps({key: made[key] for key in ("bytes", "vocabulary_words", "plans")}, indent=1), flush=True)
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6, help="of each query a round")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/photo_search.json"))
    options = parser.parse_args()
    made = asyncio.run(measure(options.photos, options.rounds, options.repeats))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
