"""API keys: who a key belongs to, told in microseconds; and keys made, rotated and revoked."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from serve_app.access import BOOTSTRAP, Caller, KeyRecord, Scope, Secret, digest, key_id_of
from serve_app.errors import CapacityError, DatabaseUnavailable, PartUnavailable, Unauthorized
from serve_app.storage import api_keys
from serve_app.storage.database import Database

logger = logging.getLogger("ray.serve")

FRESH_S = 2.0
"""What is known of keys is asked for anew after so long: a revocation counts everywhere by then."""
STALE_S = 15.0
"""For which keys that were good are taken for good while the database does not answer."""
_BETWEEN_LOOKS_S = 0.05
"""Least time between two looks at the database, however many unknown keys come."""
_BETWEEN_FAILURES_S = 1.0
_LOOK_TIMEOUT_S = 2.0
_WRITTEN_EVERY_S = 60.0
"""`last_used_at` of a key that is in use."""


@dataclass(frozen=True, slots=True)
class _Known:
    keys: Mapping[str, KeyRecord]
    revision: int
    looked_at: float


class KeyRing:
    """All usable keys, in memory, on each ingress replica.

    There is no channel by which replicas tell each other of changes: one that breaks unseen would leave a revoked key good.
    Each asks instead, when a request comes and its last look is older than FRESH_S; one round trip, unless a key changed.
    Hashes are compared in memory, so that a key costs a request a few microseconds.
    """

    def __init__(self, bootstrap: str, database: Database) -> None:
        self._bootstrap = bootstrap.encode()
        self._database = database
        self._known = _Known({}, 0, float("-inf"))
        self._looking: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")
        self._used: dict[str, datetime] = {}
        self._written: dict[str, float] = {}

    async def caller(self, token: str, *, look: bool = True) -> Caller:
        """Whose key it is. Without `look` a key that is not known is not asked for at once: one made within the last FRESH_S
        may be taken for unknown then. Raises Unauthorized, and DatabaseUnavailable where only the database could tell; never
        for the bootstrap key."""
        # Bytes: compare_digest takes no text beyond ASCII.
        if hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._bootstrap):
            return BOOTSTRAP
        key_id = key_id_of(token)
        if key_id is None:
            raise Unauthorized("Send an API key as `Authorization: Bearer KEY`.")
        arrived = time.monotonic()
        if arrived - self._known.looked_at > FRESH_S:
            await self._look_again(arrived)
        found = self._opened(key_id, token)
        if found is None and look:
            # Made, or rotated, since the last look, perhaps through another replica.
            await self._look(arrived)
            found = self._opened(key_id, token)
        if found is None:
            raise Unauthorized("The API key is not known, or it was revoked.")
        now = datetime.now(UTC)
        if found.state(now) != "active":
            raise Unauthorized("The API key has expired.")
        self._used[key_id] = now
        return found.caller

    async def flush(self) -> None:
        """Writes when keys were used last, each once a minute at most. Raises DatabaseUnavailable, Overloaded."""
        now = time.monotonic()
        due = {one: at for one, at in self._used.items() if now - self._written.get(one, float("-inf")) >= _WRITTEN_EVERY_S}
        if not due:
            return
        async with self._database.connection() as connection:
            await api_keys.touch(connection, due)
        self._written |= dict.fromkeys(due, now)
        for key_id, at in due.items():
            if self._used.get(key_id) == at:
                del self._used[key_id]

    def _opened(self, key_id: str, token: str) -> KeyRecord | None:
        record = self._known.keys.get(key_id)
        return record if record is not None and record.opened_by(digest(token), datetime.now(UTC)) else None

    async def _look_again(self, since: float) -> None:
        """`_look`; while the database does not answer, what was seen STALE_S ago is good enough."""
        try:
            if since - self._failed_at > _BETWEEN_FAILURES_S:
                await self._look(since)
        except (PartUnavailable, CapacityError):
            self._failed_at = time.monotonic()
        if since - self._known.looked_at > STALE_S:
            raise DatabaseUnavailable("The database does not answer; only it knows the API keys.", retry_after_s=2)

    async def _look(self, since: float) -> None:
        """Afterwards what is known is not older than `since`. Raises DatabaseUnavailable, Overloaded."""
        # A look that began before may have missed what came between.
        while self._known.looked_at < since:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._refresh())
            await asyncio.shield(self._looking)

    async def _refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._known.looked_at + _BETWEEN_LOOKS_S - time.monotonic()))
        begun = time.monotonic()
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S), self._database.connection() as connection:
                revision = await api_keys.revision(connection)
                keys = self._known.keys
                if revision != self._known.revision:
                    keys = {one.id: one for one in await api_keys.usable(connection)}
        except TimeoutError as error:
            raise DatabaseUnavailable("The database does not answer in time.", retry_after_s=2) from error
        self._known = _Known(keys, revision, begun)


@dataclass(frozen=True, slots=True)
class NewKey:
    """`expires_at`, `rate_limit` (requests a minute): None for none of its own. `collections`: None for all."""

    name: str
    scopes: frozenset[Scope]
    collections: frozenset[str] | None
    expires_at: datetime | None
    rate_limit: int | None


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Every method raises DatabaseUnavailable and Overloaded; those of one key NotFound."""

    database: Database

    async def create(self, new: NewKey, created_by: str) -> tuple[KeyRecord, Secret]:
        """The only time that the secret is told; so a repetition makes another key. Raises NotFound for a collection that is
        being erased; one that is not there yet may be named."""
        secret = Secret.new()
        async with self.database.connection() as connection:
            known = await api_keys.collections_of(connection, new.collections or frozenset())
        record = await self.database.run(
            lambda tx: api_keys.create(
                tx,
                secret,
                new.name,
                new.scopes,
                new.collections,
                created_by=created_by,
                expires_at=new.expires_at,
                rate_limit=new.rate_limit,
                known=known,
            )
        )
        return record, secret

    async def get(self, key_id: str) -> KeyRecord:
        async with self.database.connection() as connection:
            return await api_keys.get(connection, key_id)

    async def page(self, after: str | None, limit: int) -> list[KeyRecord]:
        """Revoked ones as well."""
        async with self.database.connection() as connection:
            return await api_keys.page(connection, after, limit)

    async def rotate(self, key_id: str, overlap: timedelta) -> tuple[KeyRecord, Secret]:
        """Another secret; the one until now is good for `overlap`."""
        secret = Secret.new(key_id)
        return await self.database.run(lambda tx: api_keys.rotate(tx, secret, overlap)), secret

    async def revoke(self, key_id: str) -> KeyRecord:
        """Within seconds no replica takes it any more."""
        return await self.database.run(lambda tx: api_keys.revoke(tx, key_id))
