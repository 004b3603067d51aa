"""The web UI: its pages and their files, out of `serve_app/web`. No build step, and nothing from anywhere else."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from fastapi import FastAPI, Request, Response

from serve_app.api.streams import matches
from serve_app.errors import NotFound

VIEWS = ("photos", "people", "search", "journal", "compare", "analyze", "jobs", "system", "sign-in")
"""First parts of the addresses at which the UI answers; what comes after is for its own router. A list, not everything: an
unknown path of the API stays an unknown path, for every method."""

_PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "font-src 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "form-action 'self'",
            # Where the browser knows it, no text ever becomes markup.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class WebFile:
    content: bytes
    packed: bytes
    media_type: str
    etag: str

    @staticmethod
    def of(name: str, content: bytes) -> WebFile:
        suffix = PurePosixPath(name).suffix
        media_type = _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
        # The time stamp would make the same file another one on each replica.
        return WebFile(content, gzip.compress(content, mtime=0), media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


class WebFiles:
    """All files, in memory: 100 kB or so. A path of a request is looked up here and never reaches a file system.

    `version` stands in the address of every file but the page, so that they may be kept for ever, and files of two versions
    never mix: modules find each other by relative addresses.
    """

    def __init__(self, sources: dict[str, bytes]) -> None:
        digest = hashlib.sha256()
        for name, content in sorted(sources.items()):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        self.version = digest.hexdigest()[:16]
        page = sources["index.html"].replace(b"{assets}", f"/assets/{self.version}".encode())
        self.page = WebFile.of("index.html", page)
        self._files = {name: WebFile.of(name, content) for name, content in sources.items() if name != "index.html"}

    @staticmethod
    def load() -> WebFiles:
        root = resources.files("serve_app") / "web"
        with resources.as_file(root) as folder:
            return WebFiles(
                {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            )

    def find(self, version: str, name: str) -> WebFile:
        """Raises NotFound, also for another version: that page is to be loaded anew."""
        found = self._files.get(name) if version == self.version else None
        if found is None:
            raise NotFound("There is nothing at this address.")
        return found


def add_web(api: FastAPI) -> None:
    files = WebFiles.load()

    async def page(request: Request) -> Response:
        return _answer(files.page, request, _ASK_AGAIN, _PAGE_HEADERS)

    async def asset(path: str, request: Request) -> Response:
        version, _, name = path.partition("/")
        return _answer(files.find(version, name), request, _FOREVER, {})

    for path in ("/", *(f"/{view}" for view in VIEWS), *(f"/{view}/{{rest:path}}" for view in VIEWS)):
        api.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
    api.add_api_route("/assets/{path:path}", asset, methods=["GET", "HEAD"], include_in_schema=False)


def _answer(file: WebFile, request: Request, caching: str, more: dict[str, str]) -> Response:
    packed = "gzip" in request.headers.get("accept-encoding", "")
    # Two bodies, two tags.
    etag = f'{file.etag[:-1]}-gzip"' if packed else file.etag
    headers = {**_HEADERS, **more, "Cache-Control": caching, "ETag": etag}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if packed:
        headers["Content-Encoding"] = "gzip"
    body = file.packed if packed else file.content
    if request.method == "HEAD":
        return Response(status_code=200, headers={**headers, "Content-Length": str(len(body))}, media_type=file.media_type)
    return Response(body, headers=headers, media_type=file.media_type)
