"""`kinlens size`: a serve config for a load, from what this machine measures."""

from __future__ import annotations

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from serve_app.commands.common import console, read_settings
from serve_app.errors import ConfigurationError
from serve_app.imaging.images import ImageLimits
from serve_app.sizing import FULL, INGRESS_MS, MODEL_FACTOR, Costs, Load, Plan, plan

if TYPE_CHECKING:
    from deployments.models.timing import Timed, Timings

_PROFILES = {"cpu": "serve_cpu_cluster.yaml", "cuda": "serve_gpu.yaml"}
_SIZED = ("Ingress", "Detection", "Embedding", "Analysis")


def size(
    images_per_s: Annotated[float, typer.Option(min=0.01, max=1e6, help="Pictures a second that are to be answered.")],
    device: Annotated[str, typer.Option(help="cpu, or gpu for CUDA: what the models run on. Measured here.")] = "cpu",
    faces: Annotated[float, typer.Option(min=0, max=100, help="Faces embedded a picture: 0 for verify-face alone.")] = 1.0,
    analyzed: Annotated[float, typer.Option(min=0, max=100, help="Faces a picture whose attributes are asked for.")] = 0.0,
    pack: Annotated[str | None, typer.Option(help="Model pack. Default: MODEL_PACK.")] = None,
    picture: Annotated[Path | None, typer.Option(help="A typical picture of yours, with a face.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, max=4096, help="Of one machine. Default: this one's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the serve config there.")] = None,
) -> None:
    """Propose a serve config: measures the models on this machine, and does the arithmetic of docs/operations.md.

    Run it where nothing else runs, on a machine as those that are to serve.
    """
    chosen = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}.get(device)
    if chosen is None:
        raise ConfigurationError("--device is cpu or gpu.")
    measured = _measure(chosen, pack, picture)
    load = Load(images_per_s, faces, analyzed)
    proposal = plan(measured.costs, load)
    _show(measured, load, proposal, chosen)
    config = proposed_config(proposal, chosen, pack)
    own_cores = cores or os.cpu_count() or 1
    needed = _ray_cpus(config, "min")
    console.print(
        f"Ray's CPUs: {needed:g} to begin with, up to {_ray_cpus(config, 'max'):g}; with {own_cores} cores a machine that is"
        f" {math.ceil(needed / own_cores)} to {math.ceil(_ray_cpus(config, 'max') / own_cores)}."
    )
    if output is not None:
        _write(config, output, measured.costs, load)
        console.print(f"Written to {output}: kinlens up --config {output}, or serve deploy.")


def _measure(device: str, pack: str | None, picture: Path | None) -> Timings:
    from deployments.models.timing import time_models
    from serve_app.app import AppArgs, analysis_location

    settings = read_settings()
    location = analysis_location(settings, AppArgs.model_validate({"device": device, "model_pack": pack}))
    path = picture or _sample()
    try:
        image = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    console.print(f"Measuring {location.pack.name} on {device} with {path.name}, a minute at most ...")
    return time_models(location, image, ImageLimits(settings.max_image_bytes, settings.max_image_pixels))


def _sample() -> Path:
    """A picture with faces that every installation has."""
    found = find_spec("insightface")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0], "data", "images", "t1.jpg")


def proposed_config(proposal: Plan, device: str, pack: str | None) -> dict[str, Any]:
    """The profile of the device with the replicas of `proposal`; everything else as it is there."""
    import config

    path = Path(config.__file__).parent / _PROFILES[device]
    profile: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    (application,) = profile["applications"]
    if pack is not None:
        application["args"]["model_pack"] = pack
    for deployment in application["deployments"]:
        if deployment["name"] not in _SIZED:
            continue
        part = proposal[deployment["name"]]
        if "num_replicas" in deployment:
            deployment["num_replicas"] = part.min_replicas
        else:
            deployment["autoscaling_config"] |= {"min_replicas": part.min_replicas, "max_replicas": part.max_replicas}
    return profile


def _ray_cpus(config: dict[str, Any], which: str) -> float:
    """What the replicas reserve, all together."""
    (application,) = config["applications"]
    return sum(
        float(one["ray_actor_options"]["num_cpus"])
        * int(one["num_replicas"] if "num_replicas" in one else one["autoscaling_config"][f"{which}_replicas"])
        for one in application["deployments"]
    )


def _show(measured: Timings, load: Load, proposal: Plan, device: str) -> None:
    costs = Table("", "ms an item", "range", "batch")
    rows: list[tuple[str, Timed | None]] = [
        ("decode, detect and align a picture", measured.detect),
        ("embed a face", measured.embed),
        ("analyze a face", measured.analyze),
    ]
    for name, timed in rows:
        if timed is not None:
            costs.add_row(name, f"{timed.median_ms:.1f}", f"{timed.low_ms:.1f}-{timed.high_ms:.1f}", str(timed.batch))
    console.print(costs)
    replicas = Table("", "busy", "replicas", "up to")
    for part in proposal.parts:
        replicas.add_row(part.name, f"{part.busy:.2f}", str(part.min_replicas), str(part.max_replicas))
    console.print(
        f"{load.images_per_s:g} pictures a second, {load.faces:g} faces of each embedded, {load.analyzed:g} analyzed."
        f" In a replica a model takes {MODEL_FACTOR} x as long, the ingress {INGRESS_MS:g} ms a picture;"
        f" replicas are planned {FULL:.0%} busy."
    )
    console.print(replicas)
    cores = f"{proposal.busy_cores:.1f} cores busy; " if device == "cpu" else ""
    console.print(f"{cores}at {proposal.capacity(load):.0f} pictures a second the first of them would have no time left.")


def _write(config: dict[str, Any], path: Path, costs: Costs, load: Load) -> None:
    figures = json.dumps({"images_per_s": load.images_per_s, "faces": load.faces, "analyzed": load.analyzed})
    head = (
        f"# Proposed by kinlens size for {figures};\n"
        f"# measured: {costs.detect_ms:.1f} ms a picture, {costs.embed_ms:.1f} ms a face to embed,"
        f" {costs.analyze_ms:.1f} ms to analyze.\n"
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(head + yaml.safe_dump(config, sort_keys=False, width=120))
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists; it is not overwritten.") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
