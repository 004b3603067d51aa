"""A photo library with faces, for tests of what users decide: rows as indexing makes them, without the models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
import numpy.typing as npt

from serve_app.faces import l2_normalize
from serve_app.identity.people import Collection, NewFace, NewImage, Person, new_id
from serve_app.services.collections import Collections
from serve_app.services.photos import COLLECTION_NAME
from serve_app.storage import checks, collections, faces, persons, vectors
from serve_app.storage.persons import PersonChange
from tests.api.conftest import DIM
from tests.storage.conftest import StoredWorld

LIBRARY = "library"
API = "/api/v1"
FACES_A_PHOTO = 2


@dataclass
class People:
    """What a test does, through the API."""

    world: StoredWorld
    collection: Collection
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    """Every run makes the same faces: who is most like whom must not differ between two runs of a test."""

    @property
    def client(self) -> httpx.AsyncClient:
        return self.world.client

    async def ok(self, method: str, path: str, body: object | None = None, status: int | None = None) -> dict[str, Any]:
        response = await self.client.request(method, f"{API}{path}", json=body)
        assert response.status_code == (status or response.status_code) and response.status_code < 300, response.text
        found: dict[str, Any] = response.json()
        return found

    async def post(self, path: str, **body: object) -> dict[str, Any]:
        return await self.ok("POST", path, body)

    async def get(self, path: str) -> dict[str, Any]:
        return await self.ok("GET", path)

    async def refused(self, method: str, path: str, body: object | None = None) -> tuple[int, str]:
        response = await self.client.request(method, f"{API}{path}", json=body)
        assert response.status_code >= 400, response.text
        return response.status_code, response.json()["code"]

    async def undo(self, journal_id: str) -> dict[str, Any]:
        return await self.post(f"/journal/{journal_id}/undo")

    async def group(self, count: int, direction: int = 0, name: str = "", noise: float = 0.02) -> tuple[str, list[str]]:
        """A person that the machine made, with `count` faces of photos; its id and theirs. `noise`: how far each is off the
        direction; without any, the faces are the same."""
        async with self.world.gallery.database.transaction() as tx:
            collection = await collections.lock(tx, LIBRARY)
            person: Person = await persons.create(tx, collection, new_id(), PersonChange(name))
            await tx.execute("UPDATE persons SET founded_by = 'machine' WHERE id = $1", person.id)
            made = [_face(collection, direction, noise * self.random.normal(size=DIM)) for _ in range(count)]
            await faces.insert(tx, collection, person.id, made)
            ids = [face.id for face in made]
            await tx.execute("UPDATE faces SET found_by = 'indexing', decided_by = 'machine' WHERE id = ANY($1::uuid[])", ids)
            await _add_photos(tx, collection)
            await vectors.refresh_templates(tx, collection, person.id)
        return str(person.id), [str(one) for one in ids]

    async def nobodys(self, count: int, direction: int = 0, noise: float = 0.02) -> list[str]:
        """Faces that wait."""
        person_id, ids = await self.group(count, direction, noise=noise)
        async with self.world.gallery.database.transaction() as tx:
            collection = await collections.lock(tx, LIBRARY)
            await tx.execute("UPDATE faces SET person_id = NULL WHERE person_id = $1", UUID(person_id))
            await tx.execute(
                f"UPDATE {vectors.VectorTables.of(collection).embeddings} SET person_id = NULL WHERE person_id = $1",
                UUID(person_id),
            )
            await vectors.refresh_templates(tx, collection, UUID(person_id))
            await persons.delete(tx, collection, [UUID(person_id)])
        return ids

    async def state(self) -> dict[str, list[Any]]:
        """Everything that users decide, in the database."""
        tables = {
            "faces": "SELECT id, person_id, decided_by, hidden, unassigned FROM faces ORDER BY id",
            "persons": "SELECT id, name, metadata, external_id, hidden, cover_face_id, founded_by, created_at FROM persons"
            " ORDER BY id",
            "rejections": "SELECT face_id, person_id FROM face_rejections ORDER BY 1, 2",
            "distinctions": "SELECT person_a, person_b FROM person_distinctions ORDER BY 1, 2",
        }
        return {name: [tuple(row) for row in await self.world.rows(query)] for name, query in tables.items()}

    async def check(self) -> None:
        """Vectors and templates are in step with the faces: in number, and in what they stand for."""
        async with self.world.gallery.database.connection() as connection:
            found = await checks.mismatches(connection, self.collection)
            wrong = {name: getattr(found, name) for name in found.__slots__ if getattr(found, name)}
            assert not wrong
        rows = await self.world.rows(
            "SELECT p.id, (SELECT count(*) FROM faces f WHERE f.person_id = p.id) AS faces,"
            " (SELECT coalesce(sum(face_count), 0) FROM templates t WHERE t.person_id = p.id) AS counted,"
            " (SELECT count(*) FROM faces f WHERE f.hidden AND f.person_id = p.id) AS hidden FROM persons p"
        )
        assert all(row["faces"] == row["counted"] and not row["hidden"] for row in rows)

    async def whose(self, *face_ids: str) -> list[tuple[str | None, str]]:
        rows = await self.world.rows("SELECT id, person_id, decided_by FROM faces WHERE id = ANY($1::uuid[])", list(face_ids))
        by_id = {str(row["id"]): row for row in rows}
        found = [by_id[one] for one in face_ids]
        return [(row["person_id"] and str(row["person_id"]), row["decided_by"]) for row in found]


async def open_people(world: StoredWorld) -> People:
    library: Collections = world.gallery.collections
    return People(world, await library.ensure(LIBRARY, COLLECTION_NAME))


def _face(collection: Collection, direction: int, off: npt.NDArray[np.float64]) -> NewFace:
    image_id = uuid4()
    embedding = l2_normalize(np.eye(DIM, dtype=np.float32)[direction % DIM] + off.astype(np.float32))
    key = f"collections/{collection.key}/originals/{image_id}"
    image = NewImage(image_id, image_id.bytes * 2, key, 10, "JPEG", 640, 480)
    quality = {"size_px": 100.0}
    return NewFace(
        id=new_id(), embedding=embedding, image=image, bbox=[0, 0, 9, 9], landmarks=[0.0] * 10, detection_score=0.9,
        quality=quality,
    )  # fmt: skip


async def _add_photos(tx: Any, collection: Collection) -> None:
    """Of every picture that is none yet."""
    await tx.execute(
        "INSERT INTO photos (id, collection_key, image_id, file_name, folder, taken_at, orientation)"
        " SELECT gen_random_uuid(), i.collection_key, i.id, 'a.jpg', '', now(), 1 FROM images i"
        " WHERE i.collection_key = $1 AND NOT EXISTS (SELECT 1 FROM photos p WHERE p.image_id = i.id)",
        collection.key,
    )
