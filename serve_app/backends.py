"""Postgres and the object store around a command: started where they are ours, prepared where they are somebody else's."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from config.settings import Settings
from serve_app.errors import ConfigurationError
from serve_app.gallery import database_dsn
from serve_app.postgres.local import EmbeddedPostgres
from serve_app.storage import schema
from serve_app.storage.database import Database, Dsn
from serve_app.storage.objects import ObjectStore
from serve_app.storage.stores import open_object_store

logger = logging.getLogger("ray.serve")

_COMMAND_CONNECTIONS = 4


@contextmanager
def running_database(settings: Settings, *, supervised: bool = False) -> Iterator[Dsn]:
    """The database at the newest schema version. Without DATABASE_URL the embedded one runs for as long as anybody uses it;
    `supervised` restarts it when it dies. Raises ConfigurationError."""
    dsn = database_dsn(settings)
    if settings.database_url is not None:
        schema.upgrade(dsn())
        yield dsn
        return
    with EmbeddedPostgres(settings.data_dir / "postgres") as postgres:
        if supervised:
            postgres.supervise()
        schema.upgrade(dsn())
        yield dsn


@asynccontextmanager
async def open_database(dsn: Dsn) -> AsyncIterator[Database]:
    """A pool for a command."""
    database = Database(dsn, _COMMAND_CONNECTIONS)
    try:
        yield database
    finally:
        await database.close()


def prepare_objects(settings: Settings) -> None:
    """Makes the bucket or the folder. Raises ConfigurationError."""

    async def prepare() -> None:
        objects = object_store(settings)
        try:
            await objects.prepare()
        finally:
            await objects.close()

    asyncio.run(prepare())


def object_store(settings: Settings) -> ObjectStore:
    """For commands, which sign no addresses."""
    return open_object_store(settings, secrets.token_bytes(32))


def join_database(settings: Settings) -> EmbeddedPostgres | None:
    """For an ingress, which may run without `kinlens up`: brings the schema to the newest version, and is one of those that
    the embedded server runs for and that start it again when it dies. Call `leave` on what is returned.

    A server of somebody else's may be down just now: that is logged, and until it is up requests are answered 503. Raises
    ConfigurationError for the embedded one.
    """
    postgres = None
    if settings.database_url is None:
        postgres = EmbeddedPostgres(settings.data_dir / "postgres")
        postgres.start()
        postgres.supervise()
    try:
        # Serve makes its replicas inside a running event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(schema.upgrade, database_dsn(settings)()).result()
    except ConfigurationError as error:
        if postgres is not None:
            raise
        logger.warning("%s", error)
    return postgres


def check_backends(settings: Settings, own: Settings) -> None:
    """Raises ConfigurationError on a node whose environment lacks what the application was started with: it would serve, and
    acknowledge writes to, an empty store of its own."""
    if (own.minio_endpoint, own.minio_bucket) != (settings.minio_endpoint, settings.minio_bucket):
        raise ConfigurationError("MINIO_ENDPOINT or MINIO_BUCKET differs between this node and the one that deployed.")
