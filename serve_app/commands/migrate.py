"""The command `kinlens migrate-ftp`: photos from an FTP server into the library of a running instance."""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from config.settings import Settings
from serve_app.commands.common import as_messages, console, problems, read_settings
from serve_app.commands.imports import client_of, service_of
from serve_app.commands.progress import progress_of
from serve_app.commands.reports import report_to, tell_end
from serve_app.errors import ConfigurationError
from serve_app.imports.ftp_connection import FtpAddress
from serve_app.imports.ftp_listing import wired
from serve_app.imports.migrating import STATUSES, FtpMigration, MigrationOptions, Outcome, Summary
from serve_app.imports.migration_ledger import Ledger
from serve_app.imports.photo_sending import PhotoSender
from serve_app.imports.service_client import ServiceClient

app = typer.Typer()

_PASSWORD = "KINLENS_FTP_PASSWORD"  # noqa: S105  the name of the variable
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_REPORT = ("path", "status", "photo_id", "code", "detail")


@app.command("migrate-ftp")
def migrate_ftp(
    host: Annotated[str, typer.Argument(help="Name or address of the FTP server.")],
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 21,
    user: Annotated[str, typer.Option(envvar="KINLENS_FTP_USER", help="Its password: KINLENS_FTP_PASSWORD, or asked for.")] = (
        "anonymous"
    ),
    path: Annotated[str, typer.Option(help="Folder of the server to begin at. Default: where it puts the user.")] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Without TLS: password and photos can be read on the way.")] = False,
    ca_file: Annotated[Path | None, typer.Option(help="PEM of who vouches for the server's certificate.")] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="SHA-256 of the server's certificate, checked instead of name and signature.")
    ] = None,
    folder: Annotated[str, typer.Option(help="Folder of the library above those of the server.")] = "",
    url: Annotated[str | None, typer.Option(help="Address of the service. Default: HOST and PORT of the settings.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="KINLENS_API_KEY", help="Default: API_KEY, or the key this machine keeps.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=32, help="Files at once, each by a connection of its own.")] = 4,
    twice: Annotated[bool, typer.Option("--twice", help="Read each file twice and compare.")] = False,
    read_back: Annotated[bool, typer.Option("--read-back", help="Read each stored photo again and compare.")] = False,
    report: Annotated[Path | None, typer.Option(help="CSV to write: each file, what became of it, and why.")] = None,
    give_up_after: Annotated[float, typer.Option(min=1, help="Seconds without any answer before it ends.")] = 300,
    state: Annotated[Path | None, typer.Option(help="File that remembers what was done. Default: below DATA_DIR.")] = None,
) -> None:
    """Copy all photos below a folder of an FTP server into the photo library. Nothing on the server is changed.

    Run it again after whatever broke off: what was copied is not read again. The folders of the server become those of the
    photos. Size and SHA-256 of what was read must be those of the stored photo, and the file may not change meanwhile.

    Exit code 0: every photo that the server shows is in the library. 1: some failed, or a server did not answer any more; the
    report says which. Raw photos, videos and other files are reported as unsupported, links and hidden files as skipped.
    """
    settings = read_settings()
    address = _address(host, port, user, plain, ca_file, fingerprint)
    try:
        wired(path)
    except ValueError as error:
        raise ConfigurationError(f"--path {path!r} has {error}.") from error
    options = MigrationOptions(path, folder, workers, give_up_after, twice)
    with (
        as_messages(),
        report_to(report, _REPORT, _told) as record,
        Ledger(state or _state(settings, address, path)) as ledger,
    ):
        service, key = service_of(settings, url, api_key)
        summary, took_s = _migrate(service, key, address, ledger, options, record, read_back=read_back)
    _summarize(summary, took_s)
    if not summary.complete:
        raise typer.Exit(1)


def _address(
    host: str, port: int, user: str, plain: bool, ca_file: Path | None, fingerprint: str | None
) -> FtpAddress:  # fmt: skip
    """Raises ConfigurationError."""
    if plain and (ca_file is not None or fingerprint is not None):
        raise ConfigurationError("--plain has no certificate; leave out --ca-file and --fingerprint.")
    if not host or "/" in host or "@" in host:
        raise ConfigurationError(f"{host!r} is no name of a server. Port, user and path are options of their own.")
    pinned = None if fingerprint is None else fingerprint.replace(":", "").lower()
    if pinned is not None and not _FINGERPRINT.fullmatch(pinned):
        raise ConfigurationError("--fingerprint is 64 hexadecimal digits: openssl x509 -noout -fingerprint -sha256")
    password = os.environ.get(_PASSWORD)
    if password is None and user == "anonymous":
        password = "anonymous@"  # noqa: S105  by custom
    if password is None:
        if not sys.stdin.isatty():
            raise ConfigurationError(f"The password of {user!r} is expected in {_PASSWORD}.")
        password = getpass.getpass(f"Password of {user} on {host}: ")
    try:
        wired(user)
        wired(password)
    except ValueError as error:
        raise ConfigurationError(f"User or password has {error}.") from error
    return FtpAddress(host, port, user, password, not plain, ca_file, pinned)


def _state(settings: Settings, address: FtpAddress, path: str) -> Path:
    source = "\n".join((address.host.lower(), str(address.port), address.user, path))
    return settings.data_dir / "migrations" / f"ftp-{hashlib.sha256(source.encode()).hexdigest()[:16]}.jsonl"


def _migrate(
    service: str,
    key: str,
    address: FtpAddress,
    ledger: Ledger,
    options: MigrationOptions,
    record: Callable[[Outcome], None],
    *,
    read_back: bool,
) -> tuple[Summary, float]:
    if not address.tls and address.user != "anonymous":
        problems.print("Without TLS the password is sent as it is.")

    async def run() -> Summary:
        async with client_of(service, key) as client:
            sender = PhotoSender(ServiceClient(client, options.give_up_after_s), read_back=read_back)
            with progress_of("files found so far") as progress:
                return await FtpMigration(address, sender, ledger, options, record, progress).run()

    begun = time.monotonic()
    return asyncio.run(run()), time.monotonic() - begun


def _summarize(summary: Summary, took_s: float) -> None:
    counts = ", ".join(f"{summary.statuses[status]:,} {status}" for status in STATUSES)
    rate = summary.bytes_read / max(took_s, 1e-3) / (1 << 20)
    console.print(f"{counts} in {took_s:,.1f} s ({summary.bytes_read / (1 << 20):,.1f} MiB read, {rate:,.1f} MiB/s)")
    told = ((f"{status}: {code}", count) for (status, code), count in summary.reasons.most_common())
    tell_end(told, summary.gave_up, "copied")


def _told(one: Outcome) -> None:
    if one.status == "failed":
        problems.print(f"  {one.path}: {one.detail}", markup=False)
