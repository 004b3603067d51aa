"""The `kinlens` command."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from config.settings import Settings
from serve_app.attributes import Attribute
from serve_app.backends import prepare_objects, running_database
from serve_app.commands import clustering, data, former, imports, index, keys, migrate, model, node, size
from serve_app.commands.common import console, problems
from serve_app.commands.common import read_settings as _settings
from serve_app.commands.common import step as _step
from serve_app.environment import RAY_ENVIRONMENT
from serve_app.errors import ConfigurationError
from serve_app.keys import ApiKey, load_or_create_api_key
from serve_app.processes import StopRequests
from serve_app.service import Address, Instance, apply, check_port, default_config_path, load_config

if TYPE_CHECKING:
    from deployments.models.attribute_packs import AnalysisLocation
    from deployments.models.packs import PackLocation
    from deployments.models.semantic_packs import SemanticLocation

app = typer.Typer(help="Face matching, person search and a photo library on Ray Serve.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure what the loaded pack gets wrong, on photos of your own.", no_args_is_help=True)
models_app = typer.Typer(help="Model packs.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(evaluate_app, name="evaluate")
evaluate_app.command("clustering")(clustering.evaluate_clustering)
app.add_typer(data.app)
app.add_typer(imports.app)
app.add_typer(migrate.app)
app.add_typer(former.app)
app.add_typer(keys.app, name="keys")
app.command("switch-model")(model.switch_model)
app.command("size")(size.size)
app.command("index")(index.index)
app.command("node", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(node.node)

_READY_TIMEOUT_S = 60
_ANSWER_MARGIN_S = 5
"""Beyond WORKER_TIMEOUT, when a request that is not ready is a 504."""


def main() -> None:
    """Entry point: a configuration error is a message and exit code 2, never a traceback."""
    try:
        app()
    except ConfigurationError as error:
        problems.print("[bold red]error:[/]", end=" ")
        problems.print(str(error), markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def up(
    config: Annotated[Path | None, typer.Option(help="Serve config; default: ./serve_config.yaml.")] = None,
) -> None:
    """Start everything on this machine and serve until Ctrl-C."""
    begun = time.monotonic()
    settings = _settings()
    config_path = config or default_config_path()
    address = Address(settings.host, settings.port)
    check_port(address)
    console.print(f"[bold]Kinlens {version('kinlens')}[/]")
    # First of all that writes there: whatever it holds later is nobody else's to read.
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"DATA_DIR {settings.data_dir} cannot be made: {error.strerror}.") from error
    # Left in the reverse order: the database stops when nobody asks it any more.
    with ExitStack() as backends, Instance(config_path, address, _state_path(settings)) as instance:
        args = load_config(config_path, address).applications[0].args
        pack = args.get("model_pack") or settings.model_pack
        with _step(f"model pack {pack}: find, verify, prepare"):
            licence = _prepare_models(settings, args)
        _report_attributes(settings, args)
        _report_semantic(settings, args)
        with _step("database: start, bring to the newest schema"):
            backends.enter_context(running_database(settings, supervised=True))
        with _step("object store: prepare"):
            prepare_objects(settings)
        key = load_or_create_api_key(settings)
        with _step("Ray: start"):
            instance.start_ray()
        with _step(f"deployments of {config_path.name}: start"):
            instance.start_serve(lambda line: console.print(f"    {line}"))
        with _step("first answer"):
            _wait_for_answer(address)
        # After Ray, which sets signal handlers of its own; until here Ctrl-C interrupts the start.
        stop = _stop_on_signals()
        _greet(address, key, licence, time.monotonic() - begun)
        stop.wait()
        stop.clear()
        console.print("stopping: what is under way is answered; once more does not wait for it ...")
        if left := instance.drain(settings.worker_timeout + _ANSWER_MARGIN_S, stop.is_set):
            console.print(f"{left} requests are not answered.")


@app.command("apply")
def apply_config(
    config: Annotated[Path | None, typer.Option(help="Serve config; default: ./serve_config.yaml.")] = None,
) -> None:
    """Deploy a changed Serve config on the instance that `kinlens up` runs: replicas, queues, batches."""
    settings = _settings()
    with _step("apply"):
        apply(
            config or default_config_path(),
            Address(settings.host, settings.port),
            _state_path(settings),
            lambda line: console.print(f"    {line}"),
        )


@app.command()
def env() -> None:
    """Print what to set before `serve run serve_config.yaml` or `ray start`: eval "$(kinlens env)"."""
    for name, value in RAY_ENVIRONMENT.items():
        console.print(f"export {name}={value}")


@models_app.command("list")
def models_list() -> None:
    """The packs of config/models.toml and the models of config/attributes.toml and semantic.toml, with their licences."""
    from deployments.models.packs import pack_specs
    from deployments.models.pulling import model_states
    from deployments.models.semantic_pulling import semantic_states

    for name, pack in pack_specs().items():
        console.print(f"[bold]{name}[/]: {pack.title}; {pack.recognizer.dim}-D; {_use(pack.commercial_use)}; {pack.licence}")
    for state in model_states(_analysis_location(_settings(), {})):
        spec, answers = state.spec, ", ".join(state.spec.attributes)
        console.print(f"[bold]{state.name}[/]: {answers}: {spec.title}; {_use(spec.commercial_use)}; {spec.licence}")
        if state.problem is not None:
            console.print("    [yellow]unavailable[/].", end=" ")
            console.print(state.problem, markup=False)
    for found in semantic_states(_semantic_location(_settings(), {})):
        told = f"image and text: {found.spec.title}; {_use(found.spec.commercial_use)}; {found.spec.licence}"
        console.print(f"[bold]{found.name}[/]: {told}")
        if found.problem is not None:
            console.print("    [yellow]unavailable[/].", end=" ")
            console.print(found.problem, markup=False)


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A name of `kinlens models list`.")]) -> None:
    """Find, download where the network allows, verify and prepare a pack, an attribute model or an image-text model."""
    from deployments.models.attribute_packs import attribute_model_specs
    from deployments.models.pulling import pull_model
    from deployments.models.semantic_packs import semantic_specs
    from deployments.models.semantic_pulling import pull_semantic

    if name in attribute_model_specs():
        with _step(f"attribute model {name}: find, check"):
            licence = pull_model(name, _analysis_location(_settings(), {})).licence
    elif name in semantic_specs():
        with _step(f"image-text model {name}: find, download, verify"):
            licence = pull_semantic(_semantic_location(_settings(), {"semantic_model": name})).spec.licence
    else:
        with _step(f"model pack {name}: find, verify, prepare"):
            licence = _prepare_models(_settings(), {"model_pack": name})
    console.print(f"  licence: {licence}")


@evaluate_app.command("verification")
def evaluate_verification(
    pairs: Annotated[Path, typer.Argument(help="CSV with file_a, file_b and same (1 or 0), or with file and identity.")],
) -> None:
    """False accept and reject rates of MODEL_PACK at its thresholds, on the pairs of a CSV."""
    from rich.progress import Progress

    from deployments.models.evaluation import describe, read_pairs, verify_pairs
    from deployments.models.packs import resolve

    pack = resolve(_pack_location(_settings(), {}))
    with Progress(console=problems) as progress:
        task = progress.add_task("embedding")
        report = verify_pairs(pack, read_pairs(pairs), lambda done, total: progress.update(task, completed=done, total=total))
    for line in describe(report, pack.point):
        console.print(line)


@evaluate_app.command("attributes")
def evaluate_attributes(
    manifest: Annotated[Path, typer.Argument(help="CSV with file, any of age, gender, race and emotion, and perhaps kind.")],
    attribute: Annotated[list[Attribute] | None, typer.Option(help="Only this one; may be repeated.")] = None,
) -> None:
    """Errors of the attribute models of MODEL_PACK on the photos of a CSV, also by group. The output is Markdown."""
    from rich.progress import Progress

    from deployments.models import attribute_evaluation
    from deployments.models.attribute_labels import read_labels
    from deployments.models.attribute_report import describe_attributes

    settings, photos = _settings(), read_labels(manifest)
    with Progress(console=problems) as progress:
        task = progress.add_task("analysing")
        report = attribute_evaluation.evaluate_attributes(
            _analysis_location(settings, {}),
            photos,
            attribute or list(Attribute),
            settings.face_det_thresh,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for line in describe_attributes(report):
        console.print(line, markup=False)


def _use(commercial: bool | None) -> str:
    return {True: "commercial use allowed", False: "non-commercial", None: "licence unknown"}[commercial]


def _state_path(settings: Settings) -> Path:
    return settings.data_dir / "instance.json"


def _pack_location(settings: Settings, args: dict[str, object]) -> PackLocation:
    """As the application with these `args` will look for it."""
    from serve_app.app import AppArgs, pack_location

    return pack_location(settings, AppArgs.model_validate(args))


def _analysis_location(settings: Settings, args: dict[str, object]) -> AnalysisLocation:
    """As the application with these `args` will look for attribute models."""
    from serve_app.app import AppArgs, analysis_location

    return analysis_location(settings, AppArgs.model_validate(args))


def _semantic_location(settings: Settings, args: dict[str, object]) -> SemanticLocation:
    """As the application with these `args` will look for the image-text model."""
    from serve_app.app import AppArgs, semantic_location

    return semantic_location(settings, AppArgs.model_validate(args))


def _prepare_models(settings: Settings, args: dict[str, object]) -> str:
    """Resolves the pack before Ray starts, so that a missing file, or GPU, is the first thing said; returns its licence."""
    from deployments.models.packs import resolve
    from deployments.models.session import audit_device

    location = _pack_location(settings, args)
    audit_device(location.device)
    return resolve(location).spec.licence


def _report_attributes(settings: Settings, args: dict[str, object]) -> None:
    """Which model answers each attribute, and how to get one for those that nobody answers."""
    from deployments.models.attribute_packs import resolve_analysis

    found = resolve_analysis(_analysis_location(settings, args))
    for attribute, described in found.described().items():
        console.print(f"    {attribute}: {described.name} ({described.licence})")
    for attribute, lost in found.missing.items():
        console.print(f"    {attribute}: [yellow]unavailable[/].", end=" ")
        console.print(f"{lost.reason} {lost.remedy}", markup=False)


def _report_semantic(settings: Settings, args: dict[str, object]) -> None:
    """The image-text model, where one is set, and how to get it where it is not there."""
    from deployments.models.semantic_packs import SemanticPack, resolve_semantic

    location = _semantic_location(settings, args)
    if not location.name:
        return
    found = resolve_semantic(location)
    if isinstance(found, SemanticPack):
        console.print(f"    semantic search: {found.name} ({found.spec.licence})")
    else:
        console.print("    semantic search: [yellow]unavailable[/].", end=" ")
        console.print(f"{found.reason} {found.remedy}", markup=False)


def _stop_on_signals() -> threading.Event:
    stop, requests = threading.Event(), StopRequests()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set() if requests.signalled() else None)
    return stop


def _wait_for_answer(address: Address) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(f"{address.url}/api/v1/health", timeout=5) as response:  # noqa: S310  our own address
                if json.load(response)["status"] == "ok":
                    return
        except (urllib.error.URLError, OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{address.url} does not answer: {error}") from error
        time.sleep(0.1)


def _greet(address: Address, key: ApiKey, licence: str, took_s: float) -> None:
    shown = "$API_KEY"
    console.print(f"[bold green]ready[/] after {took_s:.1f} s: {address.url}  (docs: {address.url}/docs)")
    if key.path is not None:
        shown = f"$(cat {key.path})"
        # Not into a journal or a container's log, which others read.
        shown_once = key.created and console.is_terminal
        console.print(f"  API key: {f'[bold]{key.value}[/] (shown once; kept in {key.path})' if shown_once else key.path}")
    console.print(f"  model licence: {licence}")
    console.print("  try:")
    console.print(f'    curl -H "Authorization: Bearer {shown}" -F file=@{_sample()} {address.url}/api/v1/face/verify-face')
    console.print("Ctrl-C stops.")


def _sample() -> str:
    """A picture with faces that every installation has."""
    found = find_spec("insightface")
    if found is not None and found.submodule_search_locations:
        path = Path(found.submodule_search_locations[0], "data", "images", "t1.jpg")
        if path.is_file():
            return str(path)
    return "photo.jpg"
