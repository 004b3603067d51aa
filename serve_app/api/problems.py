"""Errors as RFC 9457 problem details."""

from __future__ import annotations

import json

from starlette.responses import Response

from serve_app.errors import JsonValue, KinlensError, Unauthorized


def problem(error: KinlensError, request_id: str) -> dict[str, JsonValue]:
    return {
        "type": f"urn:kinlens:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "details": dict(error.details),
    }


def problem_response(error: KinlensError, request_id: str) -> Response:
    headers: dict[str, str] = {}
    if "retry_after_s" in error.details:
        headers["Retry-After"] = str(error.details["retry_after_s"])
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="kinlens"'
    # Escaped to ASCII: a client's broken surrogates must not break the answer about them.
    body = json.dumps(problem(error, request_id), ensure_ascii=True)
    return Response(body, status_code=error.status, headers=headers, media_type="application/problem+json")
