"""Templates of persons, made anew or counted on; and what clustering reads of a collection at once."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from serve_app.faces import TEMPLATE_COSINE, templates_of
from serve_app.identity.people import new_id
from serve_app.storage import clustering as stored
from serve_app.storage import collections, persons, vectors
from serve_app.storage.database import Connection
from tests.storage.clustered_world import LIBRARY, Clustered, open_clustered
from tests.storage.conftest import StoredWorld


@pytest.fixture
async def world(stored: StoredWorld) -> Clustered:
    return await open_clustered(stored)


async def templates(world: Clustered, person_id: UUID) -> list[tuple[int, list[float]]]:
    rows = await world.world.rows(
        "SELECT face_count, embedding::real[] AS embedding FROM templates WHERE person_id = $1 ORDER BY ordinal", person_id
    )
    return [(row["face_count"], row["embedding"]) for row in rows]


async def grow(world: Clustered, tx: Connection, person_id: UUID, *face_ids: UUID) -> None:
    collection = await collections.lock(tx, LIBRARY)
    await persons.lock(tx, collection, [person_id])
    for table, column in (("faces", "id"), (vectors.VectorTables.of(collection).embeddings, "face_id")):
        await tx.execute(f"UPDATE {table} SET person_id = $2 WHERE {column} = ANY($1::uuid[])", list(face_ids), person_id)
    await vectors.grow_templates(tx, collection, {person_id: face_ids})


async def test_of_many_persons_at_once_as_of_each(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_PERSONS_AT_ONCE", 2)
    monkeypatch.setattr(vectors, "_PACKED_FACES", 2)
    people = [await world.person() for _ in range(5)]
    faces = [await world.photos(number, number) for number in range(5)]
    odd = await world.photos(9, 2)
    for person, theirs in zip(people, faces, strict=True):
        await world.assign(person, *theirs)
    await world.assign(people[1], *odd)
    await world.rename(people[0], "nobody's face")
    one_by_one = [await templates(world, person) for person in people]
    assert [sum(count for count, _ in theirs) for theirs in one_by_one] == [0, 3, 2, 3, 4]
    await world.world.rows("DELETE FROM templates")
    async with world.database.transaction() as tx:
        collection = await collections.lock(tx, LIBRARY)
        assert await vectors.refresh_templates(tx, collection, *people, people[2]) == 0
    assert [await templates(world, person) for person in people] == one_by_one
    # Of persons who have no faces any more, all go; of one with fewer, some.
    await world.world.rows("UPDATE faces SET person_id = NULL WHERE id = ANY($1::uuid[])", [*faces[3], *odd])
    await world.world.rows("UPDATE embeddings SET person_id = NULL WHERE face_id = ANY($1::uuid[])", [*faces[3], *odd])
    async with world.database.transaction() as tx:
        collection = await collections.lock(tx, LIBRARY)
        assert await vectors.refresh_templates(tx, collection, *people) == len(one_by_one[3]) + len(one_by_one[1]) - 1
        assert await vectors.refresh_templates(tx, collection) == 0
    await world.check()


async def test_of_somebody_with_many_faces_some_are_only_counted(world: Clustered) -> None:
    """Every face is like a template all the same, as it is when they are made anew, and no count is wrong."""
    person = await world.person()
    await world.assign(person, *await world.photos(0, 70, 0.5))
    before = await templates(world, person)
    more = await world.photos(0, 2, 0.5)
    async with world.database.transaction() as tx:
        await grow(world, tx, person, *more)
    after = await templates(world, person)
    assert [values for _, values in after] == [values for _, values in before] and sum(count for count, _ in after) == 72
    for face_id in await world.photos(0, 90, 0.5):
        async with world.database.transaction() as tx:
            await grow(world, tx, person, face_id)
    grown = await templates(world, person)
    assert sum(count for count, _ in grown) == 162 and [one for _, one in grown] != [one for _, one in after]
    async with world.database.connection() as connection:
        theirs = (await vectors.embeddings_of_persons(connection, world.collection, [person]))[person]
    stands = np.array([values for _, values in grown], dtype=np.float32)
    assert float((theirs @ stands.T).max(axis=1).min()) > TEMPLATE_COSINE - 0.05
    made_anew, _ = templates_of(theirs)
    assert float((made_anew @ stands.T).max(axis=1).min()) > 0.99
    await world.check()


async def test_a_face_unlike_the_others_has_a_template_at_once(world: Clustered) -> None:
    person = await world.person()
    await world.assign(person, *await world.photos(0, 70, 0.9))
    (odd,) = await world.photos(1, 1)
    (like,) = await world.photos(0, 1, 0.9)
    async with world.database.transaction() as tx:
        await grow(world, tx, person, odd, like)
    assert [count for count, _ in await templates(world, person)] == [71, 1]
    # Somebody who had none, and somebody with few.
    other, faces = await world.person(), await world.photos(2, 3)
    for part in (faces[:1], faces[1:]):
        async with world.database.transaction() as tx:
            await grow(world, tx, other, *part)
    wanted = await templates(world, other)
    async with world.database.transaction() as tx:
        await vectors.refresh_templates(tx, await collections.lock(tx, LIBRARY), other)
    assert await templates(world, other) == wanted and wanted[0][0] == 3
    await world.check()


async def test_nobodys_faces_are_those_that_may_be_grouped(world: Clustered) -> None:
    (waiting,) = await world.photos(0, 1)
    (left,) = await world.photo(world.near(1), code="no_neighbour")
    await world.photo(world.near(1), code="too_small")
    hidden, given, decided = await world.photos(2, 3)
    await world.world.rows("UPDATE faces SET hidden = true WHERE id = $1", hidden)
    await world.assign(await world.person(), given)
    await world.assign(None, decided)
    async with world.database.connection() as connection:
        packed = await stored.unclaimed(connection, world.collection)
        assert {packed[start : start + 16] for start in range(0, len(packed), 16)} == {waiting.bytes, left.bytes}
        ids, embeddings = await stored.embeddings_of(connection, world.collection, [left, waiting, new_id()])
        assert ids == sorted([waiting, left]) and embeddings.shape == (2, 32)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3)
        ids, embeddings = await stored.embeddings_of(connection, world.collection, [new_id()])
        assert ids == [] and embeddings.shape == (0, 32)


async def test_what_others_changed_between_two_looks_is_known_in_the_next(world: Clustered) -> None:
    """Another process leaves a face alone; a user takes one away; one that was left alone gets another embedding."""
    (first, second) = [(await world.photo(world.near(number), code="no_neighbour"))[0] for number in (3, 4)]
    await world.photos(7, 1)
    await world.clustering.settle(LIBRARY)
    (third,) = await world.photo(world.near(5), code="no_neighbour")
    await world.assign(None, second)
    near = world.near(6)
    await world.world.rows("UPDATE embeddings SET embedding = $2::real[]::halfvec WHERE face_id = $1", first, near.tolist())
    await world.world.rows("UPDATE faces SET unassigned = NULL WHERE id = $1", first)
    friends = [(await world.photos(number, 1))[0] for number in (3, 4, 5, 6)]
    await world.clustering.settle(LIBRARY)
    owners = await world.whose(first, second, third, *friends)
    assert owners[2] == owners[5] is not None and owners[0] == owners[6] is not None
    assert [owners[1], owners[3], owners[4]] == [None, None, None]
    await world.check()


async def test_persons_whose_faces_are_looked_at(world: Clustered) -> None:
    person, empty = await world.person(), await world.person()
    faces = await world.photos(0, 5)
    await world.assign(person, *faces)
    await world.world.rows("UPDATE faces SET hidden = true WHERE id = $1", faces[4])
    async with world.database.connection() as connection:
        found = await stored.person_sums(connection, world.collection, {person, empty, new_id()}, 3)
        assert found.persons == (person,) and found.counts.tolist() == [3]
        _, theirs = await stored.embeddings_of(connection, world.collection, faces[1:4])
        np.testing.assert_allclose(found.sums[0], theirs.sum(axis=0), atol=1e-5)
        none = await stored.person_sums(connection, world.collection, {empty}, 3)
        assert none.persons == () and none.sums.shape == (0, 32)
