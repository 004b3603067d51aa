"""Machines of a cluster on one machine: each has a network, processes and a /tmp of its own, and a cable to a bridge."""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from serve_app.environment import RAY_ENVIRONMENT
from serve_app.ports import HOST

ROOT = Path(__file__).resolve().parents[2]
_TOOLS = ("ip", "unshare", "mount")


class Network:
    """A bridge, on which the machine itself is `gateway`, and a namespace for each of `count` machines."""

    def __init__(self, count: int) -> None:
        self._name = f"kl{os.getpid() % 100_000}"
        self._subnet = f"10.213.{os.getpid() % 250}"
        self.gateway = f"{self._subnet}.1"
        self.addresses = [f"{self._subnet}.{number + 10}" for number in range(count)]

    def namespace(self, number: int) -> str:
        return f"{self._name}n{number}"

    def lay(self) -> None:
        """Raises CalledProcessError where that is not allowed."""
        _ip("link", "add", self._name, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        for number, address in enumerate(self.addresses):
            namespace, cable = self.namespace(number), f"{self._name}v{number}"
            _ip("netns", "add", namespace)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", cable, "master", self._name, "up")
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", namespace, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Whatever there is of it. A cable goes with its namespace."""
        for number in range(len(self.addresses)):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self.namespace(number))
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class _Forward(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Relay)
        client: socket.socket = self.request
        try:
            upstream = socket.create_connection((HOST, self.server.port), timeout=5)
        except OSError:
            return
        upstream.settimeout(None)
        back = threading.Thread(target=_copy, args=(upstream, client), daemon=True)
        back.start()
        _copy(client, upstream)
        back.join()
        upstream.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Relay(socketserver.ThreadingTCPServer):
    """A server on loopback, `port`, as those on the bridge reach it."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, gateway: str, port: int) -> None:
        self.port = port
        super().__init__((gateway, 0), _Forward)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"


@dataclass
class Node:
    """One machine. `start` is `kinlens node` there; `kill` is kill -9 of all that runs there, at once."""

    namespace: str
    address: str
    head: str | None
    environment: Mapping[str, str]
    log: Path
    options: tuple[str, ...]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://{self.address}:8000"

    def start(self) -> None:
        joining = ["--head"] if self.head is None else [f"--address={self.head}"]
        command = [sys.executable, "-c", "from serve_app.cli import main; main()", "node", *joining,
                   f"--ip={self.address}", *self.options]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
                 # Its first process is one that waits for orphans, as on any machine.
                 "sh", "-c", 'mount -t tmpfs kinlens-tests /tmp && mkdir /tmp/home && "$@"; exit $?', "sh", *command],
                env={"PATH": os.environ["PATH"], "HOME": "/tmp/home", "DATA_DIR": "/tmp/data", **self.environment},
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """The end of its first process is that of all others, without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def run(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A command on that machine's network, set up as the guide says: eval "$(kinlens env)"."""
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            env={**os.environ, **RAY_ENVIRONMENT, **self.environment},
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def replicas(self, deployment: str) -> int:
        if self._process is None:
            return 0
        found = 0
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found += f"ServeReplica:kinlens:{deployment}" in " ".join(process.cmdline())
        return found

    def listens(self, port: int) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((self.address, port)) == 0

    def told(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def nodes(
    network: Network, environment: Mapping[str, str], head_environment: Mapping[str, str], folder: Path, cpus: int
) -> Iterator[list[Node]]:
    """Not started. What is started ends here."""
    head = f"{network.addresses[0]}:6379"
    found = [
        Node(
            network.namespace(number), address, head if number else None,
            {**environment, **(head_environment if number == 0 else {})}, folder / f"node-{number}.log", (f"--num-cpus={cpus}",),
        )
        for number, address in enumerate(network.addresses)
    ]  # fmt: skip
    with ExitStack() as stack:
        for node in found:
            stack.callback(node.kill)
        yield found


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float, told: Callable[[], str] = str) -> float:
    """Seconds until `condition()` holds; fails the test with what `told()` when it does not."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + timeout_s:
            pytest.fail(f"{what}: not within {timeout_s:.0f} s\n{told()}")
        time.sleep(0.25)
    return time.monotonic() - begun


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Skips, and says why, where namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    made = Network(count)
    try:
        try:
            made.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {str(error.stderr).strip()}")
        yield made
    finally:
        made.remove()
