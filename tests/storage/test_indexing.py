"""Indexing the faces of photos on a real database and object store; only the two models are fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import numpy as np
import pytest

from serve_app.errors import (
    DatabaseUnavailable,
    EmbeddingModelMismatch,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    JsonValue,
    KinlensError,
    NotFound,
    ObjectStoreUnavailable,
)
from serve_app.faces import Crops, DetectionOptions, Detections, FaceQuality, FloatArray, l2_normalize
from serve_app.gallery import contract_of
from serve_app.imaging.images import ImageLimits
from serve_app.jobs import JobKind
from serve_app.services.analysis import FaceAnalysis
from serve_app.services.indexing import PhotoIndexer, indexed_with
from serve_app.services.pipeline import FacePipeline
from serve_app.services.review import ReviewLimits
from serve_app.services.work import ItemWithdrawn, WorkItem
from serve_app.storage import checks, collections, images
from serve_app.storage.database import Connection
from serve_app.storage.objects import ObjectStore
from tests.api.conftest import ATTRIBUTE_MODELS, DIM, GOOD, MISSING, FakeAnalyzer
from tests.storage.conftest import StoredWorld

JPEG = b"\xff\xd8\xff\xe0"
WITH = "a detector, a model"
BOXES = [(300.0, 0.0, 400.0, 120.0), (0.0, 0.0, 100.0, 120.0), (500.0, 200.0, 560.0, 260.0)]


@dataclass
class Models:
    """Detector and embedder. `faces`: by the bytes of a picture, the box and the direction of each. `gate`: closed, whoever
    looks for faces waits; `asked`: somebody does. `quality`, `turned`: of all faces."""

    faces: dict[bytes, Sequence[tuple[tuple[float, ...], int]]] = field(default_factory=dict)
    quality: FaceQuality = GOOD
    turned: float = 0.0
    shift: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        self.asked.set()
        await self.gate.wait()
        if image.endswith(b"broken"):
            raise InvalidImage("The JPEG data is damaged or incomplete.")
        found = self.faces.get(image, ())
        crops = np.zeros((len(found), 112, 112, 3), np.uint8)
        for crop, (_, identity) in zip(crops, found, strict=True):
            crop[0, 0, 0] = identity
        boxes = np.array([box for box, _ in found], np.float32).reshape(-1, 4) + np.float32(self.shift)
        return Detections(
            boxes,
            np.zeros((len(found), 5, 2), np.float32),
            np.full(len(found), 0.9, np.float32),
            crops,
            640,
            480,
            "JPEG",
            qualities=(self.quality,) * len(found),
        )

    async def embed(self, crops: Crops) -> FloatArray:
        directions = np.eye(DIM, dtype=np.float32)
        return np.stack(
            [
                l2_normalize(directions[int(crop[0, 0, 0])] + self.turned * directions[int(crop[0, 0, 0] + 1) % DIM])
                for crop in crops
            ]
        )


@dataclass
class Library:
    """A library whose photos are indexed by hand. `ended`: how items ended, by their subject."""

    world: StoredWorld
    models: Models
    ended: dict[str, str] = field(default_factory=dict)
    pictures: int = 0

    def indexer(self, name: str = WITH, max_bytes: int = 1 << 20, objects: ObjectStore | None = None) -> PhotoIndexer:
        pipeline = FacePipeline(
            self.models, self.models, FaceAnalysis(FakeAnalyzer(), ATTRIBUTE_MODELS, MISSING), ImageLimits(max_bytes, 1 << 20)
        )
        gallery = self.world.gallery
        contract = contract_of(self.world.services.model)
        return PhotoIndexer(pipeline, gallery.database, objects or gallery.objects, contract, name, ReviewLimits())

    async def photo(self, *faces: tuple[tuple[float, ...], int], data: bytes | None = None) -> str:
        """Uploads a picture with these faces; the photo's id."""
        self.pictures += 1
        data = data or JPEG + b"%d" % self.pictures
        self.models.faces[data] = faces
        response = await self.world.client.post("/api/v1/photos/upload", files=[("files", ("a.jpg", data))])
        result = response.json()["results"][0]
        assert result["status"] == "created", result
        identifier: str = result["photo"]["id"]
        return identifier

    def last(self) -> bytes:
        """The picture uploaded last."""
        return JPEG + b"%d" % self.pictures

    def item(self, photo_id: str, finish: Callable[[], Awaitable[None]] | None = None, *, only_new: bool = False) -> WorkItem:
        """Of which one transaction succeeds in finishing; `finish` is called in it."""
        row = "INSERT INTO finished VALUES ($1, $2) ON CONFLICT DO NOTHING"
        job_id = uuid4()

        async def end(tx: Connection, state: str) -> None:
            await tx.execute("CREATE TABLE IF NOT EXISTS finished (item uuid PRIMARY KEY, state text)")
            if (await tx.execute(row, job_id, state)).endswith(" 0"):
                raise ItemWithdrawn
            if finish is not None:
                await finish()
            self.ended[photo_id] = state

        async def nothing(tx: Connection, subjects: Sequence[str]) -> None:
            raise AssertionError("indexing adds no items")

        async def unasked(tx: Connection) -> None:
            raise AssertionError("faces are kept in one transaction")

        options: dict[str, JsonValue] = {"only_new": only_new}
        return WorkItem(
            job_id, JobKind.FACES, "library", photo_id, options, lambda tx: end(tx, "done"), end, nothing, unasked
        )  # fmt: skip

    async def index(self, *photo_ids: str, only_new: bool = False) -> None:
        indexer = self.indexer()
        for photo_id in photo_ids:
            await indexer.run(self.item(photo_id, only_new=only_new))
            assert self.ended[photo_id] == "done"

    async def faces(self, photo_id: str) -> list[dict[str, object]]:
        rows = await self.world.rows(
            "SELECT f.*, e.embedding::text AS vector, e.person_id AS vector_person FROM faces f"
            " JOIN photos p ON p.image_id = f.image_id LEFT JOIN embeddings e ON e.face_id = f.id WHERE p.id = $1 ORDER BY f.id",
            UUID(photo_id),
        )
        return [dict(row) for row in rows]

    async def crops(self) -> set[str]:
        return {key for key in await self.world.object_keys() if "/crops/" in key}

    async def check(self) -> None:
        """Nothing lacks what belongs to it, and no object is one too many or too few once housekeeping was there."""
        await self.world.gallery.housekeeping.once()
        async with self.world.gallery.database.connection() as connection:
            for collection in await collections.all_collections(connection):
                found = await checks.mismatches(connection, collection)
                assert not any(getattr(found, name) for name in found.__slots__), found
        named = {row["crop_key"] for row in await self.world.rows("SELECT crop_key FROM faces WHERE crop_key IS NOT NULL")}
        assert await self.crops() == named
        originals = {key for key in await self.world.object_keys() if "/originals/" in key}
        assert originals == {row["object_key"] for row in await self.world.rows("SELECT object_key FROM images")}

    async def templates(self, person_id: str) -> list[list[float]]:
        rows = await self.world.rows("SELECT embedding::text AS text FROM templates WHERE person_id = $1", UUID(person_id))
        return [json.loads(row["text"]) for row in rows]

    async def person(self, name: str, **fields: object) -> str:
        return await self.world.person("/api/v1/collections/library", name=name, **fields)

    async def give(self, face_id: object, person_id: str) -> None:
        """As a user does."""
        address = f"/api/v1/collections/library/faces/{face_id}/move"
        response = await self.world.client.post(address, json={"person_id": person_id})
        assert response.status_code == 200, response.text


@pytest.fixture
def library(stored: StoredWorld) -> Library:
    return Library(stored, Models())


async def test_every_face_of_a_photo_is_kept(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 1))
    await library.index(photo_id)
    faces = await library.faces(photo_id)
    assert [tuple(face["bbox"]) for face in faces] == BOXES[:2]  # type: ignore[arg-type]
    for face in faces:
        assert (face["found_by"], face["decided_by"], face["person_id"], face["unassigned"]) == (
            "indexing", "machine", None, None
        )  # fmt: skip
        assert face["vector"] is not None and face["quality"] is not None
    (photo,) = await library.world.rows("SELECT taken_at, indexed_at, indexed_with FROM photos")
    assert photo["indexed_at"] is not None and photo["indexed_with"] == WITH
    assert {face["taken_at"] for face in faces} == {photo["taken_at"]}
    answer = await library.world.client.get(f"/api/v1/photos/{photo_id}")
    assert answer.json()["face_count"] == 2
    await library.check()


async def test_a_photo_without_faces_is_marked_too(library: Library) -> None:
    photo_id = await library.photo()
    await library.index(photo_id)
    assert await library.faces(photo_id) == []
    (photo,) = await library.world.rows("SELECT indexed_at FROM photos")
    assert photo["indexed_at"] is not None


@pytest.mark.parametrize(
    ("quality", "reason"),
    [
        (replace(GOOD, size_px=20.0), {"code": "too_small", "metric": "size_px", "value": 20.0, "limit": 40.0}),
        (replace(GOOD, sharpness=0.05), {"code": "blurred", "metric": "sharpness", "value": 0.05, "limit": 0.1}),
        (replace(GOOD, yaw_deg=80.0, brightness=0.0), None),
    ],
)
async def test_a_face_too_poor_to_be_grouped_says_why(
    library: Library, quality: FaceQuality, reason: dict[str, object] | None
) -> None:
    photo_id = await library.photo((BOXES[0], 0))
    library.models.quality = quality
    await library.index(photo_id)
    (face,) = await library.faces(photo_id)
    assert (None if face["unassigned"] is None else json.loads(str(face["unassigned"]))) == reason
    # A better detector or model may see more.
    library.models.quality = GOOD
    await library.index(photo_id)
    (face,) = await library.faces(photo_id)
    assert face["unassigned"] is None


async def test_indexing_again_keeps_every_face_and_leaves_no_crop_behind(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 1))
    await library.index(photo_id)
    before = await library.faces(photo_id)
    await library.index(photo_id, photo_id)
    after = await library.faces(photo_id)
    assert [face["id"] for face in after] == [face["id"] for face in before]
    await library.check()
    assert len(await library.crops()) == 2


async def test_another_detector_and_model_keep_ids_and_what_users_said(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 1), (BOXES[2], 2))
    await library.index(photo_id)
    first, second, third = [face["id"] for face in await library.faces(photo_id)]
    anna = await library.person("Anna")
    await library.give(first, anna)
    await library.world.rows("UPDATE faces SET hidden = true WHERE id = $1", second)
    await library.world.rows("INSERT INTO face_rejections (face_id, person_id) VALUES ($1, $2)", third, UUID(anna))
    assert await library.templates(anna) == [[1, 0, 0, 0]]
    library.models.shift, library.models.turned = 6.0, 0.5
    await library.index(photo_id)
    faces = await library.faces(photo_id)
    assert [face["id"] for face in faces] == [first, second, third]
    assert faces[0]["bbox"] == [306.0, 6.0, 406.0, 126.0] and faces[0]["person_id"] == UUID(anna)
    assert faces[0]["decided_by"] == "user" and faces[0]["vector_person"] == UUID(anna)
    assert faces[1]["hidden"] is True
    assert len(await library.world.rows("SELECT 1 FROM face_rejections")) == 1
    # The template is of the new embedding.
    (template,) = await library.templates(anna)
    assert template == pytest.approx([0.894, 0.447, 0, 0], abs=2e-3)
    await library.check()


async def test_a_face_that_is_not_found_again_goes_unless_a_user_said_something(library: Library) -> None:
    boxes = [(float(100 * index), 0.0, float(100 * index + 60), 60.0) for index in range(6)]
    photo_id = await library.photo(*[(box, 0) for box in boxes])
    await library.index(photo_id)
    plain, given, hidden, rejected, cover, nobody = [face["id"] for face in await library.faces(photo_id)]
    anna, bert = await library.person("Anna"), await library.person("Bert")
    await library.give(given, anna)
    rows = library.world.rows
    await rows("UPDATE faces SET hidden = true WHERE id = $1", hidden)
    await rows("INSERT INTO face_rejections (face_id, person_id) VALUES ($1, $2)", rejected, UUID(anna))
    await rows("UPDATE faces SET person_id = $2 WHERE id = $1", cover, UUID(bert))
    await rows("UPDATE embeddings SET person_id = $2 WHERE face_id = $1", cover, UUID(bert))
    await rows("UPDATE persons SET cover_face_id = $1 WHERE id = $2", cover, UUID(bert))
    await rows("UPDATE faces SET decided_by = 'user' WHERE id = $1", nobody)
    library.models.faces[library.last()] = [(BOXES[2], 1)]
    await library.index(photo_id)
    faces = {face["id"]: face for face in await library.faces(photo_id)}
    assert plain not in faces and {given, hidden, rejected, cover, nobody} < set(faces) and len(faces) == 6
    assert faces[given]["person_id"] == UUID(anna) and faces[cover]["person_id"] == UUID(bert)
    assert [row["name"] for row in await rows("SELECT name FROM persons ORDER BY name")] == ["Anna", "Bert"]


async def test_the_templates_of_who_lost_a_face_are_brought_up_to_date(library: Library) -> None:
    kept, lost = await library.photo((BOXES[0], 0)), await library.photo((BOXES[0], 1))
    await library.index(kept, lost)
    anna = await library.person("Anna")
    for photo_id in (kept, lost):
        ((face),) = await library.faces(photo_id)
        await library.give(face["id"], anna)
    # As the machine would have said it.
    await library.world.rows("UPDATE faces SET decided_by = 'machine'")
    (template,) = await library.templates(anna)
    assert template == pytest.approx([0.707, 0.707, 0, 0], abs=1e-3)
    library.models.faces[library.last()] = []
    await library.index(lost)
    assert await library.templates(anna) == [[1, 0, 0, 0]]
    await library.check()


async def enrol(library: Library, person_id: str, data: bytes) -> str:
    """The world's own detector finds one face in it."""
    response = await library.world.client.post(
        f"/api/v1/collections/library/persons/{person_id}/faces", data={"review": "false"}, files=[("files", ("a.jpg", data))]
    )
    assert response.status_code == 201, response.text
    identifier: str = response.json()["faces"][0]["id"]
    return identifier


@pytest.mark.parametrize("enrolled_first", [True, False])
async def test_an_enrolled_face_of_the_same_picture_is_that_face(library: Library, enrolled_first: bool) -> None:
    # The fake of enrolment finds a face at 0, 0, 10, 10.
    data, box = JPEG + bytes([1, 3]), (0.0, 0.0, 11.0, 11.0)
    photo_id = await library.photo((box, 0), (BOXES[0], 1), data=data)
    if not enrolled_first:
        await library.index(photo_id)
    anna = await library.person("Anna")
    face_id = await enrol(library, anna, data)
    before = {face["id"]: face for face in await library.faces(photo_id)}[UUID(face_id)]
    # Which is looked into at once, for what was indexed before; and by whoever asks for what is not indexed.
    (photo,) = await library.world.rows("SELECT indexed_at FROM photos")
    assert photo["indexed_at"] is None
    items = await library.world.rows("SELECT subject FROM job_items ORDER BY id")
    assert [row["subject"] for row in items] == [photo_id] * (1 if enrolled_first else 2)
    await library.index(photo_id, only_new=True)
    await library.index(photo_id)
    faces = {face["id"]: face for face in await library.faces(photo_id)}
    assert len(faces) == 2 and faces[UUID(face_id)] == before
    assert {face["found_by"] for face in faces.values()} == {"enrolment", "indexing"}
    await library.check()
    assert len(await library.crops()) == 2


async def test_two_workers_of_one_photo_make_its_faces_once(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 1), (BOXES[2], 2))
    await library.world.rows("CREATE TABLE finished (item uuid PRIMARY KEY, state text)")
    item = library.item(photo_id)
    # Six for the same item, as when workers were thought dead, and four others.
    runs = [library.indexer().run(one) for one in (*[item] * 6, *(library.item(photo_id) for _ in range(4)))]
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    assert sorted(type(one).__name__ for one in outcomes) == ["ItemWithdrawn"] * 5 + ["NoneType"] * 5
    assert len(await library.faces(photo_id)) == 3
    await library.check()
    assert len(await library.crops()) == 3


async def erase(library: Library, photo_id: str) -> None:
    response = await library.world.client.delete(f"/api/v1/photos/{photo_id}")
    assert response.status_code == 200 and response.json()["remaining_rows"] == 0, response.text


async def assert_nothing_left(library: Library) -> None:
    await library.check()
    assert await library.world.object_keys() == set()
    for table in ("faces", "embeddings", "templates", "images", "photos", "object_deletions"):
        assert await library.world.rows(f"SELECT * FROM {table}") == [], table


async def test_a_photo_erased_while_its_faces_are_looked_for_leaves_nothing(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0))
    library.models.gate.clear()
    run = asyncio.create_task(library.indexer().run(library.item(photo_id)))
    await library.models.asked.wait()
    await erase(library, photo_id)
    library.models.gate.set()
    await run
    assert library.ended[photo_id] == "erased"
    await assert_nothing_left(library)


class SlowStore:
    """An object store whose puts and deletes wait for `gate`; `reached`: one does. `broken`: they fail afterwards."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.gate, self.reached = asyncio.Event(), asyncio.Event()
        self.broken = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        self.reached.set()
        await self._objects.put(key, data, content_type)
        await self.gate.wait()
        if self.broken:
            raise ObjectStoreUnavailable("The object store does not answer.")


async def test_a_photo_erased_while_its_crops_are_put_leaves_nothing(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 0))
    store = SlowStore(library.world.gallery.objects)
    run = asyncio.create_task(library.indexer(objects=store).run(library.item(photo_id)))  # type: ignore[arg-type]
    await store.reached.wait()
    await erase(library, photo_id)
    store.gate.set()
    await run
    assert library.ended[photo_id] == "erased"
    await assert_nothing_left(library)


async def test_a_photo_erased_while_its_faces_are_written_goes_with_them(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 0))
    erasing: list[asyncio.Task[None]] = []

    async def meanwhile() -> None:
        # The faces are written, and not committed yet.
        erasing.append(asyncio.create_task(erase(library, photo_id)))
        await asyncio.sleep(0.3)
        assert not erasing[0].done()

    await library.indexer().run(library.item(photo_id, meanwhile))
    await erasing[0]
    assert library.ended[photo_id] == "done"
    await assert_nothing_left(library)


async def test_the_whole_library_erased_meanwhile(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0))
    library.models.gate.clear()
    run = asyncio.create_task(library.indexer().run(library.item(photo_id)))
    await library.models.asked.wait()
    response = await library.world.client.delete("/api/v1/collections/library")
    assert response.status_code == 200
    library.models.gate.set()
    await run
    assert library.ended[photo_id] == "erased"
    await library.world.gallery.housekeeping.once()
    assert await library.world.object_keys() == set()


async def test_a_photo_that_is_not_there_is_skipped(library: Library) -> None:
    unknown = str(uuid4())
    await library.indexer().run(library.item(unknown))
    assert library.ended[unknown] == "erased"
    await library.photo()
    await library.indexer().run(library.item(unknown))
    for subject in ("", "no id", "a" * 5000, "\x00"):
        with pytest.raises(InvalidRequest):
            await library.indexer().run(library.item(subject))


async def test_a_cancelled_item_keeps_nothing(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0))

    async def withdrawn() -> None:
        raise ItemWithdrawn

    with pytest.raises(ItemWithdrawn):
        await library.indexer().run(library.item(photo_id, withdrawn))
    assert await library.faces(photo_id) == [] and await library.crops() == set()
    (photo,) = await library.world.rows("SELECT indexed_at FROM photos")
    assert photo["indexed_at"] is None


async def test_whoever_stops_waiting_leaves_nothing_half_done(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 1))
    store = SlowStore(library.world.gallery.objects)
    indexer = library.indexer(objects=store)  # type: ignore[arg-type]
    run = asyncio.create_task(indexer.run(library.item(photo_id)))
    await store.reached.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    store.gate.set()
    await indexer.settle(60)
    assert library.ended[photo_id] == "done" and len(await library.faces(photo_id)) == 2
    await library.check()


async def test_whoever_stops_waiting_for_a_store_that_fails_leaves_no_crops(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 1))
    store = SlowStore(library.world.gallery.objects)
    store.broken = True
    indexer = library.indexer(objects=store)  # type: ignore[arg-type]
    run = asyncio.create_task(indexer.run(library.item(photo_id)))
    await store.reached.wait()
    run.cancel()
    store.gate.set()
    await indexer.settle(60)
    assert photo_id not in library.ended and await library.crops() == set()


async def test_a_store_that_fails_keeps_nothing(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0), (BOXES[1], 1))
    store = SlowStore(library.world.gallery.objects)
    store.broken = True
    store.gate.set()
    with pytest.raises(ObjectStoreUnavailable):
        await library.indexer(objects=store).run(library.item(photo_id))  # type: ignore[arg-type]
    assert await library.faces(photo_id) == [] and await library.crops() == set()


async def test_a_commit_of_unknown_outcome_keeps_the_crops(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0))

    async def lost() -> None:
        raise DatabaseUnavailable("The database does not answer.")

    with pytest.raises(DatabaseUnavailable):
        await library.indexer().run(library.item(photo_id, lost))
    assert len(await library.crops()) == 1
    await library.index(photo_id)
    assert len(await library.faces(photo_id)) == 1


async def fails(library: Library, photo_id: str, error: type[KinlensError], **options: int) -> KinlensError:
    with pytest.raises(error) as caught:
        await library.indexer(**options).run(library.item(photo_id))  # type: ignore[arg-type]
    assert photo_id not in library.ended and await library.faces(photo_id) == []
    return caught.value


async def test_pictures_that_cannot_be_indexed(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_id = await library.photo()
    # Limits were lowered since; the picture was damaged since; it is gone.
    assert (await fails(library, photo_id, ImageTooLarge, max_bytes=3)).details["max_bytes"] == 3
    (row,) = await library.world.rows("SELECT object_key FROM images")
    await library.world.gallery.objects.put(row["object_key"], JPEG + b"broken", "image/jpeg")
    await fails(library, photo_id, InvalidImage)
    await library.world.gallery.objects.put(row["object_key"], b"", "image/jpeg")
    await fails(library, photo_id, InvalidImage)
    await library.world.gallery.objects.delete(row["object_key"])
    assert (await fails(library, photo_id, NotFound)).details == {"photo_id": photo_id}


async def test_a_library_of_another_model_is_left_alone(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0))
    await library.world.rows("UPDATE collections SET preprocessing = 'v0'")
    await fails(library, photo_id, EmbeddingModelMismatch)
    assert not library.models.asked.is_set()


async def test_only_what_was_indexed_by_something_else(library: Library) -> None:
    photo_id = await library.photo((BOXES[0], 0))
    await library.index(photo_id, only_new=True)
    library.models.asked.clear()
    await library.indexer().run(library.item(photo_id, only_new=True))
    assert library.ended[photo_id] == "indexed" and not library.models.asked.is_set()
    await library.indexer("a better detector").run(library.item(photo_id, only_new=True))
    (photo,) = await library.world.rows("SELECT indexed_with FROM photos")
    assert photo["indexed_with"] == "a better detector"
    model = library.world.services.model
    assert indexed_with(model) == "yunet 000000000000 v1 0.6, fake-model v1"
    assert indexed_with(replace(model, detection_threshold=0.5)) != indexed_with(model)


async def test_users_decide_while_photos_are_indexed(library: Library) -> None:
    """Faces are given to persons, taken by them and erased while workers index the photos over and over."""
    photo_ids = [await library.photo(*[(box, index) for index, box in enumerate(BOXES)]) for _ in range(3)]
    await library.index(*photo_ids)
    people = [await library.person(name) for name in ("Anna", "Bert", "Chris")]
    rng = np.random.default_rng(5)

    async def worker() -> None:
        for _ in range(6):
            photo_id = photo_ids[int(rng.integers(len(photo_ids)))]
            library.models.turned = float(rng.random())
            await library.indexer().run(library.item(photo_id))

    async def user() -> None:
        for _ in range(8):
            rows = await library.world.rows("SELECT id FROM faces ORDER BY random() LIMIT 1")
            address = f"/api/v1/collections/library/faces/{rows[0]['id']}"
            if rng.random() < 0.3:
                response = await library.world.client.delete(address)
            else:
                person_id = people[int(rng.integers(3))]
                response = await library.world.client.post(f"{address}/move", json={"person_id": person_id})
            assert response.status_code in (200, 404), response.text

    await asyncio.gather(worker(), worker(), user(), user())
    await library.index(*photo_ids)
    for photo_id in photo_ids:
        assert sorted(tuple(face["bbox"]) for face in await library.faces(photo_id)) == sorted(BOXES)  # type: ignore[arg-type]
    await library.check()


async def test_a_face_that_is_erased_waits_for_its_picture_first(library: Library) -> None:
    """As whoever indexes does, so that neither waits for the other."""
    photo_id = await library.photo((BOXES[0], 0))
    await library.index(photo_id)
    (row,) = await library.world.rows("SELECT id, image_id FROM faces")
    async with library.world.gallery.database.transaction() as tx:
        await images.lock(tx, [row["image_id"]])
        erasing = asyncio.create_task(library.world.client.delete(f"/api/v1/collections/library/faces/{row['id']}"))
        await asyncio.sleep(0.5)
        assert not erasing.done()
        assert (
            await tx.fetchval("SELECT count(*) FROM (SELECT 1 FROM faces WHERE id = $1 FOR UPDATE NOWAIT) f", row["id"]) == 1
        )
    assert (await erasing).status_code == 200
    assert await library.faces(photo_id) == []
