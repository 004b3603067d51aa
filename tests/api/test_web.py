"""The pages as files over HTTP: what is served where, with which headers, and what stays the API's."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from serve_app.api import web
from tests.api.conftest import World

WEB = Path(web.__file__).resolve().parents[1] / "web"


async def page_and_assets(world: World) -> tuple[str, list[str]]:
    page = (await world.client.get("/")).text
    return page, re.findall(r'(?:src|href)="([^"]+)"', page)


async def test_every_view_is_the_page(world: World) -> None:
    page = await world.client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    for path in [f"/{view}" for view in web.VIEWS] + ["/photos/0190?tag=a%20b", "/people/a/b/c", "/search/"]:
        assert (await world.client.get(path)).content == page.content, path


async def test_the_views_of_the_page_are_those_of_the_service() -> None:
    main = (WEB / "js" / "main.js").read_text(encoding="utf-8")
    (block,) = re.findall(r"const entries = \[(.*?)\n\];", main, re.DOTALL)
    named = set(re.findall(r"^ {4}\{ name: \"([a-z-]+)\"", block, re.MULTILINE))
    assert named | {"sign-in"} == set(web.VIEWS) and "[SIGN_IN]" in main


async def test_the_policy_lets_nothing_in(world: World) -> None:
    headers = (await world.client.get("/photos")).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert (
        policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    )
    assert policy["img-src"] == "'self' blob:" and policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert not [part for part in policy.values() if "unsafe" in part or "http" in part or "*" in part]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    page = (await world.client.get("/")).text
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)


async def test_files_are_kept_for_ever_and_the_page_is_asked_for_again(world: World) -> None:
    _, assets = await page_and_assets(world)
    assert len(assets) > 5 and all(asset.startswith("/assets/") for asset in assets)
    for asset in assets:
        answer = await world.client.get(asset)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"], asset
        assert answer.headers["x-content-type-options"] == "nosniff"
    first = await world.client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = await world.client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b"" and "content-security-policy" in again.headers


async def test_every_module_that_is_imported_is_there(world: World) -> None:
    _, assets = await page_and_assets(world)
    prefix = assets[0].split("/css/")[0].split("/icon")[0]
    modules = sorted(path.relative_to(WEB).as_posix() for path in WEB.rglob("*.js"))
    for name in modules:
        answer = await world.client.get(f"{prefix}/{name}")
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/javascript; charset=utf-8"
        for target in re.findall(r'from "([^"]+)"', answer.text):
            assert (WEB / name).parent.joinpath(target).resolve().is_file(), f"{name} imports {target}"


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_compressed_for_those_who_say_so(world: World, encoding: str) -> None:
    _, assets = await page_and_assets(world)
    async with world.client.stream("GET", assets[-1], headers={"Accept-Encoding": encoding}) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
    assert ("content-encoding" in answer.headers) == (encoding == "gzip") and answer.headers["vary"] == "Accept-Encoding"
    plain = gzip.decompress(raw) if encoding == "gzip" else raw
    assert plain == (WEB / assets[-1].split("/", 3)[3]).read_bytes()


async def test_head(world: World) -> None:
    answer = await world.client.head("/photos", headers={"Accept-Encoding": "identity"})
    assert answer.status_code == 200 and answer.content == b""
    assert answer.headers["content-length"] == str(len((await world.client.get("/photos")).content))


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/nothing/photos",
        "/index.html",
        "/favicon.ico",
        "/assets/",
        "/assets/x",
        "/assets/{version}/nothing.js",
        "/assets/{version}/index.html",
        "/assets/0123456789abcdef/js/main.js",
        "/assets/{version}/..%2f..%2fapi/web.py",
        "/assets/{version}/js/%2e%2e/%2e%2e/__init__.py",
        "/assets/{version}/js//main.js",
        "/assets/{version}/js/main.js%00",
    ],
)
async def test_anything_else_is_a_problem(world: World, path: str) -> None:
    _, assets = await page_and_assets(world)
    answer = await world.client.get(path.replace("{version}", assets[0].split("/")[2]))
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found"


async def test_the_api_keeps_its_addresses(world: World) -> None:
    for path in ("/api", "/api/", "/api/v1", "/api/v1/nothing", "/api/nothing"):
        answer = await world.client.get(path)
        assert answer.status_code == 404 and answer.json()["code"] == "not_found", path
    # Not 405: there is nothing at all.
    assert (await world.client.post("/api/v1/nothing")).status_code == 404
    assert (await world.client.post("/nothing")).status_code == 404
    assert (await world.client.post("/photos")).status_code == 405
    assert (await world.client.get("/openapi.json")).json()["info"]["title"] == "Kinlens"
    assert "swagger" in (await world.client.get("/docs")).text
    assert (await world.client.get("/docs/assets/swagger-ui.css")).status_code == 200
    assert not [path for path in (await world.client.get("/openapi.json")).json()["paths"] if not path.startswith("/api/")]
