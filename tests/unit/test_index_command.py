"""`kinlens index`: what --source and --endpoint say, and batches."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from deployments import bulk
from serve_app.bulk.files import BucketPlace, FolderPlace, SourceFile, Unlisted, file_id, version_id
from serve_app.bulk.folder import FolderSource
from serve_app.bulk.run import BATCH_BYTES, BATCH_FILES, WorkerFailed, _batches
from serve_app.commands.index import place_of
from serve_app.errors import ConfigurationError


def test_a_folder(tmp_path: Path) -> None:
    assert place_of(str(tmp_path), None, "") == FolderPlace(tmp_path)


def test_a_bucket() -> None:
    assert place_of("s3://photos/2024/Rom/", None, "eu-1") == BucketPlace("photos", "2024/Rom/", None, False, "eu-1")
    assert place_of("s3://photos", "https://s3.example.org", "r") == BucketPlace("photos", "", "s3.example.org", True, "r")
    assert place_of("s3://photos", "127.0.0.1:9000", "r") == BucketPlace("photos", "", "127.0.0.1:9000", False, "r")


@pytest.mark.parametrize(
    ("source", "endpoint"),
    [
        ("/nowhere/at/all", None),
        (".", "127.0.0.1:9000"),
        ("s3://", None),
        ("s3:///2024", None),
        ("s3://photos", "ftp://host"),
        ("s3://photos", "https://user:secret@host"),
        ("s3://photos", "https://host/path"),
    ],
)
def test_what_makes_no_sense(source: str, endpoint: str | None) -> None:
    with pytest.raises(ConfigurationError):
        place_of(source, endpoint, "us-east-1")


def test_batches_are_bounded_by_number_and_bytes() -> None:
    small = [SourceFile(str(number), 1000, "") for number in range(40)]
    assert [len(batch) for batch in _batches(small)] == [BATCH_FILES, BATCH_FILES, 40 - 2 * BATCH_FILES]
    large = [
        SourceFile("a", BATCH_BYTES // 2, ""),
        SourceFile("b", BATCH_BYTES // 2 + 1, ""),
        SourceFile("c", 2 * BATCH_BYTES, ""),
    ]
    assert [len(batch) for batch in _batches(large)] == [1, 1, 1]


def test_a_file_is_known_by_where_it_lies_and_what_it_is_like() -> None:
    one = SourceFile("a.jpg", 10, "1")
    above, below = FolderSource(Path("/a%b")), FolderSource(Path("/a%b/c"))
    assert file_id(above.location, "c/d.jpg") == file_id(below.location, "d.jpg") != file_id(below.location, "e.jpg")
    assert FolderSource(Path("/a%25b")).location != above.location
    assert len({version_id(file) for file in (one, SourceFile("a.jpg", 11, "1"), SourceFile("a.jpg", 10, "2"))}) == 3


def test_a_file_that_says_nothing_of_itself_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()

    class Failing:
        """An entry of a folder on a disk that begins to fail."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.is_dir, self._entry = entry.name, entry.is_dir, entry

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            if self.name == "b.jpg":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self._entry.stat(follow_symlinks=follow_symlinks)

    class Scan(list[Failing]):
        def __enter__(self) -> Scan:
            return self

        def __exit__(self, *error: object) -> None: ...

    scan = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda folder: Scan(Failing(one) for one in sorted(scan(folder), key=lambda one: one.name))
    )
    found = list(FolderSource(tmp_path).files())
    assert [one.name for one in found] == ["a.jpg", "b.jpg", "c.jpg"]
    assert found[1] == Unlisted("b.jpg", "Input/output error.")


async def test_a_worker_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Method:
        def __init__(self, seconds: float) -> None:
            self._seconds = seconds

        async def remote(self, *arguments: object) -> int:
            await asyncio.sleep(self._seconds)
            return 1

    class Actor:
        index, ready = Method(60), Method(0)

    killed: list[object] = []
    monkeypatch.setattr(bulk, "_BATCH_TIMEOUT_S", 0.05)
    monkeypatch.setattr("ray.kill", killed.append)
    pool = bulk.RayPool(None, 1, ())
    monkeypatch.setattr(pool, "_start", Actor)
    hanging = Actor()
    pool._actors = [hanging]
    with pytest.raises(WorkerFailed) as caught:
        await pool.index(0, [SourceFile("a.jpg", 1, "")])
    assert caught.value.died and killed == [hanging] and pool._actors[0] is not hanging
