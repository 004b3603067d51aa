"""Objects in a folder: what the disk may do to them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.errors import ConfigurationError, ObjectStoreUnavailable
from serve_app.storage.local_objects import LocalObjectStore
from serve_app.storage.objects import (
    ObjectMissing,
)
from tests.storage.object_servers import SIGNING_KEY
from tests.storage.object_world import JPEG, MIB, listed, pieces


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
        real_fsync, waiting, go_on = os.fsync, threading.Semaphore(0), threading.Event()

        def fsync(descriptor: int) -> None:
            waiting.release()
            assert go_on.wait(60), "the event loop waits for the disk, and nobody says when it is done"
            real_fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        calls = asyncio.gather(
            local.put("one", b"x", JPEG), local.put_stream("two", pieces(b"x"), JPEG), local.delete("three")
        )
        for _ in range(2):
            while not waiting.acquire(blocking=False):  # noqa: ASYNC110  threads tell it
                await asyncio.sleep(0.01)
        go_on.set()
        await calls

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
        async with asyncio.timeout(60):
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
