"""Photos found by what they show: real graphs, a real tokenizer, a real database."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
from PIL import Image

from deployments.models.semantic_models import ImageRequest, SemanticEngine, SemanticRequest, TextRequest, load_semantic
from deployments.models.semantic_packs import SemanticLocation, SemanticPack, resolve_semantic
from deployments.models.session import Device
from serve_app.backup import back_up, restore
from serve_app.errors import (
    EmbeddingModelMismatch,
    ImageError,
    InvalidRequest,
    JsonValue,
    ModelUnavailable,
    NotFound,
    Overloaded,
)
from serve_app.faces import FloatArray, l2_normalize
from serve_app.identity.people import Collection
from serve_app.jobs import JobKind
from serve_app.semantic import NOT_SET, SemanticModel
from serve_app.services import checks, semantic
from serve_app.services.pictures import STORED_LIMITS
from serve_app.services.semantic import SemanticIndex
from serve_app.services.work import ItemWithdrawn, WorkItem
from serve_app.storage import collections, maintenance, photo_embeddings
from serve_app.storage.database import Connection
from tests.clip import write_open_clip
from tests.storage.conftest import StoredWorld

COLOURS = {"red": (210, 30, 30), "green": (30, 210, 30), "blue": (30, 30, 210)}


def picture(red: int, green: int, blue: int, width: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 48), (red, green, blue)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Encoder:
    """The engine of the Semantic deployment, without the deployment. `refusals`: so many calls find it overloaded."""

    engine: SemanticEngine
    images: int = 0
    refusals: int = 0
    gate: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def encode_image(self, image: bytes) -> FloatArray:
        self.images += 1
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.refusals:
            self.refusals -= 1
            raise Overloaded("full", retry_after_s=0.01)
        return await self._run(ImageRequest(image))

    async def encode_text(self, text: str) -> FloatArray:
        if self.gate is not None:
            await self.gate.wait()
        return await self._run(TextRequest(text))

    async def _run(self, request: SemanticRequest) -> FloatArray:
        answer = (await asyncio.to_thread(self.engine.run, [request]))[0]
        if isinstance(answer, ImageError):
            raise answer
        return answer


@dataclass
class Library:
    world: StoredWorld
    index: SemanticIndex
    encoder: Encoder
    model: SemanticModel
    ended: dict[str, str] = field(default_factory=dict)

    async def photo(self, data: bytes) -> str:
        response = await self.world.client.post("/api/v1/photos/upload", files=[("files", ("a.png", data))])
        result = response.json()["results"][0]
        assert result["photo"] is not None, response.text
        identifier: str = result["photo"]["id"]
        return identifier

    def item(self, photo_id: str, **options: JsonValue) -> WorkItem:
        """Of which one transaction succeeds in ending it."""
        job_id = uuid4()

        async def end(tx: Connection, state: str) -> None:
            await tx.execute("CREATE TABLE IF NOT EXISTS ended (item uuid PRIMARY KEY)")
            if (await tx.execute("INSERT INTO ended VALUES ($1) ON CONFLICT DO NOTHING", job_id)).endswith(" 0"):
                raise ItemWithdrawn
            self.ended[photo_id] = state

        async def nothing(tx: Connection, subjects: Sequence[str]) -> None:
            raise AssertionError("embedding adds no items")

        async def unasked(tx: Connection) -> None:
            raise AssertionError("an embedding is kept in one transaction")

        return WorkItem(
            job_id, JobKind.EMBEDDINGS, "library", photo_id, options, lambda tx: end(tx, "done"), end, nothing, unasked
        )  # fmt: skip

    async def embed(self, *photo_ids: str, **options: JsonValue) -> None:
        for photo_id in photo_ids:
            await self.index.run(self.item(photo_id, **options))

    async def collection(self) -> Collection:
        async with self.world.gallery.database.connection() as connection:
            return await collections.get(connection, "library")

    async def tables(self) -> list[str]:
        rows = await self.world.rows("SELECT tablename FROM pg_tables WHERE tablename LIKE 'photo\\_embeddings%' ORDER BY 1")
        return [row["tablename"] for row in rows]

    async def kept(self) -> set[str]:
        found: set[str] = set()
        for table in await self.tables():
            found |= {str(row["photo_id"]) for row in await self.world.rows(f"SELECT photo_id FROM {table}")}
        return found


def load(folder: Path) -> tuple[SemanticModel, Encoder]:
    found = resolve_semantic(SemanticLocation(str(folder), folder))
    assert isinstance(found, SemanticPack)
    return found.described(), Encoder(load_semantic(found, Device.CPU, 1, STORED_LIMITS))


@pytest.fixture
def library(stored: StoredWorld, tmp_path: Path) -> Library:
    model, encoder = load(write_open_clip(tmp_path / "tiny"))
    gallery = stored.gallery
    return Library(stored, SemanticIndex(gallery.database, gallery.objects, model, encoder), encoder, model)


async def test_words_find_photos_in_the_order_of_exact_cosines(library: Library) -> None:
    rng = np.random.default_rng(7)
    pictures = {await library.photo(data): data for data in [picture(*rng.integers(0, 256, 3).tolist()) for _ in range(12)]}
    await library.embed(*pictures)
    assert set(library.ended.values()) == {"done"}
    for text in ("red", "a green car", "blue blue red"):
        probe = await library.encoder.encode_text(text)
        exact = {one: float((await library.encoder.encode_image(data)) @ probe) for one, data in pictures.items()}
        found = await library.index.rank("library", text, 100)
        assert found is not None
        # Halves round at 3 decimals: of two that are as good as equal, either may come first.
        similarities = [exact[str(one)] for one in found]
        assert len(found) == 12 and np.all(np.diff(similarities) < 2e-3)
        assert await library.index.rank("library", text, 3) == found[:3]
        few = [found[7], found[2], uuid4()]
        assert await library.index.rank_among("library", text, few) == [found[2], found[7]]


async def test_a_colour_is_found_by_its_name(library: Library) -> None:
    photos = {name: await library.photo(picture(*colour)) for name, colour in COLOURS.items()}
    await library.embed(*photos.values())
    for name, photo_id in photos.items():
        found = await library.index.rank("library", f"a photo of a {name} car", 1)
        assert found == [UUID(photo_id)]


async def test_without_a_model_it_says_what_to_do(library: Library) -> None:
    gallery = library.world.gallery
    none = SemanticIndex(gallery.database, gallery.objects, NOT_SET, None)
    assert not none.available and await none.rank("library", "red", 10) is None
    for ask in (none.check, none._loaded):
        with pytest.raises(ModelUnavailable, match=r"SEMANTIC_MODEL.*kinlens models pull"):
            ask()
    photo_id = await library.photo(picture(1, 2, 3))
    with pytest.raises(ModelUnavailable):
        await none.run(library.item(photo_id))
    # Set and found, but nobody runs it.
    with pytest.raises(ModelUnavailable, match="not deployed"):
        SemanticIndex(gallery.database, gallery.objects, library.model, None).check()
    assert not gallery.semantic.available, "the default"
    library.index.check()


async def test_a_search_does_not_wait_for_a_model_that_does_not_answer(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "_TEXT_TIMEOUT_S", 0.05)
    await library.photo(picture(1, 2, 3))
    library.encoder.gate = asyncio.Event()
    with pytest.raises(Overloaded, match="did not read the text"):
        await library.index.rank("library", "red", 10)
    with pytest.raises(Overloaded):
        await library.index.rank_among("library", "red", [])


async def test_an_empty_library_has_no_ranks(library: Library) -> None:
    assert await library.index.rank("library", "red", 10) is None
    await library.photo(picture(1, 2, 3))
    assert await library.index.rank("library", "red", 10) == []
    assert await library.tables() == []


async def test_only_new_photos_are_embedded_where_that_is_asked(library: Library) -> None:
    first, second = await library.photo(picture(1, 2, 3)), await library.photo(picture(3, 2, 1))
    collection = await library.collection()
    async with library.world.gallery.database.connection() as connection:
        assert await library.index.without(connection, collection) == [UUID(first), UUID(second)]
        await library.embed(first)
        assert await library.index.without(connection, collection) == [UUID(second)]
    await library.embed(first, second, only_new=True)
    assert library.ended == {first: "indexed", second: "done"} and library.encoder.images == 2
    await library.embed(first)
    assert library.ended[first] == "done" and library.encoder.images == 3
    assert await library.kept() == {first, second}


async def test_an_item_waits_while_the_model_is_busy(library: Library) -> None:
    photo_id = await library.photo(picture(1, 2, 3))
    library.encoder.refusals = 3
    await library.embed(photo_id)
    assert library.ended == {photo_id: "done"} and library.encoder.images == 4


async def test_what_is_wrong_with_an_item_is_said(library: Library) -> None:
    broken = await library.photo(picture(1, 2, 3)[:-40])
    with pytest.raises(ImageError):
        await library.embed(broken)
    with pytest.raises(InvalidRequest):
        await library.embed("../../etc/passwd")
    await library.embed(str(uuid4()))
    assert list(library.ended.values()) == ["erased"]
    lost = await library.photo(picture(9, 9, 9))
    row = (await library.world.rows("SELECT i.object_key FROM photos p JOIN images i ON i.id = p.image_id"
                                    " WHERE p.id = $1", UUID(lost)))[0]  # fmt: skip
    await library.world.gallery.objects.delete(row["object_key"])
    with pytest.raises(NotFound):
        await library.embed(lost)
    assert await library.kept() == set()


async def test_an_erased_photo_leaves_no_embedding(library: Library, tmp_path: Path) -> None:
    photos = [await library.photo(picture(*colour)) for colour in COLOURS.values()]
    await library.embed(*photos)
    # Of another model as well.
    model, encoder = load(write_open_clip(tmp_path / "other", seed=5, dim=16))
    gallery = library.world.gallery
    await SemanticIndex(gallery.database, gallery.objects, model, encoder).run(library.item(photos[0]))
    assert len(await library.tables()) == 2
    response = await library.world.client.delete(f"/api/v1/photos/{photos[0]}")
    assert response.status_code == 200 and response.json()["remaining_rows"] == 0, response.text
    assert await library.kept() == set(photos[1:])
    assert set(await library.index.rank("library", "red", 10) or ()) == {UUID(one) for one in photos[1:]}


async def test_a_photo_erased_while_it_is_embedded_leaves_nothing(library: Library) -> None:
    kept, gone = await library.photo(picture(1, 2, 3)), await library.photo(picture(3, 2, 1))
    await library.embed(kept)
    library.encoder.gate = asyncio.Event()
    library.encoder.asked.clear()
    working = asyncio.create_task(library.index.run(library.item(gone)))
    await library.encoder.asked.wait()
    assert (await library.world.client.delete(f"/api/v1/photos/{gone}")).status_code == 200
    library.encoder.gate.set()
    await working
    assert library.ended[gone] == "erased" and await library.kept() == {kept}


async def test_photos_erased_and_embedded_at_once_leave_nothing(library: Library) -> None:
    photos = [await library.photo(picture(index, 0, 0)) for index in range(8)]
    for photo_id in photos:
        await asyncio.gather(library.embed(photo_id), library.world.client.delete(f"/api/v1/photos/{photo_id}"))
    assert await library.kept() == set()


async def test_the_first_photos_of_a_model_may_come_together(library: Library) -> None:
    photos = [await library.photo(picture(index, 0, 0)) for index in range(8)]
    await asyncio.gather(*(library.embed(photo_id) for photo_id in photos))
    assert await library.kept() == set(photos) and len(await library.tables()) == 1


async def test_an_item_that_was_withdrawn_keeps_nothing(library: Library) -> None:
    photo_id = await library.photo(picture(1, 2, 3))
    item = library.item(photo_id)
    await library.index.run(item)
    await library.world.rows(f"DELETE FROM {(await library.tables())[0]}")
    with pytest.raises(ItemWithdrawn):
        await library.index.run(item)
    assert await library.kept() == set()


async def test_a_deleted_collection_leaves_no_table(library: Library) -> None:
    photo_id = await library.photo(picture(1, 2, 3))
    await library.embed(photo_id)
    other = await library.world.collection("others")
    response = await library.world.client.delete("/api/v1/collections/library")
    assert response.status_code == 200 and response.json()["remaining_rows"] == 0, response.text
    assert await library.tables() == [] and await library.world.rows("SELECT 1 FROM semantic_collections") == []
    assert await library.index.rank("library", "red", 10) is None
    await library.embed(photo_id)
    assert library.ended[photo_id] == "erased"
    assert (await library.world.client.get(other)).status_code == 200


async def test_one_name_is_one_length(library: Library) -> None:
    photo_id = await library.photo(picture(1, 2, 3))
    await library.embed(photo_id)
    collection = await library.collection()
    with pytest.raises(EmbeddingModelMismatch):
        async with library.world.gallery.database.transaction() as tx:
            await photo_embeddings.keep(tx, collection, library.model.embedding_model, UUID(photo_id), np.ones(3, np.float32))


async def test_a_backup_brings_embeddings_back(library: Library, tmp_path: Path) -> None:
    photos = [await library.photo(picture(*colour)) for colour in COLOURS.values()]
    await library.embed(*photos)
    gallery, archive = library.world.gallery, tmp_path / "kinlens.tar"
    await back_up(gallery.database, lambda: library.world.dsn, gallery.objects, archive, lambda *_: None)
    before = await library.index.rank("library", "green", 10)
    assert before is not None and before[0] == UUID(photos[1])
    # What came after the backup goes: rows, and tables of models that were not known then.
    late = await library.photo(picture(90, 90, 20))
    model, encoder = load(write_open_clip(tmp_path / "late", seed=9))
    await SemanticIndex(gallery.database, gallery.objects, model, encoder).run(library.item(late))
    assert len(await library.tables()) == 2
    quiet = {"verifying": lambda *_: None, "restoring": lambda *_: None}
    await restore(gallery.database, lambda: library.world.dsn, gallery.objects, archive, force=True, **quiet)
    assert len(await library.tables()) == 1 and await library.index.rank("library", "green", 10) == before


async def test_a_check_finds_embeddings_of_nothing(library: Library) -> None:
    photo_id = await library.photo(picture(1, 2, 3))
    await library.embed(photo_id)

    async def findings() -> list[str]:
        reports = checks.check_all(library.world.gallery.database.dedicated, "library", 0, lambda *_: None)
        return [finding.detail async for report in reports for finding in report.findings]

    assert await findings() == []
    await library.world.rows(f"INSERT INTO {(await library.tables())[0]} SELECT gen_random_uuid(), embedding"
                             f" FROM {(await library.tables())[0]}")  # fmt: skip
    assert await findings() == ["1 embeddings of photos have no photo: they should have been erased with it."]


async def test_a_large_library_is_searched_through_an_index(library: Library) -> None:
    photo_id = await library.photo(picture(*COLOURS["red"]))
    await library.embed(photo_id)
    collection, (table,) = await library.collection(), await library.tables()
    rng = np.random.default_rng(3)
    others = l2_normalize(rng.normal(size=(photo_embeddings.EXACT_MAX_PHOTOS + 500, 8)).astype(np.float32))
    connection = await asyncpg.connect(library.world.dsn)
    try:
        await connection.executemany(
            f"INSERT INTO {table} VALUES (gen_random_uuid(), $1::text::halfvec)",
            [(str(vector.tolist()),) for vector in others],
        )
    finally:
        await connection.close()
    probe = await library.encoder.encode_text("red")

    async def truth(limit: int) -> list[UUID]:
        async with library.world.gallery.database.connection() as tx:
            rows = await tx.fetch(
                f"SELECT photo_id FROM {table} ORDER BY (embedding <#> $1) + 0, photo_id LIMIT {limit}", probe
            )
        return [row["photo_id"] for row in rows]

    async with library.world.gallery.database.dedicated() as dedicated:
        await maintenance.choose_search_mode(dedicated, collection)
        await maintenance.choose_search_mode(dedicated, collection)
        plan = await dedicated.fetch(f"EXPLAIN SELECT photo_id FROM {table} ORDER BY embedding <#> $1 LIMIT 100", probe)
    assert any(f"{table}_hnsw" in str(row["QUERY PLAN"]) for row in plan)
    for limit in (10, 200, 1500):
        found = await library.index.rank("library", "red", limit)
        assert found is not None and len(found) == limit
        assert len(set(found) & set(await truth(limit))) / limit > 0.95
    assert await library.index.rank("library", "red", 1) == await truth(1)
    # Back to few: no index to keep up.
    await library.world.rows(f"DELETE FROM {table} WHERE photo_id <> $1", UUID(photo_id))
    async with library.world.gallery.database.dedicated() as dedicated:
        await maintenance.choose_search_mode(dedicated, collection)
    assert await library.world.rows("SELECT 1 FROM pg_indexes WHERE indexname = $1", f"{table}_hnsw") == []
    assert await library.index.rank("library", "red", 10) == [UUID(photo_id)]


async def test_clients_are_told_that_no_model_is_loaded(stored: StoredWorld) -> None:
    answer = await stored.client.post("/api/v1/index/embeddings", json={})
    assert answer.status_code == 503 and answer.json()["code"] == "model_unavailable"
    assert "SEMANTIC_MODEL" in answer.json()["detail"]
    semantic = (await stored.client.get("/api/v1/models")).json()["semantic"]
    assert semantic == {"loaded": None, "unavailable": answer.json()["detail"]}
