"""The configuration is changed while clients ask, who never ask twice: nobody may notice. And an end that answers whoever is in.

By `kinlens apply` beside `kinlens up`; with `-m cluster` also by `serve deploy`, to a Ray of its own.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from serve_app.environment import RAY_ENVIRONMENT, install_haproxy, instance_environment
from serve_app.ports import free_port
from tests import data
from tests.serve.cluster_nodes import wait_for
from tests.serve.conftest import KEY, Served, start, stop
from tests.serve.test_faults import ROOT, kinlens

EXTRACT = "/api/v1/face/extract-embedding"
VERIFY = "/api/v1/face/verify-face"
IDENTIFY = "/api/v1/collections/staff/identify"
_DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
"""Without it, as other tests have it, replicas of the ingress are gone before HAProxy knows: 1 of 1,664 requests failed."""


def asking(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False)


class Clients:
    """Of several kinds, each sending the next request when the last is answered. Every answer counts, and each lost connection."""

    def __init__(self, url: str, paths: tuple[str, ...]) -> None:
        self.outcomes: dict[str, Counter[int | str]] = {path: Counter() for path in paths}
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url, path)) for path in paths]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return sum(counts[200] for counts in self.outcomes.values())

    def _run(self, url: str, path: str) -> None:
        image = data.package_image("Tom_Hanks_54745.png")
        with asking(url) as client:
            while not self._over.is_set():
                begun = time.monotonic()
                try:
                    answer = client.post(path, files={"file": image})
                    outcome: int | str = answer.status_code
                    said = answer.text[:300]
                except httpx.HTTPError as error:
                    outcome, said = type(error).__name__, str(error)
                self.outcomes[path][outcome] += 1
                if outcome != 200:
                    self.failures.append(f"{path}: {outcome} after {time.monotonic() - begun:.2f} s: {said}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Served]]:
    """One of its own: it is changed and ended."""
    process, instance = start(tmp_path_factory.mktemp("redeployed"), **{_DRAINING: RAY_ENVIRONMENT[_DRAINING]})
    yield process, instance
    if process.poll() is None:
        stop(process)


@pytest.fixture
def config() -> dict[str, Any]:
    """The changes go on from each other, as an operator's do."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    return loaded


def application(config: dict[str, Any]) -> dict[str, Any]:
    (found,) = config["applications"]
    assert isinstance(found, dict)
    return found


def deployment(config: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in application(config)["deployments"] if one["name"] == name)
    assert isinstance(found, dict)
    return found


def fewer_and_more_replicas(config: dict[str, Any], folder: Path) -> None:
    deployment(config, "Ingress")["num_replicas"] = 2
    for name, count in (("Detection", 3), ("Embedding", 1)):
        deployment(config, name)["autoscaling_config"] |= {"min_replicas": count, "max_replicas": count}


def other_batches(config: dict[str, Any], folder: Path) -> None:
    for name in ("Detection", "Embedding"):
        deployment(config, name)["user_config"] |= {"max_batch_size": 3, "batch_wait_timeout_s": 0.002}
        deployment(config, name)["max_ongoing_requests"] = 24


def new_code_and_thresholds(config: dict[str, Any], folder: Path) -> None:
    """What is installed says it is version 99.0: a distribution that is found before the one that was started."""
    described = folder / "kinlens-99.0.dist-info" / "METADATA"
    described.parent.mkdir(parents=True)
    described.write_text("Metadata-Version: 2.1\nName: kinlens\nVersion: 99.0\n")
    application(config)["runtime_env"] = {"env_vars": {"PYTHONPATH": str(folder), "MATCH_THRESHOLD": "0.45"}}


def fewer_replicas(config: dict[str, Any], folder: Path) -> None:
    deployment(config, "Ingress")["num_replicas"] = 1
    deployment(config, "Detection")["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}


def replicas(client: httpx.Client) -> dict[str, tuple[int, int]]:
    """Running and stopping by deployment, as the service tells; empty while Serve's controller is too busy to tell it."""
    told = client.get("/api/v1/system").json()["deployments"]
    return {one["name"]: (one["replicas"], one["stopping"]) for one in told or ()}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def nobody_notices(url: str, config: dict[str, Any], folder: Path, deploy: Callable[[Path], None]) -> None:
    """One change after another under load; `deploy` returns when it is on its way, or done."""
    with asking(url) as client:
        assert client.post("/api/v1/collections", json={"id": "staff"}).status_code == 201
        person = client.post("/api/v1/collections/staff/persons", json={"name": "Tom"}).json()["id"]
        picture = {"files": data.package_image("Tom_Hanks_54745.png")}
        enrolled = client.post(f"/api/v1/collections/staff/persons/{person}/faces", files=picture)
        assert enrolled.status_code == 201, enrolled.text
        with Clients(url, (VERIFY, EXTRACT, IDENTIFY)) as clients:
            # Replaced are single replicas: with nobody beside them who could answer.
            for change in (fewer_and_more_replicas, other_batches, fewer_replicas, new_code_and_thresholds):
                before, begun = clients.answered, time.monotonic()
                change(config, folder / "newer")
                path = folder / f"{change.__name__}.yaml"
                path.write_text(yaml.safe_dump(config))
                deploy(path)
                told(change.__name__, client)
                print(f"\n{change.__name__}: {time.monotonic() - begun:.1f} s, {clients.answered - before} answers meanwhile")
                assert clients.answered > before
    for asked, counts in clients.outcomes.items():
        print(f"{asked}: {dict(counts)}")
    assert clients.failures == []


@pytest.mark.timeout(900)  # each step has a limit of its own
def test_no_request_fails_while_the_configuration_changes(
    running: tuple[subprocess.Popen[bytes], Served], config: dict[str, Any], tmp_path: Path
) -> None:
    _, served = running

    def deploy(path: Path) -> None:
        data_dir = str(served.output.parent / "data")
        done = kinlens("apply", "--config", str(path), DATA_DIR=data_dir, PORT=str(served.port))
        assert done.returncode == 0, done.stdout + done.stderr

    nobody_notices(served.url, config, tmp_path, deploy)


@contextmanager
def ray_head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """`ray start --head` on loopback, on ports of its own; the address of its dashboard, which `serve deploy` asks."""
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")}
    options = [f"--{name}={port}" for name, port in ports.items()]
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--temp-dir={folder}"]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen([*command, *options], env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{ports['dashboard-port']}"
    finally:
        head.terminate()
        head.wait(60)
        # Postgres and HAProxy are nobody's children any more.
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(folder) in " ".join(process.cmdline()):
                    process.kill()


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_nor_by_serve_deploy(config: dict[str, Any]) -> None:
    config["http_options"]["port"] = port = free_port()
    with tempfile.TemporaryDirectory(prefix="kd-") as name:
        # Not pytest's, whose names are too long for the sockets of Ray.
        folder = Path(name)
        folder.chmod(0o711)
        install_haproxy(folder)
        environment = {
            **os.environ, **RAY_ENVIRONMENT, **instance_environment(folder, free_port(), free_port(), free_port()),
            "API_KEY": KEY, "DATA_DIR": str(folder / "data"), "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }  # fmt: skip
        with ray_head(folder, environment) as dashboard:

            def deploy(path: Path) -> None:
                serve, answers = str(Path(sys.executable).parent / "serve"), []

                def deployed() -> bool:
                    command = [serve, "deploy", "--address", dashboard, str(path)]
                    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
                    answers.append(done.stdout + done.stderr)
                    return done.returncode == 0

                # Ray's dashboard takes a moment after its start.
                wait_for("serve deploy", deployed, 90, lambda: answers[-1])

            first = folder / "first.yaml"
            first.write_text(yaml.safe_dump(config))
            deploy(first)
            url = f"http://127.0.0.1:{port}"
            with asking(url) as client:
                wait_for("the first answer", lambda: answers_well(client), 120)
            nobody_notices(url, config, folder, deploy)


def answers_well(client: httpx.Client) -> bool:
    try:
        found = client.get("/api/v1/system").json()["deployments"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    return bool(found) and all(one["replicas"] >= one["target"] for one in found)


def told(change: str, client: httpx.Client) -> None:
    """The service itself says that the change is in force."""
    if change == "fewer_and_more_replicas":
        wanted = {"Ingress": (2, 0), "Detection": (3, 0), "Embedding": (1, 0)}
        until(lambda: wanted.items() <= replicas(client).items(), f"{wanted}: {replicas(client)}")
    elif change == "new_code_and_thresholds":
        until(lambda: client.get("/api/v1/system").json()["version"] == "99.0", "the version")
        picture = {"file": data.package_image("Tom_Hanks_54745.png")}
        until(lambda: client.post(IDENTIFY, files=picture).json()["threshold"] == 0.45, "the threshold")
    elif change == "fewer_replicas":
        wanted = {"Ingress": (1, 0), "Detection": (1, 0)}
        until(lambda: wanted.items() <= replicas(client).items(), f"{wanted}: {replicas(client)}")


@pytest.mark.timeout(600)  # the end has a limit of its own
def test_whoever_is_in_is_answered_when_it_is_stopped(running: tuple[subprocess.Popen[bytes], Served]) -> None:
    """Clients go on until they are turned away. Whoever asked before the signal is answered, also when all of its process
    group gets the signal, as from `timeout`."""
    process, served = running
    family = psutil.Process(process.pid).children(recursive=True)
    image = data.package_image("t1.jpg")
    answers: list[tuple[float, float, int]] = []
    ended: list[float] = []

    def ask(_: int) -> None:
        with served.client() as client:
            while True:
                begun = time.monotonic()
                try:
                    status = client.post(EXTRACT, files={"file": image}, data={"face": "all"}).status_code
                except httpx.TransportError:
                    # Refused, or reset where HAProxy had not taken the connection when it closed its port.
                    assert ended and begun > ended[0], f"lost after {time.monotonic() - begun:.2f} s"
                    return
                answers.append((begun, time.monotonic(), status))

    with ThreadPoolExecutor(8) as pool:
        asking_on = [pool.submit(ask, number) for number in range(8)]
        until(lambda: len(answers) >= 16, "answers")
        stopped = time.monotonic()
        ended.append(stopped)
        os.killpg(process.pid, signal.SIGTERM)
        for one in asking_on:
            one.result()
    later = [answered - stopped for begun, answered, _ in answers if begun < stopped < answered]
    print(f"\n{len(later)} were in and answered after SIGTERM, the last {max(later):.1f} s after it")
    assert {status for _, _, status in answers} == {200} and len(later) >= 4
    process.wait(180)
    print(f"ended {time.monotonic() - stopped:.1f} s after it")
    assert process.returncode == 0, served.output.read_text()[-2000:]
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, left
