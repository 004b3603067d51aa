"""What every replica opens before anything else: where its traces go, whom it tells that it could not start, and where it
listens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from ray._common import tls_utils
from ray.serve._private import replica
from ray.serve.context import _get_internal_replica_context
from ray.util import get_node_ip_address

from config.settings import Settings
from serve_app.observing.outlets import Outlets, open_outlets

P = ParamSpec("P")

_LOOPBACK = "127.0.0.1"


class Observed(Protocol):
    outlets: Outlets


ReplicaT = TypeVar("ReplicaT", bound=Observed)


def keep_calls_on_loopback() -> None:
    """Serve opens the port by which deployments call this replica on all addresses, and has no setting for it. Where Ray is on
    loopback, as under `kinlens up`, nobody calls from elsewhere. Opened after the deployment's `__init__`."""
    if get_node_ip_address() != _LOOPBACK:
        return
    add_port = tls_utils.add_port_to_grpc_server

    def on_loopback(server: object, address: str) -> int:
        port: int = add_port(server, address.replace("[::]", _LOOPBACK))
        return port

    replica.add_port_to_grpc_server = on_loopback


def observed(start: Callable[Concatenate[ReplicaT, P], None]) -> Callable[Concatenate[ReplicaT, P], None]:
    """Around a deployment's `__init__`: `self.outlets` are there when it begins, and its failure is reported."""

    @functools.wraps(start)
    def started(self: ReplicaT, /, *args: P.args, **kwargs: P.kwargs) -> None:
        name, replica_id = type(self).__name__, "local"
        # Not in Serve's local testing mode, which runs deployments as plain objects: there is no replica then.
        if (context := _get_internal_replica_context()) is not None:
            keep_calls_on_loopback()
            name, replica_id = context.deployment, context.replica_id.unique_id
        # Secrets come from this process's own environment.
        self.outlets = open_outlets(Settings(), name, replica_id)
        try:
            start(self, *args, **kwargs)
        except Exception as error:
            self.outlets.report(error, flush=True, method="start")
            raise

    return started
