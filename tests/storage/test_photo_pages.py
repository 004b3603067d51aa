"""Pages of photos by random filters, found in each of the ways there are, beside the same worked out here."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from serve_app.identity.people import Collection, EmbeddingContract, new_id
from serve_app.photos import PersonsMatch, PhotoFilter, PhotoSort
from serve_app.storage import collections, photos
from serve_app.storage.database import Database
from serve_app.storage.photo_pages import Order, Position

FOLDERS = ("", "a", "a/b", "a/b/c", "a/bc", "A", "ä", "a%", "a_")
TAGS = ("red", "green", "blue")
START = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    id: UUID
    taken_at: datetime
    folder: str
    tags: frozenset[str]
    persons: frozenset[UUID]


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = Database(lambda: database_dsn, 4)
    yield database
    await database.close()


async def fill(database: Database, rng: random.Random, people: list[UUID]) -> tuple[Collection, list[Row]]:
    contract = EmbeddingContract("test-model", 4, "v1")
    collection = await database.run(lambda tx: collections.create(tx, "library", "", {}, contract))
    rows = []
    async with database.transaction() as tx:
        for person in people:
            await tx.execute(
                "INSERT INTO persons (id, collection_key, name, metadata) VALUES ($1, $2, '', '{}')", person, collection.key
            )
        for number in range(80):
            made = Row(
                new_id(),
                # Several of one moment.
                START + timedelta(days=number // 3),
                rng.choice(FOLDERS),
                frozenset(tag for tag in TAGS if rng.random() < 0.4),
                frozenset(person for person in people if rng.random() < 0.3),
            )
            image = new_id()
            await tx.execute(
                "INSERT INTO images (id, collection_key, sha256, object_key, size_bytes, format, width_px, height_px)"
                " VALUES ($1, $2, sha256($3::text::bytea), $3, 1, 'JPEG', 1, 1)",
                image, collection.key, f"o/{number}",
            )  # fmt: skip
            await tx.execute(
                "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, orientation, tag_count)"
                " VALUES ($1, $2, $3, 'x', $4, $5, 1, $6)",
                made.id, collection.key, image, made.folder, made.taken_at, len(made.tags),
            )  # fmt: skip
            for tag in made.tags:
                await tx.execute("INSERT INTO photo_tags VALUES ($1, $2, $3)", made.id, collection.key, tag)
            for person in made.persons:
                await tx.execute(
                    "INSERT INTO faces (id, collection_key, person_id, image_id, taken_at) VALUES ($1, $2, $3, $4, now())",
                    new_id(), collection.key, person, image,
                )  # fmt: skip
            rows.append(made)
    return collection, rows


def random_filter(rng: random.Random, people: list[UUID]) -> PhotoFilter:
    def some(most: int) -> tuple[UUID, ...]:
        return tuple(rng.sample(people, rng.randint(1, most)))

    begin = START + timedelta(days=rng.randint(0, 26))
    return PhotoFilter(
        person_ids=some(2) if rng.random() < 0.4 else (),
        persons=rng.choice(list(PersonsMatch)),
        tags=tuple(rng.sample(TAGS, rng.randint(1, 2))) if rng.random() < 0.5 else (),
        untagged=rng.random() < 0.1,
        taken_from=begin if rng.random() < 0.3 else None,
        taken_to=begin + timedelta(days=9) if rng.random() < 0.3 else None,
        folder=rng.choice(FOLDERS) if rng.random() < 0.4 else None,
        subfolders=rng.random() < 0.5,
        groups=tuple(some(2) for _ in range(rng.randint(0, 2))) if rng.random() < 0.4 else (),
        without=some(1) if rng.random() < 0.3 else (),
    )


def fits(row: Row, wanted: PhotoFilter) -> bool:
    there = [person in row.persons for person in wanted.person_ids]
    persons = {PersonsMatch.ANY: any(there), PersonsMatch.ALL: all(there), PersonsMatch.NONE: not any(there)}[wanted.persons]
    folder = wanted.folder is None or row.folder == wanted.folder
    if wanted.folder is not None and wanted.subfolders:
        folder = not wanted.folder or row.folder == wanted.folder or row.folder.startswith(wanted.folder + "/")
    return (
        (persons or not wanted.person_ids)
        and set(wanted.tags) <= row.tags
        and (not wanted.untagged or not row.tags)
        and (wanted.taken_from is None or row.taken_at >= wanted.taken_from)
        and (wanted.taken_to is None or row.taken_at < wanted.taken_to)
        and folder
        and all(set(group) & row.persons for group in wanted.groups)
        and not set(wanted.without) & row.persons
    )


@pytest.mark.parametrize(
    ("max_sorted", "worth_a_walk", "walked"), [(20_000, 3_000, 3_000), (20_000, 1, 9), (5, 3, 12), (0, 1, 1)]
)
async def test_whatever_leads(
    database: Database, monkeypatch: pytest.MonkeyPatch, max_sorted: int, worth_a_walk: int, walked: int
) -> None:
    monkeypatch.setattr("serve_app.storage.photo_pages.MAX_SORTED", max_sorted)
    monkeypatch.setattr("serve_app.storage.photos.WORTH_A_WALK", worth_a_walk)
    monkeypatch.setattr("serve_app.storage.photos.WALKED", walked)
    rng = random.Random(f"{max_sorted} {walked}")
    people = [new_id() for _ in range(4)]
    collection, rows = await fill(database, rng, people)
    found_any = 0
    async with database.connection() as connection:
        for _ in range(40):
            wanted = random_filter(rng, people)
            order = Order(PhotoSort.TAKEN, rng.random() < 0.5)
            expected = sorted(
                (row for row in rows if fits(row, wanted)), key=lambda row: (row.taken_at, row.id), reverse=order.descending
            )
            found: list[UUID] = []
            after = None
            while True:
                page = await photos.page(connection, collection, wanted, order, after, 5)
                found += [photo.id for photo in page]
                if len(page) < 5:
                    break
                after = Position(page[-1].taken_at, page[-1].id)
            assert found == [row.id for row in expected], wanted
            found_any += bool(found)
    assert found_any > 10
