"""What endpoints that read their own bodies tell the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serve_app.api.schemas import Problem
from serve_app.errors import KinlensError


def problems(*errors: type[KinlensError]) -> dict[int | str, dict[str, Any]]:
    """FastAPI `responses` for the errors an endpoint answers with, each by its code."""
    by_status: dict[int, list[type[KinlensError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        status: {
            "model": Problem,
            "description": "; ".join(f"`{error.code}`: {error.title}" for error in group),
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {error.code: {"value": _example(error)} for error in group},
                }
            },
        }
        for status, group in by_status.items()
    }


def _example(error: type[KinlensError]) -> dict[str, Any]:
    return {
        "type": f"urn:kinlens:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": f"{error.title}.",
        "code": error.code,
        "request_id": "0f5f2c9be2f14f1c8d7d2a9f5b1c7e44",
        "details": {},
    }


def request_body(
    form: type[BaseModel],
    *,
    files: tuple[str, ...],
    json_model: type[BaseModel] | None = None,
    json_example: dict[str, Any] | None = None,
    raw: bool = False,
    many: bool = False,
) -> dict[str, Any]:
    """`openapi_extra` for a body that is a form with `files` or JSON, and with `raw` also the bare picture."""
    schema = _schema(form)
    binary: dict[str, Any] = {"type": "string", "format": "binary"}
    form_properties = {
        **{name: _as_text(value) for name, value in schema["properties"].items()},
        **{name: {"type": "array", "items": binary} if many else binary for name in files},
    }
    json_schema = _schema(json_model or form)
    if "file" in json_schema["properties"]:
        del json_schema["properties"]["file"]
    for name in ("image_a", "image_b"):
        if name in json_schema["properties"]:
            json_schema["properties"][name] = {"type": "string", "description": "base64 or data URI"}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": {**schema, "properties": form_properties}},
        "application/json": {"schema": json_schema},
    }
    if json_example:
        content["application/json"]["example"] = json_example
    if raw:
        content["image/*"] = {"schema": binary}
    return {"requestBody": {"required": True, "content": content}}


def _as_text(value: dict[str, Any]) -> dict[str, Any]:
    """How a list stands in a form: as one field of text."""
    if value.get("type") != "array":
        return value
    kept = {name: entry for name, entry in value.items() if name in ("title", "description")}
    return {"type": "string", **kept}


def json_body(model: type[BaseModel], example: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """`openapi_extra` for a JSON body; forms are read as well, but nobody needs to be told."""
    content = {"application/json": {"schema": _schema(model), "example": example}}
    return {"requestBody": {"required": required, "content": content}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="validation")
    definitions = schema.pop("$defs", {})
    # Inlined: these models are not among FastAPI's components.
    for name, value in schema.get("properties", {}).items():
        schema["properties"][name] = _inline(value, definitions)
    return schema


def _inline(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            resolved = definitions[value["$ref"].rpartition("/")[2]]
            return {**_inline(resolved, definitions), **{k: v for k, v in value.items() if k != "$ref"}}
        return {key: _inline(entry, definitions) for key, entry in value.items()}
    if isinstance(value, list):
        return [_inline(entry, definitions) for entry in value]
    return value
