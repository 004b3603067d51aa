"""Scans of folders of the server: what comes in, what is told of, and that nothing leads out of the root."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from serve_app.errors import FileUnreadable, InvalidImage, ObjectStoreUnavailable
from serve_app.gallery import contract_of
from serve_app.jobs import ItemState, Job, JobKind, JobState
from serve_app.server_files import NotAFile, entries, of_subject, read_file, to_subject
from serve_app.services.indexing import PhotoIndexer, indexed_with
from serve_app.services.review import ReviewLimits
from serve_app.services.scanning import ScanWorker
from serve_app.services.work import ItemHandler
from serve_app.services.worker import Worker
from tests.api.conftest import JPEG, image
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.jobs_world import ended, items_of, look, until

SCAN = "/api/v1/photos/scan-path"


def photo(number: int, size: int = 64) -> bytes:
    return (JPEG + number.to_bytes(4, "big") + hashlib.sha256(bytes([number % 251])).digest() * (size // 32 + 1))[:size]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "srv" / "photos"
    found.mkdir(parents=True)
    return found


@pytest.fixture
async def world(make_stored: MakeStoredWorld, root: Path) -> StoredWorld:
    made = make_stored(scan_roots=(str(root),), index_uploads=False)
    await made.gallery.objects.prepare()
    return made


def scanner(world: StoredWorld, *, faces: bool = False) -> ScanWorker:
    """`faces`: finds them at once."""
    settings, gallery, model = world.services.settings, world.gallery, world.services.model
    indexer = PhotoIndexer(
        world.services.pipeline, gallery.database, gallery.objects, contract_of(model), indexed_with(model), ReviewLimits()
    )
    limits = settings.scan_roots, settings.max_image_bytes
    return ScanWorker(gallery.database, gallery.photos, *limits, indexer if faces else None)


@asynccontextmanager
async def working(world: StoredWorld, handler: ItemHandler | None = None) -> AsyncIterator[Worker]:
    worker = Worker(world.gallery.database, lambda: world.dsn, {JobKind.SCAN: handler or scanner(world)}, 4)
    worker.start()
    try:
        yield worker
    finally:
        await worker.stop(5)


async def start(world: StoredWorld, path: Path | str, **fields: Any) -> UUID:
    response = await world.client.post(SCAN, json={"path": str(path), **fields})
    assert response.status_code == 202, response.text
    return UUID(response.json()["job_id"])


async def scan(
    world: StoredWorld, path: Path | str, handler: ItemHandler | None = None, **fields: Any
) -> tuple[Job, dict[str, tuple[ItemState, str]]]:
    job_id = await start(world, path, **fields)
    async with working(world, handler):
        job = await ended(world.gallery.database, job_id)
    return job, await items(world, job_id)


async def items(world: StoredWorld, job_id: UUID) -> dict[str, tuple[ItemState, str]]:
    """Each with its state, and why."""
    found = await items_of(world.gallery.database, job_id)
    assert len({one.subject for one in found}) == len(found)
    return {one.subject: (one.state, one.error.code if one.error else "") for one in found}


async def library(world: StoredWorld) -> dict[str, bytes]:
    rows = await world.rows("SELECT p.folder, p.file_name, i.object_key FROM photos p JOIN images i ON i.id = p.image_id")
    return {
        f"{row['folder']}/{row['file_name']}".lstrip("/"): await world.gallery.objects.get(row["object_key"]) for row in rows
    }


def fill(root: Path) -> dict[str, bytes]:
    names = ["a.jpg", "Italien/Rom/b.jpg", "Italien/Müller & Söhne/c d.jpg", "मुंबई/d.jpg", "100%/e%41.jpg", "new\nline/f.jpg"]
    files = {name: photo(index) for index, name in enumerate(names)}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


class TestWhatComesIn:
    async def test_a_tree_with_its_folders_and_again(self, world: StoredWorld, root: Path) -> None:
        files = fill(root)
        job, found = await scan(world, root, tags=["alt"])
        assert job.state is JobState.DONE and job.progress.failed == 0, found
        files["new_line/f.jpg"] = files.pop("new\nline/f.jpg")
        assert await library(world) == files
        tags = await world.rows("SELECT DISTINCT tag FROM photo_tags")
        assert [row["tag"] for row in tags] == ["alt"]
        inspected = world.pictures.inspected
        job, found = await scan(world, root)
        assert job.progress.skipped == 6 and {code for _, code in found.values()} == {"", "exists"}
        assert world.pictures.inspected == inspected and await library(world) == files

    async def test_a_folder_below_keeps_its_way_or_gets_another(self, world: StoredWorld, root: Path) -> None:
        fill(root)
        await scan(world, root / "Italien")
        assert set(await library(world)) == {"Italien/Rom/b.jpg", "Italien/Müller & Söhne/c d.jpg"}
        await scan(world, f"{root}//मुंबई/./", folder="Indien")
        assert "Indien/d.jpg" in await library(world)

    async def test_what_is_no_photo_is_told_of(self, world: StoredWorld, root: Path) -> None:
        (root / "a.jpg").write_bytes(photo(1))
        (root / "raw.cr2").write_bytes(b"II*\x00\x10\x00\x00\x00CR\x02\x00")
        (root / "film.mp4").write_bytes(b"\x00\x00\x00\x14ftypisom")
        (root / "notes.txt").write_text("hello")
        (root / "empty.jpg").touch()
        (root / "broken.jpg").write_bytes(JPEG + b"broken")
        (root / ".hidden").mkdir()
        (root / ".hidden" / "h.jpg").write_bytes(photo(2))
        (root / "link.jpg").symlink_to(root / "a.jpg")
        os.mkfifo(root / "pipe.jpg")
        for name in ("large.mov", "large.jpg"):
            (root / name).touch()
            os.truncate(root / name, 100 << 20)
        job, found = await scan(world, root)
        assert found == {
            "": (ItemState.DONE, ""),
            "a.jpg": (ItemState.DONE, ""),
            "raw.cr2": (ItemState.SKIPPED, "raw"),
            "film.mp4": (ItemState.SKIPPED, "video"),
            "large.mov": (ItemState.SKIPPED, "video"),
            "large.jpg": (ItemState.FAILED, "image_too_large"),
            "notes.txt": (ItemState.SKIPPED, "not_a_picture"),
            "empty.jpg": (ItemState.FAILED, "invalid_image"),
            "broken.jpg": (ItemState.FAILED, "invalid_image"),
            ".hidden/": (ItemState.SKIPPED, "hidden"),
            "link.jpg": (ItemState.SKIPPED, "link"),
            "pipe.jpg": (ItemState.SKIPPED, "not_a_file"),
        }
        assert job.state is JobState.DONE and set(await library(world)) == {"a.jpg"}

    async def test_names_that_are_no_text(self, world: StoredWorld, root: Path) -> None:
        folder = root / os.fsdecode(b"M\xfcller")
        folder.mkdir()
        (folder / os.fsdecode(b"K\xf6ln.jpg")).write_bytes(photo(1))
        _, found = await scan(world, root)
        assert set(found) == {"", "M%FCller/", "M%FCller/K%F6ln.jpg"}
        assert await library(world) == {"Müller/Köln.jpg": photo(1)}

    async def test_what_failed_can_be_tried_again(self, world: StoredWorld, root: Path) -> None:
        (root / "a.jpg").write_bytes(JPEG + b"broken")
        job, _ = await scan(world, root)
        assert job.progress.failed == 1
        (root / "a.jpg").write_bytes(photo(1))
        response = await world.client.post(f"/api/v1/jobs/{job.id}/retry-failed")
        assert response.status_code == 202
        async with working(world):
            job = await ended(world.gallery.database, job.id)
        assert job.progress.failed == 0 and set(await library(world)) == {"a.jpg"}


class TestRefused:
    async def test_without_roots_nothing_is_scanned(self, make_stored: MakeStoredWorld, root: Path) -> None:
        world = make_stored()
        response = await world.client.post(SCAN, json={"path": str(root)})
        assert response.status_code == 403 and response.json()["code"] == "scan_refused"
        assert "SCAN_ROOTS" in response.json()["detail"]

    @pytest.mark.parametrize(
        "path",
        ["/", "/etc", "relative", "", "{root}/../..", "{root}/../photos/../..", "{root}x", "{above}", "a\0b", "//etc/{root}"],
    )
    async def test_paths_elsewhere(self, world: StoredWorld, root: Path, path: str) -> None:
        path = path.replace("{root}", str(root)).replace("{above}", str(root.parent))
        response = await world.client.post(SCAN, json={"path": path})
        assert response.status_code == 403 and response.json()["code"] == "scan_refused", response.text
        assert str(root) not in response.json()["detail"]

    async def test_what_is_not_there_is_a_file_or_a_link(self, world: StoredWorld, root: Path, tmp_path: Path) -> None:
        (root / "file").touch()
        (root / "link").symlink_to(tmp_path)
        for name in ("nothing", "file", "link", "link/srv"):
            response = await world.client.post(SCAN, json={"path": str(root / name)})
            assert response.status_code == 404, (name, response.text)

    async def test_bad_fields(self, world: StoredWorld, root: Path) -> None:
        for body in ({}, {"path": 1}, {"path": str(root), "depth": 2}, {"path": "/" + "x" * 5000},
                     {"path": str(root), "folder": "../x"}, {"path": str(root), "tags": ["\0"]}):  # fmt: skip
            response = await world.client.post(SCAN, json=body)
            assert response.status_code == 422 and response.json()["code"] == "invalid_request", (body, response.text)

    async def test_a_root_that_was_taken_away(self, world: StoredWorld, root: Path, make_stored: MakeStoredWorld) -> None:
        fill(root)
        job_id = await start(world, root)
        other = make_stored()
        async with working(world, scanner(other)):
            await ended(world.gallery.database, job_id)
        assert await items(world, job_id) == {"": (ItemState.FAILED, "scan_refused")}

    async def test_repeating_the_request_with_a_key_starts_one_job(self, world: StoredWorld, root: Path) -> None:
        answers = [await world.client.post(SCAN, json={"path": str(root)}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert answers[0].json() == answers[1].json() and answers[1].headers["idempotent-replayed"] == "true"
        assert (await world.client.post(SCAN.replace("/v1", ""), json={"path": str(root)})).status_code == 202


class TestFaces:
    """Found as soon as the file is read, and kept in the transaction that brings the photo in."""

    @staticmethod
    async def kept(world: StoredWorld) -> dict[str, tuple[int, bool]]:
        """Of each photo, by name: how many faces it has, whether it counts as indexed."""
        rows = await world.rows(
            "SELECT p.file_name, p.indexed_at IS NOT NULL AS indexed,"
            " (SELECT count(*) FROM faces f WHERE f.image_id = p.image_id) AS faces FROM photos p"
        )
        return {row["file_name"]: (row["faces"], row["indexed"]) for row in rows}

    @staticmethod
    async def check_objects(world: StoredWorld) -> None:
        """There is nothing but originals and crops, and all of them, once what was left under way has ended."""

        async def as_named() -> bool:
            rows = await world.rows("SELECT object_key AS key FROM images UNION ALL SELECT crop_key FROM faces")
            return await world.object_keys() == {row["key"] for row in rows}

        await until(as_named)
        assert await world.rows("SELECT face_id FROM embeddings EXCEPT SELECT id FROM faces") == []

    async def test_come_in_with_their_photos_once(self, world: StoredWorld, root: Path) -> None:
        for number in range(12):
            (root / f"{number}.jpg").write_bytes(image(number % 3, number) + b"%d" % number)
        job, _ = await scan(world, root, scanner(world, faces=True))
        assert (job.progress.done, job.progress.failed) == (13, 0)
        assert await self.kept(world) == {f"{number}.jpg": (number % 3, True) for number in range(12)}
        again, found = await scan(world, root, scanner(world, faces=True))
        assert again.progress.skipped == 12 and set(found.values()) == {(ItemState.DONE, ""), (ItemState.SKIPPED, "exists")}
        assert sum(faces for faces, _ in (await self.kept(world)).values()) == 12
        await self.check_objects(world)

    async def test_a_photo_whose_faces_nobody_looked_for_gets_them(self, world: StoredWorld, root: Path) -> None:
        (root / "a.jpg").write_bytes(image(2))
        await scan(world, root)
        assert await self.kept(world) == {"a.jpg": (0, False)}
        _, found = await scan(world, root, scanner(world, faces=True))
        assert found["a.jpg"] == (ItemState.DONE, "") and await self.kept(world) == {"a.jpg": (2, True)}

    async def test_a_photo_whose_faces_cannot_be_found_comes_in_and_says_why(self, world: StoredWorld, root: Path) -> None:
        (root / "a.jpg").write_bytes(image(2))
        world.detector.error = InvalidImage("The JPEG data is spoilt.")
        job, found = await scan(world, root, scanner(world, faces=True))
        assert found["a.jpg"] == (ItemState.FAILED, "invalid_image") and await self.kept(world) == {"a.jpg": (0, False)}
        world.detector.error = None
        assert (await world.client.post(f"/api/v1/jobs/{job.id}/retry-failed")).status_code == 202
        async with working(world, scanner(world, faces=True)):
            assert (await ended(world.gallery.database, job.id)).progress.failed == 0
        assert await self.kept(world) == {"a.jpg": (2, True)}

    async def test_a_picture_that_was_enrolled_before_keeps_its_face(self, world: StoredWorld, root: Path) -> None:
        collection = await world.collection(world.services.settings.library_collection)
        person = await world.person(collection, name="Ada")
        enrolled = await world.client.post(f"{collection}/persons/{person}/faces", files={"files": ("a.jpg", image(1, 5))})
        assert enrolled.status_code == 201, enrolled.text
        (root / "a.jpg").write_bytes(image(1, 5))
        _, found = await scan(world, root, scanner(world, faces=True))
        assert found["a.jpg"] == (ItemState.DONE, "") and await self.kept(world) == {"a.jpg": (1, True)}
        (face,) = await world.rows("SELECT id::text AS id, person_id::text AS person FROM faces")
        assert (face["id"], face["person"]) == (enrolled.json()["faces"][0]["id"], person)

    async def test_workers_that_end_anywhere_leave_each_face_once(self, world: StoredWorld, root: Path) -> None:
        for number in range(40):
            (root / f"{number}.jpg").write_bytes(image(2, number) + b"%d" % number)
        world.detector.delay_s = 0.03
        job_id = await start(world, root)
        for _ in range(3):
            worker = Worker(world.gallery.database, lambda: world.dsn, {JobKind.SCAN: scanner(world, faces=True)}, 4)
            worker.start()
            await asyncio.sleep(0.4)
            await worker.stop(0)
        async with working(world, scanner(world, faces=True)):
            job = await ended(world.gallery.database, job_id)
        assert job.state is JobState.DONE and job.progress.failed == 0
        assert await self.kept(world) == {f"{number}.jpg": (2, True) for number in range(40)}
        await world.gallery.photos.settle(60)
        await asyncio.sleep(0.5)
        await self.check_objects(world)

    async def test_a_cancelled_scan_leaves_no_crop_of_what_it_did_not_keep(self, world: StoredWorld, root: Path) -> None:
        for number in range(200):
            (root / f"{number}.jpg").write_bytes(image(2, number) + b"%d" % number)
        world.detector.delay_s = 0.2
        job_id = await start(world, root)
        handler = scanner(world, faces=True)
        async with working(world, handler):

            async def some() -> bool:
                return bool(await self.kept(world))

            await until(some)
            assert (await world.client.post(f"/api/v1/jobs/{job_id}/cancel")).status_code == 200
            await asyncio.sleep(1)
        await world.gallery.photos.settle(60)
        await asyncio.sleep(0.5)
        kept = await self.kept(world)
        assert 0 < len(kept) < 200 and set(kept.values()) == {(2, True)}
        await self.check_objects(world)


class TestLinks:
    async def test_a_folder_that_becomes_a_link_leads_nowhere(self, world: StoredWorld, root: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.mkdir()
        (secret / "s.jpg").write_bytes(photo(99))
        (root / "a").mkdir()
        (root / "a" / "s.jpg").write_bytes(photo(1))
        job_id = await start(world, root)
        inner = scanner(world)

        class Swapping:
            async def run(self, item: Any) -> None:
                if item.subject == "a/s.jpg" and not (root / "a").is_symlink():
                    (root / "a").rename(root / "was")
                    (root / "a").symlink_to(secret)
                await inner.run(item)

        async with working(world, Swapping()):
            await ended(world.gallery.database, job_id)
        assert (await items(world, job_id))["a/s.jpg"] == (ItemState.SKIPPED, "link")
        assert photo(99) not in (await library(world)).values()

    def test_swapping_all_the_time_leads_nowhere_either(self, root: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        (secret / "b").mkdir(parents=True)
        (secret / "b" / "x").write_bytes(b"secret")
        (root / "a" / "b").mkdir(parents=True)
        (root / "a" / "b" / "x").write_bytes(b"public")
        (root / "link").symlink_to(secret)
        over = threading.Event()

        def swap() -> None:
            while not over.is_set():
                (root / "a").rename(root / "c")
                (root / "link").rename(root / "a")
                (root / "a").rename(root / "link")
                (root / "c").rename(root / "a")

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            seen = set()
            for _ in range(3000):
                for read in (lambda: read_file(root, (b"a", b"b", b"x"), 100).data, lambda: entries(root, (b"a", b"b"))):
                    try:
                        seen.add(str(read()))
                    except NotAFile as error:
                        seen.add(error.reason)
        finally:
            over.set()
            thread.join()
        assert seen <= {"b'public'", "[(b'x', False)]", "link", "gone"} and "b'public'" in seen

    async def test_loops_of_links_are_not_followed(self, world: StoredWorld, root: Path) -> None:
        (root / "a").mkdir()
        (root / "a" / "loop").symlink_to(root)
        job, found = await scan(world, root)
        assert found == {"": (ItemState.DONE, ""), "a/": (ItemState.DONE, ""), "a/loop": (ItemState.SKIPPED, "link")}
        assert job.progress.total == 3


class TestInterruptions:
    async def test_a_worker_that_ends_anywhere(self, world: StoredWorld, root: Path) -> None:
        files = {}
        for number in range(60):
            name = f"{number % 7}/{number % 3}/{number}.jpg"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(photo(number))
            files[name] = photo(number)
        world.pictures.delay_s = 0.03
        job_id = await start(world, root)
        for _ in range(3):
            worker = Worker(world.gallery.database, lambda: world.dsn, {JobKind.SCAN: scanner(world)}, 4)
            worker.start()
            await asyncio.sleep(0.4)
            await worker.stop(0)
        async with working(world):
            job = await ended(world.gallery.database, job_id)
        assert job.state is JobState.DONE and job.progress.failed == 0
        assert await library(world) == files
        await world.gallery.photos.settle(60)
        rows = await world.rows("SELECT object_key FROM images")
        assert await world.object_keys() == {row["object_key"] for row in rows}

    async def test_a_cancelled_job_keeps_nothing_more(self, world: StoredWorld, root: Path) -> None:
        for number in range(150):
            (root / f"{number}.jpg").write_bytes(photo(number))
        world.pictures.delay_s = 0.2
        job_id = await start(world, root)
        async with working(world):

            async def some() -> bool:
                return (await look(world.gallery.database, job_id)).progress.done > 2

            await until(some)
            response = await world.client.post(f"/api/v1/jobs/{job_id}/cancel")
            assert response.json()["state"] == "cancelled"
            (counted,) = await world.rows("SELECT count(*) AS n FROM photos")
            await asyncio.sleep(1)
        assert counted["n"] < 150 and counted["n"] == (await world.rows("SELECT count(*) AS n FROM photos"))[0]["n"]
        await world.gallery.photos.settle(60)
        assert len(await world.object_keys()) == counted["n"]

    async def test_a_store_that_is_away_is_waited_for(
        self, world: StoredWorld, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(root)
        put, calls = world.gallery.objects.put, 0

        async def sometimes(key: str, data: bytes, content_type: str) -> None:
            nonlocal calls
            calls += 1
            if calls < 4:
                raise ObjectStoreUnavailable("away")
            await put(key, data, content_type)

        monkeypatch.setattr(world.gallery.objects, "put", sometimes)
        job, found = await scan(world, root)
        assert job.progress.failed == 0 and len(await library(world)) == 6, found


class TestSubjects:
    @pytest.mark.parametrize(
        "parts",
        [(), (b"a",), (b"a", b"b c"), (b"%41", b"100%"), (b"\xff\xfe", "ü".encode()), (b"new\nline\x7f",), (b"\xed\xb3\xbf",)],
    )
    def test_they_come_back_as_they_were(self, parts: tuple[bytes, ...]) -> None:
        for folder in (True, False) if parts else (True,):
            subject = to_subject(parts, folder=folder)
            subject.encode()
            assert of_subject(subject) == (parts, folder)

    def test_one_that_is_too_long_is_refused(self) -> None:
        subject = to_subject((b"x" * 255,) * 30, folder=False)
        assert len(subject) == 4096
        with pytest.raises(FileUnreadable, match="too long"):
            of_subject(subject)

    def test_a_file_that_grows_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (root / "a.jpg").write_bytes(photo(1))
        real, calls = os.fstat, 0

        def fstat(descriptor: int) -> os.stat_result:
            nonlocal calls
            calls += 1
            if calls == 2:
                (root / "a.jpg").write_bytes(photo(1, 999))
            return real(descriptor)

        monkeypatch.setattr("serve_app.server_files.os.fstat", fstat)
        with pytest.raises(FileUnreadable, match="changed"):
            read_file(root, (b"a.jpg",), 1000)


async def test_it_asks_for_the_key(world: StoredWorld, root: Path) -> None:
    response = await world.client.post(SCAN, json={"path": str(root)}, headers={"Authorization": "Bearer wrong"})
    assert response.status_code == 401
