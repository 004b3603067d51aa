"""`kinlens import`: a client that sends many pictures to a running instance, and finishes what it began when run again.

Batches of pictures go to `POST /collections/{id}/faces:batch`. The server answers each picture for itself, and one that is
there already costs it a look-up: so whatever broke off, on either side, is made good by sending the same once more.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, get_args

import httpx

from serve_app.errors import ConfigurationError
from serve_app.imports.import_sources import Picture, Skipped, Source, read_picture
from serve_app.imports.service_client import GaveUp, ServiceClient, longer_pause_s, problem_of, until_it_gives_up

BATCH_FILES = 16
BATCH_BYTES = 16 << 20
_ITEM_ATTEMPTS = 5
"""Of a picture that the server answers `failed`: overloaded, out of time, a part of it away for a moment."""
_STATUS_OF_ALL = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
_CODE_OF_ALL = {"embedding_model_mismatch"}
"""What is wrong with one picture is wrong with every one."""

Status = Literal["enrolled", "exists", "refused", "failed", "skipped"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the report. `skipped`: nothing that could have been imported. `failed`: not for what it is; run again.
    `code` and `detail`: why, and of an enrolled face its first warning."""

    shown: str
    external_id: str
    status: Status
    face_id: str = ""
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """`give_up_after_s`: without a single answer. `batch_files`, `batch_bytes`: at most in one request; a larger file goes
    alone."""

    collection_id: str
    create: bool = False
    face: Literal["only", "largest"] = "only"
    review: bool = True
    workers: int = 4
    give_up_after_s: float = 300
    batch_files: int = BATCH_FILES
    batch_bytes: int = BATCH_BYTES


@dataclass(slots=True)
class Summary:
    """`statuses`, and `reasons` (status, code) of what was not enrolled, or with a warning. `gave_up`: why not everything
    was sent."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    gave_up: str | None = None

    def add(self, outcome: Outcome) -> None:
        self.statuses[outcome.status] += 1
        if outcome.code and outcome.status != "exists":
            self.reasons[outcome.status, outcome.code] += 1

    @property
    def complete(self) -> bool:
        """Everything that is a picture of somebody is there."""
        return self.gave_up is None and not self.statuses["refused"] and not self.statuses["failed"]


@dataclass(frozen=True, slots=True)
class _Loaded:
    picture: Picture
    data: bytes
    entry: str
    """JSON of whose face it is."""


class Importer:
    """`client`: with the server's address as its base URL, and the key in its headers. `record` is told of each file once,
    in no promised order."""

    def __init__(self, client: httpx.AsyncClient, options: ImportOptions, record: Callable[[Outcome], None]) -> None:
        self._service = ServiceClient(client, options.give_up_after_s)
        self._options = options
        self._record_outcome = record
        self._summary = Summary()
        self._address = f"/api/v1/collections/{options.collection_id}"

    async def run(self, source: Source) -> Summary:
        """Sends what is in the source. Raises ConfigurationError for what no repetition can help: a wrong address or key, a
        collection that is not there, or is another model's."""
        with until_it_gives_up(self._summary):
            await self._prepare()
            batches: asyncio.Queue[list[_Loaded] | None] = asyncio.Queue(maxsize=1)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._options.workers):
                    tasks.create_task(self._work(batches))
                async for batch in self._batches(source):
                    await batches.put(batch)
                for _ in range(self._options.workers):
                    await batches.put(None)
        return self._summary

    async def _prepare(self) -> None:
        response = await self._service.ask("GET", self._address)
        if response.status_code == HTTPStatus.NOT_FOUND and self._options.create:
            response = await self._service.ask("POST", "/api/v1/collections", json={"id": self._options.collection_id})
            if response.status_code == HTTPStatus.CONFLICT:  # somebody was faster
                response = await self._service.ask("GET", self._address)
        if response.status_code >= 300:
            raise self._service.refusal(response, missing="--create makes it.")

    async def _work(self, batches: asyncio.Queue[list[_Loaded] | None]) -> None:
        while (batch := await batches.get()) is not None:
            try:
                await self._send(batch)
            except GaveUp as error:
                for item in batch:
                    self._record(Outcome(item.picture.shown, item.picture.person.external_id or "", "failed", code="gave_up",
                                         detail=str(error)))  # fmt: skip
                raise

    async def _batches(self, source: Source) -> AsyncIterator[list[_Loaded]]:
        batch: list[_Loaded] = []
        size = 0
        entries = source.entries()
        while (entry := await asyncio.to_thread(next, entries, None)) is not None:
            loaded = entry if isinstance(entry, Skipped) else await asyncio.to_thread(_load, entry)
            if isinstance(loaded, Skipped):
                self._record(_skipped(loaded))
                continue
            if batch and (len(batch) >= self._options.batch_files or size + len(loaded.data) > self._options.batch_bytes):
                yield batch
                batch, size = [], 0
            batch.append(loaded)
            size += len(loaded.data)
        if batch:
            yield batch

    async def _send(self, batch: list[_Loaded]) -> None:
        """Until every item of it is answered for good. Raises GaveUp and then takes those answered out of `batch`."""
        attempt = 0
        while batch:
            attempt += 1
            results = await self._post(batch)
            again: list[_Loaded] = []
            for item, result in zip(batch, results, strict=True):
                if result["status"] == "failed" and attempt < _ITEM_ATTEMPTS:
                    again.append(item)
                else:
                    self._record(_outcome(item.picture, result))
            batch[:] = again
            if batch:
                await asyncio.sleep(longer_pause_s(attempt))

    async def _post(self, batch: Sequence[_Loaded]) -> list[dict[str, Any]]:
        """A result for each item. Raises ConfigurationError, GaveUp."""
        options = self._options
        fields = {
            "items": f"[{','.join(item.entry for item in batch)}]",
            "face": options.face,
            "review": str(options.review).lower(),
        }
        files = [("files", (str(index), item.data, "application/octet-stream")) for index, item in enumerate(batch)]

        def complete(response: httpx.Response) -> None:
            _check_answer(response, len(batch))

        response = await self._service.ask("POST", f"{self._address}/faces:batch", check=complete, data=fields, files=files)
        if response.status_code == HTTPStatus.OK:
            results: list[dict[str, Any]] = response.json()["results"]
            for result in results:
                problem = result["problem"]
                if problem is not None and problem["code"] in _CODE_OF_ALL:
                    raise ConfigurationError(problem["detail"])
            return results
        problem = problem_of(response)
        if response.status_code in _STATUS_OF_ALL or problem["code"] in _CODE_OF_ALL:
            raise self._service.refusal(response, missing="--create makes it.")
        if len(batch) > 1:
            # Too large for this server, or one among them that it does not take: the others shall not suffer for it.
            half = len(batch) // 2
            return [*await self._post(batch[:half]), *await self._post(batch[half:])]
        return [{"status": "refused", "face_id": None, "problem": problem}]

    def _record(self, outcome: Outcome) -> None:
        self._summary.add(outcome)
        self._record_outcome(outcome)


def _load(picture: Picture) -> _Loaded | Skipped:
    data = read_picture(picture)
    if isinstance(data, Skipped):
        return data
    return _Loaded(picture, data, json.dumps(picture.person.model_dump(mode="json", exclude_none=True)))


def _skipped(skipped: Skipped) -> Outcome:
    status: Status = "skipped" if skipped.harmless else "failed" if skipped.code == "unreadable" else "refused"
    return Outcome(skipped.shown, skipped.external_id, status, "", skipped.code, skipped.detail)


def _outcome(picture: Picture, result: dict[str, Any]) -> Outcome:
    # An enrolled face may come with what a person should look at.
    problem: dict[str, str] = result["problem"] or next(iter(result.get("warnings", [])), {})
    return Outcome(
        picture.shown,
        picture.person.external_id or "",
        result["status"],
        result["face_id"] or "",
        problem.get("code", ""),
        problem.get("detail", ""),
    )


def _check_answer(response: httpx.Response, expected: int) -> None:
    """Raises ValueError for an answer that is not one result an item."""
    found = response.json()
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or len(results) != expected:
        raise ValueError("the answer is not what a Kinlens answers")
