"""The script that mends Serve's configuration of HAProxy before it starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from serve_app.environment import EDGE_TOKEN, haproxy_program

CONFIG = """global
    maxconn 4096
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind *:8000
    acl routes path -i /-/routes
backend x
    server a 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""
MENDED = """global
    maxconn 4096
frontend prometheus
    bind 127.0.0.1:9101
    mode http
frontend http_frontend
    bind *:8000
    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request @peer@
    acl routes path -i /-/routes
backend x
    server a 127.0.0.1:30000 check
listen stats
  bind 127.0.0.1:8404
  stats enable
"""


TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("token", "peer"),
    [
        (TOKEN, f'set-header x-kinlens-peer "{TOKEN} %[src]"'),
        ("", "del-header x-kinlens-peer"),
        # What is no token of ours does not get into the configuration.
        ('x"\n', "del-header x-kinlens-peer"),
    ],
)
def test_side_ports_are_on_loopback_and_serves_own_headers_end_here(tmp_path: Path, token: str, peer: str) -> None:
    config, program = tmp_path / "a b.cfg", tmp_path / "haproxy"
    config.write_text(CONFIG)
    echo = tmp_path / "it's haproxy"
    echo.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    echo.chmod(0o700)
    program.write_text(haproxy_program(str(echo)))
    program.chmod(0o700)
    # Twice: Serve starts it anew with the same file.
    for _ in range(2):
        arguments = [str(program), "-db", "-f", str(config), "-dR", "-sf", "12"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, env={**os.environ, EDGE_TOKEN: token})
        assert done.stdout == f"-db|-f|{config}|-dR|-sf|12|" and done.stderr == ""
        assert config.read_text() == MENDED.replace("@peer@", peer)
        assert config.stat().st_mode & 0o077 == 0


def test_nothing_is_called_missing_before_there_is_an_application(tmp_path: Path) -> None:
    config, program = tmp_path / "haproxy.cfg", tmp_path / "haproxy"
    program.write_text(haproxy_program("true"))
    program.chmod(0o700)
    missing = (
        "backend default_backend\n"
        "    http-request return status 404 content-type text/plain lf-string \"Path \\'%[path]\\' not found.\"\n"
        "listen stats\n    http-request return status 404\n"
    )
    config.write_text(missing)
    for _ in range(2):
        subprocess.run([str(program), "-f", str(config)], check=True)
        mended = config.read_text().splitlines()
        assert mended[1] == '    http-request return status 503 content-type text/plain string "Starting." hdr Retry-After 1'
        assert mended[3] == "    http-request return status 404"
    # Of an application that is not mounted at the root the others are.
    known = f"    use_backend app if is_app\n{missing}"
    config.write_text(known)
    subprocess.run([str(program), "-f", str(config)], check=True)
    assert config.read_text() == known


def test_serves_template_still_has_the_lines_that_are_mended() -> None:
    for lines in (
        "frontend prometheus\n    bind :{{ config.metrics_port }}\n",
        "frontend http_frontend\n    bind {{ config.frontend_host }}:{{ config.frontend_port }}\n",
        "listen stats\n  bind *:{{ config.stats_port }}\n",
        "backend default_backend\n    http-request return status 404 ",
        "\n    use_backend {{ backend.name",
    ):
        assert lines in HAPROXY_CONFIG_TEMPLATE
