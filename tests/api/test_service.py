"""Health, models, CORS and the OpenAPI document as a contract."""

from __future__ import annotations

import re
from typing import Any

import pytest

from serve_app.errors import KinlensError, error_classes
from tests.api.conftest import MakeWorld, World

# Classes that only group others, and those that any route may answer with.
GROUPS = {"payload_error", "image_error", "image_url_error", "face_rejected", "access_error", "route_error", "conflict",
          "capacity_error", "part_unavailable"} - {"payload_error"}  # fmt: skip
EVERYWHERE = {"not_found", "method_not_allowed"}
OPEN = {"/api/v1/health", "/api/v1/health/parts", "/api/v1/ready", "/api/v1/objects/{key}"}
READS = re.compile(r"/(search|identify|verify)$")


async def test_health_needs_no_key(world: World) -> None:
    del world.client.headers["authorization"]
    body = (await world.client.get("/api/v1/health")).json()
    assert body["status"] == "ok" and body["model"] == "fake" and body["uptime_s"] >= 0


async def test_models_shows_licence_hashes_thresholds_and_accuracy(world: World) -> None:
    loaded = (await world.client.get("/api/v1/models")).json()["loaded"]
    assert loaded["licence"] == "MIT" and loaded["commercial_use"] is True
    assert loaded["thresholds"] == {"detection": 0.6, "match": 0.36, "suggest": 0.3}
    assert loaded["accuracy"] == {"data_set": "made up", "far": 0.001, "frr": 0.02, "lfw_accuracy": 0.98}
    assert len(loaded["detector"]["sha256"]) == 64


async def test_models_without_measurement_says_so(make_world: MakeWorld) -> None:
    loaded = (await make_world(point=False).client.get("/api/v1/models")).json()["loaded"]
    assert loaded["accuracy"] is None and loaded["thresholds"]["match"] is None


async def test_models_needs_the_key(world: World) -> None:
    del world.client.headers["authorization"]
    assert (await world.client.get("/api/v1/models")).status_code == 401


async def test_every_endpoint_but_the_open_ones_needs_the_key(world: World) -> None:
    paths = (await document(world))["paths"]
    del world.client.headers["authorization"]
    for path, operations in paths.items():
        # Where the former service had it as well: the same, or nothing.
        for address in {path, path.replace("/api/v1", "/api", 1)} - OPEN - {one.replace("/v1", "") for one in OPEN}:
            for method in operations:
                url = re.sub(r"{.*?}", "01a2016f-e451-7e79-a29b-b57179f56dd8", address)
                for authorization in ({}, {"authorization": "Bearer "}, {"authorization": "Basic a2V5"}):
                    response = await world.client.request(method, url, headers=authorization)
                    expected = {401} if address == path else {401, 404}
                    assert response.status_code in expected, (method, address, response.text)


async def test_cors_only_for_named_origins(make_world: MakeWorld) -> None:
    world = make_world(cors_origins="https://photos.example.org, https://b.example.org")
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    good = await world.client.options("/api/v1/models", headers={"origin": "https://photos.example.org", **preflight})
    assert good.headers["access-control-allow-origin"] == "https://photos.example.org"
    assert "access-control-allow-credentials" not in good.headers
    bad = await world.client.options("/api/v1/models", headers={"origin": "https://evil.example", **preflight})
    assert "access-control-allow-origin" not in bad.headers


async def test_no_cors_by_default(world: World) -> None:
    response = await world.client.get("/api/v1/health", headers={"origin": "https://photos.example.org"})
    assert "access-control-allow-origin" not in response.headers


async def document(world: World) -> dict[str, Any]:
    found: dict[str, Any] = (await world.client.get("/openapi.json")).json()
    return found


BODILESS = ("/faces-cluster", "/cancel", "/retry-failed", "/undo", "/hide", "/unhide")


async def test_every_error_is_in_the_openapi_document(world: World) -> None:
    schema = await document(world)
    documented = {
        code
        for path in schema["paths"].values()
        for operation in path.values()
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }
    expected = {cls.code for cls in error_classes()} - GROUPS - EVERYWHERE
    assert expected - documented == set()


async def test_every_operation_is_described_and_posts_have_bodies(world: World) -> None:
    schema = await document(world)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"] and operation["description"], path
            if method in ("post", "patch") and "requestBody" not in operation:
                assert path.endswith(BODILESS), path
            elif method in ("post", "patch"):
                content = set(operation["requestBody"]["content"])
                pictures = "/index/" not in path and (
                    "/face/" in path or "/compare/" in path or path.endswith(("/search", "/identify", "/verify", "/faces"))
                )
                assert content >= ({"multipart/form-data", "application/json"} if pictures else {"application/json"}), path
            if path not in OPEN:
                assert operation["security"], path
            if path.startswith("/api/v1/collections") and method in ("post", "patch", "delete") and not READS.search(path):
                names = {parameter["name"].lower() for parameter in operation.get("parameters", [])}
                assert "idempotency-key" in names, (method, path)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/v1/face/verify-face", {"file", "image", "image_url", "max_faces", "detection_threshold", "return_crops"}),
        ("/api/v1/face/extract-embedding", {"file", "image", "face", "max_faces"}),
        ("/api/v1/compare/compare-faces", {"image_a", "image_b", "embedding_a", "embedding_b"}),
        ("/api/v1/compare/batch-extract", {"files", "face"}),
    ],
)
async def test_forms_name_their_fields(world: World, path: str, fields: set[str]) -> None:
    content = (await document(world))["paths"][path]["post"]["requestBody"]["content"]
    assert fields <= set(content["multipart/form-data"]["schema"]["properties"])


async def test_references_resolve(world: World) -> None:
    schema = await document(world)
    names = set(schema["components"]["schemas"])

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].rpartition("/")[2] in names
            for entry in value.values():
                walk(entry)
        elif isinstance(value, list):
            for entry in value:
                walk(entry)

    walk(schema["paths"])


def test_group_classes_are_never_raised_themselves() -> None:
    for cls in error_classes():
        if cls.code in GROUPS:
            assert cls.__subclasses__(), cls
    assert KinlensError.code not in {cls.code for cls in error_classes()}


async def test_the_docs_page_needs_nothing_from_elsewhere(world: World) -> None:
    page = (await world.client.get("/docs")).text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page) + re.findall(r"url: '([^']+)'", page)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/"), address
        assert (await world.client.get(address)).status_code == 200, address
