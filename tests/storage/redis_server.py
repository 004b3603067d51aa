"""A real Redis for tests: the one that KINLENS_TEST_REDIS_URL names, else Debian's `redis-server` or `valkey-server`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from serve_app.ports import HOST, free_port

GIVEN = "KINLENS_TEST_REDIS_URL"
NO_REDIS = f"no Redis: install redis-server or valkey-server, or set {GIVEN}"


@dataclass
class RedisServer:
    """`kill` is kill -9; `start` starts it again on the same port, empty."""

    folder: Path
    binary: str
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                self.binary,
                "--port",
                str(self.port),
                "--bind",
                HOST,
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                str(self.folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not _answers(self.url):
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self.binary} did not start")
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _answers(url: str) -> bool:
    client: Redis = Redis.from_url(url)
    try:
        return bool(client.echo("?"))
    except RedisError:
        return False
    finally:
        client.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One of this test's own, which it may kill."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip(NO_REDIS)
    server = RedisServer(tmp_path, binary)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    if given := os.environ.get(GIVEN):
        return given
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url
