"""Each route of the application asks for exactly one scope, or is public on purpose."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from serve_app.api.deps import FORMER_PREFIX, PREFIX, require_key
from serve_app.api.rules import PUBLIC, RULES, STRICTEST, rule_of
from serve_app.api.web import VIEWS
from tests.api.conftest import MakeWorld, World

_PAGES = {"/", "/assets/{path}", "/docs/assets", *(f"/{view}" for view in VIEWS), *(f"/{view}/{{rest}}" for view in VIEWS)}


def routes(api: FastAPI) -> set[tuple[str, str]]:
    """Method and path of every route of the real application; "" for the method of a mounted one."""
    found = set()
    for route in iter_route_contexts(api.routes):
        assert route.path_format is not None, route
        found |= {(method, route.path_format.split("/{path:path}")[0]) for method in route.methods or {""}}
    return found


def asks_for_a_key(dependant: object) -> bool:
    if getattr(dependant, "call", None) is require_key:
        return True
    return any(asks_for_a_key(one) for one in getattr(dependant, "dependencies", ()))


def keyed(path: str) -> str | None:
    """The path below the prefix."""
    for prefix in (PREFIX, FORMER_PREFIX):
        if path.startswith(f"{prefix}/"):
            return path.removeprefix(prefix)
    return None


def test_every_route_is_declared(world: World) -> None:
    found = routes(world.api)
    assert len(found) > 100
    for method, path in found:
        if (method, path) in PUBLIC or path in _PAGES or path.removesuffix("/{path}") in _PAGES:
            continue
        below = keyed(path)
        assert below is not None, f"{method} {path} is neither an API route nor declared public"
        assert (method, below) in RULES, f"{method} {path} has no rule in serve_app/api/rules.py"


def test_every_rule_is_of_a_route(world: World) -> None:
    found = routes(world.api)
    assert [one for one in RULES if (one[0], PREFIX + one[1]) not in found] == []
    assert [one for one in PUBLIC if one not in found] == []


def test_every_route_with_a_rule_asks_for_a_key_and_no_public_one_does(world: World) -> None:
    for route in iter_route_contexts(world.api.routes):
        path = route.path_format or ""
        below = keyed(path)
        for method in route.methods or ():
            if (method, path) in PUBLIC or below is None:
                continue
            assert asks_for_a_key(route.dependant), f"{method} {path}"


def test_what_nobody_declared_asks_for_everything() -> None:
    assert rule_of("GET", "/new") is STRICTEST


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/api/v1/health", "/api/v1/models", "/api/v1/photos", "/nothing",
                                  "/api/v1/objects/x", "/docs/assets/swagger-ui.css"])  # fmt: skip
async def test_every_answer_has_security_headers(world: World, path: str) -> None:
    response = await world.client.get(path, headers={"Authorization": ""})
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


async def test_an_unexpected_error_has_them_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> object:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(world.detector, "detect", fail)
    response = await world.client.post("/api/v1/face/verify-face", files={"file": b"\xff\xd8\xff\xe0\x01\x00"})
    assert response.status_code == 500 and response.headers["x-content-type-options"] == "nosniff"


async def test_the_page_of_the_docs_runs_its_own_scripts_only(world: World) -> None:
    response = await world.client.get("/docs")
    policy = response.headers["content-security-policy"]
    assert "script-src 'self' 'sha256-" in policy and "'unsafe-inline'" not in policy.split("style-src")[0]


async def test_only_origins_that_were_named_may_read_answers(make_world: MakeWorld) -> None:
    world = make_world(cors_origins="https://photos.example.org")
    named = await world.client.get("/api/v1/health", headers={"Origin": "https://photos.example.org"})
    other = await world.client.get("/api/v1/health", headers={"Origin": "https://photos.example.org.evil.example"})
    assert named.headers["access-control-allow-origin"] == "https://photos.example.org"
    assert "access-control-allow-credentials" not in named.headers
    assert "access-control-allow-origin" not in other.headers
    plain = make_world()
    assert "access-control-allow-origin" not in (await plain.client.get("/api/v1/health", headers={"Origin": "null"})).headers


async def test_a_path_cannot_forge_a_line_of_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("serve_app.api.deps.rule_of", fail)
    response = await world.client.get("/api/v1/collections/x%0a2026-01-01%20forged%1b[2J%e2%80%a8line/persons")
    assert response.status_code == 500
    for record in caplog.records:
        message = record.getMessage()
        assert "\n" not in message and "\x1b" not in message and "\u2028" not in message
    assert any("forged" in record.getMessage() for record in caplog.records)
