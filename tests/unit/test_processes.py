"""How a process is told to stop, and what its own processes get of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ray._private import services

from serve_app.processes import StopRequests, groups_of_their_own

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_two_signals_at_once_are_one_request() -> None:
    moments = iter((10.0, 10.01, 12.0, 12.9, 13.8))
    requests = StopRequests(lambda: next(moments))
    assert [requests.signalled() for _ in range(5)] == [True, False, True, False, False]
    assert requests.count == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray's processes share the group")
def test_processes_of_ray_lead_groups() -> None:
    usual = services.ConsolePopen

    def started() -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = services.start_ray_process(SLEEPER, "sleeper", fate_share=True).process
        return process

    with groups_of_their_own():
        apart = started()
    together = started()
    try:
        assert os.getpgid(apart.pid) == apart.pid and os.getpgid(together.pid) == os.getpgrp()
    finally:
        for process in (apart, together):
            process.kill()
            process.wait()
    assert services.ConsolePopen is usual
