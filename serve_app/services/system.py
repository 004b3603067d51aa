"""The service as a whole: its replicas, what they did in the last minutes, what is stored. Asked at most every second or so,
however many want to know."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from serve_app.errors import CapacityError, PartUnavailable
from serve_app.jobs import JobKind
from serve_app.observing.recent import Slot, merged
from serve_app.observing.telemetry import (
    Family,
    Snapshot,
    Telemetry,
    build_family,
    exposition,
    state_family,
)
from serve_app.services.health import Health, HealthChecks
from serve_app.storage import usage
from serve_app.storage.database import Database
from serve_app.storage.usage import Usage

logger = logging.getLogger("ray.serve")

ResultT = TypeVar("ResultT")

_SNAPSHOT_KEPT_S = 1.0
_RAY_KEPT_S = 5.0
_USAGE_KEPT_S = 30.0
_USAGE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """`target`: how many replicas there are to be, just now. `status`: Serve's word in lower case: healthy, updating, ..."""

    name: str
    status: str
    running: int
    starting: int
    stopping: int
    target: int


@dataclass(frozen=True, slots=True)
class Snapshots:
    """`missing`: replicas that did not answer in time."""

    answered: list[Snapshot]
    missing: int


class Cluster(Protocol):
    """The other replicas, behind what deploys them."""

    async def snapshots(self) -> Snapshots:
        """Of every replica of the ingress and of Indexing, this one among them, within a few seconds."""
        ...

    async def deployments(self) -> list[DeploymentState]:
        """All of the application's. Raises PartUnavailable."""
        ...

    async def ray_metrics(self) -> bytes:
        """What Serve counts itself, on all machines, as text for Prometheus; empty where none can be had."""
        ...


@dataclass(frozen=True, slots=True)
class Disk:
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class System:
    """`deployments`: None where there is no Ray, or it does not say. `slots`: of all ingress replicas that answered.
    `connections`: to the database, of all processes that answered; (in use, idle). `usage`: None where the database does not
    say. `disk`: of this machine, where pictures are kept in a folder."""

    deployments: list[DeploymentState] | None
    answered: Mapping[str, int]
    missing: int
    slots: list[Slot]
    calls: Mapping[str, int]
    connections: tuple[int, int]
    health: Health
    usage: Usage | None
    disk: Disk | None


class Kept(Generic[ResultT]):
    """What `make` returns, for `kept_s` seconds. Who asks while it is being made waits for the same."""

    def __init__(self, make: Callable[[], Awaitable[ResultT]], kept_s: float) -> None:
        self._make = make
        self._kept_s = kept_s
        self._made_at = 0.0
        self._task: asyncio.Task[ResultT] | None = None

    async def get(self) -> ResultT:
        old = time.monotonic() - self._made_at > self._kept_s
        if self._task is None or (self._task.done() and (old or self._task.cancelled() or self._task.exception())):
            self._task = asyncio.create_task(self._run())
        # Shielded: others wait for it too.
        return await asyncio.shield(self._task)

    async def _run(self) -> ResultT:
        made = await self._make()
        self._made_at = time.monotonic()
        return made


class SystemStatus:
    """`folder`: where pictures are kept, if in a folder. `cluster`: None for a service in one process."""

    def __init__(
        self,
        telemetry: Telemetry,
        database: Database,
        health: HealthChecks,
        pack: str,
        folder: Path | None,
        cluster: Cluster | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._database = database
        self._health = health
        self._pack = pack
        self._folder = folder
        self._cluster = cluster
        self._snapshots = Kept(self._ask, _SNAPSHOT_KEPT_S)
        self._deployments = Kept(self._look, _SNAPSHOT_KEPT_S)
        self._usage = Kept(self._measure, _USAGE_KEPT_S)
        self._ray = Kept(self._ask_ray, _RAY_KEPT_S)

    async def get(self) -> System:
        """Within a few seconds, whatever is down."""
        snapshots, deployments, health, stored = await asyncio.gather(
            self._snapshots.get(), self._deployments.get(), self._health.get(), self._usage.get()
        )
        answered: dict[str, int] = {}
        calls: dict[str, int] = {}
        for one in snapshots.answered:
            answered[one.deployment] = answered.get(one.deployment, 0) + 1
            for deployment, count in one.calls.items():
                calls[deployment] = calls.get(deployment, 0) + count
        return System(
            deployments=deployments,
            answered=answered,
            missing=snapshots.missing,
            slots=merged(one.slots for one in snapshots.answered),
            calls=calls,
            connections=_connections(snapshots.answered),
            health=health,
            usage=stored,
            disk=self._disk(),
        )

    async def metrics(self, *, with_ray: bool) -> bytes:
        """For Prometheus: every process's own, and of the whole. `with_ray`: what Serve counts follows."""
        snapshots, deployments, health, stored = await asyncio.gather(
            self._snapshots.get(), self._deployments.get(), self._health.get(), self._usage.get()
        )
        disk = self._disk()
        whole = [build_family(self._pack), *_states(deployments, health, stored, disk), _missing(snapshots)]
        text = exposition(snapshots.answered, whole)
        return text + await self._ray.get() if with_ray else text

    async def _ask(self) -> Snapshots:
        if self._cluster is None:
            return Snapshots([self._telemetry.snapshot()], 0)
        return await self._cluster.snapshots()

    async def _ask_ray(self) -> bytes:
        return b"" if self._cluster is None else await self._cluster.ray_metrics()

    async def _look(self) -> list[DeploymentState] | None:
        if self._cluster is None:
            return None
        try:
            return await self._cluster.deployments()
        except PartUnavailable as error:
            logger.warning("the state of the deployments: %s", error.detail)
            return None

    async def _measure(self) -> Usage | None:
        try:
            async with asyncio.timeout(_USAGE_TIMEOUT_S), self._database.connection() as connection:
                return await usage.measure(connection)
        except (PartUnavailable, CapacityError, TimeoutError):
            return None

    def _disk(self) -> Disk | None:
        if self._folder is None:
            return None
        try:
            found = shutil.disk_usage(self._folder)
        except OSError:
            return None
        return Disk(found.free, found.total)


CONNECTIONS = "kinlens_database_connections"


def watch_connections(telemetry: Telemetry, database: Database) -> None:
    """Gauges of the pool of this process."""
    held = "Connections to the database"
    telemetry.gauge(CONNECTIONS, held, lambda: database.connections()[0], state="used")
    telemetry.gauge(CONNECTIONS, held, lambda: database.connections()[1], state="idle")
    telemetry.gauge("kinlens_database_connections_max", "Connections there may be", lambda: database.pool_size)


def _connections(snapshots: list[Snapshot]) -> tuple[int, int]:
    found = {"used": 0.0, "idle": 0.0}
    for one in snapshots:
        for family in one.families:
            if family.name == CONNECTIONS:
                for _, labels, value in family.samples:
                    found[labels["state"]] += value
    return int(found["used"]), int(found["idle"])


def _missing(snapshots: Snapshots) -> Family:
    return state_family("kinlens_replicas_silent", "Replicas whose metrics are missing here", [({}, float(snapshots.missing))])


def _states(
    deployments: list[DeploymentState] | None, health: Health, stored: Usage | None, disk: Disk | None
) -> list[Family]:
    parts = {
        "database": health.database,
        "object_store": health.object_store,
        "detection": health.detection,
        "embedding": health.embedding,
    }
    # A busy model is none that is missing.
    up: list[tuple[dict[str, str], float]] = [({"part": part}, float(state != "unavailable")) for part, state in parts.items()]
    families = [state_family("kinlens_part_up", "1 where the part answers", up)]
    if health.waiting is not None:
        depth: list[tuple[dict[str, str], float]] = [
            ({"kind": kind.value}, float(health.waiting.get(kind, 0))) for kind in JobKind
        ]
        families.append(state_family("kinlens_jobs_waiting", "Items of open jobs that have not ended", depth))
    if deployments is not None:
        replicas: list[tuple[dict[str, str], float]] = []
        for one in deployments:
            for state, count in (("running", one.running), ("target", one.target)):
                # Not `deployment`: that names the process that a series comes from.
                replicas.append(({"of": one.name, "state": state}, float(count)))
        families.append(state_family("kinlens_replicas", "Replicas by deployment", replicas))
    if disk is not None:
        room: list[tuple[dict[str, str], float]] = [
            ({"state": "free"}, float(disk.free_bytes)),
            ({"state": "total"}, float(disk.total_bytes)),
        ]
        families.append(state_family("kinlens_disk_bytes", "The file system of DATA_DIR, of the machine that answers", room))
    if stored is not None:
        rows = {"photos": stored.photos, "pictures": stored.pictures, "faces": stored.faces, "persons": stored.persons}
        families.append(
            state_family("kinlens_stored", "What is stored, estimated where it is much",
                         [({"what": what}, float(count)) for what, count in rows.items()])
        )  # fmt: skip
        sizes = {"pictures": stored.picture_bytes, "database": stored.database_bytes}
        families.append(
            state_family("kinlens_stored_bytes", "Bytes of original pictures, and of the database with its indexes",
                         [({"what": what}, float(count)) for what, count in sizes.items()])
        )  # fmt: skip
    return families
