"""The connection pool: transactions, and driver errors as ours."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

import asyncpg
from pgvector.asyncpg import register_vector

from serve_app.errors import DatabaseUnavailable, NotFound, Overloaded
from serve_app.observing.stages import Stage, stage

logger = logging.getLogger("ray.serve")

ResultT = TypeVar("ResultT")

_CONNECT_TIMEOUT_S = 5
_ACQUIRE_TIMEOUT_S = 10
_COMMAND_TIMEOUT_S = 55
"""Below the default WORKER_TIMEOUT: the reason for a slow answer is then known."""
_RETRY_AFTER_S = 2
_ATTEMPTS = 4

SESSION_SETTINGS = {
    "application_name": "kinlens",
    "jit": "off",
    "synchronous_commit": "on",
    # A filtered search goes on until it has what it was asked for.
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.max_scan_tuples": "200000",
}

Dsn = Callable[[], str]
"""Called for each new connection: an embedded server may come back on another port."""


class Row(Protocol):
    """One row; columns by name. Typed where it is read, in `storage/`."""

    def __getitem__(self, key: str) -> Any: ...


class Connection(Protocol):
    """The part of asyncpg.Connection that `storage/` uses."""

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str: ...

    async def executemany(self, command: str, args: Iterable[Sequence[object]], *, timeout: float | None = None) -> None: ...

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Row]: ...

    async def fetchrow(self, query: str, *args: object, timeout: float | None = None) -> Row | None: ...

    async def fetchval(self, query: str, *args: object, timeout: float | None = None) -> Any: ...

    async def copy_to_table(
        self,
        table_name: str,
        *,
        source: object,
        columns: Sequence[str],
        format: str,  # noqa: A002  asyncpg's name
        timeout: float | None = None,
    ) -> str: ...

    def transaction(self, *, isolation: str | None = None, readonly: bool = False) -> AbstractAsyncContextManager[None]: ...


class Database:
    """A pool that is made on first use and outlives restarts of the server.

    Every method raises DatabaseUnavailable when the server does not answer and Overloaded when no connection gets free.
    """

    def __init__(self, dsn: Dsn, pool_size: int) -> None:
        self._dsn = dsn
        self._pool_size = pool_size
        self._pool: asyncpg.Pool | None = None

    async def close(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await asyncio.wait_for(pool.close(), 5)
            except TimeoutError:
                pool.terminate()

    @property
    def pool_size(self) -> int:
        """Connections there may be at once."""
        return self._pool_size

    def connections(self) -> tuple[int, int]:
        """Connections in use, and idle ones, of this process."""
        if self._pool is None:
            return 0, 0
        idle = self._pool.get_idle_size()
        return self._pool.get_size() - idle, idle

    async def check(self) -> None:
        """One round trip: that it answers, and has a schema."""
        async with self.connection() as connection:
            if await connection.fetchval("SELECT to_regclass('collections') IS NULL", timeout=2):
                raise DatabaseUnavailable("The database has no schema yet; run `kinlens db upgrade`.")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit."""
        pool = await self._open()
        with translated():
            try:
                # Not acquire's own timeout: it would also count as one for connecting.
                with stage(Stage.CONNECT):
                    connection = await pool.acquire(timeout=_ACQUIRE_TIMEOUT_S)
            except TimeoutError as error:
                if pool.get_idle_size() == 0 and pool.get_size() >= self._pool_size:
                    raise Overloaded(
                        "Every database connection is busy.", retry_after_s=_RETRY_AFTER_S, part="database"
                    ) from error
                raise
            try:
                with stage(Stage.DATABASE):
                    yield cast("Connection", connection)
            finally:
                await pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """READ COMMITTED; committed on leaving, and then durable."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def run(self, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """`work` in a transaction, again when the server chose it as the victim of a deadlock or a conflict."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self.transaction() as tx:
                    return await work(tx)
            except Overloaded as error:
                if attempt == _ATTEMPTS or not isinstance(error.__cause__, _CONFLICTS):
                    raise
                await asyncio.sleep(0.01 * 2**attempt)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Connection]:
        """A connection of its own outside the pool, without a time limit: index builds, bulk loads, session locks."""
        with translated():
            connection = await connect(self._dsn(), command_timeout=None)
            try:
                await _initialize(connection)
                yield cast("Connection", connection)
            finally:
                await connection.close(timeout=5)

    async def _open(self) -> asyncpg.Pool:
        if self._pool is None:
            with translated():
                # No connection is made here; nothing is awaited between the test and the assignment.
                self._pool = asyncpg.create_pool(
                    min_size=0,
                    max_size=self._pool_size,
                    max_inactive_connection_lifetime=300,
                    connect=self._connect,
                    init=_initialize,
                    reset=_reset,
                )
                await self._pool
        pool = self._pool
        await pool  # Initialised by whoever came first; awaiting again costs nothing.
        return pool

    async def _connect(self, *_: object, **options: Any) -> asyncpg.Connection:
        return await connect(self._dsn(), **options)


async def connect(dsn: str, **options: Any) -> asyncpg.Connection:
    options.setdefault("command_timeout", _COMMAND_TIMEOUT_S)
    return await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S, server_settings=SESSION_SETTINGS, **options)


async def _initialize(connection: asyncpg.Connection) -> None:
    try:
        await register_vector(connection)
    except ValueError as error:
        raise DatabaseUnavailable("The database has no schema yet; run `kinlens db upgrade`.") from error
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


async def _reset(_: asyncpg.Connection) -> None:
    """Nothing: the only state of a session that is ever changed, hnsw.ef_search, is set by whoever searches by an index, and
    asyncpg's default costs a round trip a use."""


class translated:  # noqa: N801  used as a statement: `with translated():`
    """Driver errors inside the block become DatabaseUnavailable, or Overloaded for a transaction that lost against another.
    What is our own mistake passes."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or kind is None:
            return
        if isinstance(error, asyncpg.UndefinedTableError) and _COLLECTION_TABLE.search(str(error)):
            raise NotFound("The collection was deleted meanwhile.") from error
        if issubclass(kind, _UNPREPARED):
            logger.error("database: %s: %s", kind.__name__, error)
            raise DatabaseUnavailable(
                "The database has not the schema or the rights that are needed; run `kinlens db upgrade`.",
                retry_after_s=_RETRY_AFTER_S,
            ) from error
        if issubclass(kind, _CONFLICTS):
            raise Overloaded("Other requests change the same rows.", retry_after_s=_RETRY_AFTER_S) from error
        # asyncpg's DataError, an argument of the wrong type, is an InterfaceError as well as a ValueError.
        if issubclass(kind, _UNAVAILABLE) and not issubclass(kind, ValueError):
            logger.warning("database: %s: %s", kind.__name__, error)
            raise DatabaseUnavailable(
                "The database does not answer. Nothing that was acknowledged is lost.", retry_after_s=_RETRY_AFTER_S
            ) from error


_CONFLICTS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.LockNotAvailableError)
_COLLECTION_TABLE = re.compile(r"(embeddings|templates)_m\d+_c\d+")
_UNPREPARED = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedObjectError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidSchemaNameError,
)
_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresSystemError,
)
