"""`kinlens switch-model`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from config.settings import Settings
from serve_app.backends import object_store, open_database, running_database
from serve_app.commands.common import as_messages, console, problems, read_settings, step
from serve_app.commands.progress import progress_of, tell
from serve_app.errors import ConfigurationError
from serve_app.identity.people import Collection, EmbeddingContract
from serve_app.services import model_change
from serve_app.services.model_change import CropRecognizer, Drops, ModelChange, Switched
from serve_app.storage import maintenance
from serve_app.storage.database import Database, Dsn

_THREADS = 2


def switch_model(
    collection: Annotated[str, typer.Argument(help="Its id.")],
    pack: Annotated[str | None, typer.Option(help="The pack to switch to. Default: MODEL_PACK.")] = None,
    drop_vectors: Annotated[
        bool, typer.Option("--drop-vectors", help="Delete faces that came as vectors: no other model can make them again.")
    ] = False,
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Delete faces whose stored crop is missing or damaged.")
    ] = False,
    forget_old: Annotated[
        bool, typer.Option("--forget-old", help="Instead: drop what models that are not in use made of the faces.")
    ] = False,
) -> None:
    """Embed all faces of a collection again with another pack's recognizer, and make that its model.

    Faces keep their ids, their persons and whatever was decided of them. The service may run meanwhile, with the old pack: it
    serves the collection until the very end. Interrupted, it goes on where it was when run again. The embeddings of the old
    model are kept: switching back takes moments. Exit code 1 when nothing was switched.
    """
    settings = read_settings()
    if forget_old:
        if pack is not None or drop_vectors or drop_damaged:
            raise ConfigurationError("--forget-old goes with no other option.")
        with as_messages(), running_database(settings) as dsn:
            kept, count = asyncio.run(_forget(dsn, collection))
        console.print(f"{kept.id} holds embeddings of {kept.contract.model}; those of {count} other models were dropped.")
        return
    name, recognizer, contract = _load(settings, pack)
    with as_messages(), running_database(settings) as dsn:
        outcome = asyncio.run(_switch(settings, dsn, collection, recognizer, contract, Drops(drop_vectors, drop_damaged)))
    _describe(outcome, name)
    if not outcome.done:
        raise typer.Exit(1)


def _load(settings: Settings, pack: str | None) -> tuple[str, CropRecognizer, EmbeddingContract]:
    """Raises ConfigurationError."""
    from deployments.models.crop_embedding import CropEmbedding
    from deployments.models.loading import load_recognizer
    from deployments.models.packs import resolve
    from serve_app.app import AppArgs, pack_location

    location = pack_location(settings, AppArgs(model_pack=pack))
    with step(f"model pack {location.name}: find, verify, load"):
        found = resolve(location)
        recognizer = CropEmbedding(load_recognizer(found, location.device, _THREADS))
    spec = found.spec.recognizer
    return location.name, recognizer, EmbeddingContract(spec.embedding_model, spec.dim, spec.preprocessing)


async def _switch(
    settings: Settings, dsn: Dsn, collection_id: str, recognizer: CropRecognizer, contract: EmbeddingContract, drops: Drops
) -> Switched:
    objects = object_store(settings)
    try:
        await objects.prepare()
        async with open_database(dsn) as database:
            with progress_of("crops") as progress:
                outcome = await ModelChange(database, objects, recognizer, contract).run(collection_id, drops, progress)
            if outcome.done:
                with step("search: choose how"):
                    await _maintain(database, outcome.collection)
            return outcome
    finally:
        await objects.close()


async def _maintain(database: Database, collection: Collection) -> None:
    """Now, and not when the service finds the time: a large collection is slow to search without its index."""
    async with database.dedicated() as connection, maintenance.only_one(connection) as mine:
        if mine:
            await maintenance.choose_search_mode(connection, collection)


async def _forget(dsn: Dsn, collection_id: str) -> tuple[Collection, int]:
    async with open_database(dsn) as database:
        return await model_change.forget_others(database, collection_id)


def _describe(outcome: Switched, pack: str) -> None:
    collection = outcome.collection
    if outcome.damaged:
        tell(f"{outcome.damaged:,} crops are missing or damaged:", outcome.keys, outcome.damaged)
    if not outcome.done:
        if outcome.vectors:
            problems.print(
                f"{outcome.vectors:,} faces came as vectors: without a picture, no other model can make them again."
                " --drop-vectors deletes them."
            )
        if outcome.damaged:
            problems.print("Restore them from a backup, or let --drop-damaged delete these faces.")
        problems.print(f"{collection.id} stays with {collection.contract.model}.", markup=False)
        return
    deleted = outcome.vectors + outcome.damaged
    console.print(
        f"{collection.id} holds embeddings of {collection.contract.model} now: {outcome.embedded:,} faces embedded,"
        f" {outcome.templates:,} templates, {deleted:,} faces deleted",
        markup=False,
    )
    console.print("What is left to do:")
    console.print(f"  set MODEL_PACK={pack} and start the service anew; with the old pack it answers 409 for this collection",
                  markup=False)  # fmt: skip
    console.print("  POST /api/v1/index/faces-cluster groups the faces of the library by the new model")
    console.print("  POST /api/v1/index/faces looks for faces again with the pack's detector, if that is another")
    console.print(f"  kinlens switch-model {collection.id} --forget-old, when you are sure to stay", markup=False)
