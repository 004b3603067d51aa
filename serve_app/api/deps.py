"""What endpoints depend on: the services, the caller's key, and bounded work."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from config.settings import Settings
from serve_app.access import Caller
from serve_app.api.cursors import derive_key
from serve_app.api.forms import FormLimits, ModelT, query_fields, read_fields, validate
from serve_app.api.peers import Address, Peers, whole_site
from serve_app.api.rules import Rule, Subject, rule_of
from serve_app.errors import (
    RETRY_AFTER_S,
    CapacityError,
    DatabaseUnavailable,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    JsonValue,
    Overloaded,
    PartUnavailable,
    Unauthorized,
)
from serve_app.gallery import Gallery
from serve_app.imaging.images import ImageLimits
from serve_app.observing.telemetry import Telemetry
from serve_app.services.access import Access
from serve_app.services.fetching import ImageFetcher
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import FacePipeline
from serve_app.services.system import Cluster
from serve_app.services.verification import Verification
from serve_app.services.writing import Audited
from serve_app.storage.audit import Line
from serve_app.storage.collections import missing as missing_collection

T = TypeVar("T")

# Dependencies are coroutines: FastAPI would run plain functions on a thread, 0.2 ms for a look-up.


PREFIX = "/api/v1"
FORMER_PREFIX = "/api"
"""Where the photo endpoints of the former service lay; they answer there as well."""
MAX_PLAIN_BYTES = 256 << 10
"""A body without pictures: a thousand ids, or a person with its metadata."""
MAX_FILES = 100
"""Files of one request that is held whole."""
_SECRET_TIMEOUT_S = 1.0


class Secrets:
    """Keys derived from one secret of the server, the same on every replica: a cursor or URL of one is good for all.

    Not derived from the API key: changing that would end every cursor and address, and whoever knew an old one could sign
    addresses for ever.
    """

    def __init__(self, load: Callable[[], Awaitable[bytes]], master: bytes | None = None) -> None:
        """`load`: the secret, out of the database; called when it is first needed, and again after it failed."""
        self._load = load
        self._master = master

    @staticmethod
    def of(text: str) -> Secrets:
        """Of a secret that is known already."""

        async def known() -> bytes:
            return text.encode()

        return Secrets(known, text.encode())

    async def ready(self) -> None:
        """Before the others. Raises DatabaseUnavailable, Overloaded."""
        if self._master is None:
            self._master = await self._load()

    @property
    def known(self) -> bool:
        return self._master is not None

    @property
    def cursors(self) -> bytes:
        return self._derived("cursors")

    @property
    def object_urls(self) -> bytes:
        return self._derived("object urls")

    @property
    def addresses(self) -> bytes:
        """For the names of buckets of addresses, which are stored nowhere."""
        return self._derived("addresses")

    def _derived(self, purpose: str) -> bytes:
        if self._master is None:
            raise DatabaseUnavailable("The database has not told the server's secret yet.", retry_after_s=RETRY_AFTER_S)
        return derive_key(self._master, purpose)


class Admission:
    """Places for requests that need a model. One that finds none is refused before its body is read: a refusal must cost
    next to nothing, or refusing would use up what it is meant to protect."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._free = places

    @property
    def taken(self) -> int:
        return self.places - self._free

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
    access: Access
    pipeline: FacePipeline
    verification: Verification
    fetcher: ImageFetcher
    model: ModelInfo
    admission: Admission
    started_at: float
    gallery: Gallery
    secrets: Secrets
    telemetry: Telemetry = field(default_factory=Telemetry)
    cluster: Cluster | None = None
    """None where there is this process alone."""
    edge_token: str = field(default="", repr=False)
    """By which our own HAProxy is known."""

    @property
    def peers(self) -> Peers:
        return Peers(self.settings.trusted_proxies, self.settings.proxy_header, self.edge_token)

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

_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer KEY`")


async def require_key(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    found: ServicesDep,
) -> Caller:
    """Whose key it is, after it was seen that the key is good for this route: see `serve_app.api.rules`.

    Raises Unauthorized, TooManyFailures in its place, RateLimited, Forbidden; NotFound for a collection that the key is not
    for; and DatabaseUnavailable where only the database could tell, which is never so for the key of the environment. Runs
    before the body is read.
    """
    caller = await _caller(request, credentials.credentials if credentials else "", found)
    state = request.state
    state.caller = caller
    state.allowance = await found.access.limits.take(caller)
    rule = rule_of(request.method, request.scope["route"].path_format)
    if rule.audited is not None:
        # What of it was answered, and with how many results, is known later: see `serve_app.api.edge`.
        line = Line(caller.id, caller.name, rule.audited, _collection_of(request, rule, found), 0, None)
        state.audited = Audited(line)
    if rule.scope is not None and not caller.may(rule.scope):
        raise Forbidden(f"The API key has not the scope {rule.scope.value!r}.", required_scope=rule.scope.value)
    _check_subject(request, rule, caller, found)
    if rule.subject is not Subject.NOTHING_STORED:
        await found.secrets.ready()
    return caller


async def _caller(request: Request, token: str, found: Services) -> Caller:
    """A good key is let through wherever it comes from: who shares an address with an attacker is not to be shut out. What the
    limit spares is the database, which is not asked for each unknown key of such an address."""
    limits = found.access.limits
    address = found.peers.client(request.scope) if token else None
    try:
        failing = address is not None and found.secrets.known and limits.failing(_unnamed(address, found.secrets))
        return await found.access.ring.caller(token, look=not failing)
    except Unauthorized:
        if address is not None:
            # A good key waits for no secret, which the database has to tell.
            with suppress(PartUnavailable, CapacityError, TimeoutError):
                async with asyncio.timeout(_SECRET_TIMEOUT_S):
                    await found.secrets.ready()
            if found.secrets.known:
                await limits.failed(_unnamed(address, found.secrets))
        raise


def _unnamed(address: Address, secrets: Secrets) -> str:
    """What stands for it in the limits: not it, nor what it can be found by without the secret."""
    return hmac.new(secrets.addresses, whole_site(address).encode(), hashlib.sha256).hexdigest()[:32]


async def same_caller(request: Request, found: Services, caller: Caller) -> bool:
    """Whether the key of a request that goes on is still good, and for what it was."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        return scheme.lower() == "bearer" and await found.access.ring.caller(token.strip()) == caller
    except (Unauthorized, PartUnavailable, CapacityError):
        return False


def _collection_of(request: Request, rule: Rule, found: Services) -> str | None:
    if rule.subject is Subject.LIBRARY:
        return found.settings.library_collection
    given = str(request.path_params.get("collection_id", ""))
    # The database takes no NUL.
    return given[:63] if given and given.isascii() and given.isprintable() else None


def _check_subject(request: Request, rule: Rule, caller: Caller, found: Services) -> None:
    if caller.collections is None or rule.subject in (Subject.NOTHING_STORED, Subject.OWN):
        return
    if rule.subject is Subject.COLLECTION and not caller.reaches(request.path_params["collection_id"]):
        # The very same as for one that is not there.
        raise missing_collection(request.path_params["collection_id"])
    if rule.subject is Subject.LIBRARY and not caller.reaches(found.settings.library_collection):
        raise Forbidden("The API key is not for the photo library.", required_collection=found.settings.library_collection)
    if rule.subject is Subject.EVERYTHING:
        raise Forbidden("The API key is limited to some collections, and this is about all of them.")


CallerDep = Annotated[Caller, Depends(require_key)]
"""Found once a request, however many ask."""


async def with_place_of_key(caller: CallerDep, found: ServicesDep) -> AsyncIterator[None]:
    """Holds one of the key's own places until the answer is sent. Raises RateLimited."""
    with found.access.limits.place(caller):
        yield


def caller_of(request: Request) -> Caller:
    """Behind `require_key`."""
    found: Caller = request.state.caller
    return found


def tell_results(request: Request, count: int) -> None:
    """To the audit log: how many persons or photos the answer tells of."""
    request.state.results = count


async def refuse_unknown_query(request: Request) -> None:
    """Raises InvalidRequest: a misspelt filter must not pass for no filter. Requests with a body check their fields."""
    if request.method not in ("GET", "DELETE") or not request.query_params:
        return
    # The OpenAPI document knows what is known; it is made once.
    operation = request.app.openapi()["paths"][PREFIX + request.scope["route"].path_format][request.method.lower()]
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


async def read_optional(request: Request, found: Services, model: type[ModelT]) -> ModelT:
    """`read_request` for a body that may as well not be there."""
    headers = request.headers
    if "content-type" in headers or "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return await read_request(request, found, model)
    return validate(model, query_fields(request))


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
