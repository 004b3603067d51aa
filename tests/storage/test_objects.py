"""The object store: the same promises from a folder, from SeaweedFS and from MinIO."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.settings import Settings
from serve_app.errors import ConfigurationError, ObjectStoreUnavailable
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.minio_objects import MinioConfig, MinioObjectStore
from serve_app.storage.objects import (
    CHUNK_BYTES,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    check_key,
    check_prefix,
    collection_prefix,
    crop_key,
    is_key,
    original_key,
    thumbnail_key,
    thumbnail_keys,
)
from serve_app.storage.stores import open_object_store
from tests.storage.object_servers import HOST, NO_MINIO, SERVERS, SIGNING_KEY, Backend, ObjectServer, free_ports

MIB = 1 << 20
JPEG = "image/jpeg"


def new_prefix() -> str:
    """A collection of this test's own: objects of other tests lie in the same bucket."""
    return collection_prefix(secrets.randbits(60))


def new_key() -> str:
    return f"{new_prefix()}one"


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def listed(store: ObjectStore, prefix: str) -> dict[str, ObjectInfo]:
    found = [info async for info in store.list(prefix)]
    assert len({info.key for info in found}) == len(found)
    return {info.key: info for info in found}


async def longest_pause() -> float:
    """Until it is cancelled: the longest time, in seconds, for which the event loop was not free."""
    worst = 0.0
    while True:
        before = time.perf_counter()
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            return worst
        worst = max(worst, time.perf_counter() - before)


async def fetched(backend: Backend, url: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=backend.transport, base_url="http://kinlens.test", trust_env=False) as client:
        return await client.get(url)


@pytest.mark.skipif("minio" not in SERVERS, reason=NO_MINIO)
def test_minio_itself_is_among_the_servers() -> None:
    """The others ran on it too."""


class TestEveryBackend:
    async def test_what_is_put_can_be_got(self, object_store: ObjectStore) -> None:
        key, data = new_key(), secrets.token_bytes(130_000)
        await object_store.put(key, data, JPEG)
        assert await object_store.get(key) == data
        await object_store.put(key, b"replaced", JPEG)
        assert await object_store.get(key) == b"replaced"

    async def test_stat(self, object_store: ObjectStore) -> None:
        key = new_key()
        await object_store.put(key, b"0123456789", JPEG)
        info = await object_store.stat(key)
        assert (info.key, info.size_bytes) == (key, 10)
        assert info.modified_at.tzinfo is UTC
        assert abs(info.modified_at - datetime.now(UTC)) < timedelta(seconds=30)
        assert await object_store.exists(key)

    async def test_a_missing_key(self, object_store: ObjectStore) -> None:
        key = new_key()
        assert not await object_store.exists(key)
        for attempt in (object_store.get(key), object_store.get_range(key, 0, 1), object_store.stat(key)):
            with pytest.raises(ObjectMissing) as caught:
                await attempt
            assert caught.value.key == key
        with pytest.raises(ObjectMissing):
            await anext(object_store.stream(key))
        await object_store.delete(key)
        await object_store.delete_many([key, new_key()])
        await object_store.delete_many([])

    async def test_a_key_above_objects_is_missing_too(self, object_store: ObjectStore) -> None:
        prefix = new_prefix()
        await object_store.put(f"{prefix}folder/one", b"x", JPEG)
        assert not await object_store.exists(f"{prefix}folder")
        with pytest.raises(ObjectMissing):
            await object_store.get(f"{prefix}folder")

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, 1, b"0"),
            (0, 10, b"0123456789"),
            (3, 4, b"3456"),
            (8, 100, b"89"),
            (0, 100, b"0123456789"),
            (10, 1, b""),
            (99, 5, b""),
        ],
    )
    async def test_ranges(self, object_store: ObjectStore, start: int, length: int, expected: bytes) -> None:
        key = new_key()
        await object_store.put(key, b"0123456789", JPEG)
        assert await object_store.get_range(key, start, length) == expected
        assert await collected(object_store.stream(key, start, length)) == expected

    async def test_ranges_that_are_none(self, object_store: ObjectStore) -> None:
        for start, length in ((-1, 1), (0, 0), (0, -1)):
            with pytest.raises(ValueError):
                await object_store.get_range(new_key(), start, length)
            with pytest.raises(ValueError):
                object_store.stream(new_key(), start, length)

    async def test_an_empty_object(self, object_store: ObjectStore) -> None:
        prefix = new_prefix()
        await object_store.put(f"{prefix}put", b"", JPEG)
        assert await object_store.put_stream(f"{prefix}streamed", pieces(b""), JPEG) == 0
        for key in (f"{prefix}put", f"{prefix}streamed"):
            assert await object_store.get(key) == b""
            assert await object_store.get_range(key, 0, 10) == b""
            assert await collected(object_store.stream(key)) == b""
            assert (await object_store.stat(key)).size_bytes == 0
        assert len(await listed(object_store, prefix)) == 2

    async def test_a_large_object_of_unknown_length(self, object_store: ObjectStore) -> None:
        key, data = new_key(), secrets.token_bytes(12 * MIB + 12_345)
        assert await object_store.put_stream(key, pieces(data), JPEG) == len(data)
        assert (await object_store.stat(key)).size_bytes == len(data)
        chunks = [chunk async for chunk in object_store.stream(key)]
        assert max(map(len, chunks)) == CHUNK_BYTES and b"".join(chunks) == data
        assert await collected(object_store.stream(key, 5 * MIB + 1, 3 * MIB)) == data[5 * MIB + 1 : 8 * MIB + 1]
        assert await collected(object_store.stream(key, 11 * MIB)) == data[11 * MIB :]
        assert await object_store.get_range(key, 10 * MIB - 5, 10) == data[10 * MIB - 5 : 10 * MIB + 5]
        assert await object_store.get(key) == data

    async def test_a_sender_that_breaks_off_leaves_nothing(self, backend: Backend) -> None:
        prefix = new_prefix()

        async def broken() -> AsyncIterator[bytes]:
            yield b"x" * 2 * MIB
            raise ConnectionResetError("the client left")

        with pytest.raises(ConnectionResetError):
            await backend.store.put_stream(f"{prefix}one", broken(), JPEG)
        assert await listed(backend.store, prefix) == {}

    async def test_a_cancelled_sender_leaves_nothing(self, backend: Backend) -> None:
        prefix, reached = new_prefix(), asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * MIB
            reached.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(backend.store.put_stream(f"{prefix}one", endless(), JPEG))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await listed(backend.store, prefix) == {}
        gc.collect()  # an open file or socket would warn here, and warnings are errors

    async def test_readers_that_stop_early_hold_nothing(self, object_store: ObjectStore) -> None:
        """More of them than there are threads, connections and files for, and none is finalised."""
        key, data = new_key(), secrets.token_bytes(3 * MIB)
        await object_store.put(key, data, JPEG)
        abandoned = []
        async with asyncio.timeout(30):
            for _ in range(100):
                reader = object_store.stream(key)
                assert await anext(reader) == data[:CHUNK_BYTES]
                abandoned.append(reader)
            assert await object_store.get(key) == data
            assert await collected(object_store.stream(key)) == data

    async def test_a_reader_never_gets_two_objects_mixed(self, object_store: ObjectStore) -> None:
        key = new_key()
        await object_store.put(key, b"a" * 2 * MIB, JPEG)
        reader = object_store.stream(key)
        seen = [await anext(reader)]
        await object_store.put(key, b"b" * 2 * MIB, JPEG)

        async def read_on() -> None:
            async for chunk in reader:
                seen.append(chunk)

        with pytest.raises(ObjectStoreUnavailable, match="replaced"):
            await read_on()
        assert set(b"".join(seen)) == {ord("a")}

    async def test_deleting(self, object_store: ObjectStore) -> None:
        prefix = new_prefix()
        keys = [f"{prefix}{number:02x}/{number}" for number in range(20)]
        await asyncio.gather(*(object_store.put(key, b"x", JPEG) for key in keys))
        await object_store.delete(keys[0])
        await object_store.delete(keys[0])
        assert set(await listed(object_store, prefix)) == set(keys[1:])
        await object_store.delete_many(iter([*keys[:10], f"{prefix}never"]))
        assert set(await listed(object_store, prefix)) == set(keys[10:])
        with pytest.raises(ObjectMissing):
            await object_store.get(keys[5])

    async def test_listing(self, object_store: ObjectStore) -> None:
        number = secrets.randbits(60)
        one, other = collection_prefix(number), f"collections/{number}7/"
        keys = [original_key(number, uuid4()) for _ in range(5)] + [
            crop_key(number, uuid4()),
            thumbnail_key(number, uuid4(), 256),
        ]
        for key in keys:
            await object_store.put(key, b"xyz", JPEG)
        await object_store.put(f"{other}one", b"", JPEG)
        found = await listed(object_store, one)
        assert set(found) == set(keys)
        for key, info in found.items():
            known = await object_store.stat(key)
            assert info.size_bytes == known.size_bytes == 3
            assert abs(info.modified_at - known.modified_at) < timedelta(seconds=1)  # HTTP headers have whole seconds
        assert set(await listed(object_store, f"{one}originals/")) == set(keys[:5])
        assert await listed(object_store, new_prefix()) == {}
        everything = await listed(object_store, "")
        assert {*keys, f"{other}one"} <= set(everything)

    async def test_listing_and_deleting_more_than_a_page(self, object_store: ObjectStore) -> None:
        prefix = new_prefix()
        keys = {f"{prefix}{number % 7}/{number}" for number in range(1100)}
        await asyncio.gather(*(object_store.put(key, b"", JPEG) for key in keys))
        reader = object_store.list(prefix)
        assert (await anext(reader)).key in keys  # and no more: stopping early is fine
        assert set(await listed(object_store, prefix)) == keys
        await object_store.delete_many(keys)
        assert await listed(object_store, prefix) == {}

    async def test_many_at_once(self, object_store: ObjectStore) -> None:
        prefix = new_prefix()
        objects = {f"{prefix}{number:02x}/{number}": secrets.token_bytes(1000 + number) for number in range(200)}
        await asyncio.gather(*(object_store.put(key, data, JPEG) for key, data in objects.items()))
        got = await asyncio.gather(*map(object_store.get, objects))
        assert got == list(objects.values())

    async def test_writers_of_one_key_do_not_mix(self, object_store: ObjectStore) -> None:
        key = new_key()
        versions = [bytes([number]) * 50_000 for number in range(30)]
        await asyncio.gather(*(object_store.put(key, data, JPEG) for data in versions))
        assert await object_store.get(key) in versions
        assert (await object_store.stat(key)).size_bytes == 50_000

    async def test_preparing_twice_and_at_once(self, backend: Backend) -> None:
        stores = [backend.open_store() for _ in range(5)]
        await asyncio.gather(*(store.prepare() for store in stores))
        await asyncio.gather(*(store.check() for store in stores))
        for store in stores:
            await store.close()

    async def test_a_closed_store(self, backend: Backend) -> None:
        store = backend.open_store()
        await store.close()
        await store.close()
        with pytest.raises(ObjectStoreUnavailable, match="closed"):
            await store.get(new_key())
        with pytest.raises(ObjectStoreUnavailable, match="closed"):
            await store.put_stream(new_key(), pieces(b"x"), JPEG)

    @pytest.mark.parametrize(
        "key", ["", "../etc/passwd", "a/../../b", "/etc/passwd", "A", "a//b", "a/", ".tmp/x", "a\x00b", "x" * 513]
    )
    async def test_every_method_checks_its_key(self, object_store: ObjectStore, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: object_store.put(key, b"", JPEG),
            lambda: object_store.put_stream(key, pieces(b""), JPEG),
            lambda: object_store.get(key),
            lambda: object_store.get_range(key, 0, 1),
            lambda: anext(object_store.stream(key)),
            lambda: object_store.stat(key),
            lambda: object_store.exists(key),
            lambda: object_store.delete(key),
            lambda: object_store.delete_many([key]),
            lambda: object_store.presigned_url(key, 60),
        ]
        for call in calls:
            with pytest.raises(ValueError):
                await call()  # type: ignore[misc]
        for prefix in (f"{key}/", "a"):
            with pytest.raises(ValueError):
                object_store.list(prefix)


class TestPresignedUrls:
    async def test_they_read_the_object_without_a_key(self, backend: Backend) -> None:
        key = new_key()
        await backend.store.put(key, b"picture", JPEG)
        answer = await fetched(backend, await backend.store.presigned_url(key, 60))
        assert (answer.status_code, answer.content) == (200, b"picture")
        if backend.server is not None:
            assert answer.headers["content-type"] == JPEG
        missing = await fetched(backend, await backend.store.presigned_url(new_key(), 60))
        assert missing.status_code == 404

    async def test_they_expire(self, backend: Backend) -> None:
        key = new_key()
        await backend.store.put(key, b"picture", JPEG)
        url = await backend.store.presigned_url(key, 1)
        await asyncio.sleep(2.1)
        assert (await fetched(backend, url)).status_code == 403
        for expires_s in (0, -1, 7 * 86_400 + 1):
            with pytest.raises(ValueError):
                await backend.store.presigned_url(key, expires_s)
        assert await backend.store.presigned_url(key, 7 * 86_400)

    async def test_nothing_in_them_can_be_changed(self, backend: Backend) -> None:
        key, other = new_key(), new_key()
        for one in (key, other):
            await backend.store.put(one, b"picture", JPEG)
        url = urlsplit(await backend.store.presigned_url(key, 60))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        names = {"expires", "signature"} if backend.server is None else {"X-Amz-Expires", "X-Amz-Signature"}
        for name in names:
            digit = "1" if query[name][-1] != "1" else "2"
            changed = urlencode({**query, name: query[name][:-1] + digit})
            assert (await fetched(backend, urlunsplit(url._replace(query=changed)))).status_code == 403
        assert (await fetched(backend, urlunsplit(url._replace(path=url.path.replace(key, other))))).status_code == 403
        assert (await fetched(backend, urlunsplit(url._replace(query="")))).status_code == 403

    async def test_they_are_signed_for_the_public_endpoint(self, object_server: ObjectServer) -> None:
        port = object_server.config.endpoint.rpartition(":")[2]
        store = MinioObjectStore(replace(object_server.config, public_endpoint=f"localhost:{port}"))
        try:
            await store.prepare()
            key = new_key()
            await store.put(key, b"picture", JPEG)
            url = await store.presigned_url(key, 60)
            assert urlsplit(url).netloc == f"localhost:{port}"
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(url)).content == b"picture"
                assert (await client.get(url.replace("localhost", HOST))).status_code == 403
        finally:
            await store.close()

    async def test_signing_needs_no_server(self) -> None:
        (port,) = free_ports(1)
        store = MinioObjectStore(
            MinioConfig(f"{HOST}:{port}", "access", "secret-secret", public_endpoint="photos.example.org")
        )
        url = await store.presigned_url("a/b", 60)
        assert url.startswith("http://photos.example.org/kinlens/a/b?") and "secret" not in url
        await store.close()


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
            key, data = f"{prefix}{number}", secrets.token_bytes(20_000)
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

        writers = asyncio.gather(*map(write, range(300)))
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
        assert time.monotonic() - started < 15
        assert refused and len(acknowledged) + len(refused) == 300
        for error in refused:
            assert server.config.secret_key not in str(error) and server.config.endpoint not in str(error)

        await asyncio.to_thread(server.start)
        await store.check()
        got = await asyncio.gather(*map(store.get, acknowledged))
        assert got == list(acknowledged.values())
        await store.put(f"{prefix}again", b"x", JPEG)
        assert {*acknowledged, f"{prefix}again"} <= set(await listed(store, prefix))
        await store.close()

    async def test_a_server_that_hangs(self, server: ObjectServer) -> None:
        """Stopped, not killed: it takes connections and never answers. It is not asked three times, and only threads wait."""
        store, key = MinioObjectStore(replace(server.config, read_timeout_s=2)), new_key()
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
            assert time.monotonic() - started < 3.9
            watch.cancel()
            assert await watch < 1
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
        assert time.monotonic() - started < 5
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
            assert time.monotonic() - started < 5
            await store.close()

    async def test_answers_that_are_not_read_give_their_connections_back(self) -> None:
        """More of them than there are connections: a server that sends the whole object, whatever range was asked for."""
        whole = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
        async with answering(whole) as endpoint, asyncio.timeout(20):
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


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    store = LocalObjectStore(tmp_path / "objects", SIGNING_KEY)
    await store.prepare()
    yield store
    await store.close()


def drafts(root: Path) -> list[Path]:
    return list((root / ".tmp").iterdir())


class TestTheFolder:
    async def test_modes(self, local: LocalObjectStore, tmp_path: Path) -> None:
        previous = os.umask(0)
        try:
            await local.put("collections/1/originals/ab/one", b"x", JPEG)
        finally:
            os.umask(previous)
        root = tmp_path / "objects"
        for path in (root, *root.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700), path
        assert drafts(root) == []

    async def test_the_order_of_a_durable_write(
        self, local: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every new folder is synced into its parent, the bytes before the rename, the rename into its folder."""
        root, events = tmp_path / "objects", list[str]()
        real_fsync, real_replace, real_mkdir, real_unlink = os.fsync, os.replace, os.mkdir, os.unlink

        def name_of(descriptor: int) -> str:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            return "draft" if path.parent.name == ".tmp" else str(path.relative_to(root))

        def fsync(descriptor: int) -> None:
            events.append(f"sync {name_of(descriptor)}")
            real_fsync(descriptor)

        def replace(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            events.append(f"rename to {name_of(dst_dir_fd)}/{target}")
            real_replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        def mkdir(name: str, mode: int, *, dir_fd: int) -> None:
            events.append(f"make {name}")
            real_mkdir(name, mode, dir_fd=dir_fd)

        def unlink(name: str, *, dir_fd: int) -> None:
            events.append(f"unlink {name}")
            real_unlink(name, dir_fd=dir_fd)

        for name, wrapper in (("fsync", fsync), ("replace", replace), ("mkdir", mkdir), ("unlink", unlink)):
            monkeypatch.setattr(os, name, wrapper)
        await local.put("a/b/one", b"x", JPEG)
        assert events == ["sync draft", "make a", "sync .", "make b", "sync a", "rename to a/b/one", "sync a/b"]
        events.clear()
        await local.put("a/b/one", b"y", JPEG)
        assert events == ["sync draft", "rename to a/b/one", "sync a/b"]
        events.clear()
        await local.delete("a/b/one")
        assert events == ["unlink one", "sync a/b"]

    async def test_a_write_that_fails_midway_changes_nothing(self, local: LocalObjectStore, tmp_path: Path) -> None:
        """A limit on the size of files, as real as a full disk: the write itself fails, in the middle."""
        await local.put("a/one", b"old", JPEG)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
        try:
            with pytest.raises(ObjectStoreUnavailable, match="File too large") as caught:
                await local.put("a/one", bytes(3 * MIB), JPEG)
            with pytest.raises(ObjectStoreUnavailable):
                await local.put_stream("a/one", pieces(bytes(3 * MIB)), JPEG)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.details["retry_after_s"] == 2 and str(tmp_path) not in str(caught.value)
        assert await local.get("a/one") == b"old"
        await local.close()
        assert drafts(tmp_path / "objects") == []

    async def test_a_sync_that_fails_is_no_success(
        self, local: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(ObjectStoreUnavailable, match="Input/output error"):
                await local.put("a/one", b"x", JPEG)
        assert not await local.exists("a/one")
        await local.close()
        assert drafts(tmp_path / "objects") == []

    async def test_a_slow_disk_keeps_only_threads_waiting(
        self, local: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            time.sleep(1)
            real_fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        watch = asyncio.create_task(longest_pause())
        await asyncio.gather(local.put("one", b"x", JPEG), local.put_stream("two", pieces(b"x"), JPEG), local.delete("three"))
        watch.cancel()
        assert await watch < 0.9

    async def test_kill_9_of_a_writer(self, local: LocalObjectStore, tmp_path: Path) -> None:
        """What it acknowledged is there, whole; what it had begun is not seen; other writers go on."""
        script = (
            "import asyncio, hashlib, sys\n"
            "from pathlib import Path\n"
            "from serve_app.storage.local_objects import LocalObjectStore\n"
            "async def write(store, writer):\n"
            "    for number in range(10**6):\n"
            "        data = hashlib.sha256(f'{writer}-{number}'.encode()).digest() * 5000\n"
            "        await store.put(f'collections/{writer}/{number}', data, 'image/jpeg')\n"
            "        print(f'{writer}-{number}', flush=True)\n"
            "async def main():\n"
            "    store = LocalObjectStore(Path(sys.argv[1]), b'sixteen or more bytes')\n"
            "    await asyncio.gather(*(write(store, writer) for writer in range(8)))\n"
            "asyncio.run(main())\n"
        )
        root = tmp_path / "objects"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(root), stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(40)]
        process.kill()
        lines += (await process.stdout.read()).splitlines()
        await process.wait()

        acknowledged = [line.decode().strip().split("-") for line in lines]
        assert len(acknowledged) >= 40
        for writer, number in acknowledged:
            assert (await local.stat(f"collections/{writer}/{number}")).size_bytes == 160_000
        for info in (await listed(local, "")).values():
            data = await local.get(info.key)
            assert len(data) == 160_000 and data == data[:32] * 5000

    async def test_drafts_of_a_crash_are_swept(self, local: LocalObjectStore, tmp_path: Path) -> None:
        old, fresh = (tmp_path / "objects" / ".tmp" / name for name in ("old", "fresh"))
        for path in (old, fresh):
            path.write_bytes(b"half")
        os.utime(old, (time.time() - 3700, time.time() - 3700))
        await local.prepare()
        assert drafts(tmp_path / "objects") == [fresh]
        assert await listed(local, "") == {}

    async def test_links_inside_lead_nowhere(self, local: LocalObjectStore, tmp_path: Path) -> None:
        root, outside = tmp_path / "objects", tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (root / "a").mkdir()
        (root / "folder").symlink_to(outside, target_is_directory=True)
        (root / "a" / "file").symlink_to(outside / "secret")
        for attempt in (local.get("folder/secret"), local.get("a/file"), local.get_range("a/file", 0, 1), local.stat("folder/secret"),
                        local.put("folder/mine", b"x", JPEG), local.delete("folder/secret")):  # fmt: skip
            with pytest.raises(ObjectStoreUnavailable):
                await attempt
        assert not await local.exists("a/file")
        assert await listed(local, "") == {}
        await local.put("a/file", b"mine", JPEG)  # takes the place of the link
        assert await local.get("a/file") == b"mine"
        assert [path.name for path in outside.iterdir()] == ["secret"] and (outside / "secret").read_bytes() == b"secret"
        await local.delete("a/file")
        assert (outside / "secret").exists()

    async def test_a_link_in_place_of_the_drafts(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (tmp_path / "objects").mkdir()
        (tmp_path / "objects" / ".tmp").symlink_to(outside, target_is_directory=True)
        store = LocalObjectStore(tmp_path / "objects", SIGNING_KEY)
        with pytest.raises(ConfigurationError, match="DATA_DIR"):
            await store.prepare()
        with pytest.raises(ObjectStoreUnavailable):
            await store.put("a/one", b"x", JPEG)
        assert list(outside.iterdir()) == []
        await store.close()

    async def test_what_is_no_file_is_no_object(self, local: LocalObjectStore, tmp_path: Path) -> None:
        root = tmp_path / "objects"
        os.mkfifo(root / "pipe")
        (root / "Foreign File").write_bytes(b"x")
        (root / "lost+found").mkdir()
        assert await listed(local, "") == {}
        async with asyncio.timeout(5):
            with pytest.raises(ObjectMissing):
                await local.get("pipe")
            assert not await local.exists("pipe")

    async def test_a_folder_that_may_not_be_written(self) -> None:
        with tempfile.TemporaryDirectory() as made, as_nobody(Path(made)):
            root = Path(made) / "objects"
            store = LocalObjectStore(root, SIGNING_KEY)
            await store.prepare()
            await store.put("a/one", b"x", JPEG)
            root.chmod(0o500)
            (root / ".tmp").chmod(0o500)
            (root / "a").chmod(0o500)
            for attempt in (store.put("a/one", b"y", JPEG), store.put("b/one", b"y", JPEG), store.delete("a/one")):
                with pytest.raises(ObjectStoreUnavailable, match="Permission denied"):
                    await attempt
            with pytest.raises(ObjectStoreUnavailable, match="cannot be written"):
                await store.check()
            assert await store.get("a/one") == b"x"
            (root / "a" / "one").chmod(0o000)
            with pytest.raises(ObjectStoreUnavailable, match="Permission denied"):
                await store.get("a/one")
            other = LocalObjectStore(root / "below", SIGNING_KEY)
            with pytest.raises(ConfigurationError, match=r"Permission denied\. Set DATA_DIR"):
                await other.prepare()
            await other.close()
            await store.close()
            for path in (root, root / ".tmp", root / "a"):
                path.chmod(0o700)

    async def test_a_disk_that_is_gone_is_not_an_empty_store(self, local: LocalObjectStore, tmp_path: Path) -> None:
        await local.put("a/one", b"x", JPEG)
        (tmp_path / "objects").rename(tmp_path / "unmounted")
        for attempt in (local.get("a/one"), local.exists("a/one"), local.put("a/two", b"x", JPEG), local.delete("a/one"),
                        local.check(), anext(local.list(""))):  # fmt: skip
            with pytest.raises(ObjectStoreUnavailable):
                await attempt
        assert not (tmp_path / "objects").exists()
        (tmp_path / "unmounted").rename(tmp_path / "objects")
        assert await local.get("a/one") == b"x"

    async def test_folders_that_somebody_tidied_up(self, local: LocalObjectStore, tmp_path: Path) -> None:
        await local.put("a/b/one", b"x", JPEG)
        await local.delete("a/b/one")
        for path in ("a/b", "a", ".tmp"):
            (tmp_path / "objects" / path).rmdir()
        await local.put("a/b/one", b"y", JPEG)
        assert await local.get("a/b/one") == b"y"

    async def test_close_waits_for_writes(self, tmp_path: Path) -> None:
        store = LocalObjectStore(tmp_path / "objects", SIGNING_KEY)
        await store.prepare()
        writes = [asyncio.create_task(store.put(f"a/{number}", bytes(10_000), JPEG)) for number in range(50)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*writes)
        assert len(list((tmp_path / "objects" / "a").iterdir())) == 50
        assert not [thread for thread in threading.enumerate() if thread in store._executor._threads]


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """root may write everywhere: gives `folder` to another user, and becomes that user for a while."""
    if os.geteuid() != 0:
        yield
        return
    folder.chmod(0o700)
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestSignatures:
    key = "collections/1/originals/ab/one"

    def signed(self, store: LocalObjectStore, key: str, expires: int) -> str:
        return store._signature(key, expires)

    async def test_a_url_and_its_parts(self, local: LocalObjectStore) -> None:
        url = urlsplit(await local.presigned_url(self.key, 60))
        query = parse_qs(url.query, strict_parsing=True)
        assert url.path == f"/api/v1/objects/{self.key}" and set(query) == {"expires", "signature"}
        assert 58 <= int(query["expires"][0]) - time.time() <= 60
        assert local.verify_signature(self.key, query["expires"][0], query["signature"][0])

    async def test_another_key_and_another_secret(self, local: LocalObjectStore, tmp_path: Path) -> None:
        expires = int(time.time()) + 60
        signature = self.signed(local, self.key, expires)
        other = LocalObjectStore(tmp_path / "objects", b"another key of the tests")
        assert local.verify_signature(self.key, str(expires), signature)
        assert not other.verify_signature(self.key, str(expires), signature)
        assert not local.verify_signature(f"{self.key}x", str(expires), signature)
        assert not local.verify_signature(self.key, str(expires + 1), signature)
        await other.close()

    async def test_times(self, local: LocalObjectStore) -> None:
        now = int(time.time())
        for expires, expected in ((now + 60, True), (now + 7 * 86_400 - 1, True), (now - 1, False), (now, False), (1, False),
                                  (now + 7 * 86_400 + 60, False), (10**11, False)):  # fmt: skip
            assert local.verify_signature(self.key, str(expires), self.signed(local, self.key, expires)) is expected

    @pytest.mark.parametrize(
        "expires", ["", "-1", "0", "1e9", "１２３", " 1", "1 ", "+1", "0x10", "9" * 13, "9" * 5000, "nan", "1\n", "1_0"]
    )
    async def test_absurd_times(self, local: LocalObjectStore, expires: str) -> None:
        assert not local.verify_signature(self.key, expires, "0" * 64)

    @settings(deadline=None, max_examples=50)
    @given(key=st.text(), expires=st.text(), signature=st.text())
    def test_anything_is_refused_without_raising(self, key: str, expires: str, signature: str) -> None:
        assert not STATELESS.verify_signature(key, expires, signature)

    def test_a_short_signing_key_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError):
            LocalObjectStore(tmp_path, b"short")


STATELESS = LocalObjectStore(Path("/nonexistent"), SIGNING_KEY)


class TestKeys:
    segments = st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,30}\Z").filter(lambda text: ".." not in text)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(segments, min_size=1, max_size=8))
    def test_keys_of_ours(self, parts: list[str]) -> None:
        key = "/".join(parts)
        check_key(key)
        check_prefix(f"{key}/")
        assert quote(key) == key
        assert str(PurePosixPath("/root") / key) == os.path.normpath(f"/root/{key}") == f"/root/{key}"

    @settings(deadline=None, max_examples=50)
    @given(st.text(st.sampled_from("ab0./-_\\A %\x00\n\u0430é:"), max_size=20))
    @example("a\n")
    @example("a/b\n")
    @example("a/./b")
    @example("a/..")
    @example("a..b")
    @example("-a")
    @example("x" * 256)
    def test_what_passes_is_harmless(self, key: str) -> None:
        """By other means than the rule itself: no path leaves the root, no quoting changes anything."""
        if not is_key(key):
            return
        assert quote(key) == key.lower() == key and key.isascii() and key.isprintable()
        assert os.path.normpath(f"/root/{key}") == f"/root/{key}" and ".." not in key
        assert not any(part.startswith((".", "-", "_")) or not part or len(part) > 255 for part in key.split("/"))

    @pytest.mark.parametrize(
        "key", ["", "/", ".", "..", "/a", "a/", "a//b", "../a", "a/../b", "a/..", "a..b", ".a", "-a", "A", "ä", "a b", "a\\b", "a%2e", "a\x00",
                "a\n", "a:b", "x" * 256, "x/" * 256 + "x"],
    )  # fmt: skip
    def test_keys_that_are_refused(self, key: str) -> None:
        with pytest.raises(ValueError):
            check_key(key)

    def test_the_longest_keys(self) -> None:
        check_key(f"{'x' * 255}/{'y' * 255}")
        check_key("x/" * 255 + "xx")

    @pytest.mark.parametrize("prefix", ["a", "/", "a//", "../", "A/"])
    def test_prefixes_that_are_refused(self, prefix: str) -> None:
        with pytest.raises(ValueError):
            check_prefix(prefix)
        check_prefix("")

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 2**63 - 1), st.uuids(), st.integers(1, 10_000))
    def test_built_keys(self, number: int, identity: UUID, width_px: int) -> None:
        keys = [original_key(number, identity), crop_key(number, identity), thumbnail_key(number, identity, width_px)]
        for key in keys:
            check_key(key)
            assert key.startswith(collection_prefix(number)) and identity.hex in key
        assert len(set(keys)) == 3

    def test_what_they_look_like(self) -> None:
        identity = UUID("0198f6a1-7c3e-7d2b-9a41-5d8e3f10a7c2")
        assert original_key(7, identity) == "collections/7/originals/c2/0198f6a17c3e7d2b9a415d8e3f10a7c2"
        assert crop_key(7, identity) == "collections/7/crops/c2/0198f6a17c3e7d2b9a415d8e3f10a7c2.png"
        assert thumbnail_key(7, identity, 256) == "collections/7/thumbnails/256/c2/0198f6a17c3e7d2b9a415d8e3f10a7c2.jpg"
        with pytest.raises(ValueError):
            collection_prefix(-1)
        with pytest.raises(ValueError):
            thumbnail_key(1, identity, 0)
        every = thumbnail_keys(7, identity)
        assert len(set(every)) == 15 and "collections/7/thumbnails/320/c2/0198f6a17c3e7d2b9a415d8e3f10a7c2.avif" in every
