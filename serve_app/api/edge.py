"""What every answer has or leaves behind: headers for browsers, what is left of the key's limit, a line of the audit log."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import cast

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.problems import problem_response
from serve_app.errors import CapacityError, PartUnavailable
from serve_app.services.audit_log import AuditLog
from serve_app.services.rate_limits import Allowance
from serve_app.services.writing import Audited
from serve_app.storage.rate_limits import WINDOW_S

logger = logging.getLogger("ray.serve")

_HEADERS = {
    # Answers are what their type says, and nobody's page but ours.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SIGNED = "/api/v1/objects/"
_NOT_STORED = "no-store"
"""Cache-Control of what has none: answers are about people."""
_CLIENT_LEFT = 499


class AnswerEdge:
    """`audit`: lines go there before the first byte of the answer leaves. An answer that cannot be written down is not given:
    it is a 503. Of a request whose client left there is a line too, with status 499: it may have been done."""

    def __init__(self, app: ASGIApp, audit: AuditLog, cors: bool) -> None:
        self._app = app
        self._audit = audit
        self._writing: set[asyncio.Task[None]] = set()
        # Other origins may read answers then, where CORS lets them.
        self._headers = {**_HEADERS, "Cross-Origin-Resource-Policy": "cross-origin"} if cors else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        withheld = False

        async def send_with_headers(message: Message) -> None:
            nonlocal withheld
            if withheld:
                return
            if message["type"] == "http.response.start":
                try:
                    await self._write(scope, message["status"])
                except (PartUnavailable, CapacityError) as error:
                    withheld = True
                    await problem_response(error, scope["state"]["request_id"])(scope, receive, self._send(scope, send))
                    return
            await self._send(scope, send)(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # Else whoever leaves at the right moment would change things unseen.
            self._begin(scope, _CLIENT_LEFT)
            raise

    async def _write(self, scope: Scope, status: int) -> None:
        writing = self._begin(scope, status)
        if writing is not None:
            # A client that leaves now does not end it.
            await asyncio.shield(writing)

    def _begin(self, scope: Scope, status: int) -> asyncio.Task[None] | None:
        """None where there is nothing to write, or it was begun before."""
        state = scope.get("state", {})
        audited = cast("Audited | None", state.pop("audited", None))
        if audited is None or audited.written:
            # Searches, refusals and what is no single change are written here.
            return None
        results = cast("int | None", state.get("results")) if status < 400 else None
        writing = asyncio.create_task(self._audit.write(replace(audited.line, status=status, results=results)))
        self._writing.add(writing)
        writing.add_done_callback(self._written)
        return writing

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            logger.error("a line of the audit log is missing: %s", type(error).__name__)

    def _send(self, scope: Scope, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(_SIGNED):
                    # Made to be given to others, whose pages may show the picture.
                    del headers["Cross-Origin-Resource-Policy"]
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", _NOT_STORED)
                allowance = cast("Allowance | None", scope.get("state", {}).get("allowance"))
                if allowance is not None:
                    headers["RateLimit-Policy"] = f'"key";q={allowance.limit};w={WINDOW_S}'
                    headers["RateLimit"] = f'"key";r={allowance.remaining};t={allowance.full_in_s}'
            await send(message)

        return sent
