"""The command `kinlens import-sqlite`: the former application's database into the library of a running instance."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from serve_app.commands.common import as_messages, console, problems, read_settings, shown
from serve_app.commands.imports import client_of, service_of
from serve_app.commands.progress import progress_of
from serve_app.commands.reports import report_to, tell_end
from serve_app.errors import ConfigurationError
from serve_app.imports.former_import import FormerImport, FormerOptions, Outcome, Summary, parts_of, read_photos
from serve_app.imports.former_schema import COLUMNS
from serve_app.imports.library_client import LibraryClient
from serve_app.imports.photo_sending import PhotoSender
from serve_app.imports.service_client import ServiceClient
from serve_app.storage.former_database import FormerDatabase

app = typer.Typer()

_WHATS = ("photo", "tags", "person", "face")
_SHOWN_PATHS = 3
_REPORT = ("what", "former_id", "status", "kinlens_id", "code", "detail")


@app.command("import-sqlite")
def import_sqlite(
    file: Annotated[Path, typer.Argument(help="The former application's SQLite database; it is only read.")],
    photos_root: Annotated[Path | None, typer.Option(help="Folder below which the photos' files lie now.")] = None,
    path_prefix: Annotated[str, typer.Option(help="What paths in the database begin with, in place of --photos-root.")] = "",
    map_: Annotated[
        list[str] | None, typer.Option("--map", help="photos=TABLE or photos.path=COLUMN, where names are not the usual ones.")
    ] = None,
    sized: Annotated[bool, typer.Option("--sized", help="A box in one column is x, y, width, height; not x1, y1, x2, y2.")] = (
        False
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported, and change nothing.")] = False,
    url: Annotated[str | None, typer.Option(help="Address of the service. Default: HOST and PORT of the settings.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="KINLENS_API_KEY", help="Default: API_KEY, or the key this machine keeps.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="CSV to write: everything, what became of it, and why.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the faces in the photos are found.")] = 3600,
    give_up_after: Annotated[float, typer.Option(min=1, help="Seconds without any answer before it ends.")] = 300,
) -> None:
    """Bring photos, tags, persons and whose face is whose from the former application's database into the photo library.

    Photos are those of the library with the same SHA-256, or are sent from --photos-root. Persons get the external_id
    former:ID. A face is assigned where Kinlens finds one that overlaps with the former box (IoU 0.5). What is there already
    stays as it is, above all what users decided: run it again after whatever broke off.

    Exit code 0: nothing failed; faces that are not found again are told of. 1: some failed, or the service did not answer any
    more; the report says which.
    """
    settings = read_settings()
    root = None if photos_root is None else photos_root.absolute()
    if root is not None and not root.is_dir():
        raise ConfigurationError(f"--photos-root {photos_root} is no folder.")
    options = FormerOptions(root, path_prefix, sized, wait)
    with as_messages(), ExitStack() as stack:
        database = stack.enter_context(FormerDatabase(file, _given(map_ or [])))
        _describe(database)
        if dry_run:
            _rehearse(database, options)
            return
        record = stack.enter_context(report_to(report, _REPORT, _told))
        service, key = service_of(settings, url, api_key)
        begun = time.monotonic()
        summary = asyncio.run(_import(service, key, database, options, give_up_after, record))
    _summarize(summary, time.monotonic() - begun)
    if not summary.complete:
        raise typer.Exit(1)


def _given(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, name = pair.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--map {pair!r}: write photos=TABLE or photos.path=COLUMN.")
        found[key.strip()] = name
    return found


def _describe(database: FormerDatabase) -> None:
    """What was found in the file, and what is left alone."""
    for kind in COLUMNS:
        found = database.tables.get(kind)
        if found is None:
            console.print(f"{kind}: no such table", markup=False)
            continue
        columns = ", ".join(f"{name} = {column}" for name, column in found.columns.items())
        console.print(f"{kind}: {database.count(kind):,} rows of {shown(found.table)}: {shown(columns)}", markup=False)
        if found.ignored:
            console.print(f"  ignored: {shown(', '.join(found.ignored))}", markup=False)
    if database.others:
        console.print(f"tables that are ignored: {shown(', '.join(database.others))}", markup=False)


def _rehearse(database: FormerDatabase, options: FormerOptions) -> None:
    there = elsewhere = missing = with_digest = 0
    examples: list[str] = []
    for photo in read_photos(database):
        with_digest += photo.sha256 is not None
        if options.root is None:
            continue
        parts = parts_of(photo.path, options.root, options.prefix)
        if parts is None:
            elsewhere += 1
        # Unlike Path.is_file, this answers for every name: it may be too long to be one.
        elif os.path.isfile(os.path.join(os.fsencode(options.root), *parts)):  # noqa: PTH113, PTH118
            there += 1
            continue
        else:
            missing += 1
        if len(examples) < _SHOWN_PATHS:
            examples.append(photo.path)
    if options.root is not None:
        console.print(f"files: {there:,} are there, {missing:,} are not, {elsewhere:,} would lie elsewhere")
        for path in examples:
            console.print(f"  {path!r}", markup=False)
    console.print(f"{with_digest:,} photos have a SHA-256, by which the library may know them. Nothing was changed.")


async def _import(
    service: str,
    key: str,
    database: FormerDatabase,
    options: FormerOptions,
    give_up_after_s: float,
    record: Callable[[Outcome], None],
) -> Summary:
    async with client_of(service, key) as client:
        asking = ServiceClient(client, give_up_after_s)
        with progress_of("rows") as progress:

            def told(_: str, done: int, total: int) -> None:
                progress(done, total)

            return await FormerImport(database, LibraryClient(asking), PhotoSender(asking), options, record, told).run()


def _summarize(summary: Summary, took_s: float) -> None:
    for what in _WHATS:
        counts = [f"{count:,} {status}" for (kind, status), count in sorted(summary.counts.items()) if kind == what]
        console.print(f"{what}: {', '.join(counts) or 'none'}", markup=False)
    console.print(f"in {took_s:,.1f} s")
    told = ((f"{what} {status}: {code}", count) for (what, status, code), count in summary.reasons.most_common())
    tell_end(told, summary.gave_up, "imported")


def _told(one: Outcome) -> None:
    if one.status == "failed":
        problems.print(shown(f"  {one.what} {one.former_id}: {one.detail}"), markup=False)
