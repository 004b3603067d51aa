"""One machine of a cluster: what Ray there is started with."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from config.settings import Settings
from serve_app.environment import EDGE_TOKEN, RAY_ENVIRONMENT, install_haproxy, instance_environment
from serve_app.errors import ConfigurationError

GCS_PORT = 6379
_OBJECT_STORE_BYTES = 128 << 20
"""Pictures and crops travel by gRPC."""
_STATS_PORT, _METRICS_PORT, _FALLBACK_PORT = 8404, 9101, 8500
"""Serve's own defaults, the same on every machine: one calls the other's fallback by its number."""
_HEADLESS_S = 600
"""For so long a machine goes on without the head. Ray's own default of 60 is less than to start it elsewhere takes."""
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def check_shared(settings: Settings) -> None:
    """Raises ConfigurationError for what a machine of a cluster must not have of its own, but would."""
    given = {
        "API_KEY": settings.api_key,
        "DATABASE_URL": settings.database_url,
        "MINIO_ENDPOINT": settings.minio_endpoint,
    }
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ConfigurationError(
            f"Set {', '.join(missing)}, the same on every machine of the cluster: each would have its own otherwise."
        )


def ray_token(environment: Mapping[str, str], *, make: bool) -> str:
    """The cluster's token, from where Ray looks for it. `make`: where there is none, a new one is kept in ~/.ray/auth_token.

    Raises ConfigurationError when there is none, or it cannot be read or kept.
    """
    if given := environment.get("RAY_AUTH_TOKEN", "").strip():
        return given
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        if make and not named and not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(32))
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The cluster's token cannot be read from {path} ({error}). Copy it from the head, or set RAY_AUTH_TOKEN."
        ) from error
    if not found:
        raise ConfigurationError(f"{path} is empty; it must hold the cluster's token.")
    return found


def node_environment(environment: Mapping[str, str], token: str, run_dir: Path) -> dict[str, str]:
    """The environment of Ray on this machine: `environment` and, where it does not say otherwise, what Kinlens needs.

    HAProxy on one machine tells ingress replicas on all who asked it, so that they need one EDGE_TOKEN: it follows from the
    token that they share anyway.
    """
    defaults = RAY_ENVIRONMENT | instance_environment(run_dir, _STATS_PORT, _METRICS_PORT, _FALLBACK_PORT)
    del defaults[_LOOPBACK_ONLY]
    defaults["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(_HEADLESS_S)
    if not install_haproxy(run_dir):
        del defaults["RAY_SERVE_HAPROXY_BINARY_PATH"]
    edge = hmac.new(token.encode(), b"kinlens edge", hashlib.sha256).hexdigest()[:32]
    # Those two never from outside: an edge token from elsewhere may be known, another Ray token is of another cluster.
    return {**defaults, **environment, EDGE_TOKEN: edge, "RAY_AUTH_TOKEN": token}


def run_directory() -> Path:
    """For HAProxy's files: one a machine and user, short enough for sockets. Raises ConfigurationError where it is somebody
    else's."""
    path = Path(tempfile.gettempdir(), f"kinlens-node-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made: {error.strerror}.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigurationError(f"{path} must be a folder of this user alone; remove it.")
    return path


def ray_command(head: str | None, ip: str | None, more: Sequence[str]) -> list[str]:
    """`ray start` in the foreground. `head`: HOST:PORT of the cluster to join, None to begin one. `more`: further options of
    its own, which win."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--head", f"--port={GCS_PORT}"] if head is None else [f"--address={head}"]
    if ip is not None:
        command.append(f"--node-ip-address={ip}")
    return [*command, f"--object-store-memory={_OBJECT_STORE_BYTES}", *more]
