"""`kinlens index` on a real Postgres, real object stores and real sources; only the two models are fakes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve_app.bulk.files import Outcome, SourceFile, Status
from serve_app.bulk.folder import FolderSource
from serve_app.bulk.run import BulkRun, RunOptions, WorkerFailed, WorkersGone
from serve_app.errors import ObjectStoreUnavailable
from serve_app.gallery import contract_of
from serve_app.jobs import JobKind, JobState
from serve_app.services.indexing import PhotoIndexer, indexed_with
from serve_app.services.review import ReviewLimits
from serve_app.services.scanning import ScanWorker
from serve_app.services.worker import Worker
from serve_app.storage.local_objects import LocalObjectStore
from tests.api.conftest import KEY
from tests.storage.bulk_program import COLLECTION, Detector, opened, run
from tests.storage.bulk_world import fill, listed, photo, whole
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.jobs_world import ended

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "photos"
    found.mkdir()
    return found


class TestFolder:
    async def test_everything_comes_in_once_and_is_known_then(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 50)
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):
            summary, outcomes = await run(pool, database)
            assert summary.complete and summary.statuses == {Status.INDEXED: 50} and summary.faces == 100
            assert len(outcomes) == 50 and pool.calls >= 4
            await whole(stored, 50, 100)
            calls = pool.calls
            summary, _ = await run(pool, database)
            assert summary.complete and summary.statuses == {Status.KNOWN: 50}
            assert pool.calls == calls, "something was read"
            files = listed(root)
            # Touched: it is read, and its bytes are known.
            os.utime(files[0], (1, 1))
            # Changed: it is another picture.
            files[-1].write_bytes(photo(99))
            summary, _ = await run(pool, database)
            assert summary.statuses == {Status.KNOWN: 48, Status.EXISTS: 1, Status.INDEXED: 1}
            await whole(stored, 51, 102)

    async def test_what_comes_of_it_is_what_a_scan_makes(self, make_stored: MakeStoredWorld, root: Path) -> None:
        fill(root, 20)
        (root / "nobody.jpg").write_bytes(photo(500, faces=0))
        world = make_stored(scan_roots=(str(root),), library_collection="scanned")
        await world.gallery.objects.prepare()
        world.services.pipeline._detector = Detector()
        model, gallery = world.services.model, world.gallery
        indexer = PhotoIndexer(
            world.services.pipeline, gallery.database, gallery.objects, contract_of(model), indexed_with(model),
            ReviewLimits().for_detector(model.detector.family),
        )  # fmt: skip
        scanning = ScanWorker(gallery.database, gallery.photos, (root,), 1 << 20, indexer)
        worker = Worker(gallery.database, lambda: world.dsn, {JobKind.SCAN: scanning}, 4)
        response = await world.client.post("/api/v1/photos/scan-path", json={"path": str(root)})
        worker.start()
        job = await ended(gallery.database, response.json()["job_id"])
        await worker.stop(5)
        assert job.state is JobState.DONE and job.progress.failed == 0
        async with opened(world.dsn, gallery.objects, FolderSource(root)) as (pool, database):
            summary, _ = await run(pool, database)
        assert summary.statuses == {Status.INDEXED: 21}
        columns = (
            "encode(i.sha256, 'hex') AS sha256, i.size_bytes, i.format, i.width_px, i.height_px, p.file_name, p.folder,"
            " p.taken_at, p.taken_local, p.camera, p.latitude, p.orientation, p.tag_count, p.texts, p.words_version,"
            " p.indexed_with, t.words::text AS words, t.taken_at AS text_taken_at, f.bbox, f.landmarks, f.detection_score,"
            " f.quality, f.unassigned, f.found_by, f.decided_by, f.taken_at AS face_taken_at, f.person_id, f.crop_key IS NULL"
        )
        made = {}
        for name in ("scanned", COLLECTION):
            made[name] = await world.rows(
                f"SELECT {columns} FROM images i JOIN collections c ON c.key = i.collection_key AND c.id = $1"
                " JOIN photos p ON p.image_id = i.id JOIN photo_texts t ON t.photo_id = p.id"
                " LEFT JOIN faces f ON f.image_id = i.id ORDER BY sha256, f.id",
                name,
            )
        assert len(made["scanned"]) == 41
        assert [dict(row) for row in made["scanned"]] == [dict(row) for row in made[COLLECTION]]
        vectors = [
            await world.rows(f"SELECT e.embedding::text FROM embeddings_m1_c{world.first_key + place} e ORDER BY 1")
            for place in range(2)
        ]
        assert len(vectors[0]) == 40 and vectors[0] == vectors[1]

    async def test_twins_and_what_the_library_has(self, stored: StoredWorld, root: Path) -> None:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            (root / name).write_bytes(photo(1))
        (root / "uploaded.jpg").write_bytes(photo(2))
        answer = await stored.client.post("/api/v1/photos/upload", files={"files": ("u.jpg", photo(2))})
        assert answer.status_code == 200 and answer.json()["created"] == 1
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):
            summary, outcomes = await run(pool, database)
            assert summary.statuses == {Status.INDEXED: 1, Status.EXISTS: 3}
            assert outcomes["uploaded.jpg"].status is Status.EXISTS
            # Its faces were not looked for before: they are now.
            await whole(stored, 2, 4)
            summary, _ = await run(pool, database)
            assert summary.statuses == {Status.KNOWN: 4}

    async def test_a_picture_that_somebody_was_enrolled_from(self, stored: StoredWorld, root: Path) -> None:
        (root / "a.jpg").write_bytes(photo(1, faces=1))
        address = await stored.collection(COLLECTION)
        person = await stored.person(address, name="Anna")
        answer = await stored.client.post(f"{address}/persons/{person}/faces", files={"files": ("a.jpg", photo(1, faces=1))})
        assert answer.status_code == 201, answer.text
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):
            summary, _ = await run(pool, database)
        assert summary.statuses == {Status.INDEXED: 1}
        rows = await stored.rows("SELECT person_id, found_by FROM faces")
        assert [(str(row["person_id"]), row["found_by"]) for row in rows] == [(person, "enrolment")]

    async def test_an_erased_photo_comes_in_again_and_leaves_no_trace_before(self, stored: StoredWorld, root: Path) -> None:
        (root / "a.jpg").write_bytes(photo(1))
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):
            await run(pool, database)
            (row,) = await stored.rows("SELECT id FROM photos")
            answer = await stored.client.delete(f"/api/v1/photos/{row['id']}")
            assert answer.status_code == 200 and not await stored.rows("SELECT 1 FROM indexed_files")
            summary, _ = await run(pool, database)
            assert summary.statuses == {Status.INDEXED: 1}

    async def test_links_hidden_files_and_what_is_no_picture(self, stored: StoredWorld, root: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret.jpg"
        secret.write_bytes(photo(9))
        (root / "link.jpg").symlink_to(secret)
        (root / "linked").symlink_to(tmp_path)
        (root / ".hidden.jpg").write_bytes(photo(8))
        os.mkfifo(root / "pipe.jpg")
        (root / "a.dng").write_bytes(b"II*\0" + bytes(40))
        (root / "a.mov").write_bytes(bytes(4) + b"ftypqt  " + bytes(20))
        (root / "large.mp4").write_bytes(bytes(3000))
        (root / "notes.txt").write_bytes(b"hello")
        (root / "broken.jpg").write_bytes(photo(3) + b"broken")
        (root / "large.jpg").write_bytes(photo(4) + bytes(3000))
        (root / os.fsdecode(b"\xff\n.jpg")).write_bytes(photo(5))
        (root / "empty.jpg").write_bytes(b"")
        source = FolderSource(root)
        async with opened(stored.dsn, stored.gallery.objects, source, max_image_bytes=2000) as (pool, database):
            summary, outcomes = await run(pool, database)
        failed = {name: one.code for name, one in outcomes.items() if one.status is Status.FAILED}
        assert failed == {"broken.jpg": "invalid_image", "large.jpg": "image_too_large", "empty.jpg": "invalid_image"}
        skipped = {name: one.code for name, one in outcomes.items() if one.status is Status.SKIPPED}
        assert skipped == {"a.dng": "raw", "a.mov": "video", "large.mp4": "video", "notes.txt": "not_a_picture"}
        assert summary.statuses[Status.INDEXED] == 1 and not summary.complete
        await whole(stored, 1, 2)

    async def test_a_file_that_becomes_a_link_after_it_was_listed(
        self, stored: StoredWorld, root: Path, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret.jpg"
        secret.write_bytes(photo(9))
        (root / "a.jpg").write_bytes(photo(1))
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):

            def swap(worker: int, files: Sequence[SourceFile]) -> None:
                (root / "a.jpg").unlink()
                (root / "a.jpg").symlink_to(secret)

            pool.hook = swap
            summary, outcomes = await run(pool, database)
        assert outcomes["a.jpg"].code == "link" and summary.statuses == {Status.SKIPPED: 1}

    async def test_limits_and_jobs_for_what_photos_show(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 40)
        automatic = (JobKind.EMBEDDINGS,)
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root), automatic=automatic) as (pool, database):
            summary, _ = await run(pool, database, RunOptions(COLLECTION, limit=21))
            assert summary.statuses == {Status.INDEXED: 21}
            found: list[Outcome] = []
            dry = await BulkRun(None, pool.source, database, RunOptions(COLLECTION), found.append).run()
            assert dry.new == 19 and dry.statuses == {Status.KNOWN: 21}
        (row,) = await stored.rows(
            "SELECT count(*) FROM job_items i JOIN jobs j ON j.id = i.job_id WHERE j.kind LIKE 'embed%'"
        )
        assert row["count"] == 21

    async def test_a_share_that_goes_away_is_no_run_without_fault(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 20)
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):

            def unmount(worker: int, files: Sequence[SourceFile]) -> None:
                if root.exists():
                    root.rename(root.with_name("elsewhere"))

            pool.hook = unmount
            summary, outcomes = await run(pool, database)
        assert summary.statuses == {Status.FAILED: 20} and not summary.complete
        assert {one.code for one in outcomes.values()} == {"file_unreadable"}

    async def test_a_folder_nobody_may_read(self, stored: StoredWorld, root: Path, tmp_path: Path) -> None:
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(tmp_path / "gone")) as (pool, database):
            summary, _ = await run(pool, database)
        assert summary.gave_up is not None and "No such file" in summary.gave_up


class TestTrouble:
    async def test_killed_again_and_again_nothing_is_lost_or_twice(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 120)
        objects = stored.folder / "objects"
        command = [sys.executable, "-m", "tests.storage.bulk_program", stored.dsn, str(objects), str(root)]
        ends = []
        for kill_after in (17, 33, 1, 0):
            done = await asyncio.to_thread(
                subprocess.run, [*command, str(kill_after)], cwd=ROOT, capture_output=True, timeout=120, check=False
            )
            ends.append(done.returncode)
        assert ends == [-9, -9, -9, 0], done.stderr.decode()
        await whole(stored, 120, 240)

    async def test_workers_that_die_cost_nobody_else_anything(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 40)
        (root / "fatal.jpg").write_bytes(photo(900))
        (root / "odd.jpg").write_bytes(photo(901))

        def die(worker: int, files: Sequence[SourceFile]) -> None:
            names = [one.name for one in files]
            if "fatal.jpg" in names:
                raise WorkerFailed("The worker that read this file died.", died=True)
            if "odd.jpg" in names:
                raise WorkerFailed("ZeroDivisionError", died=False)

        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):
            pool.hook = die
            summary, outcomes = await run(pool, database)
        assert summary.statuses == {Status.INDEXED: 40, Status.FAILED: 2}
        assert (outcomes["fatal.jpg"].code, outcomes["odd.jpg"].code) == ("worker_died", "internal_error")
        await whole(stored, 40, 80)

    async def test_stores_that_are_away_for_a_while_and_for_good(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 20)
        broken = True

        class Objects(LocalObjectStore):
            async def put(self, key: str, data: bytes, content_type: str) -> None:
                if broken:
                    raise ObjectStoreUnavailable("The object store failed: away.")
                await super().put(key, data, content_type)

        objects = Objects(stored.folder / "objects", KEY.encode())
        await objects.prepare()
        async with opened(stored.dsn, objects, FolderSource(root)) as (pool, database):
            summary, _ = await run(pool, database, RunOptions(COLLECTION, give_up_after_s=1))
            assert summary.gave_up is not None and "away" in summary.gave_up and not summary.statuses
            assert not await stored.object_keys() and not await stored.rows("SELECT 1 FROM photos")

            async def mend() -> None:
                nonlocal broken
                await asyncio.sleep(1)
                broken = False

            mending = asyncio.create_task(mend())
            summary, _ = await run(pool, database)
            await mending
        assert summary.complete and summary.statuses == {Status.INDEXED: 20}
        await whole(stored, 20, 40)
        assert len(await stored.object_keys()) == 60

    async def test_stopped_it_ends_what_it_began(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 300)
        found: list[Outcome] = []
        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):
            bulk = BulkRun(pool, pool.source, database, RunOptions(COLLECTION), found.append)

            def stop(worker: int, files: Sequence[SourceFile]) -> None:
                if pool.calls == 4:
                    bulk.stop()

            pool.hook = stop
            summary = await bulk.run()
            assert summary.stopped and not summary.complete
            assert 16 <= len(found) <= 16 * 7
            await whole(stored, len(found), 2 * len(found))
            summary, _ = await run(pool, database)
            await whole(stored, 300, 600)

    async def test_no_worker_can_be_started_any_more(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 20)

        def gone(worker: int, files: Sequence[SourceFile]) -> None:
            raise WorkersGone("none")

        async with opened(stored.dsn, stored.gallery.objects, FolderSource(root)) as (pool, database):
            pool.hook = gone
            summary, _ = await run(pool, database)
        assert summary.gave_up == "none"

    async def test_two_runs_at_once_and_a_collection_that_is_erased(self, stored: StoredWorld, root: Path) -> None:
        fill(root, 60)
        objects = stored.gallery.objects
        async with (
            opened(stored.dsn, objects, FolderSource(root)) as (one, first),
            opened(stored.dsn, objects, FolderSource(root)) as (two, second),
        ):
            both = await asyncio.gather(run(one, first), run(two, second))
            assert all(summary.complete for summary, _ in both)
            await whole(stored, 60, 120)
            # What was put for nothing is gone.
            for pool in (one, two):
                await pool.indexer._photos.settle(60)
                await pool.indexer._indexer.settle(60)
            await stored.gallery.housekeeping.once()
            assert len(await stored.object_keys()) == 180
            answer = await stored.client.delete(f"/api/v1/collections/{COLLECTION}")
            assert answer.status_code == 200 and not await stored.rows("SELECT 1 FROM indexed_files")
