"""Addresses of objects that need no key: of every backend, and what the local one signs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.ports import HOST
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.minio_objects import MinioConfig, MinioObjectStore
from tests.storage.object_servers import SIGNING_KEY, Backend, ObjectServer, free_ports
from tests.storage.object_world import JPEG, fetched, new_key


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


class TestSignatures:
    key = "collections/1/originals/ab/one"

    def signed(self, store: LocalObjectStore, key: str, expires: int) -> str:
        return store._signature(key, expires)

    async def test_a_url_and_its_parts(self, local: LocalObjectStore) -> None:
        url = urlsplit(await local.presigned_url(self.key, 60))
        query = parse_qs(url.query, strict_parsing=True)
        assert url.path == f"/api/v1/objects/{self.key}" and set(query) == {"expires", "signature"}
        assert 30 <= int(query["expires"][0]) - time.time() <= 60
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
