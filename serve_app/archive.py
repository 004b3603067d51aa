"""The file that `kinlens backup` writes: a tar archive whose every member carries its checksum.

    manifest.json           what it is a backup of
    database/00000000 ...   pg_dump's custom format, cut into pieces
    objects/KEY ...         pictures and crops, by their keys
    end.json                how many members came before, and one checksum over all of them

The checksum (SHA-256) stands in the member's pax header, so that neither side needs more than one member in memory, and the
last member makes a truncated file, a missing, doubled or reordered member visible. Any tar program unpacks it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import ConfigurationError
from serve_app.storage.objects import is_key

ModelT = TypeVar("ModelT", bound=BaseModel)

FORMAT = 1
MANIFEST = "manifest.json"
END = "end.json"
DATABASE = "database/"
OBJECTS = "objects/"

_SUM = "comment"
"""The one pax keyword that every tar program takes without a word."""
_SUM_KIND = "sha256:"
_MAX_MEMBER_BYTES = 1 << 30
"""More than any picture or piece of a dump: a member is held in memory."""
_MAX_TEXT_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_MODE = 0o600


class Manifest(BaseModel):
    """`format`: of the file. `schema_version`: of the database. `objects`: that rows name; those that are missing in the
    store are missing in the file as well. `photos`: None in files of before there were any."""

    model_config = ConfigDict(frozen=True)

    format: int
    kinlens: str
    schema_version: str
    created_at: str
    collections: int = Field(ge=0)
    persons: int = Field(ge=0)
    faces: int = Field(ge=0)
    images: int = Field(ge=0)
    objects: int = Field(ge=0)
    photos: int | None = Field(default=None, ge=0)


class End(BaseModel):
    """`members`: before this one. `sha256`: over their names, sizes and checksums in their order."""

    model_config = ConfigDict(frozen=True)

    members: int
    objects: int
    object_bytes: int
    sha256: str


class _Tally:
    """What has passed so far."""

    def __init__(self) -> None:
        self._members = self._objects = self._object_bytes = 0
        self._chain = hashlib.sha256()

    def add(self, name: str, size_bytes: int, digest: str) -> None:
        self._members += 1
        if name.startswith(OBJECTS):
            self._objects += 1
            self._object_bytes += size_bytes
        self._chain.update(f"{name}\0{size_bytes}\0{digest}\n".encode())

    def end(self) -> End:
        return End(
            members=self._members,
            objects=self._objects,
            object_bytes=self._object_bytes,
            sha256=self._chain.hexdigest(),
        )


class ArchiveWriter:
    """Writes to `stream` from its beginning; every method raises OSError of the stream."""

    def __init__(self, stream: BinaryIO, mtime: int) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  closed by `finish`
        self._mtime = mtime
        self._tally = _Tally()
        self._pieces = 0

    def begin(self, manifest: Manifest) -> None:
        self._add(MANIFEST, manifest.model_dump_json(indent=1).encode())

    def add_database(self, piece: bytes) -> None:
        self._add(f"{DATABASE}{self._pieces:08d}", piece)
        self._pieces += 1

    def add_object(self, key: str, data: bytes) -> None:
        self._add(OBJECTS + key, data)

    def finish(self) -> End:
        end = self._tally.end()
        self._add(END, end.model_dump_json(indent=1).encode())
        self._tar.close()
        return end

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), _MODE, self._mtime
        digest = hashlib.sha256(data).hexdigest()
        info.pax_headers = {_SUM: _SUM_KIND + digest}
        self._tar.addfile(info, io.BytesIO(data))
        _forget(self._tar)
        self._tally.add(name, len(data), digest)


class Part(IntEnum):
    """In the order in which they stand in the file."""

    MANIFEST = 0
    DATABASE = 1
    OBJECTS = 2
    END = 3


@dataclass(frozen=True, slots=True)
class Member:
    """`sha256`: what the file says. `read`: the bytes, verified against it, before the next member is asked for;
    ConfigurationError otherwise."""

    part: Part
    name: str
    size_bytes: int
    sha256: str
    read: Callable[[], bytes]


def manifest_of(stream: BinaryIO) -> Manifest:
    """Raises ConfigurationError when this is no backup that this version can read."""
    for member in members(stream):
        manifest = _parse(Manifest, member.read())
        if manifest.format != FORMAT:
            raise ConfigurationError(f"The backup has format {manifest.format}; this Kinlens reads {FORMAT}. Upgrade Kinlens.")
        return manifest
    raise ConfigurationError("The backup is empty.")


def verify(stream: BinaryIO, progress: Callable[[int], None]) -> tuple[Manifest, End]:
    """Reads the whole file once and changes nothing. `progress`: bytes so far.

    Raises ConfigurationError unless every member is whole, is what it was when it was written, stands where it should, and
    none is missing or too many.
    """
    tally, manifest, end = _Tally(), None, None
    for member in members(stream):
        data = member.read()
        if member.part is Part.MANIFEST:
            manifest = _parse(Manifest, data)
        if member.part is Part.END:
            end = _parse(End, data)
            continue
        tally.add(member.name, member.size_bytes, member.sha256)
        progress(stream.tell())
    if manifest is None or end is None:
        raise ConfigurationError("The backup is incomplete: its end is missing.")
    if end != tally.end():
        raise ConfigurationError("The backup was altered: members are missing, doubled or not in their order.")
    return manifest, end


def members(stream: BinaryIO) -> Iterator[Member]:
    """The members from the beginning of `stream`; those that are not read are skipped.

    Nothing is ever unpacked to a name that the file gives: a member that is no plain file, or whose name is not one this
    format has in this place, raises ConfigurationError, as everything else does that is not as it should be.
    """
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:", errorlevel=2) as tar:
            last, pieces = None, 0
            while (info := tar.next()) is not None:
                _forget(tar)
                part = _part(info, pieces)
                if not _may_follow(last, part):
                    raise ConfigurationError(f"The backup was altered: {info.name!r} does not stand there.")
                pieces += part is Part.DATABASE
                last = part
                digest = str(info.pax_headers.get(_SUM, "")).removeprefix(_SUM_KIND)
                yield Member(part, info.name, info.size, digest, _reader(tar, info, digest))
            _check_rest(stream, tar.offset)
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise ConfigurationError(f"This is not a whole backup of Kinlens: {error}.") from error


def _part(info: tarfile.TarInfo, pieces: int) -> Part:
    name = info.name
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
        raise ConfigurationError(f"The backup was altered: {name!r} is not a plain file.")
    if info.size > _MAX_MEMBER_BYTES:
        raise ConfigurationError(f"The backup was altered: {name!r} is larger than any picture.")
    if name == MANIFEST:
        return Part.MANIFEST
    if name == f"{DATABASE}{pieces:08d}":
        return Part.DATABASE
    if name.startswith(OBJECTS) and is_key(name.removeprefix(OBJECTS)):
        return Part.OBJECTS
    if name == END:
        return Part.END
    raise ConfigurationError(f"The backup was altered: it must not hold {name!r}.")


def _may_follow(last: Part | None, part: Part) -> bool:
    if last is None:
        return part is Part.MANIFEST
    return part > last or (part is last and part in (Part.DATABASE, Part.OBJECTS))


def _reader(tar: tarfile.TarFile, info: tarfile.TarInfo, digest: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            file = tar.extractfile(info)
            assert file is not None
            data = file.read()
        except (tarfile.TarError, OSError) as error:
            raise ConfigurationError(f"The backup cannot be read to its end: {error}.") from error
        if len(data) != info.size or hashlib.sha256(data).hexdigest() != digest:
            raise ConfigurationError(f"The backup was altered or is damaged: {info.name!r} is not what was written.")
        return data

    return read


def _forget(tar: tarfile.TarFile) -> None:
    """It remembers every member; there may be millions."""
    tar.members.clear()  # type: ignore[attr-defined]


def _check_rest(stream: BinaryIO, end: int) -> None:
    """tar ends with zeros up to a full record. Another archive could stand behind them."""
    stream.seek(end)
    size = 0
    while rest := stream.read(_READ_BYTES):
        size += len(rest)
        if rest.strip(b"\0"):
            raise ConfigurationError("The backup was altered: something stands behind its end.")
    if size < 2 * tarfile.BLOCKSIZE or (end + size) % tarfile.RECORDSIZE:
        raise ConfigurationError("The backup is incomplete: it breaks off at its end.")


def _parse(model: type[ModelT], data: bytes) -> ModelT:
    if len(data) > _MAX_TEXT_BYTES:
        raise ConfigurationError("The backup was altered: its description is too long.")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise ConfigurationError("The backup has no description that this Kinlens can read.") from error
