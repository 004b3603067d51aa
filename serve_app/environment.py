"""How Ray and Ray Serve are set up: environment variables that must be set before Ray starts, the same on every node."""

from __future__ import annotations

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
    # Only processes with the cluster's token may join or call it.
    "RAY_AUTH_MODE": "token",
    # Nothing is reported to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # `uv run` would otherwise be repeated for each worker process.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def instance_environment(run_dir: Path, stats_port: int, metrics_port: int, fallback_port: int) -> dict[str, str]:
    """HAProxy's files and the side ports of one instance of Kinlens, so that several may share a machine."""
    return {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
    }
