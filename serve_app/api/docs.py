"""Swagger UI at /docs, out of a package: the page works without the internet and tells nobody that it was opened."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_ASSETS = "/docs/assets"


def add_docs(api: FastAPI) -> None:
    # Only fastapi-offline's files are used: its FastAPI subclass would set the pages' addresses for us.
    api.mount(_ASSETS, StaticFiles(directory=str(resources.files("fastapi_offline") / "static")), name="docs-assets")

    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Kinlens API",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon.png",
    ).body
    headers = {"Content-Security-Policy": _policy(bytes(page))}

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)


def _policy(page: bytes) -> str:
    """Its own files, and the very script that stands in it. The key is typed into this page: nobody may frame it."""
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    hashes = (f"'sha256-{base64.b64encode(hashlib.sha256(one).digest()).decode('ascii')}'" for one in scripts)
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {' '.join(hashes)}",
            # Swagger UI sets styles of elements.
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )
