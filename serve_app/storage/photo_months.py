"""How many photos there are of each month, for whoever wants to go to one."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.identity.people import Collection
from serve_app.photos import PhotoFilter
from serve_app.storage.database import Connection
from serve_app.storage.photo_pages import Order, page_query, smallest

MAX_COUNTED = 1_000_000
"""Photos, the newest; more would take seconds."""


@dataclass(frozen=True, slots=True)
class MonthCount:
    """`month`: as `2024-08`, by the clock of the camera where it is known."""

    month: str
    photos: int


async def counted(connection: Connection, collection: Collection, wanted: PhotoFilter) -> list[MonthCount]:
    """Every month that has a photo, the newest first."""
    leading = await smallest(connection, collection, wanted)
    chosen, values = page_query(collection, wanted, Order(), None, MAX_COUNTED, leading)
    rows = await connection.fetch(
        "SELECT to_char(coalesce(p.taken_local, p.taken_at AT TIME ZONE 'UTC'), 'YYYY-MM') AS month, count(*) AS photos"
        f" FROM photos p WHERE p.id IN ({chosen}) GROUP BY month ORDER BY month DESC",
        *values,
    )
    return [MonthCount(row["month"], row["photos"]) for row in rows]
