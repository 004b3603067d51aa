"""Jobs on a real Ray Serve: photos that are uploaded have their faces soon, whatever is killed meanwhile."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from tests import data
from tests.serve.conftest import Served, start, stop

API = "/api/v1"
GROUP = "t1.jpg"
FACES_OF_GROUP = 6


def pictures(count: int, seed: int = 0) -> list[tuple[str, bytes]]:
    """Pictures of six people, each with other bytes."""
    group = Image.open(io.BytesIO(data.package_image(GROUP)))
    made = []
    for index in range(count):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x010E] = f"picture {seed}-{index}"
        group.save(buffer, "JPEG", exif=exif, quality=90)
        made.append((f"{seed}-{index:04d}.jpg", buffer.getvalue()))
    return made


def upload(client: httpx.Client, files: list[tuple[str, bytes]]) -> list[str]:
    ids: list[str] = []
    for begin in range(0, len(files), 20):
        answer = client.post(f"{API}/photos/upload", files=[("files", file) for file in files[begin : begin + 20]])
        assert answer.status_code in (200, 201), answer.text
        assert answer.json()["created"] == len(files[begin : begin + 20])
        ids += [one["photo"]["id"] for one in answer.json()["results"]]
    return ids


def until(condition: Callable[[], Any], timeout_s: float) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout_s, "it did not come to pass"
        time.sleep(0.1)
    return time.monotonic() - begun


def job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    response = client.get(f"{API}/jobs/{job_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def over(client: httpx.Client, job_id: str) -> bool:
    try:
        return job(client, job_id)["state"] not in ("queued", "running")
    except (httpx.HTTPError, AssertionError):
        return False


@pytest.fixture(scope="module")
def indexing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An instance of its own: it is made to suffer."""
    process, instance = start(tmp_path_factory.mktemp("indexing"), JOBS_RETENTION_DAYS="90")
    yield instance
    stop(process)


def test_a_photo_has_its_faces_within_seconds(indexing: Served) -> None:
    with indexing.client() as client:
        (photo_id,) = upload(client, pictures(1, seed=1))
        took = until(lambda: client.get(f"{API}/photos/{photo_id}").json()["face_count"] == FACES_OF_GROUP, 60)
        print(f"\nfaces {took:.1f} s after the upload")
        made, *_ = client.get(f"{API}/jobs?automatic=true&kind=faces").json()["items"]
        assert made["progress"]["total"] >= 1
        # Again, by hand: the same faces.
        before = {face["id"] for face in client.get(f"{API}/photos/{photo_id}").json()["faces"]}
        asked = client.post(f"{API}/index/faces", json={"photo_ids": [photo_id], "only_new": False})
        assert asked.status_code == 202, asked.text
        until(lambda: over(client, asked.json()["job_id"]), 60)
        assert {face["id"] for face in client.get(f"{API}/photos/{photo_id}").json()["faces"]} == before
        # And not again where it is known.
        assert client.post(f"{API}/index/faces").json()["progress"]["total"] == 0


@pytest.mark.timeout(600)
def test_progress_is_told_as_it_happens(indexing: Served) -> None:
    with indexing.client() as client:
        # Some seconds of work, on any machine: it is told once a second.
        ids = upload(client, pictures(60, seed=2))
        asked = client.post("/api/index/faces", json={"photo_ids": ids, "only_new": False}).json()
        events: list[tuple[str, dict[str, Any]]] = []
        with client.stream("GET", f"/api/jobs/{asked['job_id']}/events", timeout=120) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    events.append((name, json.loads(line[6:])))
        names = [name for name, _ in events]
        assert names[-1] == "end" and set(names[:-1]) == {"progress"} and len(names) >= 3
        assert events[-1][1]["progress"]["done"] == 60
        assert any(event["progress"]["eta_s"] is not None for _, event in events[:-1])


@pytest.mark.timeout(1200)  # each step has a limit of its own
def test_whatever_is_killed_every_photo_is_indexed_once(indexing: Served) -> None:
    with indexing.client() as client:
        ids = upload(client, pictures(150, seed=int(time.time())))
        asked = client.post(f"{API}/index/faces", json={"photo_ids": ids, "only_new": False}).json()["job_id"]

        def ended() -> int:
            try:
                progress = job(client, asked)["progress"]
            except (httpx.HTTPError, AssertionError):
                return 0
            return int(progress["total"]) - int(progress["remaining"])

        # The queue is deep: there is a second replica.
        print(f"\na second replica after {until(lambda: len(indexing.replicas('Indexing')) == 2, 180):.1f} s")
        # What was uploaded comes first, in a job of its own.
        until(lambda: ended() >= 10, 300)
        for replica in indexing.replicas("Indexing"):
            # One may just have ended, where there was less to do before.
            with suppress(psutil.NoSuchProcess):
                replica.kill()
        at = ended()
        print(f"both replicas of Indexing killed: {until(lambda: ended() > at, 180):.1f} s to the next photo")
        indexing.replicas("Detection")[0].kill()
        cluster = indexing.output.parent / "data" / "postgres" / "cluster"
        os.kill(int((cluster / "postmaster.pid").read_text().split()[0]), 9)
        at = at + 1
        print(f"Detection and Postgres killed: {until(lambda: ended() > at, 180):.1f} s to the next photo")
        until(lambda: over(client, asked), 600)
        found = job(client, asked)
        assert (found["state"], found["progress"]["done"]) == ("done", 150), found
        for photo_id in ids:
            photo = client.get(f"{API}/photos/{photo_id}").json()
            assert photo["face_count"] == len(photo["faces"]) == FACES_OF_GROUP
            assert len({tuple(face["bbox"]) for face in photo["faces"]}) == FACES_OF_GROUP
