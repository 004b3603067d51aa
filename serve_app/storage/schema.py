"""Schema versions: `kinlens db upgrade` and every `kinlens up` bring the database to the newest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
from alembic.command import upgrade as alembic_upgrade
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SqlConnection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from serve_app.errors import ConfigurationError
from serve_app.storage.database import connect

_MIGRATION_LOCK = 0x6B696E6C656E73
"""Advisory lock key: "kinlens" in ASCII."""
_MIN_PGVECTOR = (0, 8)
"""Iterative index scans, without which a filtered search comes back short."""


def newest_version() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def known_versions() -> set[str]:
    """The newest and all before it."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def upgrade(dsn: str) -> str:
    """Applies what is missing, all of it or nothing, one process at a time; returns the version reached.

    Synchronous, for start-up and the command line. Raises ConfigurationError when the server cannot be reached, lacks
    pgvector or the rights, or has a newer schema than this Kinlens knows.
    """
    try:
        return asyncio.run(_upgrade(dsn))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError, ValueError) as error:
        if isinstance(error, ValueError):
            # Its text may quote a part of the password.
            raise ConfigurationError(
                "DATABASE_URL is not valid; characters such as / # ? @ in the password must be percent-encoded."
            ) from None
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise ConfigurationError(
            f"The database cannot be prepared: {cause or type(cause).__name__}. See DATABASE_URL."
        ) from error


async def _upgrade(dsn: str) -> str:
    # Our own way to connect: SQLAlchemy reads URLs differently (sslmode, several hosts).
    async def creator() -> asyncpg.Connection:
        return await connect(dsn, command_timeout=None)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=creator, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


def _migrate(connection: SqlConnection) -> str:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    config = _config()
    current = _current(connection)
    if current is not None and current not in known_versions():
        raise ConfigurationError(
            f"The database has schema version {current}; this Kinlens knows up to {newest_version()}. Upgrade Kinlens."
        )
    config.attributes["connection"] = connection
    alembic_upgrade(config, "head")
    _check_pgvector(connection)
    return newest_version()


def _check_pgvector(connection: SqlConnection) -> None:
    version = str(connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")))
    if tuple(int(part) for part in version.split(".")[:2]) < _MIN_PGVECTOR:
        raise ConfigurationError(f"pgvector {version} is too old: 0.8 is needed. ALTER EXTENSION vector UPDATE may do.")


def _current(connection: SqlConnection) -> str | None:
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
