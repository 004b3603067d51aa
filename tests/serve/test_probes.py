"""Pictures that are only compared are stored nowhere: not by us, not by Postgres, not by Ray."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests import data
from tests.serve.conftest import Served


def marked(marker: bytes) -> bytes:
    """A group photo with `marker` in a comment segment."""
    plain = data.package_image("t1.jpg")
    return plain[:2] + b"\xff\xfe" + (len(marker) + 2).to_bytes(2, "big") + marker + plain[2:]


def files_of(served: Served) -> Iterator[Path]:
    """What its processes have open to write, its data folder, Ray's session, and all temporary files that changed lately."""
    root = psutil.Process(served.pid)
    folders = {Path(tempfile.gettempdir()), Path("/dev/shm"), Path("/tmp/ray")}
    for process in [root, *root.children(recursive=True)]:
        try:
            folders |= {Path(one.path).parent for one in process.open_files() if "w" in one.mode or "a" in one.mode}
            data_dir = process.environ().get("DATA_DIR")
        except psutil.Error:
            continue
        if data_dir:
            folders.add(Path(data_dir))
    since = time.time() - 900
    seen = set()
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                path = Path(place, name)
                try:
                    found = path.lstat()
                    if path.is_file() and not path.is_symlink() and found.st_mtime > since and found.st_ino not in seen:
                        seen.add(found.st_ino)
                        yield path
                except OSError:
                    continue


def holding(served: Served, marker: bytes) -> list[Path]:
    found = []
    for path in files_of(served):
        try:
            if path.stat().st_size < 512 << 20 and marker in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def test_probes_are_stored_nowhere(served: Served) -> None:
    kept, probe = (f"marker-{secrets.token_hex(16)}".encode() for _ in range(2))
    with served.client() as client:
        people = f"/api/v1/collections/probes-{secrets.token_hex(4)}"
        assert client.post("/api/v1/collections", json={"id": people.rsplit("/", 1)[1]}).status_code == 201
        # What is kept is found by this test: it looks in the right places.
        uploaded = client.post("/api/v1/photos/upload", files={"files": ("kept.jpg", marked(kept), "image/jpeg")})
        assert uploaded.status_code in (200, 201), uploaded.text
        picture = ("probe.jpg", marked(probe), "image/jpeg")
        for path, name in (
            ("/api/v1/face/verify-face", "file"),
            ("/api/v1/face/extract-embedding", "file"),
            ("/api/v1/face/analyze-face-advanced", "file"),
            (f"{people}/search", "file"),
            (f"{people}/identify", "file"),
        ):
            answer = client.post(path, files={name: picture})
            # A refusal for too many faces comes after they were looked at, too.
            assert answer.status_code == 200 or answer.json()["code"] == "multiple_faces", (path, answer.text)
    assert holding(served, kept) != []
    assert holding(served, probe) == []
