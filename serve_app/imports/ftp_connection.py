"""How an FTP server is spoken to: address, TLS, log-in; and what ftplib leaves open."""

from __future__ import annotations

import ftplib
import hashlib
import hmac
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.errors import ConfigurationError
from serve_app.imports.ftp_listing import shown, wired

_WIRE = "latin-1"
_MAX_REPLY_LINES = 1000


class FtpLost(Exception):
    """The connection failed, or the server cannot answer just now. `connecting`: there was no connection yet."""

    def __init__(self, reason: str, *, connecting: bool = False) -> None:
        super().__init__(reason)
        self.connecting = connecting


@dataclass(frozen=True, slots=True)
class FtpAddress:
    """`tls`: explicit, of both connections. `ca_file`: PEM of who vouches for the server, instead of the system's.
    `fingerprint`: SHA-256 of the server's certificate, hexadecimal; nothing else is checked then."""

    host: str
    port: int = 21
    user: str = "anonymous"
    password: str = field(default="", repr=False)
    tls: bool = True
    ca_file: Path | None = None
    fingerprint: str | None = None
    timeout_s: float = 60


class _Ftp(ftplib.FTP):
    """With an end to what a reply may be."""

    def getmultiline(self) -> str:
        lines = [self.getline()]
        if lines[0][3:4] == "-":
            end = lines[0][:3] + " "
            while not lines[-1].startswith(end):
                if len(lines) > _MAX_REPLY_LINES:
                    raise OSError("the reply has no end")
                lines.append(self.getline())
        return "\n".join(lines)


class _FtpTls(_Ftp, ftplib.FTP_TLS):
    pinned: str | None = None

    def auth(self) -> str:
        reply = super().auth()
        self._check(self.sock)
        return reply

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        conn, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321  it becomes TLS here
        try:
            # Many servers take a data connection only with the session of the control connection: nobody else can make it.
            session = self.sock.session if isinstance(self.sock, ssl.SSLSocket) else None
            secured = self.context.wrap_socket(conn, server_hostname=self.host, session=session)
            self._check(secured)
        except BaseException:
            conn.close()
            raise
        return secured, size

    def _check(self, sock: socket.socket | None) -> None:
        if self.pinned is None:
            return
        certificate = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        found = hashlib.sha256(certificate or b"").hexdigest()
        if not hmac.compare_digest(found, self.pinned):
            raise ssl.SSLCertVerificationError(f"its certificate has the fingerprint {found}, not the one given")


def make(address: FtpAddress, context: ssl.SSLContext | None) -> ftplib.FTP:
    """A client that is not connected yet."""
    if context is None:
        return _Ftp(encoding=_WIRE)
    ftp = _FtpTls(context=context, encoding=_WIRE)
    ftp.pinned = address.fingerprint
    return ftp


def secure(ftp: ftplib.FTP_TLS, address: FtpAddress) -> None:
    """Turns the control connection to TLS, before anything is said on it. Raises ConfigurationError."""
    try:
        ftp.auth()
    except ssl.SSLCertVerificationError as error:
        reason = getattr(error, "verify_message", error)
        raise ConfigurationError(
            f"The certificate of {address.host} is not trusted: {reason}. Give --ca-file with the certificate that vouches for"
            " it, or its --fingerprint."
        ) from error
    except ftplib.error_perm as error:
        raise ConfigurationError(
            f"{address.host} takes no TLS ({shown(str(error))}). --plain goes without, and sends the password as it is."
        ) from error


def log_in(ftp: ftplib.FTP, address: FtpAddress, *, known: bool) -> None:
    """`known`: the server has taken user and password before. Raises ConfigurationError, and FtpLost."""
    try:
        ftp.login(wired(address.user), wired(address.password))
    except ftplib.error_perm as error:
        if known:
            # It was taken before: the server has too many connections, which some say so.
            raise FtpLost(shown(str(error)), connecting=True) from error
        raise ConfigurationError(f"{address.host} refuses the user {address.user!r}: {shown(str(error))}") from error
    if isinstance(ftp, ftplib.FTP_TLS):
        ftp.prot_p()


def tls_context(address: FtpAddress) -> ssl.SSLContext:
    """Raises ConfigurationError for a file that is no certificate."""
    try:
        context = ssl.create_default_context(cafile=None if address.ca_file is None else str(address.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"--ca-file {address.ca_file} cannot be read: {error.strerror or error}.") from error
    if address.fingerprint is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
