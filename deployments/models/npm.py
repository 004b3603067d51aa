"""Files out of npm packages, which some models come in: by the `npm` of the machine, so that its registry and proxy hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import ConfigurationError

_SOURCE = re.compile(r"npm:(?P<package>(?:@[\w.-]+/)?(?P<name>[\w.-]+)@[\w.-]+)/(?P<folder>[\w./-]+)")
_QUICK_FAILURE = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
_TIMEOUT_S = 300
_MAX_FILE_BYTES = 256 << 20


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

    Raises ConfigurationError when one is missing or the archive is damaged.
    """
    wanted = {f"package/{source.folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                name = wanted.get(member.name)
                stream = members.extractfile(member) if name and member.isreg() and member.size <= _MAX_FILE_BYTES else None
                if name and stream:
                    found[name] = stream.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ConfigurationError(f"The archive of {source.package} is damaged: {error}.") from error
    lacking = sorted(set(names) - found.keys())
    if lacking:
        raise ConfigurationError(f"{source.package} has no {', '.join(lacking)} in its folder {source.folder}.")
    return found
