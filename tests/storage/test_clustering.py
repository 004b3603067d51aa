"""Clustering on a real database: what users said stands, whatever the machine does, and whenever it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from uuid import UUID, uuid4

import numpy as np
import pytest

from serve_app.errors import DatabaseUnavailable, EmbeddingModelMismatch, InvalidRequest, NotFound
from serve_app.identity.people import EmbeddingContract
from serve_app.jobs import JobKind
from serve_app.services import clustering as service
from serve_app.services.clustering import Clustering, Settled
from serve_app.services.work import ItemWithdrawn, WorkItem
from serve_app.storage import clustering as stored
from serve_app.storage.database import Connection
from tests.storage.clustered_world import CONTRACT, LIBRARY, POINT, Clustered, open_clustered
from tests.storage.conftest import StoredWorld

Group = Callable[[Clustered], Awaitable[object]]


@pytest.fixture
async def world(stored: StoredWorld) -> Clustered:
    return await open_clustered(stored)


async def settle(world: Clustered) -> Settled:
    return await world.clustering.settle(LIBRARY)


async def recluster(world: Clustered) -> Settled:
    return await world.clustering.recluster(LIBRARY)


BOTH = pytest.mark.parametrize("group", [settle, recluster])


@BOTH
async def test_faces_that_are_alike_found_a_person_and_others_join(world: Clustered, group: Group) -> None:
    first, second = await world.photos(0, 3), await world.photos(1, 2)
    (stranger,) = await world.photos(2, 1)
    done = await group(world)
    assert done == Settled(assigned=5, founded=2, deferred=1)
    one, other = await world.one_person(first), await world.one_person(second)
    assert one != other
    rows = await world.world.rows("SELECT name, founded_by FROM persons")
    assert [tuple(row) for row in rows] == [("", "machine")] * 2
    assert (await world.why(stranger))["code"] == "no_neighbour"
    later = await world.photos(0, 2)
    assert await settle(world) == Settled(assigned=2)
    assert await world.one_person([*first, *later]) == one
    await world.check()
    assert not await world.world.rows("SELECT 1 FROM journal")


async def test_nothing_to_do_is_nothing_done(world: Clustered) -> None:
    assert await settle(world) == Settled()
    assert await world.clustering.settle("elsewhere") == Settled()
    assert await recluster(world) == Settled()
    with pytest.raises(NotFound):
        await world.clustering.recluster("elsewhere")


async def test_a_face_left_alone_is_looked_at_again_when_another_comes_near(world: Clustered) -> None:
    (lonely,) = await world.photos(3, 1)
    await settle(world)
    reason = await world.why(lonely)
    assert reason["code"] == "no_neighbour" and reason["limit"] == 0.3 and reason["metric"] == "similarity"
    (stranger,) = await world.photos(4, 1)
    assert await settle(world) == Settled(deferred=1)
    assert await world.why(lonely) == reason
    (friend,) = await world.photos(3, 1)
    assert await settle(world) == Settled(assigned=2, founded=1)
    await world.one_person([lonely, friend])
    assert await world.whose(stranger) == [None]


@BOTH
async def test_two_of_one_picture_are_never_one(world: Clustered, group: Group) -> None:
    twins = await world.photo(world.near(0, 0.95), world.near(0, 0.95))
    others = await world.photos(0, 3, 0.95)
    await group(world)
    owner = await world.one_person(others)
    found = await world.whose(*twins)
    assert sorted(found, key=str) == sorted([owner, None], key=str)
    (alone,) = [face for face, one in zip(twins, found, strict=True) if one is None]
    reason = await world.why(alone)
    assert (reason["code"], reason["person_id"]) == ("same_picture", str(owner))
    await world.check()


@BOTH
async def test_a_user_may_say_that_two_of_one_picture_are_one(world: Clustered, group: Group) -> None:
    twins = await world.photo(world.near(0), world.near(0))
    person = await world.person("Mirror")
    await world.assign(person, *twins)
    more = await world.photos(0, 2)
    await group(world)
    assert await world.one_person([*twins, *more]) == person


@BOTH
async def test_a_rejection_holds(world: Clustered, group: Group) -> None:
    faces = await world.photos(0, 4)
    await settle(world)
    person = await world.one_person(faces)
    await world.reject(faces[0], person)
    for _ in range(2):
        await group(world)
        assert await world.whose(*faces) == [None, person, person, person]
        assert (await world.why(faces[0]))["code"] == "rejected"
    # One like it, that is not rejected, is the person's still; what is rejected founds nobody with it.
    later = await world.photos(0, 1)
    await group(world)
    assert await world.whose(*later) == [person]
    await world.check()


@BOTH
async def test_what_a_user_gave_to_somebody_stays_there(world: Clustered, group: Group) -> None:
    """Against all likeness; and what nobody should have, nobody gets."""
    faces = await world.photos(0, 4)
    await settle(world)
    other = await world.person("Other")
    await world.assign(other, faces[0], *await world.photos(5, 3))
    await world.assign(None, faces[1])
    for _ in range(2):
        await group(world)
        assert await world.whose(*faces[:2]) == [other, None]
        await world.one_person(faces[2:])
    await world.check()


async def test_persons_that_users_know_are_neither_merged_nor_given_up(world: Clustered) -> None:
    names = ("Ann", "Ann's sister")
    people = [await world.person(name) for name in names]
    for person in people:
        await world.assign(person, *await world.photos(0, 3), decided_by="machine")
    empty = await world.person("Nobody yet")
    unlike = await world.person("Odd")
    odd = [*await world.photos(5, 1), *await world.photos(6, 1)]
    await world.assign(unlike, *odd, decided_by="machine")
    before = await world.state()
    assert await recluster(world) == Settled()
    assert await world.state() == before
    rows = await world.world.rows("SELECT id, name FROM persons")
    assert {row["id"] for row in rows} == {*people, empty, unlike}


async def test_two_groups_of_the_machine_become_one_and_the_larger_keeps_its_id(world: Clustered) -> None:
    larger, smaller = await world.person(founded_by="machine"), await world.person(founded_by="machine")
    many, few = await world.photos(0, 4), await world.photos(0, 3)
    await world.assign(larger, *many, decided_by="machine")
    await world.assign(smaller, *few, decided_by="machine")
    assert await recluster(world) == Settled(assigned=3)
    assert await world.one_person([*many, *few]) == larger
    assert [row["id"] for row in await world.world.rows("SELECT id FROM persons")] == [larger]
    assert await recluster(world) == Settled()
    await world.check()


@pytest.mark.parametrize("touch", ["name", "rejection", "distinction", "cover", "journal", "metadata", "hidden"])
async def test_a_group_that_a_user_said_anything_of_is_kept(world: Clustered, touch: str) -> None:
    larger, smaller = await world.person(founded_by="machine"), await world.person(founded_by="machine")
    many, few = await world.photos(0, 4), await world.photos(0, 3)
    await world.assign(larger, *many, decided_by="machine")
    await world.assign(smaller, *few, decided_by="machine")
    (elsewhere,) = await world.photos(9, 1)
    pair = sorted((larger, smaller))
    statement, values = {
        "name": ("UPDATE persons SET name = 'Ann' WHERE id = $1", [smaller]),
        "metadata": ("""UPDATE persons SET metadata = '{"a": 1}' WHERE id = $1""", [smaller]),
        "hidden": ("UPDATE persons SET hidden = true WHERE id = $1", [smaller]),
        "cover": ("UPDATE persons SET cover_face_id = $2 WHERE id = $1", [smaller, few[0]]),
        "rejection": ("INSERT INTO face_rejections (face_id, person_id) VALUES ($2, $1)", [smaller, elsewhere]),
        "distinction": ("INSERT INTO person_distinctions (person_a, person_b) VALUES ($1, $2)", pair),
        "journal": (
            "INSERT INTO journal (id, collection_key, actor, action, subjects, person_ids, face_count, before, after, faces)"
            " SELECT $1, key, 'a', 'assign_faces', ARRAY[$1::uuid], ARRAY[$1::uuid], 0, '{}', '{}', '[]' FROM collections",
            [smaller],
        ),
    }[touch]
    await world.world.rows(statement, *values)
    await recluster(world)
    assert await world.one_person(few) == smaller
    assert {row["id"] for row in await world.world.rows("SELECT id FROM persons")} >= {smaller}
    if touch == "distinction":
        assert await world.one_person(many) == larger
    await world.check()


async def test_a_named_person_gives_up_what_is_not_like_it_and_gets_what_is(world: Clustered) -> None:
    person = await world.person("Ann")
    mine, wrong = await world.photos(0, 4), await world.photos(5, 1)
    await world.assign(person, *mine, *wrong, decided_by="machine")
    more = await world.photos(0, 2)
    await recluster(world)
    assert await world.one_person([*mine, *more]) == person and await world.whose(*wrong) == [None]
    # Unless a user gave it.
    await world.assign(person, *wrong)
    await recluster(world)
    assert await world.one_person([*mine, *more, *wrong]) == person
    await world.check()


async def test_who_must_not_be_recognised_keeps_what_is_not_like_them(world: Clustered) -> None:
    """It would be somebody's whom everybody may recognise."""
    eva, bob = await world.person("Eva"), await world.person("Bob")
    hers, like_bob, like_each_other = await world.photos(0, 4), await world.photos(5, 1), await world.photos(6, 3)
    await world.assign(eva, *hers, *like_bob, *like_each_other, decided_by="machine")
    await world.assign(bob, *await world.photos(5, 4))
    await world.world.rows("UPDATE persons SET do_not_recognise = true WHERE id = $1", eva)
    await recluster(world)
    assert await world.one_person([*hers, *like_bob, *like_each_other]) == eva
    await world.check()


async def test_twice_is_once(world: Clustered) -> None:
    """Of a muddle: many likenesses, pictures with several, names and rejections."""
    ann, bob = await world.person("Ann"), await world.person("Bob")
    for _ in range(25):
        several = [world.near(int(d), float(world.random.uniform(0.35, 0.9))) for d in world.random.integers(0, 6, 3)]
        await world.photo(*several)
    await settle(world)
    ids = [row["id"] for row in await world.world.rows("SELECT id FROM faces ORDER BY id")]
    await world.assign(ann, *ids[:2])
    await world.assign(bob, *ids[30:33])
    await world.reject(ids[5], ann)
    await recluster(world)
    await world.check()
    before = await world.state()
    assert await recluster(world) == Settled()
    assert await world.state() == before
    assert await settle(world) == Settled()


async def test_what_is_too_poor_or_hidden_is_nobodys(world: Clustered) -> None:
    good = await world.photos(0, 2)
    poor = await world.photo(world.near(0), code="too_small")
    hidden = await world.photos(0, 1)
    await world.world.rows("UPDATE faces SET hidden = true WHERE id = $1", hidden[0])
    await settle(world)
    await recluster(world)
    await world.one_person(good)
    assert await world.whose(*poor, *hidden) == [None, None]
    assert (await world.why(poor[0]))["code"] == "too_small"


@BOTH
async def test_between_two_persons_a_face_is_neithers(world: Clustered, group: Group) -> None:
    ann, bob = await world.person("Ann"), await world.person("Bob")
    await world.assign(ann, *await world.photos(0, 3, 0.95))
    await world.assign(bob, *await world.photos(1, 3, 0.95))
    between = np.zeros(32, dtype=np.float32)
    between[:2] = np.sqrt(0.5)
    (face,) = await world.photo(between)
    await group(world)
    reason = await world.why(face)
    assert reason["code"] == "between_persons" and reason["metric"] == "margin" and reason["limit"] == 0.05
    assert reason["person_id"] in (str(ann), str(bob))


async def test_a_face_that_was_embedded_anew_keeps_what_users_said(world: Clustered) -> None:
    """As detection and a new model do: the same face with other values."""
    faces = await world.photos(0, 4)
    await settle(world)
    person = await world.one_person(faces)
    await world.assign(person, faces[0])
    await world.reject(faces[1], person)
    async with world.database.transaction() as tx:
        for face in faces[:2]:
            await tx.execute(
                f"UPDATE embeddings_m1_c{world.collection.key} SET embedding = $2 WHERE face_id = $1", face, world.near(7)
            )
        await tx.execute("UPDATE faces SET unassigned = NULL WHERE person_id IS NULL")
    for group in (settle, recluster, recluster):
        await group(world)
        assert await world.whose(*faces) == [person, None, person, person]


async def test_many_that_settle_at_once_give_each_face_once(world: Clustered) -> None:
    for direction in range(6):
        await world.photos(direction, 4)
    done = await asyncio.gather(*(settle(world) for _ in range(5)), recluster(world))
    assert sum(one.founded for one in done) == 6 and sum(one.assigned for one in done) == 24
    assert len(await world.world.rows("SELECT 1 FROM persons")) == 6
    await world.check()
    assert await recluster(world) == Settled()


async def test_a_user_is_quicker(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the plan and its writing: a face is given to another, one rejected, and a person named."""
    faces = await world.photos(0, 3)
    await settle(world)
    person = await world.one_person(faces)
    new = await world.photos(0, 3)
    larger = await world.person(founded_by="machine")
    await world.assign(larger, *await world.photos(0, 9), decided_by="machine")
    other = await world.person("Other")
    write = Clustering._write

    async def late(self: Clustering, *values: object) -> Settled:
        await world.assign(other, new[0])
        await world.reject(new[1], larger)
        await world.rename(person, "Ann")
        return await write(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(Clustering, "_write", late)
    await recluster(world)
    assert await world.whose(*new) == [other, None, larger]
    assert await world.one_person(faces) == person
    await world.check()


async def test_two_of_a_picture_change_places(world: Clustered) -> None:
    ann, bob = await world.person("Ann"), await world.person("Bob")
    await world.assign(ann, *await world.photos(0, 3))
    await world.assign(bob, *await world.photos(1, 3))
    pair = await world.photo(world.near(0), world.near(1))
    await world.assign(bob, pair[0], decided_by="machine")
    await world.assign(ann, pair[1], decided_by="machine")
    await recluster(world)
    await world.check()
    await settle(world)
    assert await world.whose(*pair) == [ann, bob]
    await world.check()


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", range(7))
async def test_killed_between_any_two_transactions(world: Clustered, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """What is written is whole, and the next one ends where nobody was killed."""
    monkeypatch.setattr(service, "_WRITE", 3)
    monkeypatch.setattr(service, "_BATCH", 8)
    ann = await world.person("Ann")
    muddle = await world.person(founded_by="machine")
    known = await world.photos(0, 3)
    await world.assign(ann, *known)
    mixed = [*await world.photos(0, 2), *await world.photos(1, 3), *await world.photos(2, 2)]
    await world.assign(muddle, *mixed, decided_by="machine")
    await world.photo(world.near(1), world.near(2), world.near(3))
    left = after
    run = world.database.run

    async def run_or_die(work: Callable[[Connection], Awaitable[object]]) -> object:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return await run(work)

    monkeypatch.setattr(world.database, "run", run_or_die)
    try:
        await recluster(world)
    except Killed:
        await world.check()
    monkeypatch.setattr(world.database, "run", run)
    await settle(world)
    await world.check()
    await recluster(world)
    await world.check()
    assert await world.one_person([*known, *mixed[:2]]) == ann
    assert await world.one_person(mixed[2:5]) != await world.one_person(mixed[5:])
    before = await world.state()
    assert await recluster(world) == Settled() and await world.state() == before


async def test_one_at_a_time(world: Clustered) -> None:
    await world.photos(0, 3)
    alone = stored.one_at_a_time
    async with world.database.dedicated() as connection, alone(connection, world.collection, wait=False) as mine:
        assert mine
        assert await settle(world) == Settled(busy=True)
        waiting = asyncio.create_task(recluster(world))
        await asyncio.sleep(0.2)
        assert not waiting.done()
    assert await waiting == Settled(assigned=3, founded=1)


async def test_the_connection_that_holds_the_lock_breaks(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.photos(0, 3)
    write = Clustering._write

    async def broken(self: Clustering, *values: object) -> Settled:
        # Waits until it is gone.
        await world.world.rows("SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE locktype = 'advisory'")
        return await write(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(Clustering, "_write", broken)
    with pytest.raises(DatabaseUnavailable):
        await recluster(world)
    monkeypatch.undo()
    await world.check()
    assert await recluster(world) == Settled()
    assert len(await world.world.rows("SELECT 1 FROM persons")) == 1


def item(
    finish: Callable[[Connection], Awaitable[None]], check: Callable[[Connection], Awaitable[None]] | None = None
) -> WorkItem:
    async def nothing(_: Connection) -> None:
        return None

    async def skip(_: Connection, reason: str) -> None:
        raise AssertionError(reason)

    async def add(_: Connection, subjects: object) -> None:
        raise AssertionError(subjects)

    return WorkItem(uuid4(), JobKind.CLUSTER, LIBRARY, "", {}, finish, skip, add, check or nothing)


async def test_the_job(world: Clustered) -> None:
    faces = await world.photos(0, 3)
    finished: list[int] = []

    async def finish(tx: Connection) -> None:
        finished.append(await tx.fetchval("SELECT count(*) FROM faces WHERE person_id IS NOT NULL"))

    await world.clustering.run(item(finish))
    await world.one_person(faces)
    assert finished == [3]

    async def withdrawn(tx: Connection) -> None:
        raise ItemWithdrawn

    with pytest.raises(ItemWithdrawn):
        await world.clustering.run(item(withdrawn))


async def test_of_another_model_nothing_is_grouped(world: Clustered) -> None:
    await world.photos(0, 3)
    contract = EmbeddingContract("another", CONTRACT.dim, CONTRACT.preprocessing)
    another = Clustering(world.database, contract, POINT)
    assert await another.settle(LIBRARY) == Settled()
    with pytest.raises(EmbeddingModelMismatch):
        await another.recluster(LIBRARY)
    pointless = Clustering(world.database, CONTRACT, None)
    assert await pointless.settle(LIBRARY) == Settled()
    with pytest.raises(InvalidRequest):
        await pointless.recluster(LIBRARY)


async def test_a_library_that_goes_away(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.photos(0, 3)
    write = Clustering._write

    async def late(self: Clustering, *values: object) -> Settled:
        response = await world.world.client.delete(f"/api/v1/collections/{LIBRARY}")
        assert response.status_code == 200, response.text
        return await write(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(Clustering, "_write", late)
    assert await settle(world) == Settled()
    assert not await world.world.rows("SELECT 1 FROM persons")


async def test_cancelled_it_stops_soon(world: Clustered) -> None:
    await world.photos(0, 3)
    task = asyncio.create_task(recluster(world))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.check()
    assert await settle(world) in (Settled(), Settled(assigned=3, founded=1))


async def test_many_waiting_faces_settle_in_parts(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_BATCH", 5)
    monkeypatch.setattr(service, "_WRITE", 4)
    by_direction: dict[int, list[UUID]] = {}
    for number in range(24):
        by_direction.setdefault(number % 4, []).extend(await world.photos(number % 4, 1))
    await settle(world)
    assert len({await world.one_person(faces) for faces in by_direction.values()}) == 4
    await world.check()


async def test_a_cover_that_was_chosen_meanwhile_stays(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = await world.person("Ann"), await world.person("Bob")
    await world.assign(ann, *await world.photos(0, 3))
    await world.assign(bob, *await world.photos(1, 3))
    wrong = [(await world.photo(world.near(1)))[0] for _ in range(2)]
    await world.assign(ann, *wrong, decided_by="machine")
    write = Clustering._write

    async def late(self: Clustering, *values: object) -> Settled:
        await world.world.rows("UPDATE persons SET cover_face_id = $2 WHERE id = $1", ann, wrong[0])
        return await write(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(Clustering, "_write", late)
    await recluster(world)
    assert await world.whose(*wrong) == [ann, bob]
    await world.check()


async def test_what_was_cancelled_changes_nothing_more(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is cancelled while its plan is being made, and after its first transaction."""
    monkeypatch.setattr(service, "_WRITE", 3)
    groups = [await world.photos(direction, 3) for direction in range(3)]
    left = 0

    async def check(tx: Connection) -> None:
        nonlocal left
        if left == 0:
            raise ItemWithdrawn
        left -= 1

    async def finish(_: Connection) -> None:
        raise AssertionError("it was cancelled")

    for before, given in ((0, 0), (1, 3)):
        left = before
        with pytest.raises(ItemWithdrawn):
            await world.clustering.run(item(finish, check))
        owners = await world.whose(*(face for group in groups for face in group))
        assert sum(owner is not None for owner in owners) == given
        await world.check()


async def test_faces_that_cannot_be_given_hold_up_nobody(world: Clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come first are refused whenever they are written; the others find their person."""
    monkeypatch.setattr(service, "_BATCH", 2)
    stuck, faces = await world.photos(0, 2), await world.photos(1, 4)
    fitting = stored._fitting

    async def refuse(tx: Connection, wanted: Mapping[UUID, UUID | None]) -> dict[UUID, UUID]:
        return {one: person_id for one, person_id in (await fitting(tx, wanted)).items() if one not in stuck}

    monkeypatch.setattr(stored, "_fitting", refuse)
    await settle(world)
    assert await world.whose(*stuck) == [None, None]
    await world.one_person(faces)
    monkeypatch.setattr(stored, "_fitting", fitting)
    await settle(world)
    await world.one_person(stuck)


async def test_a_group_goes_with_its_last_photo(world: Clustered) -> None:
    """An erasure leaves no empty group of the machine's; one that a user named stays."""
    made, named = await world.photos(0, 2), await world.photos(1, 2)
    await settle(world)
    ann, group = await world.one_person(named), await world.one_person(made)
    await world.rename(ann, "Ann")
    photos = await world.world.rows("SELECT p.id, f.id AS face FROM photos p JOIN faces f ON f.image_id = p.image_id")
    of = {row["face"]: row["id"] for row in photos}
    receipts = []
    for face in (*made, named[0]):
        receipts.append((await world.world.client.delete(f"/api/v1/photos/{of[face]}")).json())
    gone = await world.world.client.delete(f"/api/v1/collections/{LIBRARY}/faces/{named[1]}")
    assert gone.status_code == 200
    assert [receipt["persons"] for receipt in receipts] == [0, 1, 0]
    assert [row["id"] for row in await world.world.rows("SELECT id FROM persons")] == [ann] != [group]
    await world.check()
