"""The commands for what is stored: `db`, `gc`, `backup`, `restore`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from config.settings import Settings
from serve_app.backends import object_store, open_database, running_database
from serve_app.backup import BackupReport, RestoreReport, back_up, restore
from serve_app.commands.common import as_messages, console, problems, read_settings, step
from serve_app.commands.progress import bars, progress_of, tell
from serve_app.errors import ConfigurationError
from serve_app.services import checks
from serve_app.services.checks import CollectionReport, Recall
from serve_app.services.erasure import Eraser
from serve_app.services.garbage import Garbage, GarbageCollector
from serve_app.storage.database import Dsn
from serve_app.storage.objects import ObjectStore

app = typer.Typer()
db_app = typer.Typer(help="The database: its schema, and whether its rows and indexes are sound.", no_args_is_help=True)
app.add_typer(db_app, name="db")

_MIB = 1 << 20


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest schema version, as every `kinlens up` does."""
    settings = read_settings()
    with step("database: bring to the newest schema"), running_database(settings):
        pass


@db_app.command("check")
def db_check(
    collection: Annotated[str | None, typer.Option(help="Only this one. Default: all.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Faces of each collection to search for, both ways.")] = 200,
    reindex: Annotated[bool, typer.Option("--reindex", help="Build those indexes anew for which that is the remedy.")] = False,
) -> None:
    """Compare what searches find with the truth, and rows with what belongs to them.

    A search that compares every face is the truth: at a million faces it takes seconds, so choose --sample. The service may
    run meanwhile. Exit code 1 when something is wrong, and was not put right by --reindex.
    """
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        sound = asyncio.run(_check(dsn, collection, sample, reindex))
    if not sound:
        raise typer.Exit(1)


@app.command("gc")
def collect_garbage(
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is found; default: only tell.")] = False,
    grace_hours: Annotated[
        float, typer.Option(min=1, help="Younger objects stay: their rows may be about to be written.")
    ] = 24,
    force: Annotated[bool, typer.Option("--force", help="Delete even if that is most of what is stored.")] = False,
) -> None:
    """Find stored pictures that nothing leads to, and faces whose picture is missing.

    The first are left by requests that broke off, and --delete removes them, together with what deletions left for later. The
    second are only told of (exit code 1): restore them from a backup, or enrol them again. Never share a bucket between two
    databases: each would find the other's pictures.
    """
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        found = asyncio.run(_collect_garbage(settings, dsn, timedelta(hours=grace_hours), delete, force))
    if found.dangling:
        raise typer.Exit(1)


@app.command("backup")
def backup(file: Annotated[Path, typer.Argument(help="The file to write; one that is there is replaced at the end.")]) -> None:
    """Write the database and every picture it names into one file, while the service runs.

    The file is a tar archive, readable by its owner only, and holds everything that the service knows of its persons: keep
    it as carefully. The API key is not in it. Exit code 1 when pictures were missing; the backup is written all the same.
    """
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        report = asyncio.run(_back_up(settings, dsn, file.absolute()))
    counts = report.counts
    console.print(
        f"{file}: {report.size_bytes / _MIB:,.1f} MiB; {counts.collections:,} collections, {counts.persons:,} persons,"
        f" {counts.faces:,} faces, {counts.objects - report.missing:,} pictures and crops",
        markup=False,
    )
    if report.missing:
        tell(f"{report.missing:,} pictures or crops are missing in the object store:", report.missing_keys, report.missing)
        raise typer.Exit(1)


@app.command("restore")
def restore_backup(
    file: Annotated[Path, typer.Argument(help="A file that `kinlens backup` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the collections that are there.")] = False,
) -> None:
    """Put a backup in the place of what is stored. Stop the service first.

    The file is verified as a whole before anything changes. It may come from an older Kinlens, another machine or another
    object store. Restore only files that you trust: they hold the database's own statements. Who was erased since the backup
    is back after it.
    """
    settings = read_settings()
    with as_messages(), running_database(settings) as dsn:
        report = asyncio.run(_restore(settings, dsn, file, force))
    counts = report.counts
    console.print(
        f"{file} of {report.manifest.created_at} (Kinlens {report.manifest.kinlens}): {counts.collections:,} collections,"
        f" {counts.persons:,} persons, {counts.faces:,} faces, {report.end.objects:,} pictures and crops",
        markup=False,
    )
    if report.end.objects < counts.objects:
        problems.print(f"{counts.objects - report.end.objects:,} pictures or crops were missing when the backup was made.")


async def _check(dsn: Dsn, collection_id: str | None, sample: int, reindex: bool) -> bool:
    sound = True
    async with open_database(dsn) as database:
        with progress_of("searching") as progress:
            reports = [one async for one in checks.check_all(database.dedicated, collection_id, sample, progress)]
        for report in reports:
            _describe(report)
            if reindex and report.reindex:
                with step(f"{report.collection.id}: build the index anew"):
                    await checks.reindex(database.dedicated, report.collection)
                with progress_of("searching") as progress:
                    async for again in checks.check_all(database.dedicated, report.collection.id, sample, progress):
                        _describe(again)
                        sound = sound and not again.findings
            else:
                sound = sound and not report.findings
    if not reports:
        console.print("There are no collections.")
    return sound


def _describe(report: CollectionReport) -> None:
    state, searched = report.state, report.collection.search_mode
    console.print(f"[bold]{report.collection.id}[/]: {state.faces:,} faces, {state.templates:,} templates; search: {searched}")
    if state.index_bytes is None:
        console.print(f"  no index; templates take {state.table_bytes / _MIB:,.1f} MiB, {state.dead:,} dead rows")
    else:
        each, fresh = (size / max(1, state.templates) for size in (state.index_bytes, report.fresh_index_bytes or 0))
        valid = "valid" if state.index_valid else "NOT valid"
        console.print(
            f"  index: {state.index_bytes / _MIB:,.1f} MiB, {valid}; {each:,.0f} bytes a template, a fresh one about"
            f" {fresh:,.0f}; {state.dead:,} dead rows"
        )
    if report.persons is not None:
        through = "" if report.index is None else f"; nearest templates by the index: {_recall(report.index)}"
        console.print(f"  of {report.sampled:,} faces, persons found by templates: {_recall(report.persons)}{through}")
    for finding in report.findings:
        remedy = " Remedy: --reindex." if finding.reindex else ""
        console.print(f"  [bold red]wrong:[/] {finding.detail}{remedy}")
    if not report.findings:
        console.print("  [green]sound[/]")


def _recall(recall: Recall) -> str:
    return f"recall@1 {recall.at_1:.3f}, recall@10 {recall.at_10:.3f}"


async def _collect_garbage(settings: Settings, dsn: Dsn, grace: timedelta, delete: bool, force: bool) -> Garbage:
    async with open_database(dsn) as database, _objects(settings) as objects:
        collector = GarbageCollector(database, objects)
        found = await collector.find_orphans(grace)
        await collector.find_dangling(found)
        console.print(
            f"{found.objects:,} stored objects, {found.rows:,} rows that name one; {found.orphans:,} objects nothing names"
            f" ({found.orphan_bytes / _MIB:,.1f} MiB), {found.young:,} younger ones, {found.unknown:,} of an unknown kind"
        )
        if found.dangling:
            tell(f"{found.dangling:,} rows name an object that is missing:", found.dangling_keys, found.dangling)
        if not delete:
            if found.orphans:
                tell("--delete would delete:", found.orphan_keys, found.orphans)
            return found
        if 2 * found.orphans > found.objects and not force:
            raise ConfigurationError(
                f"{found.orphans:,} of {found.objects:,} objects are named by nothing: is this their database? Nothing was"
                " deleted; --force does."
            )
        with step("delete"):
            deleted = (await collector.find_orphans(grace, delete=True)).deleted
            swept = await Eraser(database, objects).sweep()
        console.print(f"{deleted:,} objects deleted, and {swept:,} that deletions had left for later")
        return found


async def _back_up(settings: Settings, dsn: Dsn, file: Path) -> BackupReport:
    async with open_database(dsn) as database, _objects(settings) as objects:
        with progress_of("pictures and crops") as progress:
            return await back_up(database, dsn, objects, file, progress)


async def _restore(settings: Settings, dsn: Dsn, file: Path, force: bool) -> RestoreReport:
    async with open_database(dsn) as database, _objects(settings) as objects:
        with bars("verifying, MiB", "pictures and crops") as (verifying, restoring):

            def verified(position: int, size: int) -> None:
                verifying(position // _MIB, size // _MIB)

            return await restore(database, dsn, objects, file, force=force, verifying=verified, restoring=restoring)


@asynccontextmanager
async def _objects(settings: Settings) -> AsyncIterator[ObjectStore]:
    objects = object_store(settings)
    try:
        await objects.prepare()
        yield objects
    finally:
        await objects.close()
