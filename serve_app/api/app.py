"""The FastAPI application: routers, and the one place where errors become problem details (RFC 9457)."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api import (
    audit,
    collections,
    compare,
    do_not_recognise,
    enrol_batch,
    exports,
    face,
    face_decisions,
    faces,
    health,
    jobs,
    journal,
    keys,
    library_faces,
    library_persons,
    models,
    objects,
    persons,
    photo_files,
    photo_months,
    photo_scan,
    photo_search,
    photo_upload,
    photos,
    review,
    search,
    stored_files,
    system,
)
from serve_app.api.deps import (
    FORMER_PREFIX,
    PREFIX,
    ClientGone,
    Services,
    admitted,
    refuse_unknown_query,
    require_key,
    with_place_of_key,
)
from serve_app.api.docs import add_docs
from serve_app.api.edge import AnswerEdge
from serve_app.api.observing import RequestObserver, route_template
from serve_app.api.openapi import problems
from serve_app.api.problems import problem_response
from serve_app.api.web import add_web
from serve_app.api.writes import on_replayed
from serve_app.errors import (
    Forbidden,
    InternalError,
    InvalidRequest,
    JsonValue,
    KinlensError,
    MethodNotAllowed,
    NotFound,
    PayloadError,
    RateLimited,
    TooManyFailures,
)
from serve_app.observing.outlets import Outlets
from serve_app.storage.idempotency import Replayed

logger = logging.getLogger("ray.serve")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left; seen in logs and metrics only."""


def create_api(services: Services, *, echo_request_id: bool = True) -> FastAPI:
    """The API around `services`; nothing is global, so several may live in one process.

    `echo_request_id`: answer with X-Request-ID; off where the server around the application already does.
    """
    api = FastAPI(
        title="Kinlens",
        version=version("kinlens"),
        summary="Face matching, person search and a photo library on Ray Serve",
        description=(
            "Send an API key as `Authorization: Bearer KEY`. Errors are RFC 9457 problem details with a stable `code`."
        ),
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=_lifespan,
        # FastAPI's own telemetry would send paths, addresses and the texts of exceptions.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    api.state.services = services
    api.state.system = system.open_system(services)
    refused = problems(Forbidden, RateLimited, TooManyFailures)
    keyed = [Depends(require_key), Depends(with_place_of_key), Depends(refuse_unknown_query)]
    api.include_router(health.router, prefix=PREFIX)
    api.include_router(health.former_router, prefix=FORMER_PREFIX, include_in_schema=False)
    api.include_router(models.router, prefix=PREFIX, dependencies=keyed, responses=refused)
    api.include_router(system.router, prefix=PREFIX, dependencies=keyed, responses=refused)
    with_place = [*keyed, Depends(admitted)]
    api.include_router(face.router, prefix=PREFIX, dependencies=with_place, responses=refused)
    api.include_router(compare.router, prefix=PREFIX, dependencies=with_place, responses=refused)
    for resource in (collections, persons, faces, enrol_batch, search, do_not_recognise, exports):
        api.include_router(resource.router, prefix=PREFIX, dependencies=keyed, responses=refused)
    library = (photo_upload, photo_scan, photo_months, photos, photo_search, photo_files, stored_files, library_faces,
               library_persons, face_decisions, review, journal, jobs)  # fmt: skip
    for resource in library:
        api.include_router(resource.router, prefix=PREFIX, dependencies=keyed, responses=refused)
        api.include_router(resource.router, prefix=FORMER_PREFIX, dependencies=keyed, include_in_schema=False)
    for resource in (keys, audit):
        api.include_router(resource.router, prefix=PREFIX, dependencies=keyed, responses=refused)
    # Addressed by signature.
    api.include_router(objects.router, prefix=PREFIX)
    add_docs(api)
    add_web(api)
    api.add_exception_handler(Replayed, on_replayed)
    api.add_exception_handler(KinlensError, _on_kinlens_error)
    api.add_exception_handler(HTTPException, _on_http_exception)
    api.add_exception_handler(RequestValidationError, _on_validation_error)
    if services.settings.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(services.settings.cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-Request-ID",
                "Idempotency-Key",
                "If-None-Match",
                "If-Range",
                "Range",
            ],
            expose_headers=[
                "X-Request-ID",
                "Retry-After",
                "Idempotent-Replayed",
                "ETag",
                "Accept-Ranges",
                "Content-Range",
                "Content-Disposition",
                "RateLimit",
                "RateLimit-Policy",
            ],
        )
    # Outermost: everything below it, CORS answers included, carries the request id.
    api.add_middleware(RequestEdge, echo_request_id=echo_request_id, outlets=services.telemetry.outlets)
    # And its 500s the headers of all answers.
    api.add_middleware(AnswerEdge, audit=services.access.audit, cors=bool(services.settings.cors_origins))
    # Around it: it sees what became of every request.
    api.add_middleware(RequestObserver, telemetry=services.telemetry, log_from_s=services.settings.log_requests_s)
    return api


@asynccontextmanager
async def _lifespan(api: FastAPI) -> AsyncIterator[None]:
    services: Services = api.state.services
    await services.gallery.housekeeping.start()
    services.access.start()
    yield
    await services.access.close()
    await services.gallery.close()
    await asyncio.to_thread(services.telemetry.outlets.close)


class RequestEdge:
    """Gives each request an id and turns what nobody caught into a 500 without a traceback."""

    def __init__(self, app: ASGIApp, echo_request_id: bool, outlets: Outlets) -> None:
        self._app = app
        self._echo = echo_request_id
        self._outlets = outlets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._echo:
                    message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode("ascii"))]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            if not started:
                await Response(status_code=_CLIENT_CLOSED_REQUEST)(scope, receive, send_with_id)
        except Exception as error:
            # The last border before the client: log everything, tell nothing.
            logger.exception("request %s failed: %s %s", request_id, scope["method"], ascii(scope["path"]))
            self._outlets.report(error, request_id=request_id, route=route_template(scope))
            if started:
                raise
            told = InternalError("The request failed for a reason that is ours. It is logged under its request id.")
            scope["state"]["problem"] = told
            await problem_response(told, request_id)(scope, receive, send_with_id)


def _request_id(scope: Scope) -> str:
    """The client's X-Request-ID where it is fit for logs, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(given):
                return given
    return uuid.uuid4().hex


async def _on_kinlens_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KinlensError)
    if error.status >= 500:
        logger.warning("request %s: %s: %s", request.state.request_id, error.code, error.detail)
    return _problem(request, error)


def _problem(request: Request, error: KinlensError) -> Response:
    # For the log line and the counters.
    request.state.problem = error
    return problem_response(error, request.state.request_id)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers: Mapping[str, str] = error.headers or {}
    translated: KinlensError
    if error.status_code == 404:
        translated = NotFound("There is nothing at this address.")
    elif error.status_code == 405:
        allowed = headers.get("Allow", headers.get("allow", ""))
        translated = MethodNotAllowed("The method is not allowed at this address.", allowed=allowed)
    else:
        translated = PayloadError("The request cannot be read.")
    response = _problem(request, translated)
    if isinstance(translated, MethodNotAllowed) and translated.details["allowed"]:
        response.headers["Allow"] = str(translated.details["allowed"])
    return response


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems: list[JsonValue] = [
        {"field": ".".join(str(part) for part in entry["loc"]), "message": str(entry["msg"])} for entry in error.errors()[:10]
    ]
    return _problem(request, InvalidRequest("The request is not valid.", errors=problems))
