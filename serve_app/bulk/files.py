"""What `kinlens index` reads: files of a source, and what became of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from uuid import UUID

from serve_app.server_files import ServerFile


@dataclass(frozen=True, slots=True)
class SourceFile:
    """`name`: below the source; folders with /. `version`: changes when the file does, with its size."""

    name: str
    size_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder that could not be looked into, and why."""

    name: str
    detail: str


class Source(Protocol):
    """Blocks; for several threads at once."""

    @property
    def location(self) -> str:
        """Of the source, up to the names of its files: `location` and `name` are one file's, by whatever source it is read."""
        ...

    def files(self) -> Iterator[SourceFile | Unlisted]:
        """Everything that may be a photo, in no promised order, listed as it is asked for. Raises FileUnreadable and
        ObjectStoreUnavailable where the listing breaks off."""
        ...

    def path(self, file: SourceFile) -> tuple[list[str], str]:
        """The folders it lies in below the source, and its file name, for people. Raises FileUnreadable."""
        ...

    def read(self, file: SourceFile, max_bytes: int) -> ServerFile:
        """Raises NotAFile, FileUnreadable, ImageTooLarge, ObjectStoreUnavailable."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """`root`: absolute."""

    root: Path


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """`prefix`: of the keys; may be empty. `endpoint`: host:port, with the keys of AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY of each process; None for MINIO_ENDPOINT with its own."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    secure: bool = False
    region: str = "us-east-1"


Place = FolderPlace | BucketPlace


class Status(StrEnum):
    INDEXED = "indexed"
    """It is a photo of the library now, with its faces."""
    EXISTS = "exists"
    """The library had its bytes."""
    KNOWN = "known"
    """So it was when last looked at, and has not changed since: it was not read."""
    SKIPPED = "skipped"
    """It is no photo: `code` says what it is."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    name: str
    status: Status
    faces: int = 0
    code: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """`trouble`: why nothing is known of any of the files; the batch is to be done again, which does no harm."""

    outcomes: list[Outcome]
    trouble: str | None = None


def file_id(location: str, name: str) -> UUID:
    """Of where it lies."""
    return _hash(f"{location}{name}")


def version_id(file: SourceFile) -> UUID:
    return _hash(f"{file.size_bytes}\0{file.version}")


def _hash(text: str) -> UUID:
    return UUID(bytes=hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest())
