"""What `kinlens import` reads: a folder with a folder a person, or a CSV that says whose face is in which file.

Sources are read as they are sent, and may be read twice: to count, then to send. What cannot be sent is a `Skipped` with its
reason, never an error: one bad file among a hundred thousand stops nothing.
"""

from __future__ import annotations

import csv
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO

from pydantic import ValidationError

from serve_app.api.person_fields import BatchPersonFields
from serve_app.errors import ConfigurationError, ImageError
from serve_app.imaging.images import sniff

MAX_FILE_BYTES = 60 << 20
"""The most that MAX_IMAGE_BYTES can be."""
_HEAD_BYTES = 256
_FILE, _PERSONS = "file", ("external_id", "person")
_OPTIONAL = ("name", "taken_at", "metadata")
_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class Picture:
    """A file to send. `shown`: its name in reports. `person`: valid for the API, as the API would check it."""

    path: Path
    shown: str
    person: BatchPersonFields


@dataclass(frozen=True, slots=True)
class Skipped:
    """`harmless`: nobody would expect it to be imported; otherwise something of the source was not."""

    shown: str
    external_id: str
    code: str
    detail: str
    harmless: bool = False


class Source(Protocol):
    def entries(self) -> Iterator[Picture | Skipped]:
        """Everything that is there, once each; reads no picture."""


def open_source(path: Path) -> Source:
    """A folder, or a CSV. Raises ConfigurationError for anything else, and for a CSV without its columns."""
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return CsvSource(path)
    raise ConfigurationError(f"{path} is neither a folder nor a .csv nor an .npz file.")


def read_picture(picture: Picture) -> bytes | Skipped:
    """The bytes of a plain file that is a picture by its first bytes."""

    def skipped(code: str, detail: str, *, harmless: bool = False) -> Skipped:
        return Skipped(picture.shown, picture.person.external_id or "", code, detail, harmless)

    try:
        with _plain_file(picture.path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_FILE_BYTES:
                return skipped("image_too_large", f"It has {size} bytes; no server takes more than {MAX_FILE_BYTES}.")
            head = stream.read(_HEAD_BYTES)
            try:
                sniff(head)
            except ImageError as error:
                # An empty file is a copy that went wrong rather than something else.
                return skipped("not_a_picture", error.detail, harmless=bool(head))
            return head + stream.read(MAX_FILE_BYTES)
    except OSError as error:
        return skipped("unreadable", _os_reason(error))


def _is_picture(path: Path) -> bool:
    try:
        with _plain_file(path) as stream:
            sniff(stream.read(_HEAD_BYTES))
    except (OSError, ImageError):
        return False
    return True


@contextmanager
def _plain_file(path: Path) -> Iterator[BinaryIO]:
    """Raises OSError, also for a folder, a pipe or a device."""
    # O_NONBLOCK: opening a pipe would wait for its writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:  # noqa: PTH123  a descriptor
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "It is not a plain file")
        yield stream


@dataclass(frozen=True, slots=True)
class _Found:
    """A file somewhere below the root. `shown`: relative to it."""

    path: Path
    shown: str


@dataclass(frozen=True, slots=True)
class FolderSource:
    """`root/PERSON/anything/below/picture.jpg`: the folder below the root is the person's external_id and name.

    Links are followed, but not back into a folder they lie in.
    """

    root: Path

    def entries(self) -> Iterator[Picture | Skipped]:
        """Raises ConfigurationError when the root cannot be read."""
        try:
            top = sorted(path.name for path in self.root.iterdir())
        except OSError as error:
            raise ConfigurationError(f"{self.root} cannot be read: {error.strerror}.") from error
        for name in top:
            path = self.root / name
            if name.startswith("."):
                yield _hidden(name)
            elif _is_folder(path):
                yield from self._person(name)
            elif _is_picture(path):
                yield Skipped(_text(name), "", "no_person", "It lies in no person's folder.")
            else:
                yield Skipped(_text(name), "", "not_a_picture", "It lies in no person's folder.", harmless=True)

    def _person(self, name: str) -> Iterator[Picture | Skipped]:
        try:
            person = BatchPersonFields.model_validate({"external_id": name, "name": name})
        except ValidationError as error:
            reason = f"The folder's name cannot be an external_id: {_reason(error)}."
            for entry in self._below(name):
                yield entry if isinstance(entry, Skipped) else Skipped(entry.shown, "", "invalid_person", reason)
            return
        for entry in self._below(name):
            yield entry if isinstance(entry, Skipped) else Picture(entry.path, entry.shown, person)

    def _below(self, person: str) -> Iterator[_Found | Skipped]:
        # Each folder with those it lies in, by device and inode. Not recursive: folders may be nested deeper than Python is.
        waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(self.root / person, frozenset([_identity(self.root)]))]
        while waiting:
            folder, above = waiting.pop()
            shown = self._shown(folder)
            try:
                here = _identity(folder)
                if here in above:
                    yield Skipped(shown, _text(person), "link_loop", "It leads back to a folder it lies in.", harmless=True)
                    continue
                names = sorted(path.name for path in folder.iterdir())
            except OSError as error:
                yield Skipped(shown, _text(person), "unreadable", _os_reason(error))
                continue
            below = []
            for name in names:
                path = folder / name
                if name.startswith("."):
                    yield _hidden(self._shown(path), person)
                elif _is_folder(path):
                    below.append((path, above | {here}))
                else:
                    yield _Found(path, self._shown(path))
            waiting += reversed(below)

    def _shown(self, path: Path) -> str:
        return _text(os.path.relpath(path, self.root))


class CsvSource:
    """Columns `file`, `external_id` or `person`, and perhaps `name`, `taken_at` (ISO 8601) and `metadata` (a JSON object).

    UTF-8, with commas, semicolons or tabs. Paths are relative to the CSV. Other columns are left alone. Raises
    ConfigurationError when it cannot be read, or lacks a column.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as stream:
            header = stream.readline()
        for self._delimiter in _DELIMITERS:
            columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=self._delimiter), [])]
            person = next((name for name in _PERSONS if name in columns), None)
            if person is not None and _FILE in columns:
                break
        else:
            raise ConfigurationError(f"The first line of {path} must name the columns `file` and `external_id` or `person`.")
        self._columns, self._person_column = columns, person

    def entries(self) -> Iterator[Picture | Skipped]:
        with self._opened() as stream:
            rows = csv.reader(stream, delimiter=self._delimiter)
            next(rows)
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Skipped(self._at(rows.line_num), "", "invalid_row", f"{error}.")
                    continue
                if row:
                    yield self._entry(dict(zip(self._columns, map(str.strip, row), strict=False)), rows.line_num)

    def _entry(self, row: Mapping[str, str], line: int) -> Picture | Skipped:
        file, external_id = row.get(_FILE, ""), row.get(self._person_column, "")
        if not file or "\0" in file:
            return Skipped(self._at(line), _text(external_id), "invalid_row", "It names no file.")
        fields = {"external_id": external_id} | {name: row[name] for name in _OPTIONAL if row.get(name)}
        try:
            person = BatchPersonFields.model_validate(fields)
        except ValidationError as error:
            return Skipped(_text(file), _text(external_id), "invalid_row", f"Line {line}: {_reason(error)}.")
        return Picture(self._path.parent / file, _text(file), person)

    def _at(self, line: int) -> str:
        return f"{self._path.name}:{line}"

    @contextmanager
    def _opened(self) -> Iterator[TextIO]:
        try:
            # A byte that is not UTF-8 may be part of a file's name; elsewhere it is refused with its row.
            with self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                yield stream
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be read: {error.strerror}.") from error


def _hidden(shown: str, person: str = "") -> Skipped:
    return Skipped(_text(shown), _text(person), "hidden", "Its name begins with a dot.", harmless=True)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _text(name: str) -> str:
    """For reports: a name that is not UTF-8 with a mark in it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _os_reason(error: OSError) -> str:
    return f"{error.strerror or type(error).__name__}."


def _reason(error: ValidationError) -> str:
    """The first problem, without what was given."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
