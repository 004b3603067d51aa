"""`kinlens keys`: API keys, beside the running service or without it."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from serve_app.access import MAX_NAME_CHARACTERS, OVERLAP, KeyRecord, Scope, Secret
from serve_app.backends import open_database, running_database
from serve_app.commands.common import as_messages, console, problems, read_settings, shown
from serve_app.errors import ConfigurationError
from serve_app.services.api_keys import ApiKeys, NewKey
from serve_app.storage.database import Dsn

app = typer.Typer(help="API keys: who may ask, and what. The key of the environment is not among them.", no_args_is_help=True)

_COLLECTION = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ALL = 1_000_000
_OVERLAP_H = OVERLAP.total_seconds() / 3600


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose it is; the journal and the audit log call it so.")],
    scope: Annotated[list[Scope], typer.Option(help="May be repeated. write includes enrol, admin everything.")],
    collection: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated. Default: all.")] = None,
    expires_days: Annotated[
        float | None, typer.Option(min=0, max=36_500, help="Days until it is good no more. Default: never.")
    ] = None,
    rate_limit: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Requests a minute. Default: RATE_LIMIT.")
    ] = None,
) -> None:
    """Make a key. It is printed once, alone on standard output; only its hash is kept."""
    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise ConfigurationError(f"The name must be 1 to {MAX_NAME_CHARACTERS} visible characters.")
    for one in collection or ():
        if not _COLLECTION.fullmatch(one):
            raise ConfigurationError(f"{shown(one)!r} cannot be the id of a collection.")
    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    limited = frozenset(collection) if collection else None
    new = NewKey(name.strip(), frozenset(scope), limited, expires_at, rate_limit)
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        _tell(*asyncio.run(_create(dsn, new)))


@app.command("list")
def list_keys() -> None:
    """All keys, revoked ones as well, without their secrets."""
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        found = asyncio.run(_list(dsn))
    for record in found:
        _describe(record)
    if not found:
        console.print("There are no keys but that of the environment.")


@app.command("rotate")
def rotate(
    key_id: Annotated[str, typer.Argument(help="An id of `kinlens keys list`.")],
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=720, help="For so long the secret until now stays good.")
    ] = _OVERLAP_H,
) -> None:
    """Give a key another secret, printed once. Its id, name, scopes and collections stay."""
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        _tell(*asyncio.run(_rotate(dsn, key_id, timedelta(hours=overlap_hours))))


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="An id of `kinlens keys list`.")]) -> None:
    """For good. A running service refuses it within seconds."""
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        _describe(asyncio.run(_revoke(dsn, key_id)))


async def _create(dsn: Dsn, new: NewKey) -> tuple[KeyRecord, Secret]:
    async with open_database(dsn) as database:
        return await ApiKeys(database).create(new, "command line")


async def _list(dsn: Dsn) -> list[KeyRecord]:
    async with open_database(dsn) as database:
        return await ApiKeys(database).page(None, _ALL)


async def _rotate(dsn: Dsn, key_id: str, overlap: timedelta) -> tuple[KeyRecord, Secret]:
    async with open_database(dsn) as database:
        return await ApiKeys(database).rotate(key_id, overlap)


async def _revoke(dsn: Dsn, key_id: str) -> KeyRecord:
    async with open_database(dsn) as database:
        return await ApiKeys(database).revoke(key_id)


def _tell(record: KeyRecord, secret: Secret) -> None:
    """The key to standard output, so that a script can take it; the rest beside it."""
    problems.print(f"key {record.id}, for {shown(record.name)}; it is not shown again:", markup=False)
    typer.echo(secret.token)


def _describe(record: KeyRecord) -> None:
    limited = "all collections" if record.collections is None else ", ".join(sorted(record.collections)) or "no collection"
    used = "never used" if record.last_used_at is None else f"used {record.last_used_at:%Y-%m-%d %H:%M}"
    until = "" if record.expires_at is None else f"; until {record.expires_at:%Y-%m-%d %H:%M}"
    scopes = ", ".join(one for one in Scope if one in record.scopes)
    state = record.state(datetime.now(UTC))
    console.print(f"{record.id}  {shown(record.name)}: {state}; {scopes}; {limited}; {used}{until}", markup=False)
