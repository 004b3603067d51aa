"""The answer of GET /system."""

from __future__ import annotations

from pydantic import BaseModel, Field

from serve_app.observing.recent import KEPT_S, SLOT_S, Slot, summed
from serve_app.observing.stages import Stage
from serve_app.services.system import DeploymentState, Disk, System
from serve_app.storage.usage import Usage

LATELY_S = 300


class DeploymentAnswer(BaseModel):
    name: str
    status: str = Field(description="healthy, updating, upscaling, downscaling, unhealthy, ...: Serve's word")
    replicas: int = Field(description="Running.")
    starting: int
    stopping: int
    target: int = Field(description="So many are to run, just now.")
    calls: int = Field(description="Calls to it that are under way or wait there, of all replicas that answered.")

    @staticmethod
    def of(state: DeploymentState, calls: int) -> DeploymentAnswer:
        return DeploymentAnswer(
            name=state.name,
            status=state.status,
            replicas=state.running,
            starting=state.starting,
            stopping=state.stopping,
            target=state.target,
            calls=calls,
        )


class SlotAnswer(BaseModel):
    at: int = Field(description="Its beginning, in seconds since 1970.")
    requests: int
    failed: int = Field(description="Answered with a status of 500 or above.")
    refused: int = Field(description="Answered 429 or 503.")
    p50_ms: float | None = Field(description="None without requests, as p95_ms.")
    p95_ms: float | None

    @staticmethod
    def of(slot: Slot) -> SlotAnswer:
        return SlotAnswer(
            at=slot.at,
            requests=slot.count,
            failed=slot.failed,
            refused=slot.refused,
            p50_ms=_ms(slot.percentile_s(0.5)),
            p95_ms=_ms(slot.percentile_s(0.95)),
        )


class LatelyAnswer(BaseModel):
    seconds: int
    requests: int
    rate_per_s: float
    failed: int
    refused: int
    p50_ms: float | None
    p95_ms: float | None
    stages_ms: dict[str, float] = Field(
        description="Where the time went: milliseconds of a request in each stage, on average."
    )

    @staticmethod
    def of(slots: list[Slot], now: float) -> LatelyAnswer:
        total = summed(slots, now - LATELY_S)
        stages = {which.value: round(total.stages[which] * 1000 / total.count, 2) for which in Stage if which in total.stages}
        return LatelyAnswer(
            seconds=LATELY_S,
            requests=total.count,
            rate_per_s=round(total.count / LATELY_S, 3),
            failed=total.failed,
            refused=total.refused,
            p50_ms=_ms(total.percentile_s(0.5)),
            p95_ms=_ms(total.percentile_s(0.95)),
            stages_ms=stages,
        )


class RequestsAnswer(BaseModel):
    """Without health checks, streams of events, this endpoint and the files of the pages. Latency: until the answer begins."""

    replicas_answered: int = Field(description="Ingress replicas whose requests are counted here.")
    replicas_silent: int = Field(description="Replicas that did not answer in time: 0, or numbers are missing here.")
    slot_s: int = SLOT_S
    kept_s: int = KEPT_S
    lately: LatelyAnswer
    slots: list[SlotAnswer] = Field(description="Oldest first; those without requests are left out.")


class StoredAnswer(BaseModel):
    photos: int
    pictures: int = Field(description="Originals, of photos and of enrolments.")
    picture_bytes: int = Field(description="Of originals, without thumbnails and crops.")
    faces: int
    persons: int
    database_bytes: int = Field(description="With indexes.")
    estimated: bool = Field(description="Whether large numbers are the database's estimates.")

    @staticmethod
    def of(usage: Usage) -> StoredAnswer:
        return StoredAnswer(
            photos=usage.photos,
            pictures=usage.pictures,
            picture_bytes=usage.picture_bytes,
            faces=usage.faces,
            persons=usage.persons,
            database_bytes=usage.database_bytes,
            estimated=usage.estimated,
        )


class DiskAnswer(BaseModel):
    free_bytes: int
    total_bytes: int

    @staticmethod
    def of(disk: Disk) -> DiskAnswer:
        return DiskAnswer(free_bytes=disk.free_bytes, total_bytes=disk.total_bytes)


class DatabaseAnswer(BaseModel):
    state: str = Field(description="ok or unavailable")
    connections_used: int = Field(description="Of all replicas that answered.")
    connections_idle: int


class ObjectStoreAnswer(BaseModel):
    state: str = Field(description="ok or unavailable")
    kind: str = Field(description="folder or minio")
    disk: DiskAnswer | None = Field(description="Of the machine that answers, for a folder.")


class WaitingAnswer(BaseModel):
    waiting: dict[str, int] = Field(description="Items of open jobs that have not ended, by kind of job.")


class SystemAnswer(BaseModel):
    version: str
    uptime_s: float = Field(description="Of the ingress replica that answers.")
    deployments: list[DeploymentAnswer] | None = Field(description="None where there is no Ray, or it does not say.")
    requests: RequestsAnswer
    stored: StoredAnswer | None = Field(description="At most half a minute old; None where the database does not say.")
    database: DatabaseAnswer
    object_store: ObjectStoreAnswer
    jobs: WaitingAnswer | None = Field(description="None where the database does not say.")

    @staticmethod
    def of(found: System, *, version: str, uptime_s: float, store: str, now: float) -> SystemAnswer:
        waiting = found.health.waiting
        return SystemAnswer(
            version=version,
            uptime_s=uptime_s,
            deployments=None
            if found.deployments is None
            else [DeploymentAnswer.of(one, found.calls.get(one.name, 0)) for one in found.deployments],
            requests=RequestsAnswer(
                replicas_answered=found.answered.get("Ingress", 0),
                replicas_silent=found.missing,
                lately=LatelyAnswer.of(found.slots, now),
                slots=[SlotAnswer.of(slot) for slot in found.slots],
            ),
            stored=None if found.usage is None else StoredAnswer.of(found.usage),
            database=DatabaseAnswer(
                state=found.health.database, connections_used=found.connections[0], connections_idle=found.connections[1]
            ),
            object_store=ObjectStoreAnswer(
                state=found.health.object_store,
                kind=store,
                disk=None if found.disk is None else DiskAnswer.of(found.disk),
            ),
            jobs=None if waiting is None else WaitingAnswer(waiting={kind.value: count for kind, count in waiting.items()}),
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
