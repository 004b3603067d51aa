"""Jobs as values: work on many photos that goes on after the request that asked for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from serve_app.errors import JsonValue

Options = Mapping[str, JsonValue]


class JobKind(StrEnum):
    FACES = "faces"
    EMBEDDINGS = "embeddings"
    CLUSTER = "faces-cluster"
    SCAN = "scan"


class JobState(StrEnum):
    """`DONE`: nothing is left to do; items may have failed. `FAILED`: all of them have."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def open(self) -> bool:
        return self in (JobState.QUEUED, JobState.RUNNING)


class ItemState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class ItemWithdrawn(Exception):
    """The item is no longer this worker's: its job was cancelled, its subject erased, or somebody else has done it. Whoever
    sees it rolls back; nothing of the item may be kept."""


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why an item failed, or what it waits for. `code`: of an error in serve_app/errors.py, or `worker_died`."""

    code: str
    detail: str
    details: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Items, by what became of them. `rate_per_s`: items that ended, of late; None before any has. `eta_s`: seconds to go at
    that rate; None where that cannot be said."""

    total: int
    done: int
    failed: int
    skipped: int
    cancelled: int
    rate_per_s: float | None
    eta_s: float | None

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.skipped + self.cancelled

    @property
    def remaining(self) -> int:
        return max(0, self.total - self.ended)


@dataclass(frozen=True, slots=True)
class Job:
    """`automatic`: made by the service itself, of photos that were uploaded, not by a client's request. `delayed`: why nothing
    is being done on it just now."""

    id: UUID
    collection_id: str
    kind: JobKind
    options: Options
    automatic: bool
    state: JobState
    progress: JobProgress
    delayed: ItemError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class JobItem:
    """`subject`: a photo's id, a path, or nothing; nothing as well where the photo was erased. `attempts`: how often it was
    begun. `error`: why it failed, or why it is tried again."""

    id: int
    subject: str
    state: ItemState
    attempts: int
    error: ItemError | None
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class JobFilter:
    states: tuple[JobState, ...] = ()
    kinds: tuple[JobKind, ...] = ()
    automatic: bool | None = None
