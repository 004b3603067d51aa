"""What a migration has done already, so that it need not read again what is there. A file of JSON lines.

It only saves work: without it, or when its last line was cut off, files are read again and found to be there.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from serve_app.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Done:
    """A file as it was when it was dealt with. `photo_id`, `sha256`: of a photo; `code`, `detail`: of what is none."""

    path: str
    size: int
    modified: str
    sha256: str = ""
    photo_id: str = ""
    code: str = ""
    detail: str = ""


class Ledger:
    """One process at a time. Use as a context. Raises ConfigurationError when it cannot be written, or is in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, Done] = {}
        self._stream: TextIO | None = None

    def __enter__(self) -> Ledger:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Names of somebody's photos.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}.") from error
        stream = os.fdopen(descriptor, "r+", encoding="utf-8", errors="surrogateescape", newline="\n")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise ConfigurationError(f"Another migration of the same source is under way ({self._path}).") from error
        stream.seek(0)
        torn = False
        for line in stream:
            torn = not line.endswith("\n")
            try:
                done = Done(**json.loads(line))
            except (ValueError, TypeError):
                continue
            self._done[done.path] = done
        if torn:
            stream.write("\n")
        self._stream = stream
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __contains__(self, path: str) -> bool:
        return path in self._done

    def find(self, path: str, size: int | None, modified: str | None) -> Done | None:
        """What was done with this file, if it is the same still, as far as the source tells."""
        done = self._done.get(path)
        return done if done is not None and (done.size, done.modified) == (size, modified) else None

    def keep(self, done: Done) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(asdict(done)) + "\n")
        self._stream.flush()
        self._done[done.path] = done
