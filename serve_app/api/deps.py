"""What endpoints depend on: the services, the caller's key, and bounded work."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from config.settings import Settings
from serve_app.api.cursors import derive_key
from serve_app.api.forms import FormLimits, ModelT, read_fields, validate
from serve_app.errors import RETRY_AFTER_S, DeadlineExceeded, InvalidRequest, JsonValue, Overloaded, Unauthorized
from serve_app.gallery import Gallery
from serve_app.images import ImageLimits
from serve_app.services.fetching import ImageFetcher
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.services.verification import Verification

T = TypeVar("T")

# Dependencies are coroutines: FastAPI would run plain functions on a thread, 0.2 ms for a look-up.


PREFIX = "/api/v1"
FORMER_PREFIX = "/api"
"""Where the photo endpoints of the former service lay; they answer there as well."""
MAX_PLAIN_BYTES = 256 << 10
"""A body without pictures: a thousand ids, or a person with its metadata."""
MAX_FILES = 100
"""Files of one request that is held whole."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Keys derived from the API key, the same on every replica: a cursor or URL of one is good for all."""

    cursors: bytes = field(repr=False)
    object_urls: bytes = field(repr=False)

    @staticmethod
    def of(api_key: str) -> Secrets:
        return Secrets(derive_key(api_key, "cursors"), derive_key(api_key, "object urls"))


class Admission:
    """Places for requests that need a model. One that finds none is refused before its body is read: a refusal must cost
    next to nothing, or refusing would use up what it is meant to protect."""

    def __init__(self, places: int) -> None:
        self._free = places

    def __enter__(self) -> None:
        """Raises Overloaded when every place is taken."""
        if self._free <= 0:
            raise Overloaded("Every place for requests is taken.", retry_after_s=RETRY_AFTER_S)
        self._free -= 1

    def __exit__(self, *_: object) -> None:
        self._free += 1


@dataclass(frozen=True, slots=True)
class Services:
    """Everything behind the API. Built by the ingress on its replica, or by tests around fakes."""

    settings: Settings
    api_key: str
    pipeline: FacePipeline
    verification: Verification
    fetcher: ImageFetcher
    model: ModelInfo
    admission: Admission
    started_at: float
    gallery: Gallery
    secrets: Secrets

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.settings.max_image_bytes, self.settings.max_image_pixels)

    def form_limits(self, max_files: int) -> FormLimits:
        """Limits of a form of `max_files` pictures that is held whole."""
        overhead = 2 << 20
        return FormLimits(self.settings.max_image_bytes, max_files * self.settings.max_image_bytes + overhead, max_files)


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]

_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer $API_KEY`")


async def require_key(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)], found: ServicesDep
) -> None:
    """Raises Unauthorized. Runs before the body is read."""
    given = credentials.credentials if credentials else ""
    # Bytes: compare_digest takes no text beyond ASCII.
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), found.api_key.encode()):
        raise Unauthorized("Send the API key as `Authorization: Bearer KEY`.")


async def refuse_unknown_query(request: Request) -> None:
    """Raises InvalidRequest: a misspelt filter must not pass for no filter. Requests with a body check their fields."""
    if request.method not in ("GET", "DELETE") or not request.query_params:
        return
    # The OpenAPI document knows what is known; it is made once.
    operation = request.app.openapi()["paths"][PREFIX + request.scope["route"].path][request.method.lower()]
    known = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}
    unknown: list[JsonValue] = [name[:64] for name in sorted(set(request.query_params) - known)]
    if unknown:
        raise InvalidRequest("The address has unknown parameters.", parameters=unknown)


async def admitted(found: ServicesDep) -> AsyncIterator[None]:
    """Holds a place until the answer is sent. Raises Overloaded."""
    with found.admission:
        yield


async def read_request(
    request: Request,
    found: Services,
    model: type[ModelT],
    *,
    files: frozenset[str] = frozenset(),
    raw_file: str | None = None,
    many: str | None = None,
) -> ModelT:
    """The fields of the query and the body as `model`; see `forms.read_fields`. Raises DeadlineExceeded for a slow body.

    Without `files` there are no pictures in it either, and it is small.
    """
    timeout_s = found.settings.worker_timeout
    try:
        async with asyncio.timeout(timeout_s):
            fields = await read_fields(
                request,
                files=files,
                raw_file=raw_file,
                # Many files are held together, as a JSON body is.
                limits=found.form_limits(len(files))
                if many is None
                else FormLimits(found.settings.max_image_bytes, found.settings.max_json_bytes, MAX_FILES),
                max_json_bytes=found.settings.max_json_bytes if files else MAX_PLAIN_BYTES,
                many=many,
            )
    except TimeoutError as error:
        raise deadline_exceeded(timeout_s) from error
    return validate(model, fields)


async def bounded(request: Request, work: Coroutine[object, object, T], timeout_s: float) -> T:
    """The result of `work`, which is cancelled when the client disconnects or the time is up.

    The body must have been read: what the client sends from here on is only its farewell.
    Raises DeadlineExceeded, ClientGone and what `work` raises.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({task, watcher}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if watcher in done:
            raise ClientGone
        raise deadline_exceeded(timeout_s)
    finally:
        task.cancel()
        watcher.cancel()


def deadline_exceeded(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"The request took longer than {timeout_s:g} s.", timeout_s=timeout_s)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answer(model: BaseModel, status: int = 200) -> Response:
    """The model as JSON. Not through FastAPI's response validation: it would check our own types a second time."""
    return Response(model.model_dump_json(), status, media_type="application/json")
