"""Where the time of a request goes: seconds by stage, added up wherever the work is done, in this process and in replicas."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Generic, TypeVar

from serve_app.observing.spans import Span, Spans

ResultT = TypeVar("ResultT")


class Stage(StrEnum):
    """A request may have spent more time in a stage than it took: several pictures of a batch are worked on at once."""

    RECEIVE = "receive"
    """The body arrives."""
    TRANSPORT = "transport"
    """On the way to a model replica and back, and waiting for a place at one."""
    QUEUE = "queue"
    """In a model replica, until a thread is free."""
    DECODE = "decode"
    DETECT = "detect"
    ALIGN = "align"
    """Crops, quality and chips are cut and measured."""
    EMBED = "embed"
    ANALYZE = "analyze"
    """Attributes; with Ray, the way to the replica and the queue there are part of it."""
    PICTURE = "picture"
    """A picture is inspected, or a thumbnail made."""
    SEMANTIC = "semantic"
    """A picture or a text goes through the image-text model."""
    CONNECT = "connect"
    """Waiting for a free connection to the database."""
    DATABASE = "database"
    """A connection is held; searching is part of it."""
    SEARCH = "search"
    """The nearest faces are looked for."""
    OBJECTS = "objects"
    """Reading from and writing to the object store."""


class StageTimes:
    """Seconds by stage. `spans`: of whoever waits for the work, where that is traced."""

    __slots__ = ("seconds", "spans")

    def __init__(self, spans: Spans = ()) -> None:
        self.seconds: dict[Stage, float] = {}
        self.spans = spans

    def add(self, which: Stage, seconds: float) -> None:
        self.seconds[which] = self.seconds.get(which, 0.0) + seconds

    def milliseconds(self) -> dict[str, float]:
        """By name, rounded to a tenth, in the order of Stage."""
        return {which.value: round(self.seconds[which] * 1000, 1) for which in Stage if which in self.seconds}


_collected: ContextVar[StageTimes | None] = ContextVar("stage_times", default=None)


@contextmanager
def collecting(*spans: Span) -> Iterator[StageTimes]:
    """What runs inside, tasks and threads that take its context along too, adds its stages to what is yielded, and not to
    what collected outside. Each of `spans` gets a child for every stage."""
    times = StageTimes(spans)
    token = _collected.set(times)
    try:
        yield times
    finally:
        _collected.reset(token)


def spans_now() -> Spans:
    """Of whoever collects."""
    times = _collected.get()
    return () if times is None else times.spans


def note(which: Stage, seconds: float) -> None:
    """Adds to the stage of whoever collects; nothing where nobody does. In no trace: whoever measured it made a span of it."""
    times = _collected.get()
    if times is not None:
        times.add(which, seconds)


class stage:  # noqa: N801  used as a statement: `with stage(Stage.DECODE):`
    """The time inside the block counts for the stage, also when it raises."""

    __slots__ = ("_started", "_times", "_which")

    def __init__(self, which: Stage) -> None:
        self._which = which

    def __enter__(self) -> None:
        self._times = _collected.get()
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._times is not None:
            seconds = time.perf_counter() - self._started
            self._times.add(self._which, seconds)
            for span in self._times.spans:
                span.record(self._which.value, seconds)


@dataclass(frozen=True, slots=True)
class Timed(Generic[ResultT]):
    """What a replica answers: the value, and the seconds that it took there, by stage."""

    value: ResultT
    seconds: dict[Stage, float] = field(default_factory=dict)
