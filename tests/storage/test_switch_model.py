"""A collection gets another model: on a real database and object store; recognizers that read the crops' first pixel."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import httpx
import numpy as np
import pytest

from deployments.models.crop_embedding import CropEmbedding
from serve_app.api.app import create_api
from serve_app.errors import EmbeddingModelMismatch, InvalidRequest, NotFound, ObjectStoreUnavailable
from serve_app.faces import Crops, FloatArray
from serve_app.gallery import contract_of
from serve_app.identity.people import EmbeddingContract
from serve_app.imaging.images import encode_png
from serve_app.services.model_change import CropRecognizer, Drops, ModelChange, Switched, forget_others
from serve_app.storage import bulk, checks, collections, vectors
from serve_app.storage.bulk import BulkPerson
from tests.api.conftest import KEY, FakeDetector, image, make_services
from tests.storage.conftest import StoredWorld
from tests.storage.test_data_commands import Kinlens, kinlens  # noqa: F401  fixture
from tests.storage.test_indexing import BOXES, JPEG, Library, Models, enrol

DIM = 6
NEW = EmbeddingContract("new-model", DIM, "v2")
FACES = 12


@dataclass
class NewRecognizer:
    """Other directions than the old model's, and more of them. `between`: called between two passes."""

    embedded: int = 0
    between: Callable[[], None] | None = None

    def embed(self, crops: Crops) -> FloatArray:
        if self.between is not None:
            self.between()
        self.embedded += len(crops)
        return np.stack([self.direction(int(crop[0, 0, 0])) for crop in crops])

    def direction(self, identity: int) -> FloatArray:
        vector: FloatArray = np.eye(DIM, dtype=np.float32)[(identity + 3) % DIM]
        return vector


@dataclass
class NewEmbedder:
    """The same in the service."""

    recognizer: NewRecognizer = field(default_factory=NewRecognizer)

    async def embed(self, crops: Crops) -> FloatArray:
        return self.recognizer.embed(crops)


class OldRecognizer:
    def embed(self, crops: Crops) -> FloatArray:
        return np.eye(4, dtype=np.float32)[[int(crop[0, 0, 0]) % 4 for crop in crops]]


@dataclass
class Switching:
    """A library with photos and persons, and its change of model."""

    library: Library
    recognizer: NewRecognizer

    @property
    def world(self) -> StoredWorld:
        return self.library.world

    @property
    def old(self) -> EmbeddingContract:
        return contract_of(self.world.services.model)

    async def switch(
        self,
        contract: EmbeddingContract = NEW,
        recognizer: CropRecognizer | None = None,
        drops: Drops = Drops(),  # noqa: B008  frozen
    ) -> Switched:
        gallery = self.world.gallery
        change = ModelChange(gallery.database, gallery.objects, recognizer or CropEmbedding(self.recognizer), contract)
        return await change.run("library", drops, lambda done, total: None)

    async def back(self) -> Switched:
        return await self.switch(self.old, CropEmbedding(OldRecognizer()))

    async def decided(self) -> list[object]:
        """Everything that is not made by a model."""
        return [
            [tuple(row) for row in await self.world.rows(f"SELECT {columns} FROM {table} ORDER BY 1, 2")]
            for table, columns in (
                ("faces", "id, person_id, image_id, crop_key, found_by, decided_by, hidden"),
                ("persons", "id, name, founded_by, hidden, cover_face_id"),
                ("face_rejections", "face_id, person_id"),
                ("person_distinctions", "person_a, person_b"),
                ("journal", "id, action, subjects, person_ids"),
            )
        ]

    async def embeddings(self, model: int) -> dict[UUID, list[float]]:
        table = f"embeddings_m{model}_c{self.world.first_key}"
        rows = await self.world.rows(f"SELECT face_id, embedding::text AS text FROM {table}")
        return {row["face_id"]: json.loads(row["text"]) for row in rows}

    async def tables(self) -> set[str]:
        rows = await self.world.rows(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(embedding|template)s_m'"
        )
        return {row["relname"].removesuffix(f"_c{self.world.first_key}") for row in rows}

    async def sound(self) -> None:
        async with self.world.gallery.database.connection() as connection:
            found = await checks.mismatches(connection, await collections.get(connection, "library"))
        assert not any(getattr(found, name) for name in found.__slots__), found


@dataclass
class Home:
    switching: Switching
    photos: list[str]
    anna: str
    bob: str


@pytest.fixture
async def home(stored: StoredWorld) -> Home:
    """Twelve faces in six photos: identities 0 and 1. Anna has some of the first, as a user said; Bob some of the second,
    but one is not his; one face is hidden; one is enrolled from a picture."""
    library = Library(stored, Models())
    photos = [await library.photo((BOXES[0], 0), (BOXES[1], 1)) for _ in range(FACES // 2)]
    await library.index(*photos)
    anna, bob = await library.person("Anna"), await library.person("Bob")
    faces = [await library.faces(photo) for photo in photos]
    for first, second in faces[:3]:
        await library.give(first["id"], anna)
        await library.give(second["id"], bob)
    for path, body in (
        (f"/api/v1/faces/{faces[3][1]['id']}/reject-person", {"person_id": bob}),
        (f"/api/v1/faces/{faces[4][1]['id']}/hide", {}),
    ):
        answer = await stored.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
    async with stored.gallery.database.connection() as connection:
        pair = sorted([UUID(anna), UUID(bob)])
        await connection.execute("INSERT INTO person_distinctions (person_a, person_b) VALUES ($1, $2)", *pair)
    await enrol(library, anna, JPEG + bytes([1, 0]))
    return Home(Switching(library, NewRecognizer()), photos, anna, bob)


@pytest.fixture
async def new_client(home: Home) -> AsyncIterator[httpx.AsyncClient]:
    """The service with the new model."""
    world = home.switching.world
    model = dataclasses.replace(
        world.services.model,
        embedding_model=NEW.model,
        dim=NEW.dim,
        recognizer=dataclasses.replace(world.services.model.recognizer, preprocessing=NEW.preprocessing),
    )
    settings: dict[str, object] = {"data_dir": world.folder}
    services = make_services(
        FakeDetector(), NewEmbedder(), settings, lambda: world.dsn, world.gallery.objects, model=model
    )  # fmt: skip
    assert contract_of(model) == NEW
    transport = httpx.ASGITransport(create_api(services), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"Authorization": f"Bearer {KEY}"}
    ) as client:
        yield client
    await services.gallery.close()


async def who(client: httpx.AsyncClient, identity: int) -> httpx.Response:
    return await client.post(
        "/api/v1/collections/library/search", files={"file": ("a.jpg", image(1, identity))}, data={"threshold": "0.5"}
    )


async def test_decisions_survive_and_search_works_with_the_new_model(home: Home, new_client: httpx.AsyncClient) -> None:
    switching = home.switching
    before = await switching.decided()
    assert (await who(new_client, 0)).status_code == 409
    outcome = await switching.switch()
    assert (outcome.done, outcome.embedded, outcome.vectors, outcome.damaged) == (True, FACES + 1, 0, 0)
    assert outcome.collection.contract == NEW and outcome.templates == 2
    assert await switching.decided() == before
    # Of everything there is something that could have been lost.
    assert all(before), before
    assert len(await switching.embeddings(2)) == FACES + 1
    for identity, person in ((0, home.anna), (1, home.bob)):
        answer = await who(new_client, identity)
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["results"][0]["candidates"]
        assert found["person"]["id"] == person and found["similarity"] > 0.99
    assert (await who(switching.world.client, 0)).status_code == 409
    await switching.sound()


async def test_templates_are_those_that_writers_would_make(home: Home) -> None:
    switching = home.switching
    collection = (await switching.switch()).collection
    table = f"templates_m2_c{switching.world.first_key}"
    query = f"SELECT person_id, ordinal, face_count, embedding::text FROM {table} ORDER BY 1, 2"
    made = await switching.world.rows(query)
    async with switching.world.gallery.database.transaction() as tx:
        await tx.execute(f"DELETE FROM {table}")
        for person in (home.anna, home.bob):
            await vectors.refresh_templates(tx, collection, UUID(person))
    assert made and await switching.world.rows(query) == made


async def test_back_again_embeds_only_what_is_new(home: Home, new_client: httpx.AsyncClient) -> None:
    switching = home.switching
    first = await switching.embeddings(1)
    await switching.switch()
    answer = await new_client.post(
        f"/api/v1/collections/library/persons/{home.bob}/faces",
        data={"review": "false"}, files=[("files", ("b.jpg", image(1, 1)))],
    )  # fmt: skip
    assert answer.status_code == 201, answer.text
    outcome = await switching.back()
    assert (outcome.done, outcome.embedded, outcome.collection.contract) == (True, 1, switching.old)
    again = await switching.embeddings(1)
    assert len(again) == FACES + 2 and {one: again[one] for one in first} == first
    assert await switching.tables() == {"embeddings_m1", "templates_m1", "embeddings_m2"}
    await switching.sound()
    assert (await who(switching.world.client, 0)).json()["results"][0]["candidates"][0]["person"]["id"] == home.anna
    kept, count = await forget_others(switching.world.gallery.database, "library")
    assert (kept.contract, count) == (switching.old, 1)
    assert await switching.tables() == {"embeddings_m1", "templates_m1"}


@pytest.mark.parametrize("when", ["filled", "switched"])
async def test_erasure_leaves_nothing_of_any_model(home: Home, when: str, new_client: httpx.AsyncClient) -> None:
    switching = home.switching
    if when == "switched":
        await switching.switch()
    else:
        with pytest.raises(Interrupted):
            await interrupted(switching)
    (face,) = (await switching.library.faces(home.photos[5]))[:1]
    client = new_client if when == "switched" else switching.world.client
    for method, path in (
        ("DELETE", f"/api/v1/collections/library/faces/{face['id']}"),
        ("DELETE", f"/api/v1/collections/library/persons/{home.anna}"),
        ("DELETE", f"/api/v1/photos/{home.photos[0]}"),
    ):
        answer = await client.request(method, path)
        assert answer.status_code in (200, 204), answer.text
    left = {row["id"] for row in await switching.world.rows("SELECT id FROM faces")}
    assert 0 < len(left) < FACES
    for model in (1, 2):
        assert set(await switching.embeddings(model)) <= left
        rows = await switching.world.rows(f"SELECT person_id FROM embeddings_m{model}_c{switching.world.first_key}")
        assert UUID(home.anna) not in {row["person_id"] for row in rows}
    await switching.sound()
    answer = await client.delete("/api/v1/collections/library")
    assert answer.status_code == 200 and answer.json()["remaining_rows"] == 0, answer.text
    assert await switching.tables() == set()


class Interrupted(Exception):
    """As by Ctrl-C."""


async def interrupted(switching: Switching) -> None:
    """Ends before the last transaction, with everything embedded."""

    class Ending(ModelChange):
        async def _switch(self, *_: object) -> Switched:
            raise Interrupted

    gallery = switching.world.gallery
    change = Ending(gallery.database, gallery.objects, CropEmbedding(switching.recognizer), NEW)
    await change.run("library", Drops(), lambda done, total: None)


async def test_interrupted_it_goes_on_where_it_was(home: Home) -> None:
    switching = home.switching
    with pytest.raises(Interrupted):
        await interrupted(switching)
    assert switching.recognizer.embedded == FACES + 1
    # The old model serves, and users go on deciding.
    assert (await who(switching.world.client, 0)).json()["results"][0]["candidates"][0]["person"]["id"] == home.anna
    moved = (await switching.library.faces(home.photos[5]))[1]["id"]
    await switching.library.give(moved, home.bob)
    outcome = await switching.switch()
    assert outcome.done and outcome.embedded == 0 and switching.recognizer.embedded == FACES + 1
    await switching.sound()
    with pytest.raises(InvalidRequest, match="already"):
        await switching.switch()


async def test_made_by_another_preprocessing_it_begins_anew(home: Home) -> None:
    switching = home.switching
    with pytest.raises(Interrupted):
        await interrupted(switching)
    outcome = await switching.switch(dataclasses.replace(NEW, preprocessing="it's v3"))
    assert outcome.embedded == FACES + 1 and outcome.collection.contract.preprocessing == "it's v3"
    with pytest.raises(InvalidRequest, match="another preprocessing"):
        await switching.switch()
    with pytest.raises(EmbeddingModelMismatch):
        await switching.switch(EmbeddingContract(switching.old.model, 5, "v9"))
    await switching.sound()


async def test_who_writes_meanwhile_loses_nothing(home: Home) -> None:
    """Enrolment, indexing and erasure go on until the switch, and are refused by the contract after it."""
    switching, world = home.switching, home.switching.world
    loop, started = asyncio.get_running_loop(), asyncio.Event()
    acknowledged: list[str] = []
    refused: list[int] = []

    async def enrolling(first: int) -> None:
        for number in itertools.count(first, 4):
            answer = await world.client.post(
                f"/api/v1/collections/library/persons/{home.bob}/faces",
                data={"review": "false"}, files=[("files", ("b.jpg", image(1, 1) + number.to_bytes(4, "big")))],
            )  # fmt: skip
            if answer.status_code == 201:
                acknowledged.append(answer.json()["faces"][0]["id"])
                if len(acknowledged) > 10:
                    started.set()
            else:
                refused.append(answer.status_code)
                return

    async def erasing() -> None:
        for photo in home.photos[3:]:
            await asyncio.sleep(0.05)
            assert (await world.client.delete(f"/api/v1/photos/{photo}")).status_code == 200

    def slow() -> None:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result()

    switching.recognizer.between = slow
    writers = [asyncio.create_task(one) for one in (*(enrolling(first) for first in range(4)), erasing())]
    await started.wait()
    outcome = await switching.switch()
    await asyncio.wait_for(asyncio.gather(*writers), 60)
    assert outcome.done
    # Whoever came too late was told so by the contract, and by nothing else.
    assert refused == [409] * 4
    there = {str(row["id"]) for row in await world.rows("SELECT id FROM faces")}
    assert set(acknowledged) <= there and set(map(str, await switching.embeddings(2))) == there
    await switching.sound()


async def test_vectors_are_dropped_only_when_told(home: Home, new_client: httpx.AsyncClient) -> None:
    switching = home.switching
    (face_id,) = await switching.world.enrol_vector("/api/v1/collections/library", home.bob, [0.0, 0.0, 1.0, 0.0])
    outcome = await switching.switch()
    assert (outcome.done, outcome.vectors) == (False, 1) and switching.recognizer.embedded == 0
    assert await switching.tables() == {"embeddings_m1", "templates_m1"}
    outcome = await switching.switch(drops=Drops(vectors=True))
    assert (outcome.done, outcome.vectors, outcome.embedded) == (True, 1, FACES + 1)
    assert UUID(face_id) not in await switching.embeddings(1)
    assert (await new_client.get(f"/api/v1/collections/library/faces/{face_id}")).status_code == 404
    await switching.sound()


async def test_damaged_crops_are_told_of(home: Home) -> None:
    switching, world = home.switching, home.switching.world
    rows = await world.rows("SELECT id, crop_key, image_id FROM faces WHERE found_by = 'indexing' ORDER BY id LIMIT 3")
    whole = await world.gallery.objects.get(rows[1]["crop_key"])
    await world.gallery.objects.delete(rows[0]["crop_key"])
    await world.gallery.objects.put(rows[1]["crop_key"], whole[: len(whole) // 2], "image/png")
    await world.gallery.objects.put(rows[2]["crop_key"], encode_png(np.zeros((113, 112, 3), np.uint8)), "image/png")
    outcome = await switching.switch()
    assert (outcome.done, outcome.damaged, outcome.keys) == (False, 3, tuple(row["crop_key"] for row in rows))
    assert outcome.collection.contract == switching.old
    await switching.sound()
    await world.gallery.objects.put(rows[1]["crop_key"], whole, "image/png")
    outcome = await switching.switch(drops=Drops(damaged=True))
    assert (outcome.done, outcome.damaged, outcome.embedded) == (True, 2, 1)
    await switching.sound()
    (again,) = await world.rows("SELECT count(*) AS n FROM photos WHERE indexed_at IS NULL")
    assert again["n"] == len({rows[0]["image_id"], rows[2]["image_id"]})


async def test_an_object_store_that_is_down_damages_nothing(home: Home) -> None:
    switching = home.switching

    class Down:
        async def get(self, key: str) -> bytes:
            raise ObjectStoreUnavailable("down")

    change = ModelChange(switching.world.gallery.database, Down(), CropEmbedding(NewRecognizer()), NEW)  # type: ignore[arg-type]
    with pytest.raises(ObjectStoreUnavailable):
        await change.run("library", Drops(damaged=True), lambda done, total: None)
    await switching.sound()


async def test_a_bulk_load_that_began_before_is_refused(home: Home) -> None:
    switching = home.switching
    async with switching.world.gallery.database.connection() as connection:
        before = await collections.get(connection, "library")
    await switching.switch()
    person = BulkPerson(UUID(int=7), None, "Late", {})
    async with switching.world.gallery.database.dedicated() as connection:
        with pytest.raises(EmbeddingModelMismatch):
            await bulk.load(connection, before, [person], np.zeros(1, np.int64), np.eye(4, dtype=np.float32)[:1])
    await switching.sound()


async def test_who_waits_for_the_collection_sees_the_new_model(home: Home) -> None:
    """And is not told that the collection is gone."""
    switching, database = home.switching, home.switching.world.gallery.database
    with pytest.raises(Interrupted):
        await interrupted(switching)
    async with database.transaction() as held:
        await collections.lock(held, "library", for_deletion=True)
        waiting: list[Awaitable[object]] = [
            asyncio.create_task(database.run(lambda tx: collections.lock(tx, "library"))) for _ in range(2)
        ]
        await asyncio.sleep(0.2)
        collection = await collections.get(held, "library")
        await collections.set_model(held, collection, 2, NEW.preprocessing)
    for one in waiting:
        assert (await one).contract == NEW  # type: ignore[attr-defined]


async def test_no_such_collection(home: Home) -> None:
    gallery = home.switching.world.gallery
    change = ModelChange(gallery.database, gallery.objects, CropEmbedding(NewRecognizer()), NEW)
    for name in ("none", "\0"):
        with pytest.raises(NotFound):
            await change.run(name, Drops(), lambda done, total: None)
        with pytest.raises(NotFound):
            await forget_others(gallery.database, name)


def test_crops_are_read_whole_or_not_at_all() -> None:
    crop = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    png = encode_png(crop)
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1

    class Seen:
        def embed(self, crops: Crops) -> FloatArray:
            assert (crops == crop).all() and len(crops) <= 32
            return np.full((len(crops), 4), 0.5, np.float32)

    files = [png] * 70 + [b"", png[:-200], bytes(flipped), encode_png(crop[:100])]
    found = CropEmbedding(Seen()).embed_all(files)
    assert [one is not None for one in found] == [True] * 70 + [False] * 4

    class Overflowing:
        def embed(self, crops: Crops) -> FloatArray:
            return np.full((len(crops), 4), np.nan, np.float32)

    assert CropEmbedding(Overflowing()).embed_all([png]) == [None]


def test_as_an_operator_types_it(
    kinlens: Kinlens,
    home_of_commands: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """With the recognizer of the default pack."""
    assert kinlens("switch-model", "none") == 2 and "no collection" in capsys.readouterr().err
    assert kinlens("switch-model", "people", "--pack", "nothing") == 2
    assert kinlens("switch-model", "people") == 1
    assert "1 faces came as vectors" in capsys.readouterr().err
    assert kinlens("switch-model", "people", "--drop-vectors") == 0
    told = capsys.readouterr().out
    assert "holds embeddings of sface_2021dec now: 40 faces embedded" in told and "MODEL_PACK=opencv" in told
    assert kinlens("db", "check") == 0
    assert kinlens("backup", "k.tar") == 0 and kinlens("restore", "k.tar", "--force") == 0
    assert kinlens("switch-model", "people") == 2 and "already" in capsys.readouterr().err
    assert kinlens("switch-model", "people", "--forget-old", "--pack", "opencv") == 2
    assert kinlens("switch-model", "people", "--forget-old") == 0
    assert "those of 1 other models were dropped" in capsys.readouterr().out
    assert kinlens("db", "check") == 0


@pytest.fixture
def home_of_commands(kinlens: Kinlens, database_dsn: str, tmp_path: Path) -> None:
    """40 faces with crops and one vector, by another model, in the command's own folder."""
    asyncio.run(_enrol_forty(database_dsn, tmp_path / "data" / "objects"))


async def _enrol_forty(dsn: str, folder: Path) -> None:
    from serve_app.identity.people import NewFace, new_id
    from serve_app.storage import faces, persons
    from serve_app.storage.database import Database
    from serve_app.storage.local_objects import LocalObjectStore
    from serve_app.storage.objects import crop_key
    from serve_app.storage.persons import PersonChange

    rng = np.random.default_rng(5)
    database, objects = Database(lambda: dsn, 2), LocalObjectStore(folder, b"k" * 32)
    await objects.prepare()
    contract = EmbeddingContract("fake-model", 4, "v1")
    async with database.transaction() as tx:
        collection = await collections.create(tx, "people", "", {}, contract)
        person = await persons.create(tx, collection, new_id(), PersonChange("Anna"))
        made = [NewFace(new_id(), np.eye(4, dtype=np.float32)[0]) for _ in range(41)]
        for place, face in enumerate(made[1:], 1):
            key = crop_key(collection.key, face.id)
            crop = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
            await objects.put(key, encode_png(crop), "image/png")
            made[place] = dataclasses.replace(face, crop_key=key)
        await faces.insert(tx, collection, person.id, made)
        await vectors.refresh_templates(tx, collection, person.id)
    await objects.close()
    await database.close()
