"""The command `kinlens import`: pictures through the API of a running instance, vectors into the database."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import httpx
import typer
from pydantic import TypeAdapter

from config.settings import Settings
from serve_app.api.person_fields import CollectionId, ExternalId
from serve_app.backends import open_database, running_database
from serve_app.commands.common import as_messages, console, read_settings, step
from serve_app.commands.progress import progress_of
from serve_app.commands.reports import report_to, tell_end
from serve_app.errors import ConfigurationError, NotFound
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.imports.import_sources import open_source
from serve_app.imports.importing import STATUSES, Importer, ImportOptions, Outcome, Summary
from serve_app.keys import load_or_create_api_key
from serve_app.service import Address
from serve_app.services.vector_import import LoadedVectors, load_vectors, read_vectors
from serve_app.storage import collections
from serve_app.storage.database import Database, Dsn

app = typer.Typer()

REPORT = ("file", "external_id", "status", "face_id", "code", "detail")
"""Columns: the fields of an Outcome."""


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
    with as_messages(), report_to(report, REPORT, _untold) as record:
        if source.suffix.lower() == ".npz":
            complete = _import_vectors(settings, source, collection, model, create, record)
        else:
            options = ImportOptions(collection, create, face, review, workers, give_up_after)
            address, key = service_of(settings, url, api_key)
            complete = _import_pictures(address, key, source, options, record)
    if not complete:
        raise typer.Exit(1)


def service_of(settings: Settings, url: str | None, api_key: str | None) -> tuple[str, str]:
    """Address and key of the service. This machine's own key is sent to this machine only."""
    own = Address(settings.host, settings.port).url
    address = (url or own).rstrip("/")
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise ConfigurationError(f"--url {address!r} is not an address like {own}.")
    if api_key is not None:
        return address, api_key
    if settings.api_key is None and address != own and not is_loopback(address):
        raise ConfigurationError(f"Which key does {address} take? Give --api-key, or set API_KEY.")
    return address, load_or_create_api_key(settings).value


def client_of(address: str, key: str) -> httpx.AsyncClient:
    # Not through a proxy to this machine itself.
    return httpx.AsyncClient(base_url=address, headers={"Authorization": f"Bearer {key}"}, trust_env=not is_loopback(address))


def is_loopback(url: str) -> bool:
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
        with progress_of(f"{total:,} files") as progress:

            def recorded(outcome: Outcome) -> None:
                nonlocal done
                done += 1
                record(outcome)
                progress(done, total)

            async with client_of(address, key) as client:
                return await Importer(client, options, recorded).run(source)

    begun = time.monotonic()
    summary = asyncio.run(run())
    _summarize(summary, time.monotonic() - begun)
    return summary.complete


def _summarize(summary: Summary, took_s: float) -> None:
    counts = ", ".join(f"{summary.statuses[status]:,} {status}" for status in STATUSES)
    rate = sum(summary.statuses.values()) / max(took_s, 1e-3)
    console.print(f"{counts} in {took_s:,.1f} s ({rate:,.1f} files/s)")
    told = (
        (f"{status}{' with a warning' if status == 'enrolled' else ''}: {code}", count)
        for (status, code), count in summary.reasons.most_common()
    )
    tell_end(told, summary.gave_up, "enrolled")


def _import_vectors(
    settings: Settings, path: Path, collection_id: str, model: str | None, create: bool, record: Callable[[Outcome], None]
) -> bool:
    if model is None:
        raise ConfigurationError("Vectors need --model: embeddings of different models cannot be compared.")
    external_id: TypeAdapter[str] = TypeAdapter(ExternalId)

    async def run(dsn: Dsn) -> LoadedVectors:
        async with open_database(dsn) as database:
            with step("read the vectors"):
                collection = await _collection_for(database, collection_id, model, create)
                vectors = read_vectors(path, collection.contract.dim, external_id.validate_python)
            total = len(vectors.order)
            with progress_of("faces") as progress:

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


def _untold(_: Outcome) -> None:
    """Of thousands of files, the sums say enough."""
