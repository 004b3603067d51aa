"""Mixed load on a whole Kinlens, and the book of what it acknowledged: who sent what, how it was answered, and whether all of
that is still there in the end."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
from PIL import Image

from benchmarks.faces import package_image
from benchmarks.instance import KEY, Instance

API = "/api/v1"
COLLECTION = "faults"
GOOD = "ok"
INDEXED_WITHIN_S = 5.0
"""An uploaded photo has its faces by then, where all is well."""
_TIMEOUT_S = 30.0
_POLL_S = 0.25
_UPLOAD_PAUSE_S = 1.0
_INDEXING_PATIENCE_S = 90.0


def portrait() -> bytes:
    """A JPEG with one face."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(package_image("Tom_Hanks_54745.png"))).convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Pictures:
    """The same portrait with other bytes each time: a comment after the first marker."""

    def __init__(self) -> None:
        self.plain = portrait()
        self._numbers = itertools.count()
        self._run = random.randbytes(8).hex()

    def another(self) -> bytes:
        text = f"{self._run} {next(self._numbers)}".encode()
        return self.plain[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + self.plain[2:]


@dataclass(frozen=True, slots=True)
class Answer:
    """`outcome`: GOOD, else the code of a problem, a bare status, or what became of the connection. `begun`, `ended`:
    monotonic seconds."""

    kind: str
    begun: float
    ended: float
    outcome: str

    @property
    def good(self) -> bool:
        return self.outcome == GOOD


@dataclass(slots=True)
class Book:
    """What was acknowledged: photos by id with the SHA-256 of their bytes, faces by id with their persons and pictures."""

    photos: dict[str, str] = field(default_factory=dict)
    faces: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Every enrolled face acknowledged a person too."""
        return len(self.photos) + 2 * len(self.faces)


class Load:
    """Clients of each kind in `mix`, each sending the next request when the last is answered and `pause_s` is over."""

    def __init__(self, instance: Instance, mix: Mapping[str, int], pause_s: float = 0.1) -> None:
        self.answers: list[Answer] = []
        self.book = Book()
        self.pictures = Pictures()
        self._mix = mix
        self._pause_s = pause_s
        self._url = instance.url
        self._kinds: dict[str, Callable[[httpx.AsyncClient], Awaitable[None]]] = {
            "upload": self._upload, "index": self._index, "enrol": self._enrol, "identify": self._identify,
            "verify-face": self._verify_face, "analyze": self._analyze, "photo": self._photo, "list": self._list,
            "health": self._health,
        }  # fmt: skip

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._client(kind)) for kind, clients in self._mix.items() for _ in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.AsyncClient(base_url=self._url, headers=headers, timeout=_TIMEOUT_S, limits=limits)

    async def prepare(self) -> None:
        async with self.client() as client:
            (await client.post(f"{API}/collections", json={"id": COLLECTION})).raise_for_status()
            await self.upload_one(client)
            await self._enrol(client)
        if not self.book.photos or not self.book.faces:
            raise RuntimeError(f"nothing can be stored: {self.answers}")
        self.answers.clear()

    async def _client(self, kind: str) -> None:
        async with self.client() as client:
            while True:
                await self._kinds[kind](client)
                await asyncio.sleep(self._pause_s)

    async def ask(
        self,
        client: httpx.AsyncClient,
        kind: str,
        method: str,
        path: str,
        good: Callable[[httpx.Response], str] = lambda _: GOOD,
        content: bytes | None = None,
        json: Mapping[str, object] | None = None,
    ) -> httpx.Response | None:
        """None where the answer is not good. `good` looks closer at one of status 200 or 201."""
        begun = time.monotonic()
        response: httpx.Response | None = None
        headers = {"Content-Type": "image/jpeg"} if content is not None else {}
        try:
            response = await client.request(method, path, content=content, json=json, headers=headers)
            outcome = good(response) if response.status_code in (200, 201) else _refusal(response)
        except httpx.TimeoutException:
            outcome = "timeout"
        except httpx.HTTPError as error:
            outcome = f"connection: {type(error).__name__}"
        self.answers.append(Answer(kind, begun, time.monotonic(), outcome))
        return response if outcome == GOOD else None

    async def upload_one(self, client: httpx.AsyncClient, kind: str = "upload") -> str | None:
        """The photo's id, once it was acknowledged."""
        picture = self.pictures.another()
        begun = time.monotonic()
        photo_id: str | None = None
        try:
            response = await client.post(f"{API}/photos/upload", files={"files": ("photo.jpg", picture, "image/jpeg")})
            outcome = _refusal(response)
            if response.status_code == 200:
                item = response.json()["results"][0]
                outcome = GOOD if item["status"] == "created" else (item["problem"] or {}).get("code", item["status"])
                if outcome == GOOD:
                    photo_id = item["photo"]["id"]
                    self.book.photos[photo_id] = hashlib.sha256(picture).hexdigest()
        except httpx.TimeoutException:
            outcome = "timeout"
        except httpx.HTTPError as error:
            outcome = f"connection: {type(error).__name__}"
        self.answers.append(Answer(kind, begun, time.monotonic(), outcome))
        return photo_id

    async def _upload(self, client: httpx.AsyncClient) -> None:
        await self.upload_one(client)
        # Indexing is to keep up, and to catch up.
        await asyncio.sleep(_UPLOAD_PAUSE_S)

    async def _index(self, client: httpx.AsyncClient) -> None:
        """From the acknowledgement until its face is there. One that is late fails at the moment of the acknowledgement."""
        if (photo_id := await self.upload_one(client)) is None:
            return
        begun = time.monotonic()
        late = False
        while time.monotonic() < begun + _INDEXING_PATIENCE_S:
            with suppress(httpx.HTTPError):
                response = await client.get(f"{API}/photos/{photo_id}")
                if response.status_code == 200 and response.json()["face_count"]:
                    self.answers.append(Answer("index", begun, time.monotonic(), GOOD))
                    return
            if not late and time.monotonic() > begun + INDEXED_WITHIN_S:
                late = True
                self.answers.append(Answer("index", begun, begun, f"not within {INDEXED_WITHIN_S:.0f} s"))
            await asyncio.sleep(_POLL_S)

    async def _enrol(self, client: httpx.AsyncClient) -> None:
        persons = f"{API}/collections/{COLLECTION}/persons"
        made = await self.ask(client, "enrol", "POST", persons, json={"name": "Somebody"})
        if made is None:
            return
        person, picture = made.json()["id"], self.pictures.another()
        enrolled = await self.ask(client, "enrol", "POST", f"{persons}/{person}/faces?review=false", content=picture)
        if enrolled is not None:
            self.book.faces[enrolled.json()["faces"][0]["id"]] = (person, hashlib.sha256(picture).hexdigest())

    async def _identify(self, client: httpx.AsyncClient) -> None:
        path = f"{API}/collections/{COLLECTION}/search"
        await self.ask(
            client, "identify", "POST", path, lambda r: GOOD if r.json()["results"][0]["candidates"] else "nobody found",
            content=self.pictures.plain,
        )  # fmt: skip

    async def _verify_face(self, client: httpx.AsyncClient) -> None:
        path = f"{API}/face/verify-face"
        await self.ask(
            client, "verify-face", "POST", path, lambda r: GOOD if r.json()["face_count"] == 1 else "no face",
            content=self.pictures.plain,
        )  # fmt: skip

    async def _analyze(self, client: httpx.AsyncClient) -> None:
        path = f"{API}/face/analyze-face-advanced"

        def complete(response: httpx.Response) -> str:
            attributes = response.json()["faces"][0]["attributes"] or {}
            return GOOD if attributes.get("age") else "without attributes"

        await self.ask(client, "analyze", "POST", path, complete, content=self.pictures.plain)

    async def _photo(self, client: httpx.AsyncClient) -> None:
        """One that was acknowledged, bytes and all."""
        photo_id, digest = random.choice(list(self.book.photos.items()))
        await self.ask(client, "photo", "GET", f"{API}/photos/{photo_id}/image", lambda r: _same(r, digest))

    async def _list(self, client: httpx.AsyncClient) -> None:
        await self.ask(client, "list", "GET", f"{API}/photos?limit=20")

    async def _health(self, client: httpx.AsyncClient) -> None:
        await self.ask(client, "health", "GET", f"{API}/health")


def _same(response: httpx.Response, digest: str) -> str:
    return GOOD if hashlib.sha256(response.content).hexdigest() == digest else "other bytes"


def _refusal(response: httpx.Response) -> str:
    if response.headers.get("content-type") == "application/problem+json":
        return f"{response.status_code} {response.json()['code']}"
    return str(response.status_code)


async def lost(load: Load, *, indexed_within_s: float = 120.0) -> list[str]:
    """What was acknowledged and is not there, or not as it was: read back over the API, bytes too. Photos that have no face by
    then are lost as well: a job that was queued with them did not happen."""
    missing: list[str] = []
    deadline = time.monotonic() + indexed_within_s

    async def read(client: httpx.AsyncClient, path: str) -> httpx.Response:
        for _ in range(40):
            with suppress(httpx.HTTPError):
                response = await client.get(path)
                if response.status_code < 500:
                    return response
            await asyncio.sleep(0.5)
        raise RuntimeError(f"{path} has no answer")

    async def photo(client: httpx.AsyncClient, photo_id: str, digest: str) -> None:
        image = await read(client, f"{API}/photos/{photo_id}/image")
        if image.status_code != 200 or _same(image, digest) != GOOD:
            missing.append(f"photo {photo_id}")
            return
        while not (await read(client, f"{API}/photos/{photo_id}")).json()["face_count"]:
            if time.monotonic() > deadline:
                missing.append(f"face of photo {photo_id}")
                return
            await asyncio.sleep(1)

    async def face(client: httpx.AsyncClient, face_id: str, person: str, digest: str) -> None:
        base = f"{API}/collections/{COLLECTION}"
        image = await read(client, f"{base}/faces/{face_id}/image")
        if image.status_code != 200 or _same(image, digest) != GOOD:
            missing.append(f"face {face_id}")
        if (await read(client, f"{base}/persons/{person}")).status_code != 200:
            missing.append(f"person {person}")

    gate = asyncio.Semaphore(8)
    async with load.client() as client:

        async def gated(work: Awaitable[None]) -> None:
            async with gate:
                await work

        await asyncio.gather(
            *(gated(photo(client, photo_id, digest)) for photo_id, digest in load.book.photos.items()),
            *(gated(face(client, face_id, person, digest)) for face_id, (person, digest) in load.book.faces.items()),
        )
    return missing
