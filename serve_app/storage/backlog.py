"""How much is waiting to be done, at a price that does not grow with it."""

from __future__ import annotations

from serve_app.jobs import JobKind
from serve_app.storage.database import Connection

_MAX_JOBS = 1_000
"""Open jobs that are looked at, the oldest first. Their counters are read, not their items."""


async def waiting(connection: Connection) -> dict[JobKind, int]:
    """Items of open jobs that have not ended; kinds without any are left out."""
    rows = await connection.fetch(
        "SELECT j.kind, sum(p.total - p.done - p.failed - p.skipped - p.cancelled) AS items"
        " FROM (SELECT id, kind FROM jobs WHERE state IN ('queued', 'running') ORDER BY id LIMIT $1) j"
        " JOIN job_progress p ON p.job_id = j.id GROUP BY j.kind",
        _MAX_JOBS,
    )
    return {JobKind(row["kind"]): int(row["items"]) for row in rows if row["items"] > 0}
