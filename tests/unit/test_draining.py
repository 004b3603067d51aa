"""The end of an instance, at a real HAProxy: nobody new comes in, and whoever is in is answered."""

from __future__ import annotations

import asyncio
import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serve_app.draining import close_entrance, wait_until_answered
from serve_app.environment import haproxy_binary
from serve_app.ports import HOST, free_port


class Backend(http.server.BaseHTTPRequestHandler):
    """`/slow` is answered when it may end, everything else at once."""

    protocol_version = "HTTP/1.1"
    begun, may_end = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.begun.set()
            self.may_end.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address behind HAProxy, and HAProxy's socket."""
    backend = http.server.ThreadingHTTPServer((HOST, 0), Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    port, config, admin = free_port(), tmp_path / "haproxy.cfg", tmp_path / "admin.sock"
    config.write_text(
        f"global\n    stats socket {admin} mode 600 level admin\n"
        "defaults\n    mode http\n    timeout connect 30s\n    timeout client 60s\n    timeout server 60s\n"
        f"frontend http_frontend\n    bind {HOST}:{port}\n    use_backend app\n"
        f"frontend other\n    bind {tmp_path}/other.sock\n    use_backend app\n"
        f"backend app\n    server a {HOST}:{backend.server_port}\n"
    )
    process = subprocess.Popen([haproxy_binary(), "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    url, deadline = f"http://{HOST}:{port}", time.monotonic() + 60
    while True:
        try:
            httpx.get(url, trust_env=False, timeout=60)
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield url, admin
    process.kill()
    process.wait()
    backend.shutdown()
    backend.server_close()


def test_nobody_new_comes_in_and_whoever_is_in_is_answered(edge: tuple[str, Path]) -> None:
    url, admin = edge
    with httpx.Client(trust_env=False, base_url=url, timeout=60) as kept, ThreadPoolExecutor(1) as pool:
        assert kept.get("/").headers.get("connection") != "close"
        slow = pool.submit(httpx.get, f"{url}/slow", trust_env=False, timeout=60)
        assert Backend.begun.wait(60)
        assert close_entrance(admin)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, trust_env=False, timeout=60)
        # A connection that was kept is good for one more answer, and told to end.
        last = kept.get("/")
        assert last.status_code == 200 and last.headers["connection"] == "close"
        Backend.may_end.set()
        assert slow.result().status_code == 200
    # HAProxy says that there is no such entrance any more.
    assert not close_entrance(admin)


def test_a_haproxy_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    assert not close_entrance(tmp_path / "nobody.sock")


@pytest.mark.parametrize(
    ("told", "patience_s", "hurry_after", "left"),
    [
        ([3, 0, 1, 0, 0, 7], 30, None, 0),  # a single 0 may be one that has not begun yet
        ([None, 3, None, None, 2, 0, None, 0, 0, 7], 30, None, 0),  # a moment's silence says nothing
        ([3] + [None] * 100, 30, None, 3),
        ([3] * 100, 0.5, None, 3),
        ([3] * 100, 30, 2, 3),
    ],
)
def test_waiting_ends(
    told: list[int | None], patience_s: float, hurry_after: int | None, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(told)
    seen = []
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    # A clock of its own: how busy this machine is must not count.
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    async def unanswered() -> int | None:
        seen.append(next(looks))
        return seen[-1]

    found = asyncio.run(
        wait_until_answered(unanswered, patience_s, lambda: hurry_after is not None and len(seen) >= hurry_after)
    )
    assert found == left and now[0] - 1000 < 15
    assert 7 not in seen
