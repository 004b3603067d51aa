"""Fetching the files of image-text models, and which of them are here."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from deployments.models.packs import sha256_of
from deployments.models.semantic_packs import (
    SemanticLocation,
    SemanticPack,
    SemanticSpec,
    folder_of,
    how_to_get,
    resolve_semantic,
    semantic_specs,
)
from serve_app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 20
_MAX_FILE_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class SemanticState:
    """`problem`: why the model cannot be used here, with its paths; None where it can."""

    name: str
    spec: SemanticSpec
    problem: str | None


def semantic_states(location: SemanticLocation) -> list[SemanticState]:
    """Every model of config/semantic.toml. Downloads nothing."""
    states = []
    for name, spec in semantic_specs().items():
        found = resolve_semantic(replace(location, name=name))
        states.append(SemanticState(name, spec, None if isinstance(found, SemanticPack) else f"{found.reason} {found.remedy}"))
    return states


def pull_semantic(location: SemanticLocation) -> SemanticPack:
    """Downloads the files that are not here, and verifies them. A file whose hash config/semantic.toml does not name cannot be
    verified: a warning says so, with the hash it has.

    Raises ConfigurationError: an unknown model, no way to its files, other files than config/semantic.toml names.
    """
    spec = semantic_specs().get(location.name)
    if spec is None:
        raise ConfigurationError(f"{location.name!r} is no image-text model; there are {', '.join(semantic_specs())}.")
    fetch_files(location, spec)
    found = resolve_semantic(location)
    if not isinstance(found, SemanticPack):
        raise ConfigurationError(f"{found.reason} {found.remedy}")
    for name, expected in spec.files.items():
        if expected is None:
            logger.warning(
                "%s: not verified: no hash is known. %s has the sha256 %s.", location.name, name, found.sha256[name]
            )
    return found


def fetch_files(location: SemanticLocation, spec: SemanticSpec) -> None:
    """Puts each file that is missing, or is another than it should be, into the model's folder. Raises ConfigurationError."""
    folder = folder_of(location)
    for name, expected in spec.files.items():
        path = folder / name
        if path.is_file() and expected in (None, sha256_of(path)):
            continue
        if spec.download is None:
            raise ConfigurationError(f"{path} is not there. {how_to_get(location, spec, folder)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(f"{spec.download}/{name}", path, expected)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError, _Refused) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            # Of a URLError the reason says more than the error.
            said = getattr(error, "reason", None) or error
            raise ConfigurationError(
                f"{location.name} could not be fetched: {name}: {said}. {how_to_get(location, spec, folder)}"
            ) from error


class _Refused(Exception):
    """Says why a download is not kept."""


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """What was asked for over TLS is not taken without it."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in (urlsplit(req.full_url).scheme, "https"):
            fp.close()
            raise _Refused("the server sends us to an address without TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, target: Path, expected: str | None) -> None:
    """`target` is whole and the right one, or as it was."""
    opener = urllib.request.build_opener(_SameScheme())
    with opener.open(url, timeout=_TIMEOUT_S) as response:
        announced, digest, received = response.headers.get("Content-Length"), hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as stream:
            try:
                while chunk := response.read(_CHUNK_BYTES):
                    received += len(chunk)
                    if received > _MAX_FILE_BYTES:
                        raise _Refused(f"more than {_MAX_FILE_BYTES >> 30} GiB")
                    digest.update(chunk)
                    stream.write(chunk)
                if announced not in (None, str(received)):
                    raise _Refused(f"{received} of {announced} bytes came")
                if expected not in (None, digest.hexdigest()):
                    raise _Refused(f"not the file that was expected: its sha256 is {digest.hexdigest()}, expected {expected}")
                stream.flush()
                os.fsync(stream.fileno())
                # Unlike a cache, the folder of models may be shared by users.
                Path(stream.name).chmod(0o644)
                Path(stream.name).replace(target)
            except BaseException:
                Path(stream.name).unlink(missing_ok=True)
                raise
