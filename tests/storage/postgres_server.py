"""One Postgres for all storage tests: embedded, or the one that KINLENS_TEST_DATABASE_URL names. Import the fixture where it
is used; make a database of your own in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from serve_app.postgres.local import EmbeddedPostgres, dsn

GIVEN = "KINLENS_TEST_DATABASE_URL"
"""A superuser's URL: tests make and drop databases and extensions."""


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DSN of the superuser's database `postgres`."""
    given = os.environ.get(GIVEN)
    if given:
        yield given
        return
    folder = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder):
        yield dsn(folder, "postgres")
