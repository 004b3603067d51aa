"""Requests of a command to a running instance, repeated for as long as that is a matter of time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Protocol

import httpx

from serve_app.errors import ConfigurationError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LONGEST_RETRY_AFTER_S = 120.0
_TIMEOUT = httpx.Timeout(60, read=300, pool=None)
"""The answer begins when the last picture of a batch has been read; its parts come as they are ready."""
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}

Check = Callable[[httpx.Response], None]
"""Raises ValueError for a 200 whose body is not the answer it should be: it broke off."""


class GaveUp(Exception):
    """There was no answer for too long."""


class Endable(Protocol):
    """`gave_up`: why it ended early."""

    gave_up: str | None


@contextmanager
def until_it_gives_up(summary: Endable) -> Iterator[None]:
    """Around the work of one or several tasks: whoever gives up ends it, and the summary says so. What else the first of them
    raises is raised."""
    try:
        try:
            yield
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    except GaveUp as error:
        summary.gave_up = str(error)


class ServiceClient:
    """`client`: with the server's address as its base URL, and the key in its headers. `give_up_after_s`: without a single
    answer to any request."""

    def __init__(self, client: httpx.AsyncClient, give_up_after_s: float) -> None:
        self._client = client
        self._give_up_after_s = give_up_after_s
        self._answered_at = time.monotonic()

    async def ask(self, method: str, path: str, *, check: Check | None = None, **content: Any) -> httpx.Response:
        """The answer, whatever its status, asked for again while it is a matter of time. Raises GaveUp."""
        attempt, begun = 0, time.monotonic()
        while True:
            attempt += 1
            pause_s = longer_pause_s(attempt)
            try:
                response = await self._client.request(method, path, timeout=_TIMEOUT, **content)
                if response.status_code not in _TRY_AGAIN:
                    if check is not None and response.status_code == HTTPStatus.OK:
                        check(response)
                    self._answered_at = time.monotonic()
                    return response
                reason = problem_of(response)["detail"]
                pause_s = max(pause_s, _retry_after_s(response)) if response.status_code in (429, 503) else pause_s
            except (httpx.TransportError, ValueError) as error:
                reason = f"{self._client.base_url}: {error or type(error).__name__}"
            if time.monotonic() + pause_s - max(begun, self._answered_at) > self._give_up_after_s:
                raise GaveUp(f"No answer for {self._give_up_after_s:g} s. {reason}")
            await asyncio.sleep(pause_s)

    def refusal(self, response: httpx.Response, *, missing: str = "") -> ConfigurationError:
        """What no repetition can help. `missing`: what to do about a 404."""
        detail = problem_of(response)["detail"]
        match response.status_code:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return ConfigurationError(f"{self._client.base_url} refuses the API key. Give --api-key, or set API_KEY.")
            case HTTPStatus.NOT_FOUND if missing:
                return ConfigurationError(f"{detail} {missing}")
            case _:
                return ConfigurationError(f"{self._client.base_url} answers {response.status_code}: {detail}")


def problem_of(response: httpx.Response) -> dict[str, Any]:
    """The server's own words, or those of whatever stands before it."""
    try:
        found = response.json()
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("detail"), str) and isinstance(found.get("code"), str):
        return found
    return {"code": f"http_{response.status_code}", "detail": f"HTTP {response.status_code} without a reason."}


def longer_pause_s(attempt: int) -> float:
    """Doubling, with a part by chance: workers that failed together come back apart."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311


def _retry_after_s(response: httpx.Response) -> float:
    """0 where it says nothing, or a date."""
    try:
        return min(_LONGEST_RETRY_AFTER_S, max(0.0, float(response.headers.get("Retry-After", ""))))
    except ValueError:
        return 0.0
