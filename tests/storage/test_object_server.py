"""An object server that fails, lies or is set up wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from config.settings import Settings
from serve_app.errors import ConfigurationError, ObjectStoreUnavailable
from serve_app.ports import HOST
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.minio_objects import MinioConfig, MinioObjectStore
from serve_app.storage.objects import (
    CHUNK_BYTES,
)
from serve_app.storage.stores import open_object_store
from tests.storage.object_servers import SIGNING_KEY, ObjectServer, free_ports
from tests.storage.object_world import JPEG, MIB, collected, listed, longest_pause, new_key, new_prefix, pieces


@pytest.fixture
def server(object_server: ObjectServer) -> Iterator[ObjectServer]:
    """A server that the test may kill; it runs again afterwards."""
    yield object_server
    object_server.restart()


class TestFaultsOfTheServer:
    async def test_kill_9_and_restart(self, server: ObjectServer) -> None:
        store, prefix = MinioObjectStore(server.config), new_prefix()
        await store.prepare()
        acknowledged: dict[str, bytes] = {}
        refused: list[ObjectStoreUnavailable] = []
        fifty = asyncio.Event()

        async def write(number: int) -> None:
            """Until it is refused."""
            while not refused:
                key, data = f"{prefix}{number}-{len(acknowledged)}", secrets.token_bytes(20_000)
                try:
                    await store.put(key, data, JPEG)
                except ObjectStoreUnavailable as error:
                    refused.append(error)
                else:
                    acknowledged[key] = data
                    if len(acknowledged) == 50:
                        fifty.set()

        large = secrets.token_bytes(6 * MIB)
        await store.put(f"{prefix}large", large, JPEG)
        reader = store.stream(f"{prefix}large")
        assert await anext(reader) == large[:CHUNK_BYTES]

        writers = asyncio.gather(*map(write, range(30)))
        await fifty.wait()
        server.kill()
        started = time.monotonic()
        await writers
        with pytest.raises(ObjectStoreUnavailable):
            await collected(reader)
        for attempt in (store.get(f"{prefix}0"), store.check(), store.delete(f"{prefix}0"), anext(store.list(prefix))):
            with pytest.raises(ObjectStoreUnavailable, match=r"cannot be reached|connection broke") as caught:
                await attempt
            assert caught.value.details["retry_after_s"] == 2
        assert time.monotonic() - started < 28, "an answer is waited for 30 s"
        assert refused
        for error in refused:
            assert server.config.secret_key not in str(error) and server.config.endpoint not in str(error)

        await asyncio.to_thread(server.start)
        await store.check()
        got = await asyncio.gather(*map(store.get, acknowledged))
        assert got == list(acknowledged.values())
        await store.put(f"{prefix}again", b"x", JPEG)
        assert {*acknowledged, f"{prefix}again"} <= set(await listed(store, prefix))
        await store.close()

    async def test_a_server_that_hangs(self, server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stopped, not killed: it takes connections and never answers. It is not asked three times, and only threads wait."""
        # Of a check as well, what ends it is this limit.
        monkeypatch.setattr("serve_app.storage.minio_objects._CHECK_TIMEOUT_S", 60)
        store, key = MinioObjectStore(replace(server.config, read_timeout_s=5)), new_key()
        await store.prepare()
        server.signal(signal.SIGSTOP)
        try:
            started, watch = time.monotonic(), asyncio.create_task(longest_pause())
            outcomes = await asyncio.gather(
                store.put(key, b"x", JPEG), store.put_stream(key, pieces(b"x"), JPEG), store.get(key), store.get_range(key, 0, 1),
                anext(store.stream(key)), store.stat(key), store.exists(key), store.delete(key), store.delete_many([key]),
                anext(store.list("")), store.check(), return_exceptions=True,
            )  # fmt: skip
            assert [str(one) for one in outcomes if not isinstance(one, ObjectStoreUnavailable)] == []
            assert {str(one) for one in outcomes} == {"The object store failed: it did not answer in time."}
            assert time.monotonic() - started < 9.9
            watch.cancel()
            assert await watch < 4.5
        finally:
            server.signal(signal.SIGCONT)
        await store.check()
        await store.close()


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """host:port of something that listens, and says the same to everybody."""
    handlers: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    listening = await asyncio.start_server(handle, HOST, 0)
    async with listening:
        yield f"{HOST}:{listening.sockets[0].getsockname()[1]}"
    await asyncio.gather(*(task for task in handlers if task is not None))


class TestFaultsOfTheSettings:
    async def test_several_that_make_the_bucket(self, object_server: ObjectServer) -> None:
        config = replace(object_server.config, bucket=f"kinlens-{secrets.token_hex(4)}")
        stores = [MinioObjectStore(config) for _ in range(8)]
        await asyncio.gather(*(store.prepare() for store in stores))
        await asyncio.gather(*(store.check() for store in stores))
        for store in stores:
            await store.close()

    async def test_wrong_credentials(self, object_server: ObjectServer) -> None:
        for wrong, setting in (("access_key", "MINIO_ACCESS_KEY"), ("secret_key", "MINIO_SECRET_KEY")):
            config = replace(object_server.config, **{wrong: "wrong-wrong-wrong"})  # type: ignore[arg-type]
            store = MinioObjectStore(config)
            with pytest.raises(ConfigurationError, match=setting) as at_start:
                await store.prepare()
            calls = (store.put("a/b", b"x", JPEG), store.get("a/b"), store.exists("a/b"), store.check(), store.delete("a/b"),
                     anext(store.list("")), store.delete_many(["a/b"]))  # fmt: skip
            for call in calls:
                with pytest.raises(ObjectStoreUnavailable) as caught:
                    await call
                for text in (str(caught.value), str(at_start.value), repr(store)):
                    assert config.secret_key not in text and config.access_key not in text
            await store.close()

    async def test_a_bucket_that_is_gone_is_not_a_missing_object(self, object_server: ObjectServer) -> None:
        store = MinioObjectStore(replace(object_server.config, bucket="never-made"))
        for call in (store.get("a/b"), store.exists("a/b"), store.stat("a/b"), store.check(), store.put("a/b", b"", JPEG)):
            with pytest.raises(ObjectStoreUnavailable):
                await call
        await store.close()

    async def test_nobody_at_the_endpoint(self) -> None:
        (port,) = free_ports(1)
        store = MinioObjectStore(MinioConfig(f"{HOST}:{port}", "access", "secret-secret"))
        started = time.monotonic()
        with pytest.raises(ConfigurationError, match=f"MINIO_ENDPOINT {HOST}:{port}: it cannot be reached"):
            await store.prepare()
        with pytest.raises(ObjectStoreUnavailable, match="cannot be reached"):
            await store.get("a/b")
        assert time.monotonic() - started < 20
        await store.close()

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "its answer is not S3"),
            (
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nsecret",
                "MINIO_SECURE may be wrong",
            ),
            (
                b"HTTP/1.1 503 Busy\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n",
                "it answered HTTP 503|its answer is not S3",
            ),
            (
                b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
                "it answered|its answer is not S3",
            ),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "connection broke"),
        ],
    )
    async def test_something_else_at_the_endpoint(self, answer: bytes, expected: str) -> None:
        """And Retry-After is not waited for: the caller is told when to come back."""

        async with answering(answer) as endpoint:
            store = MinioObjectStore(MinioConfig(endpoint, "access", "secret-secret"))
            started = time.monotonic()
            with pytest.raises(ConfigurationError, match=expected) as caught:
                await store.prepare()
            assert "secret" not in str(caught.value)
            with pytest.raises(ObjectStoreUnavailable):
                await anext(store.list(""))
            assert time.monotonic() - started < 9.5
            await store.close()

    async def test_answers_that_are_not_read_give_their_connections_back(self) -> None:
        """More of them than there are connections: a server that sends the whole object, whatever range was asked for."""
        whole = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
        async with answering(whole) as endpoint, asyncio.timeout(120):
            store = MinioObjectStore(MinioConfig(endpoint, "access", "secret-secret"))
            for _ in range(40):
                with pytest.raises(ObjectStoreUnavailable, match="no ranges"):
                    await store.get_range("a/b", 0, 10)
            assert len(await store.get("a/b")) == 1_000_000
            await store.close()

    @pytest.mark.parametrize(
        ("change", "setting"),
        [
            ({"bucket": "No_Such_Name"}, "MINIO_BUCKET"),
            ({"bucket": "x"}, "MINIO_BUCKET"),
            ({"bucket": "1.2.3.4"}, "MINIO_BUCKET"),
            ({"endpoint": "http://minio:9000"}, "MINIO_ENDPOINT"),
            ({"endpoint": "minio:9000/path"}, "MINIO_ENDPOINT"),
            ({"endpoint": "minio:port"}, "MINIO_ENDPOINT"),
            ({"public_endpoint": "minio:9000/path"}, "MINIO_PUBLIC_ENDPOINT"),
            ({"region": "no region"}, "MINIO_REGION"),
        ],
    )
    def test_settings_that_cannot_be(self, change: dict[str, str], setting: str) -> None:
        config = MinioConfig(**{"endpoint": "minio:9000", "access_key": "access", "secret_key": "secret-secret", **change})  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=setting):
            MinioObjectStore(config)

    async def test_the_settings_choose_the_store(self, tmp_path: Path) -> None:
        empty = dict.fromkeys(("minio_endpoint", "minio_access_key", "minio_secret_key", "minio_public_endpoint"), "")
        settings = {**empty, "data_dir": tmp_path}
        local = open_object_store(Settings.model_validate(settings), SIGNING_KEY)
        assert isinstance(local, LocalObjectStore)
        await local.prepare()
        assert (tmp_path / "objects" / ".tmp").is_dir()
        await local.close()

        settings |= {"minio_endpoint": "minio:9000"}
        with pytest.raises(ConfigurationError, match="MINIO_ACCESS_KEY"):
            open_object_store(Settings.model_validate(settings), SIGNING_KEY)
        settings |= {
            "minio_access_key": "access",
            "minio_secret_key": "secret-secret",
            "minio_secure": True,
            "minio_region": "eu-west-1",
        }
        minio = open_object_store(Settings.model_validate(settings), SIGNING_KEY)
        url = await minio.presigned_url("a/b", 60)
        assert url.startswith("https://minio:9000/kinlens/a/b?") and "eu-west-1" in url
        await minio.close()
