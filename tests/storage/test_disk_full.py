"""A disk that runs full, for real: Postgres and the folder of objects on a small file system of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from serve_app.api.deps import Secrets
from serve_app.postgres.local import EmbeddedPostgres, dsn
from serve_app.storage import schema
from serve_app.storage.local_objects import LocalObjectStore
from tests.api.conftest import KEY
from tests.storage.conftest import MakeStoredWorld
from tests.storage.test_durability import writers

FULL_S = 4.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=256m,mode=0711", "kinlens-tests", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as stream:
        for size in (1 << 20, 4 << 10, 1):
            with suppress(OSError):
                while stream.write(b"\0" * size) == size:
                    pass


@pytest.mark.parametrize("objects_too", [True, False])
async def test_a_full_disk_loses_nothing_and_heals_by_itself(
    small_disk: Path, tmp_path: Path, make_stored: MakeStoredWorld, objects_too: bool
) -> None:
    """Where objects have room elsewhere, Postgres is the one to fail, in the middle of transactions."""
    postgres, filler = small_disk / "postgres", small_disk / "filler"
    with EmbeddedPostgres(postgres) as server:
        server.supervise()
        await asyncio.to_thread(schema.upgrade, dsn(postgres))
        objects = LocalObjectStore((small_disk if objects_too else tmp_path) / "objects", Secrets.of(KEY).object_urls)
        world = make_stored(dsn=lambda: dsn(postgres), objects=objects)
        load = await writers(world)
        recovered_s = 0.0

        async def trouble() -> None:
            nonlocal recovered_s
            await asyncio.sleep(0.5)
            end = time.monotonic() + FULL_S
            # Few writers on a slow machine need longer until they need room.
            while time.monotonic() < end or (not load.statuses[503] and time.monotonic() < end + 60):
                await asyncio.to_thread(fill, filler)
                await asyncio.sleep(0.2)
            filler.unlink()
            freed = time.monotonic()
            recovered_s = await load.wait_for_success(freed, 90)

        await load.run(6, trouble)
        print(f"\na full disk: {dict(load.statuses)}, {dict(load.codes)}; {recovered_s:.1f} s after there was room again")
        assert set(load.statuses) == {201, 503}, load.codes
        assert set(load.codes) <= {"database_unavailable", "object_store_unavailable", "overloaded"}, load.codes
        world.dsn = dsn(postgres)
        await load.check()
        await world.services.access.close()
        await world.gallery.close()
