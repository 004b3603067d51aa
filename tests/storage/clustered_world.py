"""A library whose faces have made-up embeddings, for tests of clustering: rows as indexing makes them, without the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import numpy as np

from serve_app.faces import FloatArray, OperatingPoint, l2_normalize
from serve_app.identity.people import Collection, EmbeddingContract, NewImage, Person, new_id
from serve_app.services.clustering import Clustering
from serve_app.storage import checks, collections, images, persons, vectors
from serve_app.storage.database import Database
from serve_app.storage.persons import PersonChange
from serve_app.storage.vectors import VectorTables
from tests.storage.conftest import StoredWorld

DIM = 32
CONTRACT = EmbeddingContract("a-model", DIM, "arcface")
POINT = OperatingPoint("a-model", "made up", 0.36, 0.30, None, None)
LIBRARY = "library"


@dataclass
class Clustered:
    """`likeness`: cosine of two faces of one direction."""

    world: StoredWorld
    collection: Collection
    clustering: Clustering
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    @property
    def database(self) -> Database:
        return self.world.gallery.database

    def near(self, direction: int, likeness: float = 0.8) -> FloatArray:
        """A face of a made-up person; directions are at right angles."""
        noise = self.random.normal(size=DIM)
        noise[direction] = 0
        axis = np.eye(DIM)[direction]
        return l2_normalize(np.sqrt(likeness) * axis + np.sqrt(1 - likeness) * noise / np.linalg.norm(noise))

    async def photo(self, *embeddings: FloatArray, code: str | None = None) -> list[UUID]:
        """A photo with these faces, which wait, or have a reason not to. Their ids."""
        async with self.database.transaction() as tx:
            collection = await collections.lock(tx, LIBRARY)
            one = uuid4()
            key = f"collections/{collection.key}/originals/{one}"
            image_id = await images.insert(tx, collection, NewImage(one, one.bytes * 2, key, 10, "JPEG", 640, 480))
            await tx.execute(
                "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, orientation)"
                " VALUES ($1, $2, $3, 'a.jpg', '', now(), 1)",
                new_id(), collection.key, image_id,
            )  # fmt: skip
            found = [new_id() for _ in embeddings]
            await tx.executemany(
                "INSERT INTO faces (id, collection_key, image_id, bbox, landmarks, detection_score, taken_at, found_by,"
                " decided_by, unassigned) VALUES ($1, $2, $3, '{0,0,9,9}', '{}', 0.9, now(), 'indexing', 'machine', $4)",
                [(face, collection.key, image_id, None if code is None else {"code": code}) for face in found],
            )
            await vectors.insert_embeddings(tx, collection, None, list(zip(found, embeddings, strict=True)))
        return found

    async def photos(self, direction: int, count: int, likeness: float = 0.8) -> list[UUID]:
        """One face of the direction in each."""
        return [(await self.photo(self.near(direction, likeness)))[0] for _ in range(count)]

    async def person(self, name: str = "", founded_by: str = "user") -> UUID:
        async with self.database.transaction() as tx:
            collection = await collections.lock(tx, LIBRARY)
            person: Person = await persons.create(tx, collection, new_id(), PersonChange(name))
            await tx.execute("UPDATE persons SET founded_by = $2 WHERE id = $1", person.id, founded_by)
        return person.id

    async def assign(self, person_id: UUID | None, *faces: UUID, decided_by: str = "user") -> None:
        """As a user, or as the machine."""
        async with self.database.transaction() as tx:
            collection = await collections.lock(tx, LIBRARY)
            before = await tx.fetch("SELECT DISTINCT person_id FROM faces WHERE id = ANY($1::uuid[])", list(faces))
            owners = {row["person_id"] for row in before} | {person_id}
            await persons.lock(tx, collection, sorted(one for one in owners if one))
            await tx.execute(
                "UPDATE faces SET person_id = $2, decided_by = $3, unassigned = NULL WHERE id = ANY($1::uuid[])",
                list(faces), person_id, decided_by,
            )  # fmt: skip
            await tx.execute(
                f"UPDATE {VectorTables.of(collection).embeddings} SET person_id = $2 WHERE face_id = ANY($1::uuid[])",
                list(faces), person_id,
            )  # fmt: skip
            for one in sorted(one for one in owners if one):
                await vectors.refresh_templates(tx, collection, one)

    async def reject(self, face: UUID, person_id: UUID) -> None:
        await self.world.rows("INSERT INTO face_rejections (face_id, person_id) VALUES ($1, $2)", face, person_id)
        rows = await self.world.rows("SELECT person_id FROM faces WHERE id = $1", face)
        if rows[0]["person_id"] == person_id:
            await self.assign(None, face, decided_by="machine")

    async def rename(self, person_id: UUID, name: str) -> None:
        await self.world.rows("UPDATE persons SET name = $2 WHERE id = $1", person_id, name)

    async def whose(self, *faces: UUID) -> list[UUID | None]:
        rows = await self.world.rows("SELECT id, person_id FROM faces WHERE id = ANY($1::uuid[])", list(faces))
        by_id = {row["id"]: row["person_id"] for row in rows}
        return [by_id[one] for one in faces]

    async def one_person(self, faces: Sequence[UUID]) -> UUID:
        """Who has all of them."""
        (found,) = set(await self.whose(*faces))
        assert found is not None
        return UUID(str(found))

    async def why(self, face: UUID) -> dict[str, object]:
        (row,) = await self.world.rows("SELECT person_id, unassigned::text AS reason FROM faces WHERE id = $1", face)
        assert row["person_id"] is None and row["reason"] is not None
        import json

        found: dict[str, object] = json.loads(row["reason"])
        return found

    async def state(self) -> list[object]:
        faces = await self.world.rows("SELECT id, person_id, decided_by, hidden, unassigned::text FROM faces ORDER BY id")
        people = await self.world.rows("SELECT id, name, founded_by FROM persons ORDER BY id")
        return [tuple(row) for row in (*faces, *people)]

    async def check(self) -> None:
        """Rows, vectors and templates are in step, and no picture shows a person twice unless a user said so."""
        async with self.database.connection() as connection:
            found = await checks.mismatches(connection, self.collection)
        assert not {name: getattr(found, name) for name in found.__slots__ if getattr(found, name)}
        rows = await self.world.rows(
            "SELECT p.id, (SELECT count(*) FROM faces f WHERE f.person_id = p.id) AS faces,"
            " (SELECT coalesce(sum(face_count), 0) FROM templates t WHERE t.person_id = p.id) AS counted FROM persons p"
        )
        assert all(row["faces"] == row["counted"] for row in rows)
        twice = await self.world.rows(
            "SELECT image_id, person_id FROM faces WHERE person_id IS NOT NULL GROUP BY 1, 2"
            " HAVING count(*) > 1 AND bool_or(decided_by = 'machine')"
        )
        assert not twice
        rejected = await self.world.rows(
            "SELECT 1 FROM faces f JOIN face_rejections r ON r.face_id = f.id AND r.person_id = f.person_id"
        )
        assert not rejected


async def open_clustered(world: StoredWorld) -> Clustered:
    database = world.gallery.database
    collection = await database.run(lambda tx: collections.create(tx, LIBRARY, "Photo library", {}, CONTRACT))
    return Clustered(world, collection, Clustering(database, CONTRACT, POINT))
