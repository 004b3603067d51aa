"""What FTP servers say of their files: lines of MLSD (RFC 3659), of LIST as Unix and DOS write it, of NLST. Pure.

Names and paths are as on the wire, a character for each byte (Latin-1): so they go back to the server as they came,
whatever encoding it has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

_UNIX = re.compile(
    r"(?P<kind>[-bcdlps])[-rwxsStTlL]{9}\S*\s+\d+\s+(?:\S+\s+){1,3}?(?P<size>\d+)(?:, *\d+)?\s+"
    r"(?:[A-Za-z]{3}\.?\s+\d{1,2}|\d{1,2}\.?\s+[A-Za-z]{3}\.?|\d{4}-\d\d-\d\d)\s+(?:\d{1,2}:\d\d|\d{4}) (?P<name>.+)",
    re.ASCII,
)
_DOS = re.compile(
    r"\d\d-\d\d-\d{2,4}\s+\d\d:\d\d\s?(?:[AP]M)?\s+(?:<(?P<dir>DIR|JUNCTION)>|(?P<size>\d+))\s+(?P<name>.+)", re.ASCII
)
_NO_ENTRY = re.compile(r"total \d+|")
_MODIFIED = re.compile(r"\d{14}(?:\.\d{1,9})?")
_MAX_SIZE_DIGITS = 18


class Kind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Facts:
    """By which a file is known again. `modified`: YYYYMMDDHHMMSS in UTC, perhaps with a fraction. None: the server does not
    say."""

    size: int | None = None
    modified: str | None = None

    @property
    def complete(self) -> bool:
        return self.size is not None and self.modified is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """`unique`: the same for all ways to one file or folder, where the server says so."""

    name: str
    kind: Kind
    facts: Facts = Facts()
    unique: str | None = None


def parse_mlsd(line: str) -> Entry | None:
    """None for the folder itself and the one above it. Raises ValueError."""
    told, space, name = line.partition(" ")
    if not space or "=" not in told:
        raise ValueError("it is no line of MLSD")
    facts = {key.lower(): value for key, _, value in (fact.partition("=") for fact in told.split(";") if fact)}
    kind = facts.get("type", "").lower()
    if kind in ("cdir", "pdir"):
        return None
    kinds = {"file": Kind.FILE, "dir": Kind.FOLDER}
    found = Kind.LINK if "link" in kind else kinds.get(kind, Kind.OTHER)
    return Entry(name, found, parse_facts(facts), facts.get("unique"))


def parse_facts(facts: dict[str, str]) -> Facts:
    """`size` and `modify` of a line of MLSD or MLST; None for nonsense."""
    return Facts(parse_size(facts.get("size", "")), parse_modified(facts.get("modify", "")))


def parse_list(line: str) -> Entry | None:
    """None for a line that is about no file, and for `.` and `..`. Raises ValueError.

    Its dates are in a zone nobody knows and to the minute; they are left out.
    """
    if _NO_ENTRY.fullmatch(line.strip(" ")):
        return None
    if unix := _UNIX.fullmatch(line):
        kind = {"-": Kind.FILE, "d": Kind.FOLDER, "l": Kind.LINK}.get(unix["kind"], Kind.OTHER)
        name = unix["name"].partition(" -> ")[0] if kind is Kind.LINK else unix["name"]
        size = parse_size(unix["size"]) if kind is Kind.FILE else None
    elif dos := _DOS.fullmatch(line):
        kind = {"DIR": Kind.FOLDER, "JUNCTION": Kind.LINK}.get(dos["dir"] or "", Kind.FILE)
        name, size = dos["name"], parse_size(dos["size"] or "")
    else:
        raise ValueError("it is no line of LIST that is understood")
    return None if name in (".", "..") else Entry(name, kind, Facts(size))


def parse_nlst(line: str, folder: str) -> Entry | None:
    """Some servers answer with names, some with paths. Nobody says what is a folder: `Kind.OTHER`."""
    name = line.removeprefix(folder.rstrip("/") + "/").removeprefix("./")
    return None if name in ("", ".", "..") else Entry(name, Kind.OTHER)


def parse_size(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_SIZE_DIGITS else None


def parse_modified(text: str) -> str | None:
    return text if _MODIFIED.fullmatch(text) else None


def moment(modified: str | None) -> datetime | None:
    """When the file was last changed; None where that is no date."""
    try:
        return None if modified is None else datetime.strptime(modified[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def bad_name(name: str) -> str | None:
    """Why an entry of this name cannot be asked for; None where it can."""
    if name in ("", ".", ".."):
        return "It is no name of a file."
    if "/" in name:
        return "The name has a slash: it leads elsewhere."
    # Not those of Latin-1 above 0x7f: they are parts of UTF-8.
    if any(character < " " or character == "\x7f" for character in name):
        return "The name has control characters."
    return None


def text_of(wire: str) -> str:
    """As UTF-8 where it is that, else as Latin-1."""
    try:
        return wire.encode("latin-1", "replace").decode()
    except UnicodeDecodeError:
        return wire


def shown(wire: str) -> str:
    """The same for a terminal: what would control it as an escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text_of(wire))


def wired(text: str) -> str:
    """What a person wrote, as it goes to a server that speaks UTF-8. Raises ValueError for control characters."""
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError("control characters")
    return text.encode("utf-8", "surrogateescape").decode("latin-1")
