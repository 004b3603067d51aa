"""`kinlens index` as users run it: its own Ray, real models, an embedded Postgres; killed, interrupted, and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests import data
from tests.serve.test_indexing import FACES_OF_GROUP, pictures

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = 60


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", "from serve_app.cli import main; main()", "index", "--source", str(folder / "photos"),
            "--workers", "2", "--failures", str(folder / "failures"), *more]  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "DATA_DIR": str(folder / "data")}


def index(folder: Path, *more: str) -> tuple[int, str]:
    done = subprocess.run(
        command(folder, *more), env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def left_of(processes: list[psutil.Process]) -> dict[psutil.Process, str]:
    """Those that still run, with their names; without Postgres."""
    found = {}
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE and "postgres" not in one.name():
                found[one] = one.name()
    return found


def begun(folder: Path, objects: Path) -> subprocess.Popen[bytes]:
    """A run that has just put crops: batches are in the middle of something."""
    before = len(list(objects.rglob("*.png")))
    running = subprocess.Popen(
        command(folder),
        env=environment(folder),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    deadline = time.monotonic() + 180
    while len(list(objects.rglob("*.png"))) == before:
        assert running.poll() is None and time.monotonic() < deadline, "it never began"
        time.sleep(0.02)
    return running


@pytest.mark.skipif(sys.platform != "linux", reason="Ray's processes end with the one that started them on Linux only")
@pytest.mark.timeout(1200)  # four runs, each with a limit of its own
def test_a_folder_killed_interrupted_and_run_to_the_end(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, picture in pictures(PHOTOS):
        (photos / name).write_bytes(picture)
    (photos / "cut.jpg").write_bytes(data.package_image("t1.jpg")[:20_000])
    (photos / "film.mov").write_bytes(bytes(4) + b"ftypqt  " + bytes(20))

    objects = tmp_path / "data" / "objects"
    running = begun(tmp_path, objects)
    others = family(running.pid)
    running.send_signal(signal.SIGKILL)
    running.wait()
    # The embedded Postgres is adopted by the next run. Nobody works on; Ray's agents take a while to see that they are alone.
    deadline = time.monotonic() + 60
    while any("Agent" not in name for name in left_of(others).values()):
        assert time.monotonic() < deadline, left_of(others)
        time.sleep(0.1)
    for agent in left_of(others):
        with suppress(psutil.NoSuchProcess):
            agent.kill()

    running = begun(tmp_path, objects)
    # All of its process group, as `timeout` or a terminal does.
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(120) == 130

    code, output = index(tmp_path)
    assert code == 1, output
    failures = [json.loads(line) for line in (tmp_path / "failures").read_text().splitlines()]
    assert [(one["file"], one["code"]) for one in failures] == [("cut.jpg", "invalid_image")]
    assert "skipped: video 1" in output, output

    (photos / "cut.jpg").unlink()
    code, output = index(tmp_path, "--dry-run")
    assert code == 0 and f"{PHOTOS} known" in output and "1 files would be read" in output, output
    assert len(list(objects.rglob("*.png"))) >= PHOTOS * FACES_OF_GROUP
    checked = subprocess.run(
        [sys.executable, "-c", "from serve_app.cli import main; main()", "db", "check"],
        env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{PHOTOS * FACES_OF_GROUP:,} faces" in checked.stdout, checked.stdout
