"""What is counted and logged of requests, over ASGI around fakes."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from serve_app.api.deps import Services
from serve_app.api.observing import route_template
from tests.api.conftest import KEY, MakeWorld, World, image

SECRETS = ("secret-path", "secret-query", "secret-name", KEY)


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()


def services_of(api: FastAPI) -> Services:
    found: Services = api.state.services
    return found


async def lines(world: World, caplog: pytest.LogCaptureFixture, *request: str, **options: object) -> list[dict[str, object]]:
    with caplog.at_level(logging.INFO, logger="ray.serve.requests"):
        await world.client.request(*request, **options)  # type: ignore[arg-type]
    return [record.__dict__["fields"] for record in caplog.records if record.name == "ray.serve.requests"]


async def values(world: World) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = await world.client.get("/api/v1/metrics")
    assert answer.status_code == 200
    return {
        (
            sample.name,
            frozenset((key, value) for key, value in sample.labels.items() if key not in ("deployment", "replica")),
        ): (sample.value)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_a_line_tells_what_was_done_and_nothing_of_what_was_sent(world: World, caplog: pytest.LogCaptureFixture) -> None:
    (line,) = await lines(
        world,
        caplog,
        "POST",
        "/api/v1/face/extract-embedding?analyze=age",
        files={"file": ("secret-name.jpg", image(faces=2))},
        headers={"X-Request-ID": "mine-1"},
    )
    assert line["request_id"] == "mine-1" and line["key_id"] == "bootstrap"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/api/v1/face/extract-embedding", 200)
    assert line["complete"] is True and isinstance(line["received_bytes"], int) and line["received_bytes"] > 100
    assert isinstance(line["stages_ms"], dict) and "receive" in line["stages_ms"]


@pytest.mark.parametrize(
    ("method", "path", "route", "status", "code"),
    [
        ("GET", "/api/v1/photos/secret-path", "/api/v1/photos/{photo_id}", 422, "invalid_request"),
        ("GET", "/api/v1/models?q=secret-query", "/api/v1/models", 422, "invalid_request"),
        ("GET", "/secret-path", "(none)", 404, "not_found"),
        ("SECRET", "/api/v1/models", "/api/v1/models", 405, "method_not_allowed"),
        ("GET", "/photos/secret-path", "/photos/{rest:path}", 200, None),
    ],
)
async def test_errors_and_odd_requests(
    world: World, caplog: pytest.LogCaptureFixture, method: str, path: str, route: str, status: int, code: str | None
) -> None:
    (line,) = await lines(world, caplog, method, path)
    assert (line["route"], line["status"], line["code"]) in {(route, status, code), ("(none)", status, code)}
    assert line["method"] in ("GET", "other")
    assert not [one for one in SECRETS if one in caplog.text]
    text = (await world.client.get("/api/v1/metrics")).text
    assert not [one for one in SECRETS if one in text] and "SECRET" not in text


async def test_without_a_key_there_are_no_figures(world: World) -> None:
    for path in ("/api/v1/metrics", "/api/v1/system"):
        assert (await world.client.get(path, headers={"Authorization": "Bearer no-key-of-ours"})).status_code == 401


async def test_refusals_are_counted_by_what_was_full(make_world: MakeWorld) -> None:
    world = make_world(places=1)
    with services_of(world.api).admission:
        found = await values(world)
        assert found["kinlens_admission_places", frozenset({("state", "taken")})] == 1
        answer = await world.client.post("/api/v1/face/verify-face", files={"file": image()})
        assert answer.status_code == 503
    # Replicas are asked at most once a second.
    await asyncio.sleep(1.1)
    found = await values(world)
    assert found["kinlens_refusals_total", frozenset({("part", "ingress")})] == 1
    assert found["kinlens_problems_total", frozenset({("code", "overloaded")})] == 1
    assert found["kinlens_admission_places", frozenset({("state", "taken")})] == 0
    assert found["kinlens_part_up", frozenset({("part", "database")})] == 0
    assert ("kinlens_stored", frozenset({("what", "photos")})) not in found


async def test_only_slow_and_failed_requests_where_so_set(make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(log_requests_s=60)
    assert await lines(world, caplog, "GET", "/api/v1/models") == []
    (line,) = await lines(world, caplog, "GET", "/api/v1/persons")
    assert line["status"] == 503 and line["code"] == "database_unavailable"


async def test_the_system_without_a_database(world: World) -> None:
    await world.client.get("/api/v1/models")
    answer = await world.client.get("/api/v1/system")
    found = answer.json()
    assert answer.status_code == 200 and found["stored"] is None and found["jobs"] is None and found["deployments"] is None
    assert found["database"] == {"state": "unavailable", "connections_used": 0, "connections_idle": 0}
    lately = found["requests"]["lately"]
    assert lately["requests"] == 1 and lately["failed"] == 0 and lately["p50_ms"] > 0
    # What shows the figures does not make them.
    for _ in range(3):
        await world.client.get("/api/v1/system")
        await world.client.get("/api/v1/health")
    assert services_of(world.api).telemetry.recent.slots()[-1].count <= 2
    assert sum(slot.count for slot in services_of(world.api).telemetry.recent.slots()) == 1


def test_a_route_is_named_as_in_the_document(world: World) -> None:
    known = set(world.api.openapi()["paths"])

    class Route:
        path = "/photos/{photo_id}"

    assert route_template({"path": "/api/v1/photos/x", "route": Route}) in known
    assert route_template({"path": "/api/photos/x", "route": Route}) == "/api/photos/{photo_id}"
    assert route_template({"path": "/x"}) == "(none)"
