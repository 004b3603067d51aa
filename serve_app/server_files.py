"""Files of this machine below a folder that its owner opened for scanning. Nothing outside of it is ever read.

Every path is walked from the root down, a folder at a time, by descriptors and without following links: who may write there
can swap a folder for a link at any moment, and still leads nobody out. Names are bytes, as the system has them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serve_app.errors import FileUnreadable, ImageTooLarge, NotFound, Overloaded, ScanRefused

Parts = tuple[bytes, ...]
"""Names from the root down."""

MAX_DEPTH = 100
_MAX_SUBJECT = 4096
_CUT = "%00"
"""In no name."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: opening a pipe would wait for its writer."""
_ESCAPED = re.compile(r"[%\x00-\x1f\x7f\udc80-\udcff]")
_ESCAPE = re.compile(r"%([0-9A-F]{2})")


class NotAFile(Exception):
    """There is nothing to read: `reason` is `link`, `gone` or `not_a_file`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ServerFile:
    """`modified_at`: None where that is no date."""

    data: bytes
    modified_at: datetime | None


def locate(roots: Sequence[Path], path: str) -> tuple[Path, Parts]:
    """The root that `path` lies below, and the way from there. Looks at no file. Raises ScanRefused."""
    if not roots:
        raise ScanRefused("This service scans no folders. SCAN_ROOTS names those it may scan.")
    given = [os.fsencode(part) for part in path.split("/") if part not in ("", ".")] if "\0" not in path else [b".."]
    if path.startswith("/") and b".." not in given:
        for root in sorted(roots, key=lambda one: -len(one.parts)):
            above = [os.fsencode(part) for part in root.parts[1:]]
            if given[: len(above)] == above:
                return root, tuple(given[len(above) :])
    raise ScanRefused("The path is not below one of SCAN_ROOTS.")


def to_subject(parts: Parts, *, folder: bool) -> str:
    """As text that any database keeps: bytes that are not UTF-8, control characters and % as %XX. A folder ends with /; what
    is too long is cut, and refused by `of_subject`."""

    def escaped(found: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in os.fsencode(found[0]))

    names = (_ESCAPED.sub(escaped, part.decode("utf-8", "surrogateescape")) for part in parts)
    subject = "".join(f"{name}/" for name in names) if folder else "/".join(names)
    return subject if len(subject) <= _MAX_SUBJECT else subject[: _MAX_SUBJECT - len(_CUT)] + _CUT


def of_subject(subject: str) -> tuple[Parts, bool]:
    """The way, and whether it is a folder. Raises FileUnreadable."""
    if subject.endswith(_CUT):
        raise FileUnreadable("The path is too long.")
    folder = subject == "" or subject.endswith("/")
    names = subject.removesuffix("/").split("/") if subject else []
    return tuple(b"".join(_unescaped(name)) for name in names), folder


def _unescaped(name: str) -> Iterator[bytes]:
    for index, piece in enumerate(_ESCAPE.split(name)):
        yield bytes.fromhex(piece) if index % 2 else piece.encode("utf-8", "surrogateescape")


def text_of(name: bytes) -> str:
    """For people: as UTF-8 where it is that, else as Latin-1."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def check_folder(root: Path, parts: Parts) -> None:
    """Raises NotFound, FileUnreadable."""
    try:
        with _reading(), _folder(root, parts):
            pass
    except NotAFile as error:
        raise NotFound("There is no such folder, or a link is in the way.") from error


def entries(root: Path, parts: Parts) -> list[tuple[bytes, bool]]:
    """What is in a folder, in the order of the names: each name, and whether it is a folder; links are none.

    Raises NotAFile, FileUnreadable.
    """
    if len(parts) >= MAX_DEPTH:
        raise FileUnreadable(f"The folder lies more than {MAX_DEPTH} folders deep.")
    with _reading(), _folder(root, parts) as descriptor, os.scandir(descriptor) as found:
        return sorted((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found)


def read_file(root: Path, parts: Parts, max_bytes: int) -> ServerFile:
    """Raises NotAFile, FileUnreadable, ImageTooLarge."""
    with (
        _reading(),
        _folder(root, parts[:-1]) as above,
        open(os.open(parts[-1], _FILE, dir_fd=above), "rb") as stream,  # noqa: PTH123  a descriptor
    ):
        before = os.fstat(stream.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise NotAFile("not_a_file")
        if before.st_size > max_bytes:
            raise _too_large(before.st_size, max_bytes)
        data = stream.read(max_bytes + 1)
        after = os.fstat(stream.fileno())
    if len(data) > max_bytes:
        raise _too_large(len(data), max_bytes)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise FileUnreadable("The file changed while it was read. Try again when it is complete.")
    return ServerFile(data, _moment(after.st_mtime))


@contextmanager
def _folder(root: Path, parts: Parts) -> Iterator[int]:
    """A descriptor of the folder. The root itself may be a link: its owner set it."""
    descriptor = os.open(root, _FOLDER)
    try:
        for part in parts:
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _reading() -> Iterator[None]:
    """The system's errors as ours."""
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOENT:
                raise NotAFile("gone") from error
            case errno.ELOOP | errno.ENOTDIR:
                raise NotAFile("link") from error
            case errno.ENXIO | errno.ENODEV:
                raise NotAFile("not_a_file") from error
            case errno.EMFILE | errno.ENFILE:
                raise Overloaded("Too many files are open.", retry_after_s=1) from error
        raise FileUnreadable(f"{os.strerror(error.errno or 0)}.") from error


def _moment(seconds: float) -> datetime | None:
    try:
        found = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return found if seconds > 0 else None


def _too_large(size: int, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"The image has {size} bytes; the limit is {max_bytes}.", bytes=size, max_bytes=max_bytes)
