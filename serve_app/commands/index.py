"""The command `kinlens index`: many files into the photo library, past the job system."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from pydantic import TypeAdapter
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config.settings import SECRET_SETTINGS, Settings
from serve_app.api.person_fields import CollectionId
from serve_app.backends import object_store, open_database, prepare_objects, running_database
from serve_app.bulk.files import BucketPlace, FolderPlace, Outcome, Place, Source, SourceFile, Status, Unlisted
from serve_app.bulk.run import BulkRun, Pool, RunOptions, Summary
from serve_app.bulk.wiring import open_source
from serve_app.commands.common import as_messages, console, problems, read_settings, shown, step
from serve_app.environment import RAY_ENVIRONMENT
from serve_app.errors import ConfigurationError, KinlensError
from serve_app.gallery import contract_of
from serve_app.identity.people import EmbeddingContract
from serve_app.jobs import JobFilter, JobKind, JobState
from serve_app.processes import StopRequests
from serve_app.services.collections import Collections, check_contract
from serve_app.services.erasure import Eraser
from serve_app.services.jobs import Jobs
from serve_app.services.photos import COLLECTION_NAME
from serve_app.services.writing import Once
from serve_app.storage.database import Dsn

if TYPE_CHECKING:
    from deployments.models.packs import PackLocation
    from serve_app.services.models import ModelInfo

_LINE_EVERY_S = 10.0
_MOST_LISTED = 20
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's own ports listen on loopback. (The name is of where this is its default.)"""
_INTERRUPTED = 130


def index(
    source: Annotated[str, typer.Option(help="A folder, or s3://BUCKET/FOLDER.")],
    workers: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Default: one a CPU, of a cluster one a free CPU.")
    ] = None,
    collection: Annotated[str | None, typer.Option(help="Id of the library. Default: LIBRARY_COLLECTION.")] = None,
    pack: Annotated[str | None, typer.Option(help="Default: MODEL_PACK.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster to join, or auto. Default: one of its own, on loopback."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="host:port or https://host of the S3 server. Default: MINIO_ENDPOINT.")
    ] = None,
    region: Annotated[str, typer.Option(help="Of --endpoint.")] = "us-east-1",
    failures: Annotated[Path | None, typer.Option(help="File to write: a line of JSON for each file that failed.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read this many files at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list: how many files are new, how many known.")] = False,
    group: Annotated[bool, typer.Option("--group/--no-group", help="Ask for the faces to be grouped at the end.")] = True,
    give_up_after: Annotated[float, typer.Option(min=1, help="Seconds without anything coming about.")] = 300,
) -> None:
    """Make photos with their faces of all pictures below a folder or in a bucket, with all cores and without the job queue.

    The service may run meanwhile, or not. Run it again after whatever broke off, kill -9 too: files that are known by their
    size and time (or ETag) are not read again, pictures that the library has are not kept twice.

    Exit code 0: every picture is in. 1: some failed, or it gave up; 130: it was interrupted. Raw photos, videos and what is no
    picture are counted as skipped, and no fault.
    """
    settings = read_settings()
    library = _library(collection or settings.library_collection)
    place = place_of(source, endpoint or None, region)
    address = address or None
    prepare_ray(address)
    opened = open_source(place, settings)
    with as_messages(), _failures_to(failures) as failed, running_database(settings) as dsn:
        if dry_run:
            summary = asyncio.run(_run(None, opened, dsn, RunOptions(library), failed))
            _describe(summary, None)
            console.print(f"{summary.new:,} files would be read")
        else:
            summary = _index(settings, library, place, opened, dsn, pack, device, address, workers,
                             RunOptions(library, limit, give_up_after), failed, group)  # fmt: skip
    opened.close()
    if summary.stopped:
        raise typer.Exit(_INTERRUPTED)
    if not summary.complete:
        raise typer.Exit(1)


def _index(
    settings: Settings,
    library: str,
    place: Place,
    source: Source,
    dsn: Dsn,
    pack: str | None,
    device: str,
    address: str | None,
    workers: int | None,
    options: RunOptions,
    failed: Callable[[Outcome], None],
    group: bool,
) -> Summary:
    from deployments.bulk import RayPool

    with step("models: find, verify, prepare"):
        location, model, automatic = models_of(settings, pack, device)
    prepare_objects(settings)
    asyncio.run(_check_library(settings, dsn, library, contract_of(model)))
    public = settings.model_copy(update=dict.fromkeys(SECRET_SETTINGS))
    pool = RayPool(address, workers, (public, model, location, place, library, automatic))
    with step("workers: start"):
        pool.__enter__()
    begun = time.monotonic()
    try:
        summary = asyncio.run(_run(pool, source, dsn, options, failed))
    finally:
        pool.__exit__(None, None, None)
    _describe(summary, time.monotonic() - begun)
    if group and summary.faces:
        asyncio.run(_ask_for_groups(dsn, settings, library, contract_of(model)))
    return summary


async def _run(pool: Pool | None, source: Source, dsn: Dsn, options: RunOptions, failed: Callable[[Outcome], None]) -> Summary:
    async with open_database(dsn) as database:
        told = _Progress()

        def record(outcome: Outcome) -> None:
            told.add(outcome)
            if outcome.status is Status.FAILED:
                failed(outcome)

        run = BulkRun(pool, source, database, options, record)
        loop = asyncio.get_running_loop()
        requests = StopRequests()

        def interrupt() -> None:
            if not requests.signalled():
                return
            if requests.count > 1:
                # Whoever asks twice does not want to wait. What is lost is found by the next run.
                os._exit(_INTERRUPTED)
            problems.print("stopping: what was begun is brought to its end; once more ends at once")
            run.stop()

        # After Ray, which sets handlers of its own.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        counting = asyncio.create_task(asyncio.to_thread(told.count, source))
        try:
            with told.shown():
                return await run.run()
        finally:
            told.over = True
            await counting
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def prepare_ray(address: str | None) -> None:
    """Before anything imports Ray. `address`: None for a Ray of our own."""
    for name, value in (RAY_ENVIRONMENT | (_LOOPBACK if address is None else {})).items():
        os.environ.setdefault(name, value)


class _Progress:
    """Of a listing whose length is found out meanwhile. A line on a terminal that changes, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.over = False
        self._begun = self._told = time.monotonic()
        self._done = self._read = self._failed = self._faces = 0
        self._listed, self._counted = 0, False
        self._line: Callable[[str], None] | None = None

    def count(self, source: Source) -> None:
        """On a thread of its own: how many files there are."""
        try:
            for one in source.files():
                if self.over:
                    return
                self._listed += isinstance(one, (SourceFile, Unlisted))
        except KinlensError:
            # The run itself tells why.
            return
        self._counted = True

    def add(self, outcome: Outcome) -> None:
        self._done += 1
        self._read += outcome.status is not Status.KNOWN
        self._failed += outcome.status is Status.FAILED
        self._faces += outcome.faces
        now = time.monotonic()
        if self._line is not None:
            self._line(self.text(now))
        elif now - self._told >= _LINE_EVERY_S:
            self._told = now
            problems.print(f"  {self.text(now)}")

    def text(self, now: float) -> str:
        rate = self._read / max(now - self._begun, 1e-3)
        more = "" if self._counted else " or more"
        text = f"{self._done:,} of {max(self._listed, self._done):,}{more} files, {rate:,.1f}/s, {self._faces:,} faces"
        if self._failed:
            text += f", {self._failed:,} failed"
        if self._counted and rate > 0:
            left_s = max(0, self._listed - self._done) / rate
            text += f", {int(left_s // 3600)}:{int(left_s % 3600 // 60):02d}:{int(left_s % 60):02d} left"
        return text

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not problems.is_terminal:
            yield
            return
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=problems, transient=True) as progress:
            task = progress.add_task("listing", total=None)
            self._line = lambda text: progress.update(task, description=text)
            yield
            self._line = None


@contextmanager
def _failures_to(path: Path | None) -> Iterator[Callable[[Outcome], None]]:
    """A line of JSON for each file, as soon as it is known; without a path, the first few go to the terminal."""
    if path is None:
        told = 0

        def tell(outcome: Outcome) -> None:
            nonlocal told
            told += 1
            if told <= _MOST_LISTED:
                problems.print(f"  {shown(outcome.name)}: {outcome.code}: {outcome.detail}", markup=False)
            elif told == _MOST_LISTED + 1:
                problems.print("  and more; --failures FILE lists them all")

        yield tell
        return
    try:
        stream = path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError as error:
        raise ConfigurationError(f"--failures {path} cannot be written: {error.strerror}.") from error
    with stream:

        def write(outcome: Outcome) -> None:
            stream.write(json.dumps({"file": outcome.name, "code": outcome.code, "detail": outcome.detail}) + "\n")

        yield write


def _describe(summary: Summary, took_s: float | None) -> None:
    counts = ", ".join(f"{summary.statuses[status]:,} {status}" for status in Status)
    read = summary.seen - summary.statuses[Status.KNOWN]
    rate = "" if took_s is None else f" in {took_s:,.1f} s ({read / max(took_s, 1e-3):,.1f} files/s), {summary.faces:,} faces"
    console.print(f"{counts}{rate}")
    for (status, code), count in summary.reasons.most_common():
        console.print(f"  {status}: {code} {count:,}", markup=False)
    if summary.gave_up is not None:
        problems.print(f"{summary.gave_up} What is indexed stays; run it again for the rest.", markup=False)
    if summary.stopped:
        problems.print("Interrupted. What is indexed stays; run it again for the rest.")


def _library(collection: str) -> str:
    try:
        return TypeAdapter[str](CollectionId).validate_python(collection)
    except ValueError as error:
        raise ConfigurationError(f"--collection {collection!r}: lower case letters, digits, - and _ only.") from error


def place_of(source: str, endpoint: str | None, region: str) -> Place:
    """Raises ConfigurationError."""
    if not source.startswith("s3://"):
        if endpoint is not None:
            raise ConfigurationError("--endpoint goes with s3://BUCKET only.")
        root = Path(source).expanduser().absolute()
        if not root.is_dir():
            raise ConfigurationError(f"--source {source}: there is no such folder.")
        return FolderPlace(root)
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigurationError("--source names no bucket: s3://BUCKET/FOLDER.")
    secure = False
    if endpoint is not None and "://" in endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path.strip("/"):
            raise ConfigurationError("--endpoint is not host:port, http://host:port or https://host.")
        secure, endpoint = parts.scheme == "https", parts.netloc
    return BucketPlace(bucket, prefix, endpoint, secure, region)


def models_of(settings: Settings, pack: str | None, device: str) -> tuple[PackLocation, ModelInfo, tuple[JobKind, ...]]:
    """As the application would load them; and the jobs that an uploaded photo becomes an item of, beside the one for its
    faces. Raises ConfigurationError."""
    from deployments.models.attribute_packs import resolve_analysis
    from deployments.models.packs import resolve
    from deployments.models.semantic_packs import SemanticPack, resolve_semantic
    from deployments.models.session import Device, providers
    from serve_app.app import AppArgs, analysis_location, model_info, pack_location, semantic_location

    if device not in tuple(Device):
        raise ConfigurationError(f"--device {device!r} is not one of {', '.join(Device)}.")
    args = AppArgs(model_pack=pack, device=Device(device))
    providers(args.device)
    location = pack_location(settings, args)
    found = resolve(location)
    model = model_info(found, resolve_analysis(analysis_location(settings, args), found), settings, args.device)
    semantic = resolve_semantic(semantic_location(settings, args))
    automatic = (JobKind.EMBEDDINGS,) if isinstance(semantic, SemanticPack) and settings.index_uploads else ()
    return location, model, automatic


async def _check_library(settings: Settings, dsn: Dsn, collection_id: str, contract: EmbeddingContract) -> None:
    """Made where it is not there. Raises EmbeddingModelMismatch, DatabaseUnavailable."""
    objects = object_store(settings)
    try:
        async with open_database(dsn) as database:
            library = Collections(database, Eraser(database, objects), contract)
            check_contract(await library.ensure(collection_id, COLLECTION_NAME), contract)
    finally:
        await objects.close()


async def _ask_for_groups(dsn: Dsn, settings: Settings, collection_id: str, contract: EmbeddingContract) -> None:
    """The job that `POST /index/faces-cluster` makes, unless it waits already. A running instance works it off, or the next
    one."""
    objects = object_store(settings)
    try:
        async with open_database(dsn) as database:
            library = Collections(database, Eraser(database, objects), contract)
            asked = Jobs(database, library, collection_id, {})
            waiting = await asked.page(JobFilter(states=(JobState.QUEUED,), kinds=(JobKind.CLUSTER,)), None, 200)
            if not any(one.collection_id == collection_id for one in waiting):
                job = await asked.of_library(JobKind.CLUSTER, Once(None, lambda _: (200, b"")))
                console.print(f"grouping: job {job.id}; a running instance works it off")
    finally:
        await objects.close()
