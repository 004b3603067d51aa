"""What goes wrong on real processes: killed replicas, too much load, clients that leave, changed configuration."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests import data
from tests.serve.conftest import KEY, Served

EXTRACT = "/api/v1/face/extract-embedding"
ROOT = Path(__file__).resolve().parents[2]


class Load:
    """Clients that post one picture over and over; every answer is recorded."""

    def __init__(self, served: Served, clients: int, image: bytes, path: str = EXTRACT) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.responses: list[httpx.Response] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(served, image, path)) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, served: Served, image: bytes, path: str) -> None:
        with served.client() as client:
            while not self._stop.is_set():
                try:
                    response = client.post(path, files={"file": image})
                except httpx.HTTPError as error:
                    with self._lock:
                        self.statuses[type(error).__name__] += 1
                    continue
                with self._lock:
                    self.statuses[response.status_code] += 1
                    if response.status_code != 200:
                        self.responses.append(response)

    def wait_for(self, condition: Callable[[Counter[int | str]], bool], timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition(self.statuses):
            assert time.monotonic() < deadline, f"not reached: {self.statuses}"
            time.sleep(0.1)


def assert_only_honest_refusals(load: Load) -> None:
    assert set(load.statuses) <= {200, 503}, load.statuses
    for response in load.responses:
        assert response.headers["retry-after"]
        # Without problem details it is Serve's own refusal, beyond the places of the ingress replica itself.
        if response.headers.get("content-type") == "application/problem+json":
            assert response.json()["code"] in ("overloaded", "model_unavailable")


@pytest.mark.parametrize("deployment", ["Detection", "Embedding"])
def test_a_killed_replica_costs_no_caller_a_500(served: Served, deployment: str) -> None:
    served.wait_for_replicas(deployment, 2)
    with Load(served, 6, data.package_image("t1.jpg")) as load:
        load.wait_for(lambda seen: seen[200] >= 20)
        victim = served.replicas(deployment)[0]
        victim.kill()
        served_before = load.statuses[200]
        load.wait_for(lambda seen: seen[200] >= served_before + 60)
    print(f"{deployment} killed under load: {dict(load.statuses)}")
    assert_only_honest_refusals(load)
    served.wait_for_replicas(deployment, 2)


def test_overload_is_refused_with_retry_after_and_nothing_collapses(served: Served) -> None:
    with Load(served, 110, data.package_image("t1.jpg"), EXTRACT + "?face=all") as load:
        load.wait_for(lambda seen: seen[200] >= 60 and seen[503] >= 20, timeout_s=240)
    print(f"110 clients: {dict(load.statuses)}")
    assert_only_honest_refusals(load)
    with served.client() as client:
        assert client.post(EXTRACT, files={"file": data.package_image("t1.jpg")}).status_code == 200


def model_cpu_s(served: Served) -> float:
    times = [process.cpu_times() for name in ("Detection", "Embedding") for process in served.replicas(name)]
    return sum(one.user + one.system for one in times)


def test_work_for_clients_that_left_is_cancelled(served: Served) -> None:
    """Measured in CPU: what 30 pictures cost their replicas when everybody waits, and when everybody hangs up."""
    image = data.package_image("t1.jpg")
    begun = model_cpu_s(served)
    time.sleep(3)
    # What they spend when nobody asks, on a slow machine more of its time.
    idle = (model_cpu_s(served) - begun) / 3
    head = (
        f"POST {EXTRACT}?face=all HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    ).encode()

    def send_all(wait: bool) -> float:
        before = model_cpu_s(served)
        sockets = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(30)]
        for one in sockets:
            one.sendall(head + image)
        if wait:
            for one in sockets:
                assert one.recv(12).endswith(b"200")
        for one in sockets:
            one.close()
        # Until the replicas rest: two readings a second apart that differ by less than idling explains.
        last = model_cpu_s(served)
        while True:
            time.sleep(1)
            now = model_cpu_s(served)
            if now - last < 0.2 + 2 * idle:
                return now - before
            last = now

    waited = send_all(wait=True)
    left = send_all(wait=False)
    print(f"CPU of the model replicas for 30 pictures: {waited:.1f} s when awaited, {left:.1f} s when abandoned")
    assert left < waited * 0.6


def kinlens(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from serve_app.cli import main; main()", *arguments],
        cwd=ROOT,
        env={**os.environ, "API_KEY": KEY, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


READ_BATCHING = """
import json, sys, ray
from ray import serve
ray.init(address=json.load(open(sys.argv[1]))["ray_address"], namespace="serve", log_to_driver=False)
config = serve.get_deployment_handle("Embedding", "kinlens").batching.remote().result()
print("batching", config.max_batch_size, config.batch_wait_timeout_s)
"""


@pytest.mark.timeout(600)  # the configuration is changed twice
def test_changed_user_config_takes_effect_without_a_restart(served: Served, tmp_path: Path) -> None:
    data_dir = served.output.parent / "data"
    environment = {"DATA_DIR": str(data_dir), "PORT": str(served.port)}
    text = (ROOT / "serve_config.yaml").read_text()
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace("batch_wait_timeout_s: 0.0", "batch_wait_timeout_s: 0.004, max_batch_size: 6"))
    before = {process.pid for name in ("Detection", "Embedding", "Ingress") for process in served.replicas(name)}
    try:
        done = kinlens("apply", "--config", str(changed), **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        script = subprocess.run(
            [sys.executable, "-c", READ_BATCHING, str(data_dir / "instance.json")],
            env=os.environ | {
                # As serve_app/environment.py has it: the cluster is on loopback.
                "RAY_AUTH_MODE": "token", "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "batching 6 0.004" in script.stdout, script.stdout + script.stderr
        assert {p.pid for name in ("Detection", "Embedding", "Ingress") for p in served.replicas(name)} == before
    finally:
        kinlens("apply", "--config", str(ROOT / "serve_config.yaml"), **environment)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("max_in_flight: 40", "max_in_flite: 40", "max_in_flite"),
        ("num_replicas: 1", "num_replica: 1", "deployments[Ingress].num_replica"),
        ("batch_wait_timeout_s: 0.0", "batch_wait: 1", "batch_wait"),
        ("- name: Embedding", "- name: Embeding", "Embeding"),
        ("max_replicas: 2", "max_replicas: -1", "max_replicas"),
        ("port: 8000", "prot: 8000", "http_options.prot"),
        ("target_ongoing_requests: 2", "target_ongoing: 2", "target_ongoing"),
    ],
)
def test_mistakes_in_the_config_are_refused_by_name(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = (ROOT / "serve_config.yaml").read_text()
    assert old in text
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(old, new))
    from serve_app.ports import free_port

    done = kinlens("up", "--config", str(path), DATA_DIR=str(tmp_path / "data"), PORT=str(free_port()))
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"MODEL_PACK": "nobody"}, "nobody"),
        ({"MODEL_PACK": "buffalo_l", "MODEL_DOWNLOAD": "false"}, "det_10g.onnx"),
        ({"PORT": "99999"}, "PORT"),
        ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS"),
        ({"API_KEY": "short"}, "API_KEY"),
        ({"DATA_DIR": "/dev/null/data"}, "DATA_DIR"),
    ],
)
def test_mistakes_in_the_settings_are_refused_by_name(tmp_path: Path, environment: dict[str, str], named: str) -> None:
    from serve_app.ports import free_port

    base = {"DATA_DIR": str(tmp_path / "data"), "PORT": str(free_port()), "MODEL_ROOT": str(tmp_path)}
    done = kinlens("up", **{**base, **environment})
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_taken_port_is_said_at_once(served: Served, tmp_path: Path) -> None:
    done = kinlens("up", DATA_DIR=str(tmp_path), PORT=str(served.port))
    assert done.returncode == 2 and str(served.port) in done.stderr
