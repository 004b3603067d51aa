"""A few hundred requests over the whole OpenAPI document: `python -m tests.fuzz api` sends tens of thousands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.storage import schema
from tests.browser.service import Models, serving
from tests.fuzz import api
from tests.storage.conftest import execute, with_database

DATABASE = "kinlens_fuzz"


@pytest.fixture
def url(postgres_server: str, model_cache: Path, tmp_path: Path) -> Iterator[str]:
    asyncio.run(execute(postgres_server, f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))
    asyncio.run(execute(postgres_server, f"CREATE DATABASE {DATABASE}"))
    address = with_database(postgres_server, DATABASE)
    schema.upgrade(address)
    with serving(Models(model_cache), lambda: address, tmp_path) as running:
        yield running.url


def test_every_operation_keeps_its_promises(url: str) -> None:
    """No 5xx but for a model that is not installed, no status, type or answer that the document does not name."""
    report = api.Report()
    api.populate(url)
    api.run(url, "examples,fuzzing,stateful", examples=1, seed=1, report=report, timeout_s=250)
    print(api.tell(report))
    assert report.failures == []
    assert report.requests > 150 and report.statuses[200] > 20
