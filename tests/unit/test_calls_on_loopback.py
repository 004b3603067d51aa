"""The port by which deployments call a replica: on loopback where Ray is."""

from __future__ import annotations

import inspect

import pytest
from ray.serve._private import replica

from serve_app.replica import keep_calls_on_loopback


@pytest.mark.parametrize(("node", "bound"), [("127.0.0.1", "127.0.0.1:0"), ("10.0.0.7", "[::]:0")])
def test_it_listens_where_ray_does(monkeypatch: pytest.MonkeyPatch, node: str, bound: str) -> None:
    asked = []

    def add_port(server: object, address: str) -> int:
        asked.append(address)
        return 4711

    # Undone at the end, whatever it becomes.
    monkeypatch.setattr(replica, "add_port_to_grpc_server", add_port)
    monkeypatch.setattr("serve_app.replica.tls_utils.add_port_to_grpc_server", add_port)
    monkeypatch.setattr("serve_app.replica.get_node_ip_address", lambda: node)
    for _ in range(2):
        keep_calls_on_loopback()
    assert replica.add_port_to_grpc_server(None, "[::]:0") == 4711
    assert asked == [bound]


def test_serve_still_asks_for_it_as_is_mended() -> None:
    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in inspect.getsource(replica)
