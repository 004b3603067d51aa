"""Rate limits that all ingress replicas share: a bucket of tokens for each key, as the moment at which it will be full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from serve_app.storage.database import Connection, Database

WINDOW_S = 60
"""What a bucket holds fills up in so long: a limit of n allows n requests at once, and n a minute on."""


@dataclass(frozen=True, slots=True)
class Taken:
    """`granted`: perhaps fewer tokens than were wanted. `remaining`: tokens left; `full_in_s`: until the bucket is full."""

    granted: int
    remaining: int
    full_in_s: float


class BucketsUnavailable(Exception):
    """Whatever keeps the buckets does not answer."""


class Buckets(Protocol):
    """Where buckets are kept. `take` may raise BucketsUnavailable, DatabaseUnavailable and Overloaded, as may `purge`."""

    async def take(self, bucket: str, limit: int, wanted: int) -> Taken: ...

    async def purge(self) -> None: ...

    async def close(self) -> None: ...


_NOW_OR_LATER = "least(greatest(r.full_at, now()), now() + $3::float8 * interval '1 s')"
"""When the bucket will be full. Never more than a window away: a clock that was set back locks nobody out."""
_GRANTED = f"""
    greatest(0, least($4::integer,
        floor(($3::float8 - extract(epoch FROM {_NOW_OR_LATER} - now())::float8) / $2::float8 + 0.000001)))::integer
"""


async def take(connection: Connection, key_id: str, limit: int, wanted: int) -> Taken:
    """Up to `wanted` of `limit` tokens a minute: GCRA, the generic cell rate algorithm, in one statement. Moments are the
    database's, so that replicas need no common clock."""
    cost_s = WINDOW_S / limit
    row = await connection.fetchrow(
        f"""
        INSERT INTO rate_limits AS r (key_id, full_at, granted)
        VALUES ($1, now() + least($4::integer, ($3::float8 / $2::float8 + 0.000001)::integer) * $2::float8 * interval '1 s',
                least($4::integer, ($3::float8 / $2::float8 + 0.000001)::integer))
        ON CONFLICT (key_id) DO UPDATE SET
            granted = {_GRANTED}, full_at = {_NOW_OR_LATER} + {_GRANTED} * $2::float8 * interval '1 s'
        RETURNING granted, extract(epoch FROM full_at - now())::float8 AS full_in_s
        """,
        key_id,
        cost_s,
        float(WINDOW_S),
        wanted,
    )
    assert row is not None
    full_in_s = max(0.0, float(row["full_in_s"]))
    return Taken(row["granted"], max(0, int((WINDOW_S - full_in_s) / cost_s + 1e-6)), full_in_s)


async def purge(connection: Connection) -> None:
    """Full buckets: that they are there makes no difference. Those of keys, which are few and come again, an hour later."""
    await connection.execute(
        "DELETE FROM rate_limits WHERE full_at < now() - interval '1 hour' OR full_at < now() AND key_id LIKE 'failures:%'"
    )


class PostgresBuckets:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, bucket: str, limit: int, wanted: int) -> Taken:
        async with self._database.connection() as connection:
            return await take(connection, bucket, limit, wanted)

    async def purge(self) -> None:
        async with self._database.connection() as connection:
            await purge(connection)

    async def close(self) -> None:
        """The connections are others' too."""
