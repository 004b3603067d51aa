"""The photo library of a running instance, as a command sees it: photos, persons, faces, tags."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from serve_app.imports.service_client import ServiceClient, problem_of

_API = "/api/v1"
_PAGE = 500
_FACES_JOB_PHOTOS = 5000
_POLL_S = 2.0


class Refused(Exception):
    """The service will not do it, for what is asked: `code` and `detail` say why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class KnownPhoto:
    id: str
    sha256: str
    width_px: int
    height_px: int
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class KnownFace:
    """`box`: pixels of the photo as displayed. `by_user`: a user said whose it is, or that it is nobody's."""

    id: str
    box: tuple[float, ...]
    person_id: str | None
    by_user: bool
    hidden: bool


class LibraryClient:
    """Every method raises GaveUp, Refused, and ConfigurationError for a wrong address or key."""

    def __init__(self, service: ServiceClient) -> None:
        self._service = service

    async def photos(self) -> AsyncIterator[KnownPhoto]:
        """All of them."""
        async for one in self._pages("/photos", {"sort": "created_at", "order": "asc"}):
            yield _photo(one)

    async def photo(self, photo_id: str) -> KnownPhoto:
        return _photo(await self._json("GET", f"/photos/{photo_id}"))

    async def persons(self) -> AsyncIterator[tuple[str, str | None]]:
        """The id of each person, and its external_id."""
        async for one in self._pages("/persons", {"hidden": "all"}):
            yield one["id"], one["external_id"]

    async def make_person(self, name: str, external_id: str) -> str:
        """Its id."""
        made = await self._json("POST", "/persons", json={"name": name, "external_id": external_id})
        return str(made["id"])

    async def add_tags(self, photo_id: str, tags: Sequence[str]) -> None:
        await self._json("POST", f"/photos/{photo_id}/tags", json={"add": list(tags)})

    async def faces(self, photo_id: str) -> list[KnownFace]:
        found = await self._json("GET", f"/photos/{photo_id}/faces")
        return [
            KnownFace(one["id"], tuple(one["bbox"]), one["person_id"], one["decided_by"] == "user", one["hidden"])
            for one in found["faces"]
            if one["bbox"] is not None
        ]

    async def assign(self, face_id: str, person_id: str) -> None:
        await self._json("POST", f"/faces/{face_id}/assign-person", json={"person_id": person_id})

    async def index_faces(self, photo_ids: Sequence[str], timeout_s: float) -> bool:
        """Waits until the faces of these photos have been looked for; whether they have."""
        until = time.monotonic() + timeout_s
        # What the service began by itself is not asked for twice.
        open_jobs = {"kind": "faces", "state": ["queued", "running"], "limit": 1}
        while (await self._json("GET", "/jobs", params=open_jobs))["items"]:
            if not await _pause(until):
                return False
        for start in range(0, len(photo_ids), _FACES_JOB_PHOTOS):
            part = list(photo_ids[start : start + _FACES_JOB_PHOTOS])
            job = await self._json("POST", "/index/faces", json={"photo_ids": part, "only_new": True})
            while job["state"] in ("queued", "running"):
                if not await _pause(until):
                    return False
                job = await self._json("GET", f"/jobs/{job['job_id']}")
        return True

    async def _pages(self, path: str, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        cursor: dict[str, str] = {}
        while True:
            page = await self._json("GET", path, params={**params, "limit": _PAGE, **cursor})
            for one in page["items"]:
                yield one
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}

    async def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        response = await self._service.ask(method, f"{_API}{path}", check=_is_object, **content)
        if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise self._service.refusal(response)
        if response.status_code >= 300:
            problem = problem_of(response)
            raise Refused(problem["code"], problem["detail"])
        found: dict[str, Any] = response.json()
        return found


async def _pause(until: float) -> bool:
    if time.monotonic() > until:
        return False
    await asyncio.sleep(_POLL_S)
    return True


def _photo(one: dict[str, Any]) -> KnownPhoto:
    return KnownPhoto(one["id"], one["sha256"], one["width_px"], one["height_px"], frozenset(one["tags"]))


def _is_object(response: httpx.Response) -> None:
    if not isinstance(response.json(), dict):
        raise ValueError("the answer is not what a Kinlens answers")  # noqa: TRY004  as for every broken answer
