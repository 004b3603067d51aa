"""The audit log: who searched for somebody or changed what is known of persons. No picture, no embedding, no name, no id of
a person."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from serve_app.identity.people import new_id
from serve_app.storage.database import Connection
from serve_app.storage.vectors import affected

PURGED_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class Line:
    """`collection_id`: None for what is about none. `results`: how many persons or photos a search told of. `requests`: for
    how many refused requests it stands."""

    key_id: str
    key_name: str
    action: str
    collection_id: str | None
    status: int
    results: int | None
    requests: int = 1


@dataclass(frozen=True, slots=True)
class Written:
    id: UUID
    at: datetime
    line: Line


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """None: whatever it is. `collections`: lines about none of these are left out."""

    key_id: str | None = None
    action: str | None = None
    collection_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    collections: frozenset[str] | None = None


async def write(connection: Connection, line: Line) -> None:
    await connection.execute(
        "INSERT INTO audit (id, key_id, key_name, action, collection_id, status, results, requests)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        new_id(),
        line.key_id,
        line.key_name,
        line.action,
        line.collection_id,
        line.status,
        line.results,
        line.requests,
    )


async def page(connection: Connection, wanted: AuditFilter, after: UUID | None, limit: int) -> list[Written]:
    """The newest first."""
    conditions, values = ["true"], []
    for condition, value in (
        ("id < {}", after),
        ("key_id = {}", wanted.key_id),
        ("action = {}", wanted.action),
        ("collection_id = {}", wanted.collection_id),
        ("at >= {}", wanted.since),
        ("at < {}", wanted.until),
        ("collection_id = ANY({}::text[])", None if wanted.collections is None else sorted(wanted.collections)),
    ):
        if value is not None:
            values.append(value)
            conditions.append(condition.format(f"${len(values)}"))
    rows = await connection.fetch(
        "SELECT id, at, key_id, key_name, action, collection_id, status, results, requests FROM audit"
        f" WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {limit:d}",
        *values,
    )
    return [
        Written(
            row["id"],
            row["at"],
            Line(
                row["key_id"],
                row["key_name"],
                row["action"],
                row["collection_id"],
                row["status"],
                row["results"],
                row["requests"],
            ),
        )
        for row in rows
    ]


async def purge(connection: Connection, kept_for: timedelta) -> int:
    """Some of the lines that are older; how many. In parts: after AUDIT_DAYS was lowered there may be more than one statement
    deletes in its time."""
    return affected(
        await connection.execute(
            "DELETE FROM audit WHERE id = ANY(ARRAY(SELECT id FROM audit WHERE at < now() - $1::interval"
            f" ORDER BY at LIMIT {PURGED_AT_ONCE:d} FOR UPDATE SKIP LOCKED))",
            kept_for,
        )
    )
