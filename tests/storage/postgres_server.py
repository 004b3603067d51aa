"""One embedded Postgres for all storage tests. Import the fixture where it is used; make a database of your own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve_app.local import EmbeddedPostgres, dsn


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DSN of the superuser's database `postgres`. The database `kinlens`, as a template, has the extensions."""
    folder = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder):
        yield dsn(folder, "postgres")
