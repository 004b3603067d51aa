"""Enrolment: a picture or a vector becomes a face of a person, reviewed, stored, searchable; or it is refused with reasons."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from uuid import UUID, uuid4

from serve_app.errors import (
    DuplicateFace,
    EmbeddingModelMismatch,
    FaceRejected,
    ImageError,
    ImageUrlError,
    InvalidEmbedding,
    JsonValue,
    KinlensError,
    ObjectStoreUnavailable,
    PartUnavailable,
)
from serve_app.faces import FloatArray, OperatingPoint, parse_embedding
from serve_app.identity.people import Collection, EmbeddingContract, NewFace, NewImage, SearchFilter, StoredFace, new_id
from serve_app.imaging.images import encode_png
from serve_app.jobs import JobKind
from serve_app.services.collections import check_contract
from serve_app.services.enrolment_review import EnrolOptions, Item, PreparedItem, RefusedItem, Reviewer
from serve_app.services.pipeline import ExtractOptions, FacePipeline
from serve_app.services.review import ReviewLimits
from serve_app.services.verification import GivenEmbedding
from serve_app.services.writing import Once
from serve_app.storage import collections, faces, jobs, objects_outbox, persons, photo_faces, search, vectors
from serve_app.storage.database import Connection, Database
from serve_app.storage.idempotency import Replayed
from serve_app.storage.objects import ObjectStore, crop_key, original_key
from serve_app.storage.persons import PersonChange

logger = logging.getLogger("ray.serve")

_HASH_INLINE_BYTES = 1 << 20
ITEM_ERRORS = (ImageError, ImageUrlError, FaceRejected, InvalidEmbedding)
"""What is wrong with one picture and not with us: refused for itself, while the rest of a request goes on."""

CONTENT_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "GIF": "image/gif",
}


@dataclass(frozen=True, slots=True)
class ExternalPerson:
    """A person by the client's own id; made with its first face if there is none."""

    external_id: str
    name: str | None = None
    metadata: Mapping[str, JsonValue] | None = None


PersonRef = UUID | ExternalPerson


@dataclass(frozen=True, slots=True)
class EnrolledFace:
    """`index`: of the item. `warnings`: what the review would have refused it for."""

    index: int
    face: StoredFace
    warnings: tuple[KinlensError, ...]


@dataclass(frozen=True, slots=True)
class Enrolled:
    person_id: UUID
    faces: list[EnrolledFace]
    refused: list[RefusedItem]


class Enrolment:
    def __init__(
        self,
        pipeline: FacePipeline,
        database: Database,
        objects: ObjectStore,
        contract: EmbeddingContract,
        point: OperatingPoint | None,
        limits: ReviewLimits,
        max_workers: int,
        index_again: bool = False,
    ) -> None:
        """`index_again`: photos of which a face was enrolled, at once."""
        self._index_again = index_again
        self._pipeline = pipeline
        self._database = database
        self._objects = objects
        self._contract = contract
        self._reviewer = Reviewer(limits, point)
        self._max_workers = max_workers
        self._cleaning: set[asyncio.Task[None]] = set()

    async def enrol(
        self, collection_id: str, person: PersonRef, items: Sequence[Item], options: EnrolOptions, once: Once[Enrolled]
    ) -> Enrolled:
        """All items that pass, in one transaction; when it returns, their objects and rows are durable and searchable.

        Raises the first item's error when none passes (`details["refused"]` lists them all), NotFound,
        EmbeddingModelMismatch, Replayed, IdempotencyKeyReused, CapacityError, PartUnavailable.
        """
        await once.check(self._database)
        collection, person_id = await self._open(collection_id, person)
        places = asyncio.Semaphore(self._max_workers)

        async def prepare(index: int, item: Item) -> PreparedItem | RefusedItem:
            async with places:
                try:
                    return await self._prepare(collection, person_id, index, item, options)
                except ITEM_ERRORS as error:
                    return RefusedItem(index, error)

        tasks = [asyncio.create_task(prepare(index, item)) for index, item in enumerate(items)]
        try:
            outcomes = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        refused = [outcome for outcome in outcomes if isinstance(outcome, RefusedItem)]
        accepted = self._reviewer.judge([one for one in outcomes if isinstance(one, PreparedItem)], options, refused)
        if not accepted:
            raise _nothing_enrolled(refused)
        # Sorted, because ids of one millisecond are in no order, and faces are listed by id.
        ids = sorted(new_id() for _ in accepted)
        new_faces = await self._store_all(collection, list(zip(ids, accepted, strict=True)))
        try:
            return await once.run(
                self._database, lambda tx: self._write(tx, collection_id, person, accepted, new_faces, refused)
            )
        except PartUnavailable:
            # The commit may have happened: what was stored must stay. If it did not, `kinlens gc` finds it.
            raise
        except (KinlensError, Replayed):
            await self._discard(new_faces)
            raise

    async def settle(self, timeout_s: float) -> None:
        """Waits for objects of enrolments that were broken off to be removed."""
        if self._cleaning:
            await asyncio.wait(self._cleaning, timeout=timeout_s)

    async def _open(self, collection_id: str, person: PersonRef) -> tuple[Collection, UUID | None]:
        async with self._database.connection() as connection:
            collection = await collections.get(connection, collection_id)
            check_contract(collection, self._contract)
            if isinstance(person, UUID):
                return collection, (await persons.get(connection, collection, person)).id
            known = await persons.by_external_ids(connection, collection, [person.external_id])
            return collection, known.get(person.external_id)

    async def _prepare(
        self, collection: Collection, person_id: UUID | None, index: int, item: Item, options: EnrolOptions
    ) -> PreparedItem:
        """Raises ITEM_ERRORS, CapacityError, PartUnavailable."""
        if isinstance(item.source, KinlensError):
            raise item.source
        if isinstance(item.source, GivenEmbedding):
            prepared = PreparedItem(index, item, self._parse(item.source))
        else:
            digest = await sha256_of(item.source)
            if person_id is not None:
                # Before the models: a picture that was enrolled already costs a look-up.
                await self._refuse_known(collection, person_id, digest)
            wanted = ExtractOptions(face=options.face, threshold=options.detection_threshold, quality=True)
            extraction = await self._pipeline.extract_when_free(item.source, wanted)
            found = extraction.faces[0]
            prepared = PreparedItem(index, item, found.embedding, found, extraction, digest)
        async with self._database.connection() as connection:
            own = None
            if person_id is not None:
                own = await search.similarity_to_person(connection, collection, prepared.embedding, person_id)
            others = SearchFilter(exclude_person_ids=() if person_id is None else (person_id,))
            nearest = await search.nearest(connection, collection, prepared.embedding, 1, others)
        return replace(prepared, own=own, other=nearest[0] if nearest else None)

    def _parse(self, given: GivenEmbedding) -> FloatArray:
        if given.model != self._contract.model:
            raise EmbeddingModelMismatch(
                f"The embedding comes from {given.model!r}; the collection holds those of {self._contract.model!r}.",
                model=given.model,
                loaded_model=self._contract.model,
            )
        return parse_embedding(given.values, self._contract.dim)

    async def _refuse_known(self, collection: Collection, person_id: UUID, digest: bytes) -> None:
        async with self._database.connection() as connection:
            if await faces.images_of_person(connection, collection, person_id, [digest]):
                raise _known_image(digest)

    async def _store_all(self, collection: Collection, accepted: Sequence[tuple[UUID, PreparedItem]]) -> list[NewFace]:
        """All or none: no row can name them yet, so what was put is removed when one fails or the client leaves."""
        tasks = [asyncio.create_task(self._store(collection, face_id, one)) for face_id, one in accepted]
        try:
            # Shielded: a put that is under way when the client leaves may succeed, and then nobody would know of it.
            return await asyncio.gather(*(asyncio.shield(task) for task in tasks))
        except BaseException:
            cleaning = asyncio.create_task(self._remove_stored(tasks))
            self._cleaning.add(cleaning)
            cleaning.add_done_callback(self._cleaning.discard)
            raise

    async def _remove_stored(self, tasks: Sequence[asyncio.Task[NewFace]]) -> None:
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await self._discard([face for face in done if isinstance(face, NewFace)])

    async def _store(self, collection: Collection, face_id: UUID, one: PreparedItem) -> NewFace:
        """Puts the picture and the crop; rows come after, so that no row is ever without its objects."""
        if one.found is None or one.extraction is None or one.sha256 is None or not isinstance(one.item.source, bytes):
            return NewFace(face_id, one.embedding, one.item.taken_at)
        detections = one.extraction.detections
        # Random, so that the key says nothing of when or whose; and never used twice.
        image_id = uuid4()
        image_key, face_key = original_key(collection.key, image_id), crop_key(collection.key, face_id)
        crop = await asyncio.to_thread(encode_png, one.found.crop)
        await asyncio.gather(
            self._objects.put(image_key, one.item.source, CONTENT_TYPES[detections.format]),
            self._objects.put(face_key, crop, "image/png"),
        )
        return NewFace(
            id=face_id,
            embedding=one.embedding,
            taken_at=one.item.taken_at,
            image=NewImage(
                image_id,
                one.sha256,
                image_key,
                len(one.item.source),
                detections.format,
                detections.width_px,
                detections.height_px,
            ),
            crop_key=face_key,
            bbox=one.found.face.bbox.tolist(),
            landmarks=one.found.face.landmarks.ravel().tolist(),
            detection_score=one.found.face.detection_score,
            quality=None if one.found.quality is None else asdict(one.found.quality),
        )

    async def _write(
        self,
        tx: Connection,
        collection_id: str,
        person: PersonRef,
        accepted: Sequence[PreparedItem],
        new_faces: Sequence[NewFace],
        refused: Sequence[RefusedItem],
    ) -> Enrolled:
        collection = await collections.lock(tx, collection_id)
        check_contract(collection, self._contract)
        person_id = await self._person(tx, collection, person)
        await persons.lock_one(tx, collection, person_id)
        # Once more under the lock: the same picture may have been enrolled while we looked at it.
        hashes = [one.sha256 for one in accepted if one.sha256 is not None]
        known = await faces.images_of_person(tx, collection, person_id, hashes) if hashes else set()
        late = [RefusedItem(one.index, _known_image(one.sha256)) for one in accepted if one.sha256 in known and one.sha256]
        fresh = [(one, face) for one, face in zip(accepted, new_faces, strict=True) if one.sha256 not in known]
        everything_refused = sorted([*refused, *late], key=lambda one: one.index)
        if not fresh:
            raise _nothing_enrolled(everything_refused)
        kept = {face.id for _, face in fresh}
        await objects_outbox.add(tx, object_keys([face for face in new_faces if face.id not in kept]))
        stored = await faces.insert(tx, collection, person_id, [face for _, face in fresh])
        await vectors.refresh_templates(tx, collection, person_id)
        # Of a photo of the library the enrolled face may be known already: indexing finds out that it is one.
        outdated = await photo_faces.outdate(tx, [face.image_id for face in stored if face.image_id is not None])
        if self._index_again:
            await jobs.add_automatic(tx, collection, JobKind.FACES, [str(photo_id) for photo_id in outdated])
        return Enrolled(
            person_id,
            [EnrolledFace(one.index, face, one.warnings) for (one, _), face in zip(fresh, stored, strict=True)],
            everything_refused,
        )

    async def _discard(self, new_faces: Sequence[NewFace]) -> None:
        try:
            await self._objects.delete_many(object_keys(new_faces))
        except ObjectStoreUnavailable:
            logger.warning("objects of a refused enrolment remain; `kinlens gc` finds them")

    async def _person(self, tx: Connection, collection: Collection, person: PersonRef) -> UUID:
        if isinstance(person, UUID):
            return person
        change = PersonChange(person.name, person.metadata, person.external_id)
        return await persons.find_or_create(tx, collection, new_id(), change)


def object_keys(new_faces: Sequence[NewFace]) -> list[str]:
    return [key for face in new_faces for key in (face.image.object_key if face.image else None, face.crop_key) if key]


def _nothing_enrolled(refused: Sequence[RefusedItem]) -> KinlensError:
    first = min(refused, key=lambda one: one.index).error
    if len(refused) > 1:
        first.details["refused"] = [
            {"index": one.index, "code": one.error.code, "detail": one.error.detail} for one in refused
        ]
    return first


def _known_image(digest: bytes | None) -> DuplicateFace:
    return DuplicateFace("The person has a face of this very picture already.", sha256=(digest or b"").hex())


async def sha256_of(data: bytes) -> bytes:
    if len(data) > _HASH_INLINE_BYTES:
        return (await asyncio.to_thread(hashlib.sha256, data)).digest()
    return hashlib.sha256(data).digest()
