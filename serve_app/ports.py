"""Ports of this machine for servers of our own."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
_CHOICE = range(20_000, 30_000)
"""Below 30000, where Serve begins to take ports of ingress replicas from, and 32768, where Linux begins to take the near ends
of outgoing connections from: a port chosen there could be one of those before its server listens."""


def free_port(wanted: int = 0) -> int:
    """`wanted` when it is free on loopback, else one that is, right now."""
    if wanted and _is_free(wanted):
        return wanted
    for port in random.sample(_CHOICE, 50):
        if _is_free(port):
            return port
    # Nearly all are taken, or may not be used here.
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        given: int = probe.getsockname()[1]
        return given


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
