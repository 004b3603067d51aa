"""Which replica of a model deployment gets the next call: a request router for Ray Serve."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, LocalityMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

KeyT = TypeVar("KeyT")

_MEMORY_S = 4.0
"""What is older by so much counts 1/e: a replica that shares its core with something new is known for it in seconds."""
_FULL_S = 1.0
"""A replica that was full is as likely as not to have a place again by then."""
_PRIOR_CALLS = 2.0
"""So many calls at the pace of all count as known of each: of who has not been asked lately, little else is."""


@dataclass(slots=True)
class _Pace:
    """Of one replica: the calls it has of ours and those it had of others when it refused one, the time it was busy with ours
    and the calls it ended in that time; all but the first fade."""

    calls: int = 0
    refused: int = 0
    """Calls that have ended, which it is still to be told of."""
    others: float = 0.0
    busy_s: float = 0.0
    ended: float = 0.0
    seen_at: float = 0.0

    def look(self, now: float) -> None:
        passed_s, self.seen_at = now - self.seen_at, now
        fade = math.exp(-passed_s / _MEMORY_S)
        self.busy_s = self.busy_s * fade + (_MEMORY_S * (1 - fade) if self.calls else 0.0)
        self.ended *= fade
        self.others *= math.exp(-passed_s / _FULL_S)


class Paces(Generic[KeyT]):
    """How many calls replicas have and how long they take for one, as one caller of them sees it: the time between two answers
    while it waits for any. That holds for batches, threads and several callers alike, as long as all replicas are asked in
    the same way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paces: dict[KeyT, _Pace] = {}

    def calls(self, replica: KeyT) -> int:
        """That it has, as far as is known here."""
        pace = self._look(replica)
        return pace.calls + round(pace.others)

    def sent(self, replica: KeyT) -> None:
        self._look(replica).calls += 1

    def completed(self, replica: KeyT) -> None:
        pace = self._look(replica)
        if pace.refused:
            pace.refused -= 1
        elif pace.calls:
            pace.calls -= 1
            pace.ended += 1

    def refused(self, replica: KeyT, calls: int) -> None:
        """It has so many already. `completed` follows nevertheless."""
        pace = self._look(replica)
        pace.refused += 1
        pace.calls = max(0, pace.calls - 1)
        pace.others = max(0.0, calls - pace.calls)

    def by_wait(self, replicas: Iterable[KeyT]) -> list[KeyT]:
        """`replicas` by the time the next call would take there. Forgets all others that have none."""
        paces = {replica: self._look(replica) for replica in replicas}
        for gone in [replica for replica, pace in self._paces.items() if replica not in paces and not pace.calls]:
            del self._paces[gone]
        ended = sum(pace.ended for pace in paces.values())
        usual_s = sum(pace.busy_s for pace in paces.values()) / ended if ended else 0.0

        def wait_s(replica: KeyT) -> float:
            pace = paces[replica]
            seconds = (pace.busy_s + usual_s * _PRIOR_CALLS) / (pace.ended + _PRIOR_CALLS) if usual_s else 1.0
            return (pace.calls + pace.others + 1) * seconds

        return sorted(paces, key=lambda replica: (wait_s(replica), random.random()))  # noqa: S311  among equals

    def _look(self, replica: KeyT) -> _Pace:
        pace, now = self._paces.get(replica), self._clock()
        if pace is None:
            pace = self._paces[replica] = _Pace(seen_at=now)
        pace.look(now)
        return pace


class ShortestWaitRouter(LocalityMixin, FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Gives a call to the replica that will answer it first.

    Serve's own router takes the one of two that has fewer calls, as the replica itself said when it took one. By gRPC that is
    told together with the answer: it is as old as the queue was long, so that calls pile up on one replica while the other is
    idle, in turns. Here every caller counts its own. And as many calls take longer on a replica that shares its core.
    Measured in docs/performance.md, "Routing".
    """

    def initialize_state(self, **kwargs: Any) -> None:
        self._known: Paces[ReplicaID] = Paces()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """In turns: where one has no place left, the next is asked."""
        ids: Iterable[ReplicaID] = self.apply_locality_routing(pending_request=pending_request)
        return [[self.curr_replicas[one]] for one in self._known.by_wait(ids)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        self._known.sent(replica_id)
        self._tell(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Of every call that was sent, whatever became of it."""
        self._known.completed(replica_id)
        self._tell(replica_id)

    def decrement_queue_len_cache(self, replica_id: ReplicaID) -> None:
        """`on_request_completed` has done it."""

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Taken for true where a call was refused: that is told at once."""
        replica = self.curr_replicas.get(replica_id)
        if replica is not None and num_ongoing_requests >= replica.max_ongoing_requests:
            self._known.refused(replica_id, num_ongoing_requests)
            self._tell(replica_id)

    def _tell(self, replica_id: ReplicaID) -> None:
        super().on_new_queue_len_info(replica_id, self._known.calls(replica_id))


BY_WAIT = RequestRouterConfig(request_router_class=f"{__name__}.{ShortestWaitRouter.__name__}")
"""Of every model deployment; `request_router_config` in serve_config.yaml overrides it."""
