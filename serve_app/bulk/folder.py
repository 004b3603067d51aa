"""A folder as a source: walked by descriptors and without following links, a folder's entries as they are asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from serve_app.bulk.files import SourceFile, Unlisted
from serve_app.errors import FileUnreadable
from serve_app.server_files import MAX_DEPTH, Parts, ServerFile, of_subject, read_file, text_of, to_subject

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class FolderSource:
    """Hidden files and folders are left out, and so is what is neither a folder nor a regular file."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> str:
        return f"file:/{to_subject(tuple(map(os.fsencode, self._root.parts[1:])), folder=True)}"

    def files(self) -> Iterator[SourceFile | Unlisted]:
        """Holds a descriptor a level, and in memory no more than one page of a folder."""
        try:
            # The root itself may be a link: whoever runs the command named it.
            top = os.open(self._root, _FOLDER)
        except OSError as error:
            raise FileUnreadable(f"{self._root}: {error.strerror}.") from error
        yield from _below(top, ())

    def path(self, file: SourceFile) -> tuple[list[str], str]:
        *folders, name = (text_of(part) for part in of_subject(file.name)[0])
        return folders, name

    def read(self, file: SourceFile, max_bytes: int) -> ServerFile:
        parts, _ = of_subject(file.name)
        return read_file(self._root, parts, max_bytes)

    def close(self) -> None:
        """Nothing is held."""


def _below(descriptor: int, parts: Parts) -> Iterator[SourceFile | Unlisted]:
    try:
        with os.scandir(descriptor) as found:
            for entry in found:
                name = os.fsencode(entry.name)
                if not name.startswith(b"."):
                    yield from _entry(entry, descriptor, (*parts, name))
    except OSError as error:
        yield Unlisted(to_subject(parts, folder=True), f"{error.strerror}.")
    finally:
        os.close(descriptor)


def _entry(entry: os.DirEntry[str], above: int, parts: Parts) -> Iterator[SourceFile | Unlisted]:
    if entry.is_dir(follow_symlinks=False):
        if len(parts) >= MAX_DEPTH:
            yield Unlisted(to_subject(parts, folder=True), f"It lies more than {MAX_DEPTH} folders deep.")
            return
        try:
            below = os.open(parts[-1], _FOLDER | os.O_NOFOLLOW, dir_fd=above)
        except FileNotFoundError:
            return
        except OSError as error:
            yield Unlisted(to_subject(parts, folder=True), f"{error.strerror}.")
            return
        yield from _below(below, parts)
        return
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        # What else is in the folder may be whole.
        yield Unlisted(to_subject(parts, folder=False), f"{error.strerror}.")
        return
    if stat.S_ISREG(status.st_mode):
        yield SourceFile(to_subject(parts, folder=False), status.st_size, f"{status.st_mtime_ns} {status.st_ino}")
