"""Indexing: the faces of a photo are found, told from those known before, and kept, all in one transaction."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID, uuid4

from serve_app.errors import DatabaseUnavailable, InvalidRequest, NotFound, ObjectStoreUnavailable
from serve_app.faces import EmbeddedFace, RGBImage
from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.people import Collection, EmbeddingContract, new_id
from serve_app.imaging.images import encode_png
from serve_app.services.collections import check_contract
from serve_app.services.models import ModelInfo
from serve_app.services.pipeline import Extraction, ExtractOptions, FaceChoice, FacePipeline
from serve_app.services.review import ReviewLimits, review_quality
from serve_app.services.work import WorkItem
from serve_app.storage import collections, objects_outbox, photo_faces
from serve_app.storage.database import Connection, Database
from serve_app.storage.objects import ObjectMissing, ObjectStore, crop_key
from serve_app.storage.photo_faces import FoundFace, PhotoToIndex

logger = logging.getLogger("ray.serve")

MAX_FACES = 300
"""Of a photo, the largest: more are a crowd's, which nobody can be told by; and what a call to the models may hold."""
ERASED = "erased"
INDEXED = "indexed"
"""Why an item is skipped: its photo is gone; the same detector and model have been there (`only_new`)."""

_POOR = {"size_px": "too_small", "detection_score": "low_detection_score", "sharpness": "blurred"}
"""What keeps a face from being grouped, by its metric. What else speaks against enrolling a face, as its pose or its light,
makes it harder to recognise, but not a face like any other."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The faces of a photo as they were found, and their crops, before any row names them."""

    found: list[FoundFace]
    crops: list[RGBImage]

    @property
    def crop_keys(self) -> list[str]:
        return [one.crop_key for one in self.found]


class PhotoIndexer:
    """An ItemHandler; the subject is the id of a photo."""

    def __init__(
        self,
        pipeline: FacePipeline,
        database: Database,
        objects: ObjectStore,
        contract: EmbeddingContract,
        indexed_with: str,
        limits: ReviewLimits,
    ) -> None:
        self._pipeline = pipeline
        self._database = database
        self._objects = objects
        self._contract = contract
        self._limits = limits
        self.indexed_with = indexed_with
        self._under_way: set[asyncio.Task[Any]] = set()

    async def run(self, item: WorkItem) -> None:
        """Every face of the photo is known when it returns, each once, however often and by how many it is indexed. A photo
        that is gone is skipped, and nothing of it is left.

        Cancelled, what is being written is still brought to its end: see `settle`.

        Raises InvalidRequest (no id), NotFound (its picture is missing), ImageError, EmbeddingModelMismatch, ItemWithdrawn,
        CapacityError, PartUnavailable.
        """
        photo_id = _photo_id(item.subject)
        opened = await self._open(item.collection_id, photo_id)
        if opened is None:
            await self._skip(item, ERASED)
            return
        collection, photo = opened
        if item.options.get("only_new") is True and photo.indexed_with == self.indexed_with:
            await self._skip(item, INDEXED)
            return
        try:
            original = await self._objects.get(photo.image_key)
        except ObjectMissing as error:
            if await self._open(item.collection_id, photo_id) is None:
                await self._skip(item, ERASED)
                return
            raise NotFound("The photo's picture is missing in the object store.", photo_id=str(photo_id)) from error
        await self._index(item, collection, photo, original)

    async def index_known(self, item: WorkItem, photo_id: UUID, original: bytes) -> None:
        """As `run`, of a photo whose bytes are at hand; only if nobody has looked for its faces yet, else the item is skipped
        as `exists`."""
        opened = await self._open(item.collection_id, photo_id)
        if opened is None or opened[1].indexed_with is not None:
            await self._skip(item, "exists")
            return
        await self._index(item, *opened, original)

    async def find(self, original: bytes, *, info: bool = False) -> Extraction:
        """All faces. `info`: and what the picture says of itself. Raises ImageError, CapacityError, PartUnavailable."""
        wanted = ExtractOptions(face=FaceChoice.ALL, max_faces=MAX_FACES, quality=True, info=info)
        return await self._pipeline.find(original, wanted)

    async def prepare(self, collection: Collection, extraction: Extraction) -> Prepared:
        """What is prepared, its crops stored, is either kept in a transaction or discarded. Cancelled, or raising, it leaves
        nothing.

        Raises EmbeddingModelMismatch, CapacityError, PartUnavailable.
        """
        check_contract(collection, self._contract)
        prepared = self._prepared(collection, extraction)
        task = self._kept_alive(asyncio.create_task(self._put(prepared)))
        try:
            # Shielded: of a put that is cancelled nobody knows whether it was done, and what is to go.
            await asyncio.shield(task)
        except BaseException:
            self._kept_alive(asyncio.create_task(self._discard_after(task, prepared)))
            raise
        return prepared

    async def keep(
        self, tx: Connection, collection: Collection, photo: PhotoToIndex, prepared: Prepared, *, fresh: bool = False
    ) -> bool:
        """False where the photo is gone. The collection must be locked; `fresh`: its picture was made in this transaction."""
        check_contract(collection, self._contract)
        if fresh:
            await photo_faces.keep_first(tx, collection, photo, prepared.found, self.indexed_with)
            return True
        return await photo_faces.keep(tx, collection, photo, prepared.found, self.indexed_with) is not None

    def discard(self, prepared: Prepared) -> None:
        """In a while."""
        self._kept_alive(asyncio.create_task(self._discard(prepared)))

    async def settle(self, timeout_s: float) -> None:
        """Waits for what cancelled calls have left under way."""
        until = time.monotonic() + timeout_s
        while self._under_way and (left_s := until - time.monotonic()) > 0:
            await asyncio.wait(self._under_way, timeout=left_s)

    async def _open(self, collection_id: str, photo_id: UUID) -> tuple[Collection, PhotoToIndex] | None:
        """Raises EmbeddingModelMismatch."""
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, collection_id)
            except NotFound:
                return None
            check_contract(collection, self._contract)
            photo = await photo_faces.find(connection, collection, photo_id)
            return None if photo is None else (collection, photo)

    async def _skip(self, item: WorkItem, reason: str) -> None:
        await self._database.run(lambda tx: item.skip(tx, reason))

    async def _index(self, item: WorkItem, collection: Collection, photo: PhotoToIndex, original: bytes) -> None:
        prepared = self._prepared(collection, await self.find(original))
        # Shielded: of a put or a transaction that is cancelled nobody knows whether it was done, and what is to go.
        await asyncio.shield(self._kept_alive(asyncio.create_task(self._keep(item, photo, prepared))))

    async def _keep(self, item: WorkItem, photo: PhotoToIndex, prepared: Prepared) -> None:
        try:
            await self._put(prepared)
            await self._database.run(lambda tx: self._write(tx, item, photo, prepared))
        except (DatabaseUnavailable, asyncio.CancelledError):
            # The commit may have happened: the crops must stay. If it did not, `kinlens gc` finds them.
            raise
        except BaseException:
            await self._discard(prepared)
            raise

    async def _write(self, tx: Connection, item: WorkItem, photo: PhotoToIndex, prepared: Prepared) -> None:
        try:
            collection = await collections.lock(tx, item.collection_id)
        except NotFound:
            kept = False
        else:
            kept = await self.keep(tx, collection, photo, prepared)
        if kept:
            await item.finish(tx)
        else:
            # In the same transaction: whoever is killed now leaves no crop of a photo that was erased.
            await objects_outbox.add(tx, prepared.crop_keys)
            await item.skip(tx, ERASED)

    def _found(self, collection: Collection, face_id: UUID, embedded: EmbeddedFace) -> FoundFace:
        face, quality = embedded.face, embedded.quality
        return FoundFace(
            id=face_id,
            embedding=embedded.embedding,
            # Random, so that the key says nothing of when or whose; and never used twice.
            crop_key=crop_key(collection.key, uuid4()),
            bbox=face.bbox.tolist(),
            landmarks=face.landmarks.ravel().tolist(),
            detection_score=face.detection_score,
            quality=None if quality is None else asdict(quality),
            poor=too_poor(embedded, self._limits),
        )

    def _prepared(self, collection: Collection, extraction: Extraction) -> Prepared:
        # Sorted, because a clock may be set back, and the largest face comes first.
        ids = sorted(new_id() for _ in extraction.faces)
        found = [self._found(collection, face_id, one) for face_id, one in zip(ids, extraction.faces, strict=True)]
        return Prepared(found, [one.crop for one in extraction.faces])

    async def _put(self, prepared: Prepared) -> None:
        """All or none is left to the caller; but none is under way any more when it returns or raises."""
        if not prepared.found:
            return
        encoded = await asyncio.to_thread(lambda: [encode_png(crop) for crop in prepared.crops])
        puts = (self._objects.put(key, data, "image/png") for key, data in zip(prepared.crop_keys, encoded, strict=True))
        for outcome in await asyncio.gather(*puts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _discard_after(self, put: asyncio.Task[None], prepared: Prepared) -> None:
        await asyncio.wait([put])
        await self._discard(prepared)

    async def _discard(self, prepared: Prepared) -> None:
        if not prepared.found:
            return
        try:
            await self._objects.delete_many(prepared.crop_keys)
        except ObjectStoreUnavailable:
            logger.warning("crops of a photo that was not indexed remain; `kinlens gc` finds them")

    def _kept_alive(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Until it is done, whoever waits for it."""
        self._under_way.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Looked at, so that asyncio does not complain when nobody waits any more.
            task.exception()


def indexed_with(model: ModelInfo) -> str:
    """What looks for faces and embeds them, in one line: detector, its weights, preparation and threshold, and the embedding
    contract. A photo that was indexed with anything else may be indexed anew."""
    detector = model.detector
    return (
        f"{detector.family} {detector.sha256[:12]} {detector.preprocessing} {model.detection_threshold:g},"
        f" {model.embedding_model} {model.recognizer.preprocessing}"
    )


def too_poor(embedded: EmbeddedFace, limits: ReviewLimits) -> Unassigned | None:
    """Why nobody can be told by the face; None for one that is good enough to be grouped."""
    if embedded.quality is None:
        return None
    for reason in review_quality(embedded.quality, embedded.face.detection_score, limits):
        if reason.metric in _POOR and isinstance(reason.value, float) and isinstance(reason.limit, float):
            return Unassigned(_POOR[reason.metric], reason.metric, reason.value, reason.limit)
    return None


def _photo_id(subject: str) -> UUID:
    try:
        return UUID(subject)
    except ValueError as error:
        raise InvalidRequest("The subject is not the id of a photo.", subject=subject[:64]) from error
