"""A real FTP server for tests, in a process of its own: it can be killed, and started again on the same port."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from serve_app.imports.ftp_connection import FtpAddress
from tests.storage.ftp_program import HOST, PASSWORD, USER
from tests.storage.object_servers import free_ports

_START_TIMEOUT_S = 120


@dataclass
class FtpServer:
    """`faults`: see tests/storage/ftp_program.py."""

    root: Path
    folder: Path
    tls: bool = True
    faults: dict[str, int] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> FtpServer:
        self.port = self.port or free_ports(1)[0]
        certificate = self.folder / "server.pem"
        if self.tls and not certificate.exists():
            make_certificate(certificate)
        options = {"root": str(self.root), "port": self.port, "certificate": str(certificate) if self.tls else None,
                   "faults": self.faults, "marks": str(self.folder)}  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.storage.ftp_program", json.dumps(options)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(_START_TIMEOUT_S)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def wait(self) -> None:
        """Until it has ended by itself."""
        assert self.process is not None
        self.process.wait(_START_TIMEOUT_S)
        self.kill()

    def restart(self, **faults: int) -> None:
        self.kill()
        self.faults = faults
        self.start()

    def address(self, **other: Any) -> FtpAddress:
        trust = {"ca_file": self.folder / "server.pem"} if self.tls else {"tls": False}
        given = {"host": HOST, "port": self.port, "user": USER, "password": PASSWORD, "timeout_s": 20.0, **trust, **other}
        return FtpAddress(**given)

    @property
    def fingerprint(self) -> str:
        pem = (self.folder / "server.pem").read_text()
        return sha256(ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERT") :])).hexdigest()

    def commands(self) -> list[str]:
        """What clients asked for so far."""
        log = self.folder / "commands"
        return log.read_text().splitlines() if log.exists() else []

    def retrieved(self) -> list[str]:
        return [line.partition(" ")[2] for line in self.commands() if line.startswith("RETR ")]


def make_certificate(path: Path, host: str = HOST) -> None:
    """Self-signed, for an address; with its key in one file."""

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ftp test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(encoding))
