"""Ports that servers of our own are given."""

from __future__ import annotations

import socket

from ray.serve._private.constants import RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT

from serve_app import ports
from serve_app.ports import HOST, free_port


def test_none_is_chosen_that_serve_would_take() -> None:
    """A replica of the ingress could have it before HAProxy listens there."""
    assert max(ports._CHOICE) < RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT
    assert free_port() in ports._CHOICE


def test_the_wanted_one_is_given_if_it_is_free() -> None:
    wanted = free_port()
    with socket.create_server((HOST, wanted)):
        assert free_port(wanted) != wanted
