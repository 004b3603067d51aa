"""One running instance of Kinlens: Ray, Serve and the application, started and stopped in this process."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from pydantic import BaseModel

from serve_app.environment import RAY_ENVIRONMENT, haproxy_environment
from serve_app.errors import ConfigurationError

Report = Callable[[str], None]

_OBJECT_STORE_BYTES = 128 << 20
"""Pictures and crops travel by gRPC; Ray's default of 30 % of the memory would only be reserved."""
_START_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}"


def default_config_path() -> Path:
    """serve_config.yaml in the working directory, else the one that came with Kinlens."""
    import config

    package = Path(config.__file__).parent
    for path in (Path("serve_config.yaml"), package / "serve_config.yaml", package.parent / "serve_config.yaml"):
        if path.is_file():
            return path.absolute()
    raise ConfigurationError("serve_config.yaml is neither here nor in the installation; name one with --config.")


def prepare_environment() -> Path:
    """Sets what Ray reads at import, unless the operator already has; returns the run directory for HAProxy's files.

    Call before anything imports Ray.
    """
    run_dir = Path(tempfile.mkdtemp(prefix="kinlens-"))
    defaults = RAY_ENVIRONMENT | haproxy_environment(run_dir, free_port(), free_port())
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return run_dir


def free_port() -> int:
    """A TCP port that is free right now on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(address: Address) -> None:
    """Raises ConfigurationError when somebody else listens there: HAProxy would fail later and less clearly."""
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {address.host}:{address.port} ({error.strerror}). Set HOST and PORT."
            ) from error


class Instance:
    """Starts on `start`, stops on leaving the `with` block."""

    def __init__(self, config_path: Path, address: Address) -> None:
        self._config_path = config_path
        self._address = address
        self._run_dir: Path | None = None
        self._started = False

    def __enter__(self) -> Instance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start_ray(self) -> None:
        """A Ray of our own on this machine."""
        self._run_dir = prepare_environment()
        import ray

        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
            namespace="serve",
        )
        self._started = True

    def start_serve(self, report: Report) -> None:
        """The application of the config file; returns when every deployment is healthy.

        Raises ConfigurationError with the deployment's own message when it cannot start.
        """
        from ray.serve._private.api import serve_start
        from ray.serve.schema import ServeDeploySchema

        raw = read_config(self._config_path)
        raw["http_options"] = {**raw.get("http_options", {}), "host": self._address.host, "port": self._address.port}
        with warnings.catch_warnings():
            # Serve's model compares look_back_period_s with a default that the environment above overrides.
            warnings.simplefilter("ignore", FutureWarning)
            schema = ServeDeploySchema.model_validate(raw)
        client = serve_start(
            http_options=schema.http_options.model_dump(),
            proxy_location=schema.proxy_location,
            global_logging_config=schema.logging_config,
        )
        client.deploy_apps(schema)
        _wait_until_running(report)

    def stop(self) -> None:
        if self._started:
            import ray
            from ray import serve

            serve.shutdown()
            ray.shutdown()
            self._started = False
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None


def read_config(path: Path) -> dict[str, Any]:
    """The YAML of a Serve config. Raises ConfigurationError for what is not one, naming unknown keys.

    Serve itself ignores keys it does not know: a misspelt `max_ongoing_requests` would silently be its default.
    """
    from ray.serve.schema import ServeDeploySchema

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path} is not a Serve config: its top level must be a mapping.")
    unknown = list(_unknown_keys(raw, ServeDeploySchema, ""))
    if unknown:
        raise ConfigurationError(f"{path} has keys that Serve does not know: {', '.join(unknown)}.")
    return raw


def _unknown_keys(value: object, model: type[BaseModel], where: str) -> Iterator[str]:
    """Dotted names of keys that neither `model` nor a model nested in it defines."""
    if not isinstance(value, dict):
        return
    for key, entry in value.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{where}{key}"
            continue
        nested = _nested_model(field.annotation)
        if nested is None:
            continue
        if isinstance(entry, list):
            for index, item in enumerate(entry):
                name = item.get("name", index) if isinstance(item, dict) else index
                yield from _unknown_keys(item, nested, f"{where}{key}[{name}].")
        else:
            yield from _unknown_keys(entry, nested, f"{where}{key}.")


def _nested_model(annotation: object) -> type[BaseModel] | None:
    """The model in `Model`, `list[Model]` or `Model | None`; None where there is none or several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [model for part in getattr(annotation, "__args__", ()) if (model := _nested_model(part)) is not None]
    return found[0] if len(found) == 1 else None


def _wait_until_running(report: Report) -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    deadline = time.monotonic() + _START_TIMEOUT_S
    shown = ""
    while time.monotonic() < deadline:
        applications = serve.status().applications
        for application in applications.values():
            if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                raise ConfigurationError(_failure(application))
        states = {
            name: deployment.status.value
            for application in applications.values()
            for name, deployment in application.deployments.items()
        }
        line = ", ".join(f"{name} {state.lower()}" for name, state in states.items())
        if line and line != shown:
            report(line)
            shown = line
        if applications and all(one.status is ApplicationStatus.RUNNING for one in applications.values()):
            return
        time.sleep(0.2)
    raise ConfigurationError(f"The application was not ready after {_START_TIMEOUT_S} s: {shown}")


def _failure(application: Any) -> str:
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    return "\n".join(dict.fromkeys(message for message in messages if message)) or "The application failed to start."


@contextmanager
def running(config_path: Path, address: Address, report: Report) -> Iterator[Instance]:
    """A started instance, for tests and benchmarks."""
    check_port(address)
    with Instance(config_path, address) as instance:
        instance.start_ray()
        instance.start_serve(report)
        yield instance
