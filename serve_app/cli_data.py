"""The commands for what is stored: `db`, `gc`, `backup`, `restore`, `import`."""

from __future__ import annotations

import asyncio
import csv
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import httpx
import typer
from pydantic import TypeAdapter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from config.settings import Settings
from serve_app.api.person_fields import CollectionId, ExternalId
from serve_app.backends import object_store, running_database
from serve_app.backup import BackupReport, RestoreReport, back_up, restore
from serve_app.cli_common import as_messages, console, problems, read_settings, step
from serve_app.errors import ConfigurationError, NotFound
from serve_app.import_sources import open_source
from serve_app.importing import STATUSES, Importer, ImportOptions, Outcome, Summary
from serve_app.keys import load_or_create_api_key
from serve_app.people import Collection, EmbeddingContract
from serve_app.service import Address
from serve_app.services import checks
from serve_app.services.checks import CollectionReport, Recall
from serve_app.services.erasure import Eraser
from serve_app.services.garbage import Garbage, GarbageCollector
from serve_app.services.vector_import import LoadedVectors, load_vectors, read_vectors
from serve_app.storage import collections
from serve_app.storage.database import Database, Dsn
from serve_app.storage.objects import ObjectStore

app = typer.Typer()
db_app = typer.Typer(help="The database: its schema, and whether its rows and indexes are sound.", no_args_is_help=True)
app.add_typer(db_app, name="db")

_MIB = 1 << 20
_CONNECTIONS = 4
_LINE_EVERY_S = 10.0
"""Of progress, where there is no terminal."""


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
        _tell(f"{report.missing:,} pictures or crops are missing in the object store:", report.missing_keys, report.missing)
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


@app.command("import")
def import_faces(
    source: Annotated[Path, typer.Argument(help="A folder with a folder a person, a .csv, or an .npz of vectors.")],
    collection: Annotated[str, typer.Option(help="Id of the collection.")],
    url: Annotated[str | None, typer.Option(help="Address of the service. Default: HOST and PORT of the settings.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="KINLENS_API_KEY", help="Default: API_KEY, or the key this machine keeps.")
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Make the collection if there is none.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = 4,
    face: Annotated[
        Literal["only", "largest"], typer.Option(help="Refuse a picture with several faces, or take its largest.")
    ] = "only",
    review: Annotated[bool, typer.Option("--review/--no-review", help="Refuse faces that are too poor to recognise.")] = True,
    report: Annotated[Path | None, typer.Option(help="CSV to write: each file, what became of it, and why.")] = None,
    give_up_after: Annotated[float, typer.Option(min=1, help="Seconds without any answer before it ends.")] = 300,
    model: Annotated[str | None, typer.Option(help="For .npz: the embedding model that the vectors come from.")] = None,
) -> None:
    """Enrol many faces. Run it again after whatever broke off: what is there already is only looked up.

    A folder: SOURCE/PERSON/anything.jpg; PERSON becomes the external_id and name. A CSV: the columns file and external_id
    (or person), and perhaps name, taken_at and metadata (JSON); paths are relative to it. Both go to the running service,
    which keeps the pictures.

    An .npz: the arrays embeddings (N, D) and persons (N) go straight into the database of the settings. Only persons that
    are not there yet are made; the others are left as they are and told of.

    Exit code 0: every picture is enrolled, or was already. 1: some were refused or failed, or the service did not answer any
    more; the report says which. Hidden files and what is no picture are left out, reported as skipped, and no fault.
    """
    settings = read_settings()
    try:
        TypeAdapter[str](CollectionId).validate_python(collection)
    except ValueError as error:
        raise ConfigurationError(f"--collection {collection!r}: lower case letters, digits, - and _ only.") from error
    with as_messages(), _report(report) as record:
        if source.suffix.lower() == ".npz":
            complete = _import_vectors(settings, source, collection, model, create, record)
        else:
            options = ImportOptions(collection, create, face, review, workers, give_up_after)
            address, key = _target(settings, url, api_key)
            complete = _import_pictures(address, key, source, options, record)
    if not complete:
        raise typer.Exit(1)


async def _check(dsn: Dsn, collection_id: str | None, sample: int, reindex: bool) -> bool:
    sound = True
    async with _database(dsn) as database:
        with _progress("searching") as progress:
            reports = [one async for one in checks.check_all(database.dedicated, collection_id, sample, progress)]
        for report in reports:
            _describe(report)
            if reindex and report.reindex:
                with step(f"{report.collection.id}: build the index anew"):
                    await checks.reindex(database.dedicated, report.collection)
                with _progress("searching") as progress:
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
    async with _database(dsn) as database, _objects(settings) as objects:
        collector = GarbageCollector(database, objects)
        found = await collector.find_orphans(grace)
        await collector.find_dangling(found)
        console.print(
            f"{found.objects:,} stored objects, {found.rows:,} rows that name one; {found.orphans:,} objects nothing names"
            f" ({found.orphan_bytes / _MIB:,.1f} MiB), {found.young:,} younger ones, {found.unknown:,} of an unknown kind"
        )
        if found.dangling:
            _tell(f"{found.dangling:,} rows name an object that is missing:", found.dangling_keys, found.dangling)
        if not delete:
            if found.orphans:
                _tell("--delete would delete:", found.orphan_keys, found.orphans)
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
    async with _database(dsn) as database, _objects(settings) as objects:
        with _progress("pictures and crops") as progress:
            return await back_up(database, dsn, objects, file, progress)


async def _restore(settings: Settings, dsn: Dsn, file: Path, force: bool) -> RestoreReport:
    async with _database(dsn) as database, _objects(settings) as objects:
        with _bars("verifying, MiB", "pictures and crops") as (verifying, restoring):

            def verified(position: int, size: int) -> None:
                verifying(position // _MIB, size // _MIB)

            return await restore(database, dsn, objects, file, force=force, verifying=verified, restoring=restoring)


def _target(settings: Settings, url: str | None, api_key: str | None) -> tuple[str, str]:
    """Address and key of the service. This machine's own key is sent to this machine only."""
    own = Address(settings.host, settings.port).url
    address = (url or own).rstrip("/")
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise ConfigurationError(f"--url {address!r} is not an address like {own}.")
    if api_key is not None:
        return address, api_key
    if settings.api_key is None and address != own and not _is_loopback(address):
        raise ConfigurationError(f"Which key does {address} take? Give --api-key, or set API_KEY.")
    return address, load_or_create_api_key(settings).value


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _import_pictures(address: str, key: str, path: Path, options: ImportOptions, record: Callable[[Outcome], None]) -> bool:
    source = open_source(path)
    total = sum(1 for _ in source.entries())

    async def run() -> Summary:
        done = 0
        with _progress(f"{total:,} files") as progress:

            def recorded(outcome: Outcome) -> None:
                nonlocal done
                done += 1
                record(outcome)
                progress(done, total)

            # Not through a proxy to this machine itself.
            async with httpx.AsyncClient(
                base_url=address, headers={"Authorization": f"Bearer {key}"}, trust_env=not _is_loopback(address)
            ) as client:
                return await Importer(client, options, recorded).run(source)

    begun = time.monotonic()
    summary = asyncio.run(run())
    _summarize(summary, time.monotonic() - begun)
    return summary.complete


def _summarize(summary: Summary, took_s: float) -> None:
    counts = ", ".join(f"{summary.statuses[status]:,} {status}" for status in STATUSES)
    rate = sum(summary.statuses.values()) / max(took_s, 1e-3)
    console.print(f"{counts} in {took_s:,.1f} s ({rate:,.1f} files/s)")
    for (status, code), count in summary.reasons.most_common():
        console.print(f"  {status}{' with a warning' if status == 'enrolled' else ''}: {code} {count:,}", markup=False)
    if summary.gave_up is not None:
        problems.print(f"{summary.gave_up} What is enrolled stays; run it again for the rest.", markup=False)


def _import_vectors(
    settings: Settings, path: Path, collection_id: str, model: str | None, create: bool, record: Callable[[Outcome], None]
) -> bool:
    if model is None:
        raise ConfigurationError("Vectors need --model: embeddings of different models cannot be compared.")
    external_id: TypeAdapter[str] = TypeAdapter(ExternalId)

    async def run(dsn: Dsn) -> LoadedVectors:
        async with _database(dsn) as database:
            with step("read the vectors"):
                collection = await _collection_for(database, collection_id, model, create)
                vectors = read_vectors(path, collection.contract.dim, external_id.validate_python)
            total = len(vectors.order)
            with _progress("faces") as progress:

                def present(name: str) -> None:
                    detail = "The person is there already; vectors are loaded for new persons only."
                    record(Outcome(path.name, name, "exists", code="already_exists", detail=detail))

                return await load_vectors(database, collection, vectors, lambda done: progress(done, total), present)

    begun = time.monotonic()
    with running_database(settings) as dsn:
        loaded = asyncio.run(run(dsn))
    took_s = time.monotonic() - begun
    console.print(
        f"{loaded.persons:,} persons with {loaded.faces:,} faces in {took_s:,.1f} s ({loaded.faces / took_s:,.0f} faces/s);"
        f" {loaded.present:,} persons were there already and are as they were; search: {loaded.search_mode}"
    )
    return True


async def _collection_for(database: Database, collection_id: str, model: str, create: bool) -> Collection:
    """Raises ConfigurationError when it is not there, or holds embeddings of another model."""
    try:
        async with database.connection() as connection:
            found = await collections.get(connection, collection_id)
    except NotFound as error:
        if not create:
            raise ConfigurationError(f"{error.detail} --create makes it.") from error
        contract = _known_contract(model)
        found = await database.run(lambda tx: collections.create(tx, collection_id, "", {}, contract))
    if found.contract.model != model:
        raise ConfigurationError(f"{collection_id!r} holds embeddings of {found.contract.model!r}, not of {model!r}.")
    return found


def _known_contract(model: str) -> EmbeddingContract:
    from deployments.models.packs import pack_specs

    for spec in pack_specs().values():
        if spec.recognizer.embedding_model == model:
            return EmbeddingContract(model, spec.recognizer.dim, spec.recognizer.preprocessing)
    raise ConfigurationError(
        f"No pack of `kinlens models list` has the embedding model {model!r}; make the collection through the API, with the"
        " pack loaded."
    )


@asynccontextmanager
async def _database(dsn: Dsn) -> AsyncIterator[Database]:
    database = Database(dsn, _CONNECTIONS)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _objects(settings: Settings) -> AsyncIterator[ObjectStore]:
    objects = object_store(settings)
    try:
        await objects.prepare()
        yield objects
    finally:
        await objects.close()


@contextmanager
def _report(path: Path | None) -> Iterator[Callable[[Outcome], None]]:
    """A CSV that has a line for each outcome as soon as it is known."""
    if path is None:
        yield lambda _: None
        return
    try:
        stream = path.open("w", encoding="utf-8", newline="", buffering=1)
    except OSError as error:
        raise ConfigurationError(f"--report {path} cannot be written: {error.strerror}.") from error
    with stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "external_id", "status", "face_id", "code", "detail"))
        yield lambda one: writer.writerow((one.shown, one.external_id, one.status, one.face_id, one.code, one.detail)) and None


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    with _bars(title) as (bar,):
        yield bar


@contextmanager
def _bars(*titles: str) -> Iterator[list[Callable[[int, int], None]]]:
    """A bar for each title, with rate and time left, on a terminal; a line now and then elsewhere."""
    if not problems.is_terminal:
        yield [_lines(title) for title in titles]
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(),
               TextColumn("{task.fields[rate]}"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=problems, transient=True) as progress:
        yield [_bar(progress, title) for title in titles]


def _bar(progress: Progress, title: str) -> Callable[[int, int], None]:
    begun = time.monotonic()
    task = progress.add_task(title, total=None, visible=False, rate="")

    def update(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - begun, 1e-3)
        progress.update(task, completed=done, total=total, visible=True, rate=f"{rate:,.1f}/s")

    return update


def _lines(title: str) -> Callable[[int, int], None]:
    begun = told = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _LINE_EVERY_S:
            told = now
            problems.print(f"  {title}: {done:,} of {total:,} ({done / (now - begun):,.1f}/s)")

    return line


def _tell(title: str, keys: list[str] | tuple[str, ...], count: int) -> None:
    problems.print(title, markup=False)
    for key in keys:
        problems.print(f"  {key}", markup=False)
    if count > len(keys):
        problems.print(f"  and {count - len(keys):,} more")
