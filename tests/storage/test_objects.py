"""The object store: the same promises from a folder, from SeaweedFS and from MinIO."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.errors import ObjectStoreUnavailable
from serve_app.storage.objects import (
    CHUNK_BYTES,
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
from tests.storage.object_servers import NO_MINIO, SERVERS, Backend
from tests.storage.object_world import JPEG, MIB, collected, listed, new_key, new_prefix, pieces


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
        key, begun = new_key(), datetime.now(UTC)
        await object_store.put(key, b"0123456789", JPEG)
        info = await object_store.stat(key)
        assert (info.key, info.size_bytes) == (key, 10)
        assert info.modified_at.tzinfo is UTC
        # Some stores tell whole seconds, and a folder's clock is a tick behind.
        assert begun - timedelta(seconds=2) < info.modified_at < datetime.now(UTC) + timedelta(seconds=2)
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
        async with asyncio.timeout(120):
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
