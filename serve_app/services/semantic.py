"""Photos by what they show: their embeddings by an image-text model, made as a job, and searched by words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from uuid import UUID

from serve_app.errors import RETRY_AFTER_S, InvalidRequest, ModelUnavailable, NotFound, Overloaded
from serve_app.faces import FloatArray
from serve_app.identity.people import Collection
from serve_app.photos import Photo
from serve_app.semantic import HOW_TO, NoSemanticModel, SemanticModel
from serve_app.services.pipeline import when_free
from serve_app.services.work import WorkItem
from serve_app.storage import collections, photo_embeddings, photos
from serve_app.storage.database import Connection, Database
from serve_app.storage.objects import ObjectMissing, ObjectStore

ERASED = "erased"
INDEXED = "indexed"
"""Why an item is skipped: its photo is gone; it has an embedding of this model (`only_new`)."""

_TEXT_TIMEOUT_S = 5.0
"""A text is encoded in a tenth of a second. A search rather goes on without than waits for a replica to start again."""

_Nearest = Callable[[Connection, Collection, str, FloatArray], Awaitable[list[tuple[UUID, float]]]]


class SemanticEncoder(Protocol):
    """Both raise CapacityError and PartUnavailable, and answer (D,) float32 of unit norm, comparable with one another."""

    async def encode_image(self, image: bytes) -> FloatArray:
        """Raises ImageError for bytes that are no readable picture."""
        ...

    async def encode_text(self, text: str) -> FloatArray: ...


class SemanticIndex:
    """`model`: the one that is loaded, or why there is none; `encoder` runs it. Every method that asks the database raises
    DatabaseUnavailable and Overloaded."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        model: SemanticModel | NoSemanticModel,
        encoder: SemanticEncoder | None,
    ) -> None:
        self._database = database
        self._objects = objects
        self._model = model
        self._encoder = encoder

    @property
    def available(self) -> bool:
        """Whether a model is loaded. It may be out of order all the same."""
        return self._encoder is not None and isinstance(self._model, SemanticModel)

    def check(self) -> None:
        """Raises ModelUnavailable, with what the operator can do, where no model is loaded."""
        self._loaded()

    async def run(self, item: WorkItem) -> None:
        """An ItemHandler; the subject is the id of a photo. Its embedding takes the place of the one before.

        Raises ModelUnavailable, ImageError, CapacityError, PartUnavailable, ItemWithdrawn; NotFound for a photo whose bytes
        are lost; InvalidRequest for a subject that is no id.
        """
        model, encoder = self._loaded()
        photo_id = _photo_id(item.subject)
        found = await self._open(item.collection_id, photo_id)
        if found is None:
            await self._skip(item, ERASED)
            return
        collection, photo = found
        if item.options.get("only_new") is True and await self._has(collection, model, photo_id):
            await self._skip(item, INDEXED)
            return
        try:
            original = await self._objects.get(photo.image_key)
        except ObjectMissing as error:
            if await self._open(item.collection_id, photo_id) is None:
                await self._skip(item, ERASED)
                return
            raise NotFound("The photo's picture is missing in the object store.", photo_id=str(photo_id)) from error
        embedding = await when_free(lambda: encoder.encode_image(original))

        async def keep(tx: Connection) -> None:
            try:
                locked = await collections.lock(tx, item.collection_id)
                await photos.lock_one(tx, locked, photo_id)
            except NotFound:
                await item.skip(tx, ERASED)
                return
            await photo_embeddings.keep(tx, locked, model.embedding_model, photo_id, embedding)
            await item.finish(tx)

        await self._database.run(keep)

    async def rank(self, collection_id: str, text: str, limit: int) -> list[UUID] | None:
        """Up to `limit` photos, those first that show most of what the text says. None where no model is loaded, or the
        collection is not there. Raises CapacityError, PartUnavailable."""
        return await self._rank(
            collection_id, text, lambda tx, among, model, probe: photo_embeddings.nearest(tx, among, model, probe, limit)
        )

    async def rank_among(self, collection_id: str, text: str, photo_ids: Sequence[UUID]) -> list[UUID] | None:
        """Those of the photos that have an embedding, as `rank` orders them: for filters that leave few."""
        return await self._rank(
            collection_id,
            text,
            lambda tx, among, model, probe: photo_embeddings.nearest_among(tx, among, model, probe, photo_ids),
        )

    async def _rank(self, collection_id: str, text: str, nearest: _Nearest) -> list[UUID] | None:
        if not self.available:
            return None
        model, encoder = self._loaded()
        probe = await _probe(encoder, text)
        try:
            async with self._database.connection() as connection:
                collection = await collections.get(connection, collection_id)
                found = await nearest(connection, collection, model.embedding_model, probe)
        except NotFound:
            return None
        return [photo_id for photo_id, _ in found]

    async def without(self, tx: Connection, collection: Collection) -> list[UUID]:
        """The photos that have no embedding of the loaded model. Raises ModelUnavailable where none is."""
        model, _ = self._loaded()
        return await photo_embeddings.without(tx, collection, model.embedding_model)

    def _loaded(self) -> tuple[SemanticModel, SemanticEncoder]:
        if isinstance(self._model, NoSemanticModel):
            raise ModelUnavailable(f"{self._model.reason} {HOW_TO}", deployment="Semantic")
        if self._encoder is None:
            raise ModelUnavailable(f"The image-text model {self._model.name} is not deployed. {HOW_TO}", deployment="Semantic")
        return self._model, self._encoder

    async def _open(self, collection_id: str, photo_id: UUID) -> tuple[Collection, Photo] | None:
        """None when it is erased."""
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, collection_id)
                return collection, await photos.get(connection, collection, photo_id)
            except NotFound:
                return None

    async def _has(self, collection: Collection, model: SemanticModel, photo_id: UUID) -> bool:
        async with self._database.connection() as connection:
            return await photo_embeddings.has(connection, collection, model.embedding_model, photo_id)

    async def _skip(self, item: WorkItem, reason: str) -> None:
        await self._database.run(lambda tx: item.skip(tx, reason))


async def _probe(encoder: SemanticEncoder, text: str) -> FloatArray:
    try:
        return await asyncio.wait_for(encoder.encode_text(text), _TEXT_TIMEOUT_S)
    except TimeoutError as error:
        raise Overloaded(
            f"The image-text model did not read the text within {_TEXT_TIMEOUT_S:g} s.", retry_after_s=RETRY_AFTER_S
        ) from error


def _photo_id(subject: str) -> UUID:
    try:
        return UUID(subject)
    except ValueError as error:
        raise InvalidRequest("The item names no photo.") from error
