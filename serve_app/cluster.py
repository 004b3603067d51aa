"""All replicas of the application at once, behind services.system.Cluster."""

from __future__ import annotations

import asyncio
import logging

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from serve_app.errors import ModelUnavailable
from serve_app.observing.telemetry import Snapshot
from serve_app.services.system import DeploymentState, Snapshots

logger = logging.getLogger("ray.serve")

_TIMEOUT_S = 2.0
_RAY_TIMEOUT_S = 5.0
_MAX_RAY_BYTES = 64 << 20
_OURS = (b"ray_serve_", b"# HELP ray_serve_", b"# TYPE ray_serve_")


class RemoteCluster:
    """`application`, `ingress`: names by which Serve knows the replicas that ask."""

    def __init__(self, application: str, ingress: str, indexing: DeploymentHandle) -> None:
        self._application = application
        self._ingress_name = ingress
        self._ingress: DeploymentHandle | None = None
        self._indexing = indexing

    async def snapshots(self) -> Snapshots:
        if self._ingress is None:
            # Not when this replica is made: it is not among the replicas yet.
            self._ingress = serve.get_deployment_handle(self._ingress_name, self._application)
        parts = await asyncio.gather(*map(self._snapshots_of, (self._ingress, self._indexing)))
        return Snapshots([one for part in parts for one in part.answered], sum(part.missing for part in parts))

    async def _snapshots_of(self, handle: DeploymentHandle) -> Snapshots:
        try:
            found = await handle.broadcast("snapshot").results_async(timeout_s=_TIMEOUT_S, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("%s does not tell its metrics: %s", handle.deployment_name, type(error).__name__)
            return Snapshots([], 1)
        answered = [one for one in found if isinstance(one, Snapshot)]
        return Snapshots(answered, len(found) - len(answered))

    async def deployments(self) -> list[DeploymentState]:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                # Not serve.status(): it leaves out how many replicas there are to be, and would hold a thread for as long as
                # the controller does not answer.
                details = await _get_global_client()._controller.get_serve_instance_details.remote()
        except (TimeoutError, RayError, RayServeException) as error:
            raise ModelUnavailable("Serve's controller does not answer.") from error
        application = details["applications"].get(self._application)
        if application is None:
            raise ModelUnavailable("Serve's controller does not know the application any more.")
        return [_state(name, one) for name, one in sorted(application["deployments"].items())]

    async def ray_metrics(self) -> bytes:
        """Serve's own families, of every machine of the cluster, as its agent tells them."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                addresses = await asyncio.to_thread(_agents)
        except (TimeoutError, RayError) as error:
            logger.warning("Ray does not tell its machines: %s", type(error).__name__)
            return b""
        async with httpx.AsyncClient(timeout=_RAY_TIMEOUT_S, trust_env=False) as client:
            texts = await asyncio.gather(*(_read(client, address) for address in addresses))
        described: set[bytes] = set()
        lines: list[bytes] = []
        for text in texts:
            for line in text.splitlines(keepends=True):
                if not line.startswith(_OURS):
                    continue
                if line.startswith(b"#"):
                    # Once, though every machine says it.
                    if line in described:
                        continue
                    described.add(line)
                lines.append(line)
        return b"".join(lines)


def _state(name: str, details: dict[str, object]) -> DeploymentState:
    replicas = details["replicas"]
    assert isinstance(replicas, list)
    states = [str(getattr(one["state"], "value", one["state"])) for one in replicas]
    status = details["status"]
    return DeploymentState(
        name=name,
        status=str(getattr(status, "value", status)).lower(),
        running=states.count(ReplicaState.RUNNING.value),
        starting=states.count(ReplicaState.STARTING.value),
        stopping=states.count(ReplicaState.STOPPING.value),
        target=int(str(details["target_num_replicas"])),
    )


def _agents() -> list[str]:
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"] > 0
    ]


async def _read(client: httpx.AsyncClient, address: str) -> bytes:
    try:
        answer = await client.get(address)
    except httpx.HTTPError as error:
        logger.warning("Ray's agent at %s does not tell its metrics: %s", address, type(error).__name__)
        return b""
    return answer.content if answer.status_code == 200 and len(answer.content) <= _MAX_RAY_BYTES else b""
