"""Calls go where they will be answered first."""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from ray.serve import Deployment
from ray.serve._private.common import DeploymentHandleSource, DeploymentID
from ray.serve.request_router import ReplicaID

from deployments.analysis import Analysis
from deployments.detection import Detection
from deployments.embedding import Embedding
from deployments.routing import BY_WAIT, Paces, ShortestWaitRouter
from deployments.semantic import Semantic

Choose = Callable[[Mapping[str, int]], str]


class Replicas:
    """Replicas that work off their calls one by one, for clients that ask again at once, in a time of its own."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = dict(seconds)
        self.now = 0.0
        self.paces: Paces[str] = Paces(lambda: self.now)
        self._queues: dict[str, deque[float]] = {name: deque() for name in self.seconds}
        self._ends: list[tuple[float, str]] = []

    def ask(self, choose: Choose) -> None:
        name = choose({name: len(queue) for name, queue in self._queues.items()})
        self.paces.sent(name)
        self._queues[name].append(self.now)
        if len(self._queues[name]) == 1:
            self._begin(name)

    def waits(self, calls: int, choose: Choose) -> list[float]:
        """Of the next `calls` that are answered; whoever got one asks again."""
        found: list[float] = []
        while len(found) < calls:
            self.now, name = heapq.heappop(self._ends)
            asked_at = self._queues[name].popleft()
            self.paces.completed(name)
            found.append(self.now - asked_at)
            if self._queues[name]:
                self._begin(name)
            self.ask(choose)
        return found

    def _begin(self, name: str) -> None:
        heapq.heappush(self._ends, (self.now + self.seconds[name], name))


def fewest(queues: Mapping[str, int]) -> str:
    return min(queues, key=lambda name: queues[name])


def shortest(replicas: Replicas) -> Choose:
    return lambda queues: replicas.paces.by_wait(queues)[0]


def tail(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[94] / statistics.median(waits)


def asked(seconds: Mapping[str, float], clients: int, choose: Choose | None = None) -> Replicas:
    replicas = Replicas(seconds)
    for _ in range(clients):
        replicas.ask(choose or shortest(replicas))
    return replicas


def test_unequal_replicas_answer_all_callers_alike() -> None:
    unequal = {"a": 0.1, "b": 0.2, "c": 0.12}
    counted, timed = asked(unequal, 24, fewest), asked(unequal, 24)
    counted.waits(500, fewest)
    timed.waits(500, shortest(timed))
    assert tail(counted.waits(1_500, fewest)) > 1.5
    assert tail(timed.waits(1_500, shortest(timed))) < 1.25


def test_a_replica_that_gets_slow_and_fast_again_is_known_for_it() -> None:
    replicas = asked({"a": 0.1, "b": 0.1}, 16)
    for seconds in (0.1, 0.3, 0.1, 0.02):
        replicas.seconds["b"] = seconds
        replicas.waits(200, shortest(replicas))
        assert tail(replicas.waits(200, shortest(replicas))) < 1.3, seconds


def test_who_was_slow_long_ago_gets_calls_again() -> None:
    moment = 0.0
    paces: Paces[str] = Paces(lambda: moment)
    for name, seconds in [("a", 0.01), ("b", 0.2)] * 40:
        paces.sent(name)
        moment += seconds
        paces.completed(name)
    for _ in range(3):
        paces.sent("a")
    assert paces.by_wait("ab") == ["a", "b"]
    for _ in range(3):
        paces.completed("a")
    moment += 60
    for _ in range(3):
        paces.sent("a")
    assert paces.by_wait("ab") == ["b", "a"]


def test_of_replicas_nobody_knows_the_one_with_fewer_calls_is_first() -> None:
    paces: Paces[str] = Paces(lambda: 0.0)
    assert {paces.by_wait("ab")[0] for _ in range(200)} == {"a", "b"}
    for name in "aaabcc":
        paces.sent(name)
    assert paces.by_wait("abc") == ["b", "c", "a"]


def test_one_that_is_gone_is_forgotten_when_its_calls_have_ended() -> None:
    paces: Paces[str] = Paces()
    paces.sent("a")
    assert paces.by_wait("b") == ["b"] and paces.calls("a") == 1
    paces.completed("a")
    paces.completed("a")
    assert paces.calls("a") == 0 and set(paces._paces) == {"a", "b"}
    assert paces.by_wait("b") == ["b"] and set(paces._paces) == {"b"}


@dataclass(frozen=True)
class FakeReplica:
    replica_id: ReplicaID
    max_ongoing_requests: int = 4
    node_id: str = "node"
    availability_zone: str | None = None
    multiplexed_model_ids: frozenset[str] = field(default_factory=frozenset)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


DEPLOYMENT = DeploymentID(name="Detection", app_name="kinlens")


class TestInServe:
    """The hooks that Serve calls, in the order in which it calls them for gRPC."""

    @pytest.fixture
    async def router(self) -> ShortestWaitRouter:
        router = ShortestWaitRouter(
            deployment_id=DEPLOYMENT, handle_source=DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
        )
        router.initialize_state()
        router.update_replicas([FakeReplica(ReplicaID(name, DEPLOYMENT)) for name in ("a", "b")])
        return router

    async def choose(self, router: ShortestWaitRouter) -> str:
        replicas = list(router.curr_replicas.values())
        ranked = await router.choose_replicas(replicas)
        assert sorted(one.replica_id.unique_id for (one,) in ranked) == ["a", "b"]
        return str(ranked[0][0].replica_id.unique_id)

    async def test_calls_go_in_turns_whatever_a_replica_said_when_it_took_one(self, router: ShortestWaitRouter) -> None:
        sent: list[str] = []
        for _ in range(6):
            sent.append(await self.choose(router))
            router.on_send_request(ReplicaID(sent[-1], DEPLOYMENT))
        assert sent.count("a") == sent.count("b") == 3
        # The answers of "a" come, each with the length of its queue from the time before it waited there.
        for number in range(3):
            router.on_request_completed(ReplicaID("a", DEPLOYMENT), str(number))
            router.on_new_queue_len_info(ReplicaID("a", DEPLOYMENT), 3)
            router.decrement_queue_len_cache(ReplicaID("a", DEPLOYMENT))
        assert [await self.choose(router) for _ in range(20)] == ["a"] * 20
        assert router.replica_queue_len_cache.get(ReplicaID("a", DEPLOYMENT)) == 0

    async def test_one_that_is_full_of_others_calls_is_not_asked_again_at_once(
        self, router: ShortestWaitRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = (ReplicaID(name, DEPLOYMENT) for name in ("a", "b"))
        # A clock that stands still: on a busy machine a moment may be a second.
        now = router._known._clock()
        monkeypatch.setattr(router._known, "_clock", lambda: now)
        for _ in range(2):
            router.on_send_request(b)
        router.on_send_request(a)
        router.on_new_queue_len_info(a, 4)
        router.on_request_completed(a, "refused")
        # So many that Serve asks it before it sends it another.
        assert router.replica_queue_len_cache.get(a) == 4
        assert await self.choose(router) == "b"
        monkeypatch.setattr(router._known, "_clock", lambda: now + 5)
        assert await self.choose(router) == "a"

    def test_model_deployments_have_it(self) -> None:
        assert BY_WAIT.get_request_router_class() is ShortestWaitRouter
        for deployment in (Detection, Embedding, Analysis, Semantic):
            assert isinstance(deployment, Deployment)
            assert deployment._deployment_config.request_router_config == BY_WAIT
