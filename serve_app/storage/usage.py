"""How much is stored, at a price that does not grow with it."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.storage.database import Connection

EXACT_UP_TO = 100_000
"""Rows that are counted one by one; above, the server's own estimate is told."""

_TABLES = ("photos", "images", "faces", "persons")


@dataclass(frozen=True, slots=True)
class Usage:
    """`pictures`: originals in the object store, of photos and of enrolments; `picture_bytes`: without thumbnails and crops.
    `database_bytes`: with indexes. `estimated`: at least one of the numbers is the server's estimate."""

    photos: int
    pictures: int
    picture_bytes: int
    faces: int
    persons: int
    database_bytes: int
    estimated: bool


async def measure(connection: Connection) -> Usage:
    rows = await connection.fetch(
        "SELECT relname, reltuples::bigint AS rows FROM pg_class WHERE oid = ANY ($1::text[]::regclass[])", list(_TABLES)
    )
    guesses = {row["relname"]: int(row["rows"]) for row in rows}
    # -1: never analysed, because it is small.
    counted = {name: guess for name, guess in guesses.items() if guess > EXACT_UP_TO}
    for name in _TABLES:
        if name not in counted:
            counted[name] = int(await connection.fetchval(f"SELECT count(*) FROM {name}"))
    if guesses["images"] > EXACT_UP_TO:
        mean = await connection.fetchval("SELECT avg(size_bytes) FROM images TABLESAMPLE SYSTEM (1)")
        picture_bytes = int(float(mean or 0) * counted["images"])
    else:
        picture_bytes = int(await connection.fetchval("SELECT coalesce(sum(size_bytes), 0) FROM images"))
    return Usage(
        photos=counted["photos"],
        pictures=counted["images"],
        picture_bytes=picture_bytes,
        faces=counted["faces"],
        persons=counted["persons"],
        database_bytes=int(await connection.fetchval("SELECT pg_database_size(current_database())")),
        estimated=any(guess > EXACT_UP_TO for guess in guesses.values()),
    )
