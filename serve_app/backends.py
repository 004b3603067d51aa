"""Postgres and the object store around a command: started where they are ours, prepared where they are somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from config.settings import Settings
from serve_app.api.deps import Secrets
from serve_app.gallery import database_dsn
from serve_app.keys import load_or_create_api_key
from serve_app.local import EmbeddedPostgres
from serve_app.storage import schema
from serve_app.storage.database import Dsn
from serve_app.storage.objects import ObjectStore
from serve_app.storage.stores import open_object_store


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
    return open_object_store(settings, Secrets.of(load_or_create_api_key(settings).value).object_urls)


def ensure_database(settings: Settings) -> EmbeddedPostgres | None:
    """For an ingress that `kinlens up` did not start: runs the embedded database where nobody does.

    A server of somebody else's is left alone: `kinlens db upgrade` is run by hand, and the server may be down just now.
    Raises ConfigurationError.
    """
    if settings.database_url is not None:
        return None
    postgres = EmbeddedPostgres(settings.data_dir / "postgres")
    if postgres.running:
        return None
    postgres.start()
    postgres.supervise()
    # Serve makes its replicas inside a running event loop.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(schema.upgrade, database_dsn(settings)()).result()
    return postgres
