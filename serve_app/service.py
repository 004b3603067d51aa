"""One running instance of Kinlens: Ray, Serve and the application, started and stopped in this process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.draining import close_entrance, wait_until_answered
from serve_app.environment import EDGE_TOKEN, RAY_ENVIRONMENT, hold, install_haproxy, instance_environment
from serve_app.errors import ConfigurationError
from serve_app.ports import free_port
from serve_app.processes import groups_of_their_own

if TYPE_CHECKING:
    from ray.serve.schema import DeploymentSchema, ServeDeploySchema

APPLICATION = "serve_app.app:build_app"
INGRESS = "Ingress"
DEPLOYMENTS = (INGRESS, "Detection", "Embedding", "Analysis", "Semantic", "Indexing")

Report = Callable[[str], None]

logger = logging.getLogger("ray.serve")

_OBJECT_STORE_BYTES = 128 << 20
"""Pictures and crops travel by gRPC; Ray's default of 30 % of the memory would only be reserved."""
_START_TIMEOUT_S = 300
_ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    @property
    def url(self) -> str:
        if self.host in ("0.0.0.0", "::"):  # noqa: S104  recognised, not bound
            return f"http://127.0.0.1:{self.port}"
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


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
    defaults = RAY_ENVIRONMENT | instance_environment(run_dir, free_port(), free_port(), free_port())
    if not install_haproxy(run_dir):
        # Nothing may be run from there (a noexec mount): Serve starts its own, as it is.
        del defaults["RAY_SERVE_HAPROXY_BINARY_PATH"]
    # Never one from outside: it may be known.
    os.environ[EDGE_TOKEN] = secrets.token_hex(16)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return run_dir


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
    """A `with` block around Ray and Serve in this process: `check_config`, `start_ray`, `start_serve`; stops on leaving.

    `state_path`: where the running instance leaves its Ray address, for `kinlens apply`.
    """

    def __init__(self, config_path: Path, address: Address, state_path: Path) -> None:
        self._config_path = config_path
        self._address = address
        self._state_path = state_path
        self._run_dir: Path | None = None
        self._held: int | None = None
        self._started = False
        self._application: str | None = None

    def __enter__(self) -> Instance:
        self._run_dir = prepare_environment()
        self._held = hold(self._run_dir)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def start_ray(self) -> None:
        """A Ray of our own on this machine."""
        import ray

        with groups_of_their_own():
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
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        self._state_path.write_text(json.dumps({"ray_address": ray.get_runtime_context().gcs_address}), encoding="utf-8")

    def start_serve(self, report: Report) -> None:
        """The application of the config file; returns when every deployment is healthy.

        Raises ConfigurationError with the deployment's own message when it cannot start.
        """
        from ray.serve._private.api import serve_start

        schema = load_config(self._config_path, self._address)
        client = serve_start(
            http_options=schema.http_options.model_dump(),
            proxy_location=schema.proxy_location,
            global_logging_config=schema.logging_config,
        )
        client.deploy_apps(schema)
        _wait_until_running(report)
        self._application = schema.applications[0].name

    def drain(self, patience_s: float, hurry: Callable[[], bool]) -> int:
        """Lets nobody new in and waits until those who are in are answered, at most `patience_s` seconds, or until `hurry`.

        Returns how many are left without an answer. Serve itself stops HAProxy and the models at once.
        """
        import ray

        # Serve gives each machine a folder of its own beside the one that is set.
        admin = Path(os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"])
        admin = admin.parent / ray.get_runtime_context().get_node_id() / admin.name
        if self._application is None or not close_entrance(admin):
            return 0
        logger.setLevel(logging.WARNING)
        try:
            return asyncio.run(self._answered(self._application, patience_s, hurry))
        finally:
            # What Serve keeps in this process complains from here on that the loop has ended, until Serve has.
            logger.setLevel(logging.CRITICAL)

    async def _answered(self, application: str, patience_s: float, hurry: Callable[[], bool]) -> int:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException
        from ray.serve.handle import DeploymentHandle

        # Not Serve's own of this process, which would outlive the loop.
        ingress: DeploymentHandle = DeploymentHandle(INGRESS, application)

        async def unanswered() -> int | None:
            try:
                told: list[int] = await ingress.broadcast("unanswered").results_async(timeout_s=_ASK_TIMEOUT_S)
            except (TimeoutError, RayError, RayServeException) as error:
                logger.warning("The ingress does not say whom it still has to answer: %s", type(error).__name__)
                return None
            return sum(told)

        try:
            return await wait_until_answered(unanswered, patience_s, hurry)
        finally:
            await ingress.shutdown_async()

    def stop(self) -> None:
        if self._started:
            import ray
            from ray import serve

            self._state_path.unlink(missing_ok=True)
            serve.shutdown()
            ray.shutdown()
            self._started = False
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
        if self._held is not None:
            os.close(self._held)
            self._held = None


def apply(config_path: Path, address: Address, state_path: Path, report: Report) -> None:
    """Deploys a changed config on the running instance: what `serve deploy` does, without a dashboard.

    Raises ConfigurationError when the config is not valid, nothing runs, or the new application cannot start.
    """
    run_dir = prepare_environment()
    try:
        _apply(load_config(config_path, address), state_path, report)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def _apply(schema: ServeDeploySchema, state_path: Path, report: Report) -> None:
    import ray
    from ray.serve.context import _get_global_client

    try:
        ray_address = json.loads(state_path.read_text(encoding="utf-8"))["ray_address"]
        ray.init(
            address=ray_address, namespace="serve", log_to_driver=False, logging_level=logging.WARNING, configure_logging=False
        )
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise ConfigurationError(f"No running instance was found through {state_path}: {error}") from error
    try:
        _get_global_client().deploy_apps(schema)
        _wait_until_running(report)
    finally:
        ray.shutdown()


def load_config(path: Path, address: Address) -> ServeDeploySchema:
    """The config with `address` to listen on, checked down to the application's `args`.

    Raises ConfigurationError for what is not valid, naming unknown keys. Serve itself ignores keys it does not know: a
    misspelt `max_ongoing_requests` would silently be its default.
    """
    from ray.serve.schema import ServeDeploySchema

    from serve_app.app import AppArgs

    raw = _read_yaml(path)
    unknown = list(_unknown_keys(raw, ServeDeploySchema, ""))
    if unknown:
        raise ConfigurationError(f"{path} has keys that Serve does not know: {', '.join(unknown)}.")
    raw["http_options"] = {**raw.get("http_options", {}), "host": address.host, "port": address.port}
    try:
        with warnings.catch_warnings():
            # Serve compares look_back_period_s with a default that the environment overrides.
            warnings.simplefilter("ignore", FutureWarning)
            schema = ServeDeploySchema.model_validate(raw)
        for application in schema.applications:
            if application.import_path == APPLICATION:
                AppArgs.model_validate(application.args)
                for deployment in application.deployments:
                    _check_deployment(deployment)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors(include_input=False)]
        raise ConfigurationError(f"{path} is not valid: {'; '.join(lines)}.") from None
    return schema


def _check_deployment(deployment: DeploymentSchema) -> None:
    """Serve would find out about these on a replica, half a minute later."""
    from ray.serve.config import AutoscalingConfig

    from deployments.batching import BatchConfig

    if deployment.name not in DEPLOYMENTS:
        raise ConfigurationError(f"There is no deployment {deployment.name!r}; there are {', '.join(DEPLOYMENTS)}.")
    if isinstance(deployment.user_config, dict):
        BatchConfig.model_validate(deployment.user_config)
    if isinstance(deployment.autoscaling_config, dict):
        unknown = deployment.autoscaling_config.keys() - AutoscalingConfig.model_fields.keys()
        if unknown:
            raise ConfigurationError(f"{deployment.name}.autoscaling_config has unknown keys: {', '.join(sorted(unknown))}.")
        AutoscalingConfig.model_validate(deployment.autoscaling_config)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path} is not a Serve config: its top level must be a mapping.")
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
