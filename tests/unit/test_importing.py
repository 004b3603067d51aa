"""The importing client against servers that are busy, broken, away or of another opinion."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from serve_app.errors import ConfigurationError
from serve_app.imports.import_sources import FolderSource, Picture, Skipped
from serve_app.imports.importing import Importer, ImportOptions, Outcome, Summary

JPEG = b"\xff\xd8\xff\xe0"
Handler = Callable[[int, list[str]], httpx.Response | Exception]
"""The number of the batch request, and the external_ids in it, to an answer."""


def enrolled(ids: list[str], **other: Mapping[str, object]) -> httpx.Response:
    """`other`: results by external_id."""
    results = [{"status": "enrolled", "face_id": f"face-{one}", "problem": None, **other.get(one, {})} for one in ids]
    return httpx.Response(200, json={"results": results})


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"code": code, "detail": f"It is {code}."}
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json", **headers})


def failed(code: str) -> dict[str, object]:
    return {"status": "failed", "face_id": None, "problem": {"code": code, "detail": "Not now."}}


@dataclass
class Run:
    """What the server saw and what was told."""

    batches: list[list[str]] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    summary: Summary | None = None

    @property
    def statuses(self) -> dict[str, str]:
        return {one.external_id: one.status for one in self.outcomes}


@pytest.fixture
def people(tmp_path: Path) -> FolderSource:
    for index in range(10):
        folder = tmp_path / f"p{index}"
        folder.mkdir()
        (folder / "1.jpg").write_bytes(JPEG + bytes([1, index]))
    return FolderSource(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Pauses that take no time, but count."""
    pauses: list[float] = []
    real = time.monotonic

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: real() + sum(pauses))
    yield pauses
    monkeypatch.undo()


async def run(source: FolderSource, handler: Handler, clock: list[float], there: bool = True, **options: object) -> Run:
    told = Run(pauses_s=clock)

    async def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer key"
        if request.method == "GET":
            return httpx.Response(200, json={}) if there else problem(404, "not_found")
        body = await request.aread()
        if request.url.path.endswith("/collections"):
            told.created.append(json.loads(body)["id"])
            return httpx.Response(201, json={})
        items = re.search(rb'name="items"\r\n\r\n(.*?)\r\n', body)
        assert items is not None and body.index(b'name="items"') < body.index(b'name="files"')
        ids = [item["external_id"] for item in json.loads(items[1])]
        assert body.count(JPEG) == len(ids)
        told.batches.append(ids)
        result = handler(len(told.batches), ids)
        if isinstance(result, Exception):
            raise result
        return result

    given = {"collection_id": "people", "workers": 1, "batch_files": 4, "give_up_after_s": 100, **options}
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://test", headers={"Authorization": "Bearer key"}
    ) as client:
        importer = Importer(client, ImportOptions(**given), told.outcomes.append)  # type: ignore[arg-type]
        told.summary = await importer.run(source)
    return told


async def test_batches_are_filled_and_everything_is_told_once(people: FolderSource, clock: list[float]) -> None:
    told = await run(people, lambda _, ids: enrolled(ids), clock)
    assert told.batches == [[f"p{i}" for i in range(4)], [f"p{i}" for i in range(4, 8)], ["p8", "p9"]]
    assert len(told.outcomes) == 10 and {one.face_id for one in told.outcomes} == {f"face-p{i}" for i in range(10)}
    assert told.summary is not None and told.summary.complete and told.summary.statuses == {"enrolled": 10}
    few = await run(people, lambda _, ids: enrolled(ids), clock, batch_bytes=13)
    assert [len(batch) for batch in few.batches] == [2] * 5
    alone = await run(people, lambda _, ids: enrolled(ids), clock, batch_bytes=1)
    assert [len(batch) for batch in alone.batches] == [1] * 10


async def test_several_workers_send_everything_once(people: FolderSource, clock: list[float]) -> None:
    told = await run(people, lambda _, ids: enrolled(ids), clock, workers=4, batch_files=1)
    assert sorted(id_ for batch in told.batches for id_ in batch) == sorted(f"p{i}" for i in range(10))
    assert len(told.outcomes) == 10


async def test_a_busy_server_is_waited_for_as_it_asks(people: FolderSource, clock: list[float]) -> None:
    def answer(request: int, ids: list[str]) -> httpx.Response:
        if request == 1:
            return problem(503, "overloaded", **{"Retry-After": "7"})
        return problem(429, "rate_limited", **{"Retry-After": "9"}) if request == 3 else enrolled(ids)

    told = await run(people, answer, clock)
    assert told.summary is not None and told.summary.complete
    assert told.pauses_s == [7.0, 9.0]


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
        httpx.Response(200, text='{"results":[{"status":'),
        httpx.Response(200, json={"results": []}),
        httpx.Response(200, json=[1]),
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else f"{one.status_code}",
)
async def test_what_broke_off_is_sent_again(
    people: FolderSource, clock: list[float], trouble: httpx.Response | Exception
) -> None:
    told = await run(people, lambda number, ids: trouble if number in (1, 2, 4) else enrolled(ids), clock)
    assert told.summary is not None and told.summary.complete and len(told.outcomes) == 10
    assert told.batches[0] == told.batches[1] == told.batches[2] and len(told.pauses_s) == 3
    assert told.pauses_s[1] > 0.5


async def test_it_gives_up_and_keeps_what_is_done(people: FolderSource, clock: list[float]) -> None:
    def answer(number: int, ids: list[str]) -> httpx.Response | Exception:
        return enrolled(ids) if number == 1 else httpx.ConnectError("refused")

    told = await run(people, answer, clock)
    assert told.summary is not None and told.summary.gave_up is not None and not told.summary.complete
    assert "refused" in told.summary.gave_up and "100 s" in told.summary.gave_up
    # A last pause of up to 30 s would have been too long; and what takes real time counts as well.
    assert 60 < sum(told.pauses_s) <= 100
    assert told.statuses == {f"p{i}": "enrolled" for i in range(4)} | {f"p{i}": "failed" for i in range(4, 8)}
    assert {one.code for one in told.outcomes if one.status == "failed"} == {"gave_up"}


async def test_a_server_that_is_away_from_the_start(people: FolderSource, clock: list[float]) -> None:
    async def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with httpx.AsyncClient(transport=httpx.MockTransport(away), base_url="http://test") as client:
        summary = await Importer(client, ImportOptions("people", give_up_after_s=5), lambda _: None).run(people)
    assert summary.gave_up is not None and not summary.statuses


async def test_failed_items_alone_are_sent_again(people: FolderSource, clock: list[float]) -> None:
    def answer(number: int, ids: list[str]) -> httpx.Response:
        return enrolled(ids, **({"p1": failed("overloaded"), "p2": failed("database_unavailable")} if number == 1 else {}))

    told = await run(people, answer, clock)
    assert told.batches[1] == ["p1", "p2"]
    assert told.summary is not None and told.summary.complete and len(told.outcomes) == 10


async def test_an_item_that_always_fails_ends_as_failed(people: FolderSource, clock: list[float]) -> None:
    told = await run(people, lambda _, ids: enrolled(ids, p5=failed("deadline_exceeded")), clock)
    assert told.statuses["p5"] == "failed" and len(told.outcomes) == 10
    assert [batch for batch in told.batches if batch == ["p5"]] == [["p5"]] * 4
    assert told.summary is not None and not told.summary.complete
    assert told.summary.reasons == {("failed", "deadline_exceeded"): 1}


async def test_refused_items_are_told_with_their_reason(people: FolderSource, clock: list[float]) -> None:
    refusal = {"status": "refused", "face_id": None, "problem": {"code": "no_face_detected", "detail": "Nobody."}}
    exists = {"status": "exists", "face_id": None, "problem": {"code": "duplicate_face", "detail": "Already."}}
    told = await run(people, lambda _, ids: enrolled(ids, p3=refusal, p4=exists), clock)
    assert told.statuses["p3"] == "refused" and told.statuses["p4"] == "exists"
    assert next(one for one in told.outcomes if one.external_id == "p3").detail == "Nobody."
    assert told.summary is not None and told.summary.reasons == {("refused", "no_face_detected"): 1}
    assert not told.pauses_s


async def test_warnings_of_enrolled_faces_are_told(people: FolderSource, clock: list[float]) -> None:
    warned = {"warnings": [{"code": "resembles_another", "detail": "Like p1."}, {"code": "low_quality_face", "detail": ""}]}
    told = await run(people, lambda _, ids: enrolled(ids, p2=warned, p3={"warnings": []}), clock)
    assert told.summary is not None and told.summary.complete
    assert told.summary.reasons == {("enrolled", "resembles_another"): 1}
    assert next(one for one in told.outcomes if one.external_id == "p2").detail == "Like p1."


async def test_a_batch_the_server_does_not_take_is_halved(people: FolderSource, clock: list[float]) -> None:
    def answer(_: int, ids: list[str]) -> httpx.Response:
        if len(ids) > 2:
            return problem(413, "payload_too_large")
        return problem(422, "invalid_request") if "p6" in ids else enrolled(ids)

    told = await run(people, answer, clock)
    assert told.statuses == {f"p{i}": "refused" if i == 6 else "enrolled" for i in range(10)}
    assert next(one for one in told.outcomes if one.external_id == "p6").code == "invalid_request"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (problem(401, "unauthorized"), "API key"),
        (problem(403, "access_error"), "API key"),
        (problem(404, "not_found"), "--create"),
        (problem(409, "embedding_model_mismatch"), "embedding_model_mismatch"),
        (
            enrolled(
                ["p0", "p1", "p2", "p3"],
                p0={"status": "refused", "problem": {"code": "embedding_model_mismatch", "detail": "Another model."}},
            ),
            "Another model",
        ),
    ],
)
async def test_what_no_repetition_helps_ends_it(
    people: FolderSource, clock: list[float], answer: httpx.Response, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await run(people, lambda *_: answer, clock)


async def test_the_collection_is_made_only_when_asked_for(people: FolderSource, clock: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="--create"):
        await run(people, lambda _, ids: enrolled(ids), clock, there=False)
    told = await run(people, lambda _, ids: enrolled(ids), clock, there=False, create=True)
    assert told.created == ["people"] and len(told.outcomes) == 10


async def test_what_is_not_sent_is_told_as_well(people: FolderSource, clock: list[float]) -> None:
    (people.root / "p0" / "empty.jpg").touch()
    (people.root / "p0" / "notes.txt").write_text("x")
    (people.root / "p0" / "gone.jpg").symlink_to("nowhere")
    (people.root / ".hidden").touch()
    told = await run(people, lambda _, ids: enrolled(ids), clock)
    assert told.summary is not None and told.summary.statuses == {"enrolled": 10, "refused": 1, "skipped": 2, "failed": 1}
    assert {(one.shown, one.status, one.code) for one in told.outcomes if one.status != "enrolled"} == {
        ("p0/empty.jpg", "refused", "not_a_picture"),
        ("p0/notes.txt", "skipped", "not_a_picture"),
        ("p0/gone.jpg", "failed", "unreadable"),
        (".hidden", "skipped", "hidden"),
    }


async def test_a_source_that_ends_in_the_middle_ends_the_import(people: FolderSource, clock: list[float]) -> None:
    class Broken:
        def entries(self) -> Iterator[Picture | Skipped]:
            yield next(people.entries())
            raise ConfigurationError("The disk is gone.")

    with pytest.raises(ConfigurationError, match="disk is gone"):
        await run(Broken(), lambda _, ids: enrolled(ids), clock)  # type: ignore[arg-type]
