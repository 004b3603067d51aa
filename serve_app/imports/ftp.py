"""A connection to an FTP server: over TLS unless told otherwise, passive, binary; with bounds on all that the server sends."""

from __future__ import annotations

import ftplib
import re
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from serve_app.imports.ftp_connection import FtpAddress, FtpLost, log_in, make, secure, tls_context
from serve_app.imports.ftp_listing import (
    Entry,
    Facts,
    parse_facts,
    parse_list,
    parse_mlsd,
    parse_modified,
    parse_nlst,
    parse_size,
    shown,
)

MAX_ENTRIES = 200_000
"""Of one folder."""
_CONNECT_TIMEOUT_S = 20.0
_MAX_LINE_BYTES = 8 << 10
_MAX_LISTING_BYTES = 64 << 20
_CHUNK_BYTES = 64 << 10
_SLOW_AFTER_S, _SLOWEST_BYTES_PER_S = 60.0, 1024
_UNKNOWN = ("500", "501", "502", "504")
"""The server does not know the command, or not so."""
_SHA256 = re.compile(r"\b[0-9a-fA-F]{64}\b")


class FtpRefused(Exception):
    """The server will not, whenever it is asked."""

    def __init__(self, reply: str) -> None:
        super().__init__(shown(reply)[:300])
        self.unknown = reply[:3] in _UNKNOWN


@dataclass(frozen=True, slots=True)
class Listing:
    """`unreadable`: lines that were not understood. `cut`: there were more entries than are read."""

    entries: list[Entry]
    unreadable: list[str]
    cut: bool


class FtpSession:
    """One connection at a time, made when it is needed and anew after it was lost. Not for several threads at once, but
    `abort` may be called from another. `known`: the server has taken user and password before.

    Every method raises FtpLost, FtpRefused, and ConfigurationError for what no repetition can help.
    """

    def __init__(self, address: FtpAddress, *, known: bool = False) -> None:
        self._address = address
        self._context = tls_context(address) if address.tls else None
        self._ftp: ftplib.FTP | None = None
        self._data: socket.socket | None = None
        self._features = self._type = ""
        self._listings = ["MLSD", "LIST", "NLST"]
        self._known = known
        self._aborted = False

    @property
    def tells_kinds(self) -> bool:
        """Whether listings say what is a folder."""
        return self._listings[0] != "NLST"

    def start_folder(self) -> str:
        """Where the server puts the user."""
        with self._asking() as ftp:
            return ftp.pwd()

    def listing(self, folder: str) -> Listing:
        """What is in a folder, by its absolute path."""
        with self._asking() as ftp:
            # Into the folder rather than with its name: to LIST a name that begins with a dash is an option.
            ftp.cwd(folder)
            while True:
                command = self._listings[0]
                try:
                    return self._list(ftp, command, folder)
                except ftplib.error_perm as error:
                    if command == "NLST" and str(error).startswith("550"):
                        return Listing([], [], cut=False)  # so do servers that have nothing to say
                    if not str(error).startswith(_UNKNOWN) or len(self._listings) == 1:
                        raise
                    del self._listings[0]

    def facts(self, path: str) -> Facts:
        """Of a file, as it is now. Raises FtpRefused for one that is gone."""
        with self._asking() as ftp:
            if self._listings[0] == "MLSD":
                try:
                    reply = ftp.sendcmd(f"MLST {path}")
                except ftplib.error_perm as error:
                    if not str(error).startswith(_UNKNOWN):
                        raise
                else:
                    told = [line.strip(" ").partition(" ")[0] for line in reply.split("\n")[1:-1]]
                    facts = (fact.lower().partition("=") for fact in "".join(told[:1]).split(";"))
                    return parse_facts({name: value for name, _, value in facts})
            # Of a file as text many servers do not say the size.
            self._set_type(ftp, "I")
            return Facts(parse_size(self._told(ftp, f"SIZE {path}")), parse_modified(self._told(ftp, f"MDTM {path}")))

    def is_folder(self, path: str) -> bool:
        """By going there: for servers that only tell names."""
        with self._asking() as ftp:
            try:
                ftp.cwd(path)
            except ftplib.error_perm:
                return False
            return True

    def sha256(self, path: str) -> str | None:
        """What the server computes of the file, hexadecimal, where it can."""
        with self._asking() as ftp:
            if "XSHA256" in self._features:
                command = f"XSHA256 {path}"
            elif "SHA-256*" in self._features:
                command = f"HASH {path}"  # the star marks what is switched on (draft-bryan-ftp-hash)
            else:
                return None
            found = _SHA256.search(self._told(ftp, command))
            return None if found is None else found[0].lower()

    def retrieve(self, path: str, start: int) -> Generator[bytes, None, None]:
        """The bytes of a file from `start`, ends where the server ends. Close it to stop before."""
        with self._asking() as ftp:
            self._set_type(ftp, "I")
            conn, _ = ftp.ntransfercmd(f"RETR {path}", rest=start or None)
            begun, count = time.monotonic(), 0
            whole = False
            try:
                with self._transferring(conn):
                    while chunk := conn.recv(_CHUNK_BYTES):
                        count += len(chunk)
                        took_s = time.monotonic() - begun
                        if took_s > _SLOW_AFTER_S and count < took_s * _SLOWEST_BYTES_PER_S:
                            raise TimeoutError("the server sends too slowly")
                        yield chunk
                    whole = True
            finally:
                if not whole:
                    # What the server says to a transfer that was broken off differs; a new connection is simpler.
                    self.drop()
            ftp.voidresp()

    def drop(self) -> None:
        """Ends the connection without a word."""
        ftp, self._ftp = self._ftp, None
        if ftp is not None:
            ftp.close()

    def abort(self) -> None:
        """Ends whatever is under way, for good; from any thread."""
        self._aborted = True
        ftp = self._ftp
        for sock in (self._data, None if ftp is None else ftp.sock):
            if sock is not None:
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    @contextmanager
    def _asking(self) -> Iterator[ftplib.FTP]:
        """The connection; and the errors of ftplib as ours."""
        if self._aborted:
            raise FtpLost("It was broken off.")
        connecting = self._ftp is None
        try:
            if self._ftp is None:
                self._ftp = self._connect()
            connecting = False
            yield self._ftp
        except ftplib.error_perm as error:
            raise FtpRefused(str(error)) from error
        except ftplib.error_temp as error:
            reply = str(error)
            if reply.startswith("45"):
                # Of this file, not of the connection; but perhaps later.
                raise FtpLost(shown(reply)) from error
            self.drop()
            raise FtpLost(shown(reply), connecting=connecting) from error
        except (OSError, EOFError, ftplib.Error) as error:
            self.drop()
            reason = f"{self._address.host}: {shown(str(error)) or type(error).__name__}"
            raise FtpLost(reason, connecting=connecting) from error
        except UnicodeError as error:
            self.drop()
            raise FtpRefused(f"{error}") from error

    def _connect(self) -> ftplib.FTP:
        address = self._address
        ftp = make(address, self._context)
        try:
            ftp.connect(address.host, address.port, timeout=min(address.timeout_s, _CONNECT_TIMEOUT_S))
            self._ftp = ftp  # from now on `abort` finds it
            self._go_on()
            ftp.timeout = address.timeout_s
            assert ftp.sock is not None
            ftp.sock.settimeout(address.timeout_s)
            if isinstance(ftp, ftplib.FTP_TLS):
                secure(ftp, address)
            log_in(ftp, address, known=self._known)
            self._type = ""
            self._features = self._told(ftp, "FEAT").upper()
            if "UTF8" in self._features:
                self._told(ftp, "OPTS UTF8 ON")
        except BaseException:
            ftp.close()
            self._ftp = None
            raise
        self._known = True
        return ftp

    def _list(self, ftp: ftplib.FTP, command: str, folder: str) -> Listing:
        self._set_type(ftp, "A")
        conn, _ = ftp.ntransfercmd(command)
        entries: list[Entry] = []
        unreadable: list[str] = []
        cut = True
        with self._transferring(conn):
            begun = time.monotonic()
            for line in _lines(conn, begun):
                if len(entries) + len(unreadable) >= MAX_ENTRIES:
                    break
                try:
                    entry = _parse(command, line, folder)
                except ValueError:
                    unreadable.append(line)
                    continue
                if entry is not None:
                    entries.append(entry)
            else:
                cut = False
        if cut:
            self.drop()
        else:
            ftp.voidresp()
        if command == "LIST" and unreadable and not entries:
            # A dialect nobody knows; names are better than nothing.
            self._listings = ["NLST"]
            return self._list(ftp, "NLST", folder)
        return Listing(entries, unreadable, cut)

    @contextmanager
    def _transferring(self, conn: socket.socket) -> Iterator[None]:
        self._data = conn
        try:
            with conn:
                self._go_on()
                yield
        finally:
            self._data = None

    def _go_on(self) -> None:
        """Raises OSError where `abort` was called before there was the socket that it would have ended."""
        if self._aborted:
            raise OSError("It was broken off.")

    def _set_type(self, ftp: ftplib.FTP, name: str) -> None:
        if self._type != name:
            ftp.voidcmd(f"TYPE {name}")
            self._type = name

    def _told(self, ftp: ftplib.FTP, command: str) -> str:
        """The text of a positive reply, empty where the server refuses."""
        try:
            return ftp.sendcmd(command)[4:].strip()
        except ftplib.error_perm:
            return ""


def _parse(command: str, line: str, folder: str) -> Entry | None:
    if command == "MLSD":
        return parse_mlsd(line)
    return parse_list(line) if command == "LIST" else parse_nlst(line, folder)


def _lines(conn: socket.socket, begun: float) -> Iterator[str]:
    """Raises TimeoutError, and OSError for a line or a listing without end."""
    rest, count = b"", 0
    while chunk := conn.recv(_CHUNK_BYTES):
        count += len(chunk)
        took_s = time.monotonic() - begun
        if count > _MAX_LISTING_BYTES or (took_s > _SLOW_AFTER_S and count < took_s * _SLOWEST_BYTES_PER_S):
            raise OSError("the listing has no end")
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise OSError("a line of the listing has no end")
        yield from (line.removesuffix(b"\r").decode("latin-1") for line in lines)
    if rest:
        yield rest.removesuffix(b"\r").decode("latin-1")
