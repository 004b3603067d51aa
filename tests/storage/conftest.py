"""The API over ASGI on a real Postgres and a real object store; only the two models are fakes. Each test has a database of
its own, copied from a migrated one."""

from __future__ import annotations

import asyncio
import itertools
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from serve_app.api.app import create_api
from serve_app.api.deps import Secrets, Services
from serve_app.gallery import Gallery
from serve_app.storage import schema
from serve_app.storage.database import Dsn
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.minio_objects import MinioObjectStore
from serve_app.storage.objects import ObjectStore
from tests.api.conftest import KEY, FakeDetector, FakeEmbedder, FakePictures, make_services
from tests.storage.object_servers import *  # noqa: F403  fixtures
from tests.storage.object_servers import SERVERS, ObjectServer
from tests.storage.postgres_server import postgres_server  # noqa: F401  fixture

TEMPLATE = "kinlens_tests_template"
COLLECTIONS_A_TEST = 4
_first_keys = itertools.count(1, COLLECTIONS_A_TEST)


def with_database(dsn: str, name: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def template_dsn(postgres_server: str) -> str:
    # Of a run before, where the server is a given one.
    asyncio.run(execute(postgres_server, f"DROP DATABASE IF EXISTS {TEMPLATE} WITH (FORCE)"))
    asyncio.run(execute(postgres_server, f"CREATE DATABASE {TEMPLATE}"))
    schema.upgrade(with_database(postgres_server, TEMPLATE))
    return postgres_server


@pytest.fixture
async def database_dsn(template_dsn: str) -> AsyncIterator[str]:
    first = next(_first_keys)
    name = f"test_{first}_{uuid.uuid4().hex}"
    await execute(template_dsn, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    await execute(with_database(template_dsn, name), f"ALTER TABLE collections ALTER COLUMN key RESTART WITH {first}")
    yield with_database(template_dsn, name)
    await execute(template_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class StoredWorld:
    """What a test may look at and change."""

    detector: FakeDetector
    embedder: FakeEmbedder
    pictures: FakePictures
    services: Services
    api: FastAPI
    client: httpx.AsyncClient
    dsn: str
    folder: Path

    @property
    def gallery(self) -> Gallery:
        return self.services.gallery

    @property
    def first_key(self) -> int:
        """Of the collections of this test."""
        found = re.fullmatch(r"/test_(\d+)_\w+", urlsplit(self.dsn).path)
        return int(found[1]) if found else 1

    async def collection(self, name: str = "people") -> str:
        """A new collection; its address."""
        response = await self.client.post("/api/v1/collections", json={"id": name})
        assert response.status_code == 201, response.text
        return f"/api/v1/collections/{name}"

    async def person(self, collection: str, **fields: object) -> str:
        response = await self.client.post(f"{collection}/persons", json=fields)
        assert response.status_code == 201, response.text
        identifier: str = response.json()["id"]
        return identifier

    async def enrol_vector(self, collection: str, person_id: str, *vectors: list[float], **fields: object) -> list[str]:
        response = await self.client.post(
            f"{collection}/persons/{person_id}/faces",
            json={"embeddings": vectors, "model": "fake-model", "review": False, **fields},
        )
        assert response.status_code == 201, response.text
        return [face["id"] for face in response.json()["faces"]]

    async def rows(self, query: str, *args: object) -> list[asyncpg.Record]:
        """`embeddings` and `templates` stand for the tables of the test's first collection."""
        query = re.sub(r"\b(embeddings|templates)\b", rf"\1_m1_c{self.first_key}", query)
        connection = await asyncpg.connect(self.dsn)
        try:
            found: list[asyncpg.Record] = await connection.fetch(query, *args)
            return found
        finally:
            await connection.close()

    async def object_keys(self) -> set[str]:
        """Of this test's collections."""
        return {
            info.key
            for number in range(self.first_key, self.first_key + COLLECTIONS_A_TEST)
            async for info in self.gallery.objects.list(f"collections/{number}/")
        }


MakeStoredWorld = Callable[..., StoredWorld]


@pytest.fixture
async def make_stored(database_dsn: str, tmp_path: Path) -> AsyncIterator[MakeStoredWorld]:
    worlds: list[StoredWorld] = []

    def make(
        *,
        objects: ObjectStore | None = None,
        dsn: Dsn | None = None,
        pictures: FakePictures | None = None,
        **settings: object,
    ) -> StoredWorld:
        detector, embedder, pictures = FakeDetector(), FakeEmbedder(), pictures or FakePictures()
        store = objects or LocalObjectStore(tmp_path / "objects", Secrets.of(KEY).object_urls)
        address = dsn or (lambda: database_dsn)
        configured = {"data_dir": tmp_path, **settings}
        services = make_services(detector, embedder, configured, address, store, pictures=pictures)
        api = create_api(services)
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(api, raise_app_exceptions=False),
            base_url="http://test",
            headers={"Authorization": f"Bearer {KEY}"},
        )
        worlds.append(StoredWorld(detector, embedder, pictures, services, api, client, address(), tmp_path))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.client.aclose()
        await world.services.access.close()
        await world.gallery.close()


@pytest.fixture(params=("local", *SERVERS))
async def stored_everywhere(request: pytest.FixtureRequest, make_stored: MakeStoredWorld, tmp_path: Path) -> StoredWorld:
    """The same on each object store. A server's bucket is shared by all tests; no two have a collection key in common."""
    objects: ObjectStore | None = None
    if request.param != "local":
        server: ObjectServer = request.getfixturevalue(f"{request.param}_server")
        objects = MinioObjectStore(server.config)
    world = make_stored(objects=objects)
    await world.gallery.objects.prepare()
    return world


@pytest.fixture
async def stored(make_stored: MakeStoredWorld) -> StoredWorld:
    world = make_stored()
    await world.gallery.objects.prepare()
    return world
