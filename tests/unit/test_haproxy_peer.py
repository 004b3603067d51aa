"""A real HAProxy with the mended configuration tells who asks it, whatever the client says; and Serve's own server believes
nobody."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from serve_app.api.peers import EDGE_HEADER, Peers
from serve_app.environment import EDGE_TOKEN, haproxy_binary, haproxy_program
from serve_app.ports import HOST, free_port

TOKEN = "0123456789abcdef0123456789abcdef"


class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = "\n".join(f"{name.lower()}: {value}" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def edge(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    backend = http.server.ThreadingHTTPServer((HOST, 0), Echo)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    port = free_port()
    config, program = tmp_path / "haproxy.cfg", tmp_path / "haproxy"
    config.write_text(
        "defaults\n    mode http\n    timeout connect 60s\n    timeout client 60s\n    timeout server 60s\n"
        f"frontend http_frontend\n    bind {HOST}:{port}\n    use_backend app\n"
        f"backend app\n    server a {HOST}:{backend.server_port}\n"
    )
    program.write_text(haproxy_program(haproxy_binary()))
    program.chmod(0o700)
    process = subprocess.Popen(
        [str(program), "-db", "-f", str(config)], env={**os.environ, EDGE_TOKEN: request.param}, stderr=subprocess.DEVNULL
    )
    yield f"http://{HOST}:{port}"
    process.kill()
    process.wait()
    backend.shutdown()
    backend.server_close()


def ask(url: str, headers: dict[str, str]) -> dict[str, str]:
    deadline = time.monotonic() + 60
    with httpx.Client(trust_env=False, timeout=60) as client:
        while True:
            try:
                answer = client.get(url, headers=headers)
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    return dict(line.split(": ", 1) for line in answer.text.splitlines())


CLAIMS = {"X-Kinlens-Peer": f"{TOKEN} 6.6.6.6", "X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}


@pytest.mark.parametrize("edge", [TOKEN], indirect=True)
def test_it_tells_who_asks_and_a_client_cannot(edge: str) -> None:
    seen = ask(edge, CLAIMS)
    assert seen[EDGE_HEADER] == f"{TOKEN} 127.0.0.1"
    scope = {
        "type": "http",
        "client": ("10.1.1.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in seen.items()],
    }
    assert str(Peers(edge_token=TOKEN).client(scope)) == "127.0.0.1"


@pytest.mark.parametrize("edge", [""], indirect=True)
def test_without_a_token_nothing_gets_through(edge: str) -> None:
    assert EDGE_HEADER not in ask(edge, CLAIMS)


def test_the_server_does_not_believe_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Serve starts it: what it is not told comes from the environment, which the ingress sets."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None: ...

    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    config = uvicorn.Config(nothing, lifespan="off", access_log=False, log_config=None)
    config.load()
    middleware = config.loaded_app
    assert isinstance(middleware, ProxyHeadersMiddleware)
    assert "127.0.0.1" not in middleware.trusted_hosts and not middleware.trusted_hosts.always_trust
