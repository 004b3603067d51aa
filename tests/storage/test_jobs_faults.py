"""Jobs when things die: workers, Postgres and the object store are killed, for real, in the middle of a thousand photos. Every
photo is indexed once, and what failed says why."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve_app.postgres.local import dsn
from serve_app.services.photos import Upload, Uploaded
from serve_app.services.writing import Once
from serve_app.storage.minio_objects import MinioObjectStore
from tests.api.conftest import image
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.job_worker import FATAL, SPOILT
from tests.storage.object_servers import ObjectServer
from tests.storage.test_durability import own_postgres, postmaster  # noqa: F401  a fixture

ROOT = Path(__file__).resolve().parents[2]
JOBS = "/api/v1/jobs"


# Each step has a limit of its own.
pytestmark = pytest.mark.timeout(900)


@dataclass
class Shop:
    """A library, its API and its workers."""

    world: StoredWorld
    postgres: Path
    objects: ObjectServer
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def hire(self, *, delay_s: float = 0.02, at_once: int = 4, mended: bool = False) -> subprocess.Popen[bytes]:
        config = {
            "postgres": str(self.postgres),
            "objects": asdict(self.objects.config),
            "delay_s": delay_s,
            "at_once": at_once,
            "mended": mended,
        }
        with self._log(len(self.workers)).open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.storage.job_worker", json.dumps(config)], cwd=ROOT, stdout=log, stderr=log
            )
        self.workers.append(worker)
        return worker

    def _log(self, number: int) -> Path:
        return self.folder / f"worker-{number}.log"

    async def ready(self, timeout_s: float = 120) -> None:
        """Until the last one that was hired is at work."""
        begun = time.monotonic()
        while b"ready" not in self._log(len(self.workers) - 1).read_bytes():
            assert self.workers[-1].poll() is None and time.monotonic() - begun < timeout_s, "it does not start"
            await asyncio.sleep(0.05)

    def fire(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(20)
            worker.kill()
            worker.wait()

    async def upload(self, count: int, ends: dict[int, bytes] | None = None) -> None:
        """Photos of one to three faces each."""

        async def one(number: int) -> None:
            data = image(1 + number % 3, number % 4) + f"-{number}-".encode() + (ends or {}).get(number, b"")
            once: Once[Uploaded] = Once(None, lambda _: (200, b""))
            await self.world.gallery.photos.upload(Upload(data, f"{number:04d}.jpg"), once)

        await one(0)  # makes the library
        for begin in range(1, count, 8):
            await asyncio.gather(*(one(number) for number in range(begin, min(count, begin + 8))))

    async def index(self) -> str:
        answer = await self.world.client.post("/api/v1/index/faces")
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["job_id"]
        return job_id

    async def job(self, job_id: str) -> dict[str, Any]:
        """Waits while the database is down."""
        while True:
            answer = await self.world.client.get(f"{JOBS}/{job_id}")
            if answer.status_code == 200:
                found: dict[str, Any] = answer.json()
                return found
            await asyncio.sleep(0.1)

    async def reached(self, job_id: str, ended: int, timeout_s: float = 240) -> float:
        """Seconds until so many items have ended."""
        begun = time.monotonic()
        while True:
            progress = (await self.job(job_id))["progress"]
            if progress["total"] - progress["remaining"] >= ended:
                return time.monotonic() - begun
            assert time.monotonic() - begun < timeout_s, progress
            await asyncio.sleep(0.05)

    async def over(self, job_id: str, timeout_s: float = 240) -> dict[str, Any]:
        begun = time.monotonic()
        while (job := await self.job(job_id))["state"] in ("queued", "running"):
            assert time.monotonic() - begun < timeout_s, job
            await asyncio.sleep(0.1)
        return job

    async def delayed(self, job_id: str, code: str, timeout_s: float = 60) -> None:
        """Until it is put off for that. Between two tries it is not."""
        begun = time.monotonic()
        while ((found := (await self.job(job_id))["delayed"]) or {}).get("code") != code:
            assert time.monotonic() - begun < timeout_s, found
            await asyncio.sleep(0.05)

    async def check(self, photos: int, without: int = 0) -> None:
        """Every photo has its faces, once; every face has its embedding and its crop."""
        self.world.dsn = dsn(self.postgres)
        rows = await self.world.rows(
            "SELECT p.file_name, count(f.id) AS faces, count(DISTINCT f.bbox) AS places FROM photos p"
            " LEFT JOIN faces f ON f.image_id = p.image_id GROUP BY p.id, p.file_name"
        )
        assert len(rows) == photos
        wrong = [row for row in rows if not row["faces"] == row["places"] == 1 + int(row["file_name"][:4]) % 3]
        assert len(wrong) == without, wrong[:5]
        faces = {row["id"]: row["crop_key"] for row in await self.world.rows("SELECT id, crop_key FROM faces")}
        assert {row["face_id"] for row in await self.world.rows("SELECT face_id FROM embeddings")} == set(faces)
        assert set(faces.values()) <= await self.world.object_keys()
        counted = await self.world.rows("SELECT state, count(*) AS n FROM job_items GROUP BY state")
        summed = await self.world.rows("SELECT sum(done) AS done, sum(failed) AS failed FROM job_progress")
        states = {row["state"]: row["n"] for row in counted}
        assert (states.get("done", 0), states.get("failed", 0)) == (summed[0]["done"], summed[0]["failed"])


@pytest.fixture
async def shop(
    own_postgres: Path,
    object_server: ObjectServer,
    make_stored: MakeStoredWorld,
    tmp_path: Path,
) -> AsyncIterator[Shop]:
    world = make_stored(objects=MinioObjectStore(object_server.config), dsn=lambda: dsn(own_postgres), index_uploads=False)
    await world.gallery.objects.prepare()
    made = Shop(world, own_postgres, object_server, tmp_path)
    yield made
    await asyncio.to_thread(made.fire)
    await asyncio.to_thread(object_server.restart)


async def test_a_thousand_photos_whatever_dies(shop: Shop) -> None:
    spoilt = dict.fromkeys((7, 250, 500, 750, 993), SPOILT)
    await shop.upload(1000, spoilt)
    for _ in range(2):
        shop.hire()
    job_id = await shop.index()

    await shop.reached(job_id, 100)
    shop.workers[0].kill()
    killed = time.monotonic()
    shop.hire()
    await shop.reached(job_id, 300)

    os.kill(await postmaster(shop.postgres), 9)
    at = (await shop.job(job_id))["progress"]
    down = await shop.reached(job_id, at["total"] - at["remaining"] + 1)

    await shop.reached(job_id, 600)
    shop.objects.kill()
    await asyncio.sleep(5)
    await shop.delayed(job_id, "object_store_unavailable")
    at = (await shop.job(job_id))["progress"]
    await asyncio.to_thread(shop.objects.restart)
    back = await shop.reached(job_id, at["total"] - at["remaining"] + 3)

    job = await shop.over(job_id)
    shop.world.dsn = dsn(shop.postgres)
    (row,) = await shop.world.rows(
        "SELECT count(*) AS items, extract(epoch FROM max(finished_at) - now()) AS ago FROM job_items WHERE deaths > 0"
    )
    print(
        f"\n1,000 photos in {job['progress']['rate_per_s']:.0f}/s; Postgres killed: next photo after {down:.1f} s; object store"
        f" back: {back:.1f} s; items that lost their worker: {row['items']}, the last done"
        f" {time.monotonic() - killed + float(row['ago'] or 0):.1f} s after it"
    )
    assert job["state"] == "done"
    assert (job["progress"]["done"], job["progress"]["failed"]) == (995, 5)
    assert max(down, back) < 60
    failed = (await shop.world.client.get(f"{JOBS}/{job_id}/items?state=failed")).json()["items"]
    assert {item["error"]["code"] for item in failed} == {"invalid_image"} and len(failed) == 5
    assert len(job["last_failures"]) == 5
    await shop.check(1000, without=5)

    # Somebody mends what was wrong, and has it tried again.
    await asyncio.to_thread(shop.fire)
    shop.hire(mended=True)
    assert (await shop.world.client.post(f"{JOBS}/{job_id}/retry-failed")).status_code == 202
    job = await shop.over(job_id)
    assert (job["progress"]["done"], job["progress"]["failed"]) == (1000, 0)
    await shop.check(1000)


async def test_a_killed_worker_is_replaced_within_seconds(shop: Shop) -> None:
    await shop.upload(60)
    victim = shop.hire(delay_s=0.3, at_once=2)
    job_id = await shop.index()
    await shop.reached(job_id, 4)
    victim.kill()
    killed = time.monotonic()
    shop.hire(delay_s=0.01)
    await shop.ready()
    ready = time.monotonic()
    job = await shop.over(job_id)
    took = time.monotonic() - killed
    print(f"\nthe last item of a killed worker was done {took:.1f} s after it")
    # Of the one that takes over, what counts is what it needs once it has started.
    assert job["progress"]["done"] == 60 and time.monotonic() - ready < 40
    await shop.check(60)


async def test_what_kills_its_worker_fails_and_nothing_else_does(shop: Shop) -> None:
    await shop.upload(40, {20: FATAL})
    job_id = await shop.index()
    shop.hire()
    deaths = 0
    deadline = time.monotonic() + 400
    while (await shop.job(job_id))["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        if shop.workers[-1].poll() is not None:
            deaths += 1
            # As Serve would.
            shop.hire()
        await asyncio.sleep(0.2)
    job = await shop.job(job_id)
    assert (job["progress"]["done"], job["progress"]["failed"], deaths) == (39, 1, 3)
    assert job["last_failures"][0]["error"]["code"] == "worker_died"
    await shop.check(40, without=1)
