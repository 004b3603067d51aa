"""Spans as the rest of the service sees them; what makes and sends them is behind `Tracer` (tracing.py), or there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

AttributeValue = str | int | float | bool
"""Names of our own making and figures. Never what a client sent: no text, no name, no vector, no part of a path."""


class Span(Protocol):
    """A piece of work that is under way, in a trace. Safe to use from several threads."""

    @property
    def header(self) -> str:
        """W3C traceparent, by which another process makes children of it."""
        ...

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        ...

    def record(self, name: str, seconds: float) -> None:
        """A child that ends now and took `seconds`."""
        ...

    def call(self, name: str) -> Span | None:
        """A child for a call to another process; its caller ends it. None: there are too many already."""
        ...

    def annotate(self, attributes: Mapping[str, AttributeValue | None]) -> None:
        """What is None is left out."""
        ...

    def end(self, name: str | None = None) -> None:
        """`name`: another one than it began with."""
        ...

    def fail(self, reason: str) -> None:
        """It did not do what it was begun for; `reason` is a name of ours: an error code, or the type of an exception."""
        ...


Spans = tuple[Span, ...]
"""Of all those who wait for the same work: a batch serves several requests. Empty: nobody traces."""


class Tracer(Protocol):
    """Makes spans, and sends them in the background. Neither slow nor lost collectors are felt by who asks it."""

    def request(self, traceparent: str | None) -> Span | None:
        """The first span of this service. `traceparent`: of the client. None: this request is not traced."""
        ...

    def item(self) -> Span | None:
        """The first span of a trace that nobody asked for: an item of a job. None: it is not traced."""
        ...

    def serve(self, name: str, traceparent: str) -> Span | None:
        """What a replica does for the caller of that span."""
        ...

    def close(self) -> None:
        """Sends what it still has, within a second or two."""
        ...
