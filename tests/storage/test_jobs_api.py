"""Jobs over the API: asked for, listed, looked at, cancelled, tried again; and the photos they come from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest

from serve_app.errors import InvalidImage
from serve_app.jobs import JobKind
from serve_app.services import job_watch
from serve_app.services.indexing import PhotoIndexer
from serve_app.services.settling import Settling
from serve_app.services.work import WorkItem
from serve_app.services.worker import Worker
from serve_app.storage import jobs
from serve_app.workshop import Workshop
from tests.api.conftest import image
from tests.storage.conftest import MakeStoredWorld, StoredWorld
from tests.storage.jobs_world import until

JOBS = "/api/v1/jobs"
PHOTOS = "/api/v1/photos"


async def upload(world: StoredWorld, count: int, **fields: str) -> list[str]:
    files = [("files", (f"{number}.jpg", image(1, number) + f"{number}{fields}".encode())) for number in range(count)]
    answer = await world.client.post(f"{PHOTOS}/upload", files=files, data=fields)
    assert answer.status_code in (200, 201), answer.text
    assert answer.json()["created"] == count
    return [one["photo"]["id"] for one in answer.json()["results"]]


async def index(world: StoredWorld, body: object = None, path: str = "/api/v1/index/faces") -> dict[str, Any]:
    answer = await world.client.post(path, json=body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


class Handler:
    """Ends each item, except those it is told to fail."""

    def __init__(self, world: StoredWorld) -> None:
        self.world = world
        self.fail: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, item: WorkItem) -> None:
        await self.gate.wait()
        if item.subject in self.fail:
            raise InvalidImage("It is damaged.", why="bits")
        await self.world.gallery.database.run(item.finish)


@asynccontextmanager
async def working(world: StoredWorld, handler: Handler) -> AsyncIterator[None]:
    worker = Worker(world.gallery.database, lambda: world.dsn, dict.fromkeys(JobKind, handler), 2)
    worker.start()
    try:
        yield
    finally:
        await worker.stop(5)


async def over(world: StoredWorld, job_id: str) -> dict[str, Any]:
    async def ended() -> bool:
        state: str = (await world.client.get(f"{JOBS}/{job_id}")).json()["state"]
        return state not in ("queued", "running")

    await until(ended)
    found: dict[str, Any] = (await world.client.get(f"{JOBS}/{job_id}")).json()
    return found


async def test_uploaded_photos_are_to_be_indexed(stored: StoredWorld) -> None:
    ids = await upload(stored, 3)
    (job,) = (await stored.client.get(JOBS)).json()["items"]
    assert (job["kind"], job["state"], job["automatic"], job["progress"]["total"]) == ("faces", "queued", True, 3)
    items = (await stored.client.get(f"{JOBS}/{job['job_id']}/items")).json()["items"]
    assert sorted(item["subject"] for item in items) == sorted(ids) and {item["state"] for item in items} == {"pending"}
    # A picture that is there already is nothing new.
    again = {"files": ("other.jpg", image(1, 0) + b"0{}")}
    assert (await stored.client.post(f"{PHOTOS}/upload", files=again)).json()["exists"] == 1
    assert (await stored.client.get(f"{JOBS}/{job['job_id']}")).json()["progress"]["total"] == 3


async def test_uploads_need_not_be_indexed(make_stored: MakeStoredWorld) -> None:
    world = make_stored(index_uploads=False)
    await world.gallery.objects.prepare()
    await upload(world, 2)
    assert (await world.client.get(JOBS)).json() == {"items": [], "next_cursor": None}


async def test_a_job_of_all_photos_of_some_and_of_those_that_fit(make_stored: MakeStoredWorld) -> None:
    world = make_stored(index_uploads=False)
    await world.gallery.objects.prepare()
    # Before the first photo there is nothing to do.
    assert (await index(world))["state"] == "done"
    ids = await upload(world, 3) + await upload(world, 2, folder="Rome", tags="holiday")
    job = await index(world)
    assert (job["state"], job["progress"]["total"], job["options"]) == ("queued", 5, {"only_new": True})
    assert (await index(world, {"photo_ids": [ids[0], ids[4], ids[0]]}))["progress"]["total"] == 2
    for wanted in ({"folder": "Rome"}, {"tag": ["holiday"]}, {"tag": ["holiday"], "folder": "Rome"}):
        assert (await index(world, {"filter": wanted}))["progress"]["total"] == 2
    assert (await index(world, {"filter": {"untagged": True}}))["progress"]["total"] == 3
    assert (await index(world, {"photo_ids": []}))["progress"]["total"] == 0
    # As the former paths have it, and without a body.
    answer = await world.client.post("/api/index/faces")
    assert answer.status_code == 202 and answer.json()["progress"]["total"] == 5
    # Those that have been indexed are left out, unless they are asked for.
    await world.rows("UPDATE photos SET indexed_at = now(), indexed_with = 'something else'")
    assert (await index(world))["progress"]["total"] == 5
    loaded = next(iter(world.gallery.jobs._backlogs.values()))
    await world.rows("UPDATE photos SET indexed_with = $1 WHERE folder = 'Rome'", loaded.indexed_with)  # type: ignore[attr-defined]
    assert (await index(world))["progress"]["total"] == 3
    assert (await index(world, {"only_new": False}))["progress"]["total"] == 5


async def test_what_cannot_be_a_job(stored: StoredWorld) -> None:
    (photo,) = await upload(stored, 1)
    stranger = str(uuid4())
    missing = await stored.client.post("/api/v1/index/faces", json={"photo_ids": [photo, stranger]})
    assert missing.status_code == 404 and missing.json()["details"]["photo_ids"] == [stranger]
    for body in (
        {"photo_ids": [photo], "filter": {}},
        {"photo_ids": ["no id"]},
        {"photo_ids": photo},
        {"photo_ids": [stranger] * 5001},
        {"photos": [photo]},
        {"filter": {"folder": "a/../b"}},
        {"filter": {"colour": "red"}},
        {"only_new": "perhaps"},
    ):
        answer = await stored.client.post("/api/v1/index/faces", json=body)
        assert answer.status_code == 422, (body, answer.text)
        assert answer.json()["code"] == "invalid_request"
    # Without an image-text model there is a reason, and no job.
    refused = await stored.client.post("/api/v1/index/embeddings")
    assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
    assert (await stored.client.post("/api/v1/index/faces-cluster", json={"eps": 1})).status_code == 422
    for path in (f"{JOBS}/{stranger}", f"{JOBS}/{stranger}/items", f"{JOBS}/{stranger}/events"):
        assert (await stored.client.get(path)).status_code == 404
    for path in ("cancel", "retry-failed"):
        assert (await stored.client.post(f"{JOBS}/{stranger}/{path}")).status_code == 404
    for query in ("state=broken", "kind=dance", "limit=0", "colour=red", "automatic=perhaps"):
        assert (await stored.client.get(f"{JOBS}?{query}")).status_code == 422, query
    unauthorized = await stored.client.get(JOBS, headers={"Authorization": "Bearer no"})
    assert unauthorized.status_code == 401


async def test_a_job_is_made_once(stored: StoredWorld) -> None:
    await upload(stored, 2)
    key = {"Idempotency-Key": "index-me"}
    first = await stored.client.post("/api/v1/index/faces", headers=key)
    again = await stored.client.post("/api/v1/index/faces", headers=key)
    assert first.json() == again.json() and again.headers["idempotent-replayed"] == "true"
    other = await stored.client.post("/api/v1/index/faces", headers=key, json={"only_new": False})
    assert other.json()["code"] == "idempotency_key_reused"
    assert len((await stored.client.get(f"{JOBS}?automatic=false")).json()["items"]) == 1


async def test_a_body_that_does_not_say_what_it_is_is_not_passed_over(stored: StoredWorld) -> None:
    await upload(stored, 1)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"photo_ids": []}'

    # Neither a type nor a length: without its body the request would be about all photos.
    answer = await stored.client.post("/api/v1/index/faces", content=body())
    assert answer.request.headers["Transfer-Encoding"] == "chunked" and "Content-Type" not in answer.request.headers
    assert answer.status_code == 415, answer.text


async def test_no_more_jobs_than_can_be_kept(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_OPEN", 2)
    await upload(stored, 1)
    made = [await index(stored), await index(stored, path="/api/v1/index/faces-cluster")]
    for path in ("/api/v1/index/faces", "/api/v1/index/faces-cluster"):
        answer = await stored.client.post(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded") and int(answer.headers["Retry-After"]) > 0
    # Uploads go on, and so does all when one is over.
    await upload(stored, 1, folder="Rome")
    assert (await stored.client.post(f"{JOBS}/{made[0]['job_id']}/cancel")).status_code == 200
    await index(stored)


async def test_an_erased_library_is_in_no_kept_answer(stored: StoredWorld) -> None:
    await upload(stored, 1)
    job = await index(stored)
    cancel, key = f"{JOBS}/{job['job_id']}/cancel", {"Idempotency-Key": "cancel"}
    assert (await stored.client.post(cancel, headers=key)).status_code == 200
    assert (await stored.client.delete("/api/v1/collections/library")).status_code == 200
    assert (await stored.client.post(cancel, headers=key)).status_code == 404


async def test_listing_and_its_pages(make_stored: MakeStoredWorld) -> None:
    world = make_stored(index_uploads=False)
    await world.gallery.objects.prepare()
    await upload(world, 1)
    made = [(await index(world))["job_id"] for _ in range(3)]
    made.append((await index(world, path="/api/v1/index/faces-cluster"))["job_id"])
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await world.client.get(f"{JOBS}?limit=2{cursor}")).json()
        seen += [job["job_id"] for job in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == made[::-1]
    clustering = (await world.client.get(f"{JOBS}?kind=faces-cluster&state=queued&state=running")).json()["items"]
    assert [job["job_id"] for job in clustering] == made[3:]
    # A cursor is good for its own listing only.
    assert (await world.client.get(f"{JOBS}?kind=faces{cursor}")).json()["code"] == "invalid_cursor"


async def test_failures_are_listed_and_tried_again(stored: StoredWorld) -> None:
    ids = await upload(stored, 10)
    handler = Handler(stored)
    handler.fail = set(ids[2:5])
    (made,) = (await stored.client.get(JOBS)).json()["items"]
    address = f"{JOBS}/{made['job_id']}"
    async with working(stored, handler):
        job = await over(stored, made["job_id"])
        assert (job["state"], job["progress"]["done"], job["progress"]["failed"]) == ("done", 7, 3)
        assert job["progress"]["remaining"] == 0 and job["progress"]["rate_per_s"] > 0 and job["progress"]["eta_s"] is None
        assert {item["subject"] for item in job["last_failures"]} == set(ids[2:5])
        first = (await stored.client.get(f"{address}/items?state=failed&limit=2")).json()
        rest = (await stored.client.get(f"{address}/items?state=failed&limit=2&cursor={first['next_cursor']}")).json()
        listed = [item["subject"] for item in first["items"] + rest["items"]]
        assert sorted(listed) == sorted(ids[2:5]) and rest["next_cursor"] is None
        assert first["items"][0]["error"] == {"code": "invalid_image", "detail": "It is damaged.", "details": {"why": "bits"}}
        handler.fail = set()
        again = await stored.client.post(f"{address}/retry-failed")
        assert again.status_code == 202 and again.json()["progress"]["remaining"] == 3
        job = await over(stored, made["job_id"])
    assert (job["progress"]["done"], job["progress"]["failed"], job["last_failures"]) == (10, 0, [])
    assert (await stored.client.post(f"{address}/retry-failed")).json()["state"] == "done"


async def test_cancelling(stored: StoredWorld) -> None:
    await upload(stored, 20)
    handler = Handler(stored)
    handler.gate.clear()
    (made,) = (await stored.client.get(JOBS)).json()["items"]
    address = f"{JOBS}/{made['job_id']}"
    async with working(stored, handler):

        async def running() -> bool:
            state: str = (await stored.client.get(address)).json()["state"]
            return state == "running"

        await until(running)
        for _ in range(2):
            cancelled = (await stored.client.post(f"{address}/cancel")).json()
            assert (cancelled["state"], cancelled["progress"]["cancelled"]) == ("cancelled", 20)
        handler.gate.set()
        await asyncio.sleep(0.5)
    assert (await stored.client.get(address)).json()["progress"]["done"] == 0


class Events:
    """Server-sent events as they come, over ASGI: httpx would wait for the end of the answer."""

    def __init__(self, world: StoredWorld, path: str) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.text = ""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": path, "query_string": b"",
            "raw_path": path.encode(), "root_path": "", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
            "headers": [(name.lower().encode(), value.encode()) for name, value in
                        {**world.client.headers, "Last-Event-ID": "7; DROP"}.items()],
        }  # fmt: skip
        self.task = asyncio.create_task(world.api(scope, self._receive, self._send))
        self._sent = False

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.queue.put_nowait(message)

    async def until(self, word: str) -> None:
        async with asyncio.timeout(60):
            while word not in self.text:
                self.text += (await self.queue.get()).get("body", b"").decode()

    def data(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for block in self.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
            if "data" in fields:
                found.append((fields["event"], json.loads(fields["data"])))
        return found


async def test_events_until_the_job_is_over(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.api.jobs._SILENCE_S", 0.3)
    monkeypatch.setattr(job_watch, "_INTERVAL_S", 0.1)
    await upload(stored, 12)
    (made,) = (await stored.client.get(JOBS)).json()["items"]
    path = f"{JOBS}/{made['job_id']}/events"
    handler = Handler(stored)
    first, second = Events(stored, path), Events(stored, path)
    start = await first.queue.get()
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-type"].startswith(b"text/event-stream")
    # Both have seen how it was before anything is done.
    await second.until("event: progress")
    # Nothing happens: a sign of life all the same.
    await first.until(": still there")
    async with working(stored, handler):
        await first.until("event: end")
        await second.until("event: end")
    await asyncio.wait_for(asyncio.gather(first.task, second.task), 30)
    for events in (first.data(), second.data()):
        assert events[0][0] == "progress" and events[0][1]["progress"]["done"] == 0
        assert events[-1][0] == "end" and events[-1][1]["state"] == "done" and events[-1][1]["progress"]["done"] == 12
    # Of a job that is over, the end at once.
    answer = await stored.client.get(path)
    assert answer.text.count("event: ") == 1 and "event: end" in answer.text
    watch = stored.gallery.job_watch
    assert watch._watchers == 0 and watch._watched == {}


async def test_who_leaves_or_is_one_too_many(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_watch, "MAX_WATCHERS", 2)
    await upload(stored, 1)
    (made,) = (await stored.client.get(JOBS)).json()["items"]
    path = f"{JOBS}/{made['job_id']}/events"
    streams = [Events(stored, path) for _ in range(2)]
    for stream in streams:
        await stream.until("event: progress")
    refused = await stored.client.get(path)
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    for stream in streams:
        stream.gone.set()
        await asyncio.wait_for(stream.task, 30)
    watch = stored.gallery.job_watch
    assert watch._watchers == 0 and watch._watched == {}
    after = Events(stored, path)
    await after.until("event: progress")
    # The service ends: it does not wait for those who look on.
    await watch.close()
    await asyncio.wait_for(after.task, 30)


async def test_an_erased_photo_is_in_no_job(stored: StoredWorld) -> None:
    ids = await upload(stored, 3)
    (made,) = (await stored.client.get(JOBS)).json()["items"]
    assert (await stored.client.delete(f"{PHOTOS}/{ids[1]}")).status_code == 200
    items = (await stored.client.get(f"{JOBS}/{made['job_id']}/items")).json()["items"]
    assert sorted(item["subject"] for item in items) == sorted(["", ids[0], ids[2]])
    assert [item["state"] for item in items if not item["subject"]] == ["skipped"]
    await stored.client.delete("/api/v1/collections/library")
    assert (await stored.client.get(JOBS)).json()["items"] == []
    handler = Handler(stored)
    async with working(stored, handler):
        # What is left in the queue leads to nothing.
        async def empty() -> bool:
            return await stored.rows("SELECT 1 FROM kinlens_pgqueuer") == []

        await until(empty)


async def test_housekeeping_closes_purges_and_puts_back(make_stored: MakeStoredWorld) -> None:
    world = make_stored(jobs_retention_days=7)
    await world.gallery.objects.prepare()
    await upload(world, 3)
    (made,) = (await world.client.get(JOBS)).json()["items"]
    await world.rows("DELETE FROM kinlens_pgqueuer")
    await world.gallery.housekeeping.once()
    assert len(await world.rows("SELECT 1 FROM kinlens_pgqueuer")) == 3
    for item in (await world.client.get(f"{JOBS}/{made['job_id']}/items")).json()["items"]:
        await world.client.delete(f"{PHOTOS}/{item['subject']}")
    await world.gallery.housekeeping.once()
    assert (await world.client.get(f"{JOBS}/{made['job_id']}")).json()["state"] == "done"
    await world.rows("UPDATE jobs SET finished_at = now() - interval '8 days'")
    await world.gallery.housekeeping.once()
    assert (await world.client.get(f"{JOBS}/{made['job_id']}")).status_code == 404
    assert await world.rows("SELECT 1 FROM job_items") == []


async def test_what_no_worker_can_do_asks_for_no_more_workers(stored: StoredWorld) -> None:
    """Embeddings wait for a model that is not loaded."""
    await upload(stored, 2)
    gallery = stored.gallery
    collection = await gallery.collections.ensure("library", "Library")
    await gallery.database.run(lambda tx: jobs.create(tx, collection, JobKind.EMBEDDINGS, {}, ["one"] * 9))
    worker = Worker(gallery.database, lambda: stored.dsn, {JobKind.FACES: Handler(stored)}, 1)
    workshop = Workshop(gallery, cast("PhotoIndexer", None), worker, cast("Settling", None))
    assert await workshop.depth() == 2
    assert len(await stored.rows("SELECT 1 FROM kinlens_pgqueuer")) == 4


async def test_no_job_without_a_database(make_stored: MakeStoredWorld) -> None:
    world = make_stored(dsn=lambda: "postgresql://nobody@127.0.0.1:9/nothing")
    for path in (JOBS, f"{JOBS}/{uuid4()}", f"{JOBS}/{uuid4()}/events"):
        answer: httpx.Response = await world.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
