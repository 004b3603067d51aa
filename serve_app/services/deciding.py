"""What users decide of persons and faces of the photo library; each decision with its entry in the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Generic, TypeVar
from uuid import UUID

from serve_app.errors import AmbiguousName, InvalidRequest, JsonValue, NotFound
from serve_app.identity import decisions
from serve_app.identity.decisions import Action
from serve_app.identity.facts import Facts, Maker, PersonState, difference
from serve_app.identity.library_faces import LibraryFace
from serve_app.identity.people import Collection, Metadata, Person, StoredFace, new_id
from serve_app.services.collections import Collections
from serve_app.services.photos import COLLECTION_NAME
from serve_app.services.writing import Once
from serve_app.storage import collections, faces, journal, library_faces, library_persons, persons
from serve_app.storage import decisions as stored
from serve_app.storage.database import Connection, Database
from serve_app.storage.library_persons import LibraryPerson
from serve_app.storage.persons import PersonChange

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Decided(Generic[ResultT]):
    """What came of a decision. `journal_id`: None where it changed nothing."""

    result: ResultT
    journal_id: UUID | None


@dataclass(frozen=True, slots=True)
class NewPerson:
    name: str = ""
    metadata: Metadata = field(default_factory=dict)
    external_id: str | None = None
    hidden: bool = False

    def state(self) -> PersonState:
        return PersonState(self.name, self.metadata, self.external_id, self.hidden, None, Maker.USER, datetime.now(UTC))


PersonRef = UUID | str
"""A person's id, or a name: of the one person of that name, or of a new one."""


class Deciding:
    """Decisions name their `actor`. Every method raises DatabaseUnavailable and Overloaded, and NotFound for a person or a
    face that is not there."""

    def __init__(self, library: Collections, database: Database, collection_id: str) -> None:
        self._library = library
        self._database = database
        self.collection_id = collection_id

    async def create(self, new: NewPerson, actor: str, once: Once[Decided[LibraryPerson]]) -> Decided[LibraryPerson]:
        """Raises AlreadyExists for an external id that is taken."""
        await self._library.ensure(self.collection_id, COLLECTION_NAME)
        person_id = new_id()

        def act(facts: Facts) -> None:
            facts.persons[person_id] = new.state()

        return await self._decide_person(person_id, Action.CREATE_PERSON, act, actor, once)

    async def change(
        self, person_id: UUID, values: Mapping[str, object], actor: str, once: Once[Decided[LibraryPerson]]
    ) -> Decided[LibraryPerson]:
        """`values`: some of name, metadata, external_id, hidden, cover_face_id. Raises AlreadyExists."""
        cover = values.get("cover_face_id")

        def act(facts: Facts) -> None:
            state = facts.person(person_id)
            if isinstance(cover, UUID) and facts.face(cover).person_id != person_id:
                raise NotFound(f"The face {cover} is not one of this person.", face_id=str(cover))
            facts.persons[person_id] = replace(state, **values)  # type: ignore[arg-type]

        faces = [cover] if isinstance(cover, UUID) else []
        return await self._decide_person(person_id, _action(values), act, actor, once, faces=faces)

    async def update(self, person_id: UUID, change: PersonChange, actor: str, once: Once[Person]) -> Person:
        """`change` as the endpoints of collections tell of it."""
        told = {"name": change.name, "metadata": change.metadata, "external_id": change.external_id}
        values = {name: value for name, value in told.items() if value is not None}

        def act(facts: Facts) -> None:
            facts.persons[person_id] = replace(facts.person(person_id), **values)  # type: ignore[arg-type]

        async def work(tx: Connection) -> Person:
            collection = await self._lock(tx, person_id)
            await self._decide(tx, collection, _action(values), act, actor, others=[person_id])
            return await persons.get(tx, collection, person_id)

        return await once.run(self._database, work)

    async def delete(self, person_id: UUID, actor: str, once: Once[Decided[UUID]]) -> Decided[UUID]:
        """Its faces stay, as nobody's."""

        async def work(tx: Connection) -> Decided[UUID]:
            collection = await self._lock(tx, person_id)
            entry = await self._decide(
                tx, collection, Action.DELETE_PERSON, lambda facts: decisions.delete(facts, person_id), actor,
                whole=[person_id],
            )  # fmt: skip
            return Decided(person_id, entry)

        return await once.run(self._database, work)

    async def merge(
        self, target: UUID, sources: Sequence[UUID], actor: str, once: Once[Decided[LibraryPerson]]
    ) -> Decided[LibraryPerson]:
        """Raises InvalidRequest for a person that is to be merged with itself."""
        if target in sources:
            raise InvalidRequest("A person cannot be merged with itself.", person_id=str(target))
        return await self._decide_person(
            target,
            Action.MERGE_PERSONS,
            lambda facts: decisions.merge(facts, target, sources),
            actor,
            once,
            whole=[target, *sources],
        )

    async def split(
        self, person_id: UUID, face_ids: Sequence[UUID], new: NewPerson, actor: str, once: Once[Decided[LibraryPerson]]
    ) -> Decided[LibraryPerson]:
        """The new person."""
        made = new_id()
        return await self._decide_person(
            made,
            Action.SPLIT_PERSON,
            lambda facts: decisions.split(facts, person_id, face_ids, made, new.state()),
            actor,
            once,
            faces=face_ids,
            others=[person_id],
        )

    async def distinguish(self, first: UUID, second: UUID, actor: str, once: Once[Decided[UUID]]) -> Decided[UUID]:
        """Raises InvalidRequest for one and the same."""
        if first == second:
            raise InvalidRequest("A person is not somebody else.", person_id=str(first))

        async def work(tx: Connection) -> Decided[UUID]:
            collection = await self._lock(tx, first)
            entry = await self._decide(
                tx, collection, Action.DISTINGUISH_PERSONS, lambda facts: decisions.distinguish(facts, first, second),
                actor, others=[first, second],
            )  # fmt: skip
            return Decided(first, entry)

        return await once.run(self._database, work)

    async def assign(
        self, face_ids: Sequence[UUID], person: PersonRef, actor: str, once: Once[Decided[list[LibraryFace]]]
    ) -> Decided[list[LibraryFace]]:
        """Raises AmbiguousName where several have the name."""

        async def work(tx: Connection) -> Decided[list[LibraryFace]]:
            collection = await self._lock(tx, face_ids[0], faces.missing)
            found = person if isinstance(person, UUID) else await self._named(tx, collection, person)
            person_id = found or new_id()

            def act(facts: Facts) -> None:
                if found is None:
                    facts.persons[person_id] = NewPerson(str(person)).state()
                decisions.assign(facts, face_ids, person_id)

            return await self._decide_faces(tx, collection, Action.ASSIGN_FACES, act, actor, face_ids, [person_id])

        return await once.run(self._database, work)

    async def move(self, face_id: UUID, person_id: UUID, actor: str, once: Once[StoredFace]) -> StoredFace:
        """`assign` of one face, as the endpoints of collections tell of it."""

        async def work(tx: Connection) -> StoredFace:
            collection = await self._lock(tx, face_id, faces.missing)
            await self._decide(
                tx, collection, Action.ASSIGN_FACES, lambda facts: decisions.assign(facts, [face_id], person_id), actor,
                faces=[face_id], others=[person_id],
            )  # fmt: skip
            return await faces.get(tx, collection, face_id)

        return await once.run(self._database, work)

    async def reject(
        self, face_id: UUID, person_id: UUID | None, actor: str, once: Once[Decided[list[LibraryFace]]]
    ) -> Decided[list[LibraryFace]]:
        """`person_id`: None for the person the face has; raises InvalidRequest where it has none."""

        def act(facts: Facts) -> None:
            rejected = person_id or facts.face(face_id).person_id
            if rejected is None:
                raise InvalidRequest("The face has no person; say who it is not.", face_id=str(face_id))
            decisions.reject(facts, face_id, rejected)

        others = [person_id] if person_id else []
        return await self._decide_about([face_id], Action.REJECT_FACE, act, actor, once, others)

    async def unassign(
        self, face_ids: Sequence[UUID], actor: str, once: Once[Decided[list[LibraryFace]]], *, release: bool
    ) -> Decided[list[LibraryFace]]:
        """With `release` the machine decides anew; else they stay nobody's."""
        return await self._decide_about(
            face_ids,
            Action.UNASSIGN_FACES,
            lambda facts: decisions.unassign(facts, face_ids, release=release),
            actor,
            once,
        )

    async def hide(
        self, face_ids: Sequence[UUID], actor: str, once: Once[Decided[list[LibraryFace]]]
    ) -> Decided[list[LibraryFace]]:
        return await self._decide_about(
            face_ids, Action.HIDE_FACES, lambda facts: decisions.hide(facts, face_ids), actor, once
        )

    async def unhide(
        self, face_ids: Sequence[UUID], actor: str, once: Once[Decided[list[LibraryFace]]]
    ) -> Decided[list[LibraryFace]]:
        return await self._decide_about(
            face_ids, Action.UNHIDE_FACES, lambda facts: decisions.unhide(facts, face_ids), actor, once
        )

    async def _decide_about(
        self,
        face_ids: Sequence[UUID],
        action: Action,
        act: Callable[[Facts], None],
        actor: str,
        once: Once[Decided[list[LibraryFace]]],
        others: Sequence[UUID] = (),
    ) -> Decided[list[LibraryFace]]:
        async def work(tx: Connection) -> Decided[list[LibraryFace]]:
            collection = await self._lock(tx, face_ids[0], faces.missing)
            return await self._decide_faces(tx, collection, action, act, actor, face_ids, others)

        return await once.run(self._database, work)

    async def _decide_faces(
        self,
        tx: Connection,
        collection: Collection,
        action: Action,
        act: Callable[[Facts], None],
        actor: str,
        face_ids: Sequence[UUID],
        others: Sequence[UUID],
    ) -> Decided[list[LibraryFace]]:
        entry = await self._decide(tx, collection, action, act, actor, faces=face_ids, others=others)
        found = await library_faces.some(tx, collection, list(face_ids))
        return Decided([found[one] for one in face_ids], entry)

    async def _decide_person(
        self,
        person_id: UUID,
        action: Action,
        act: Callable[[Facts], None],
        actor: str,
        once: Once[Decided[LibraryPerson]],
        *,
        faces: Sequence[UUID] = (),
        others: Sequence[UUID] = (),
        whole: Sequence[UUID] = (),
    ) -> Decided[LibraryPerson]:
        async def work(tx: Connection) -> Decided[LibraryPerson]:
            collection = await self._lock(tx, person_id)
            entry = await self._decide(
                tx, collection, action, act, actor, faces=faces, others=[person_id, *others], whole=whole
            )
            return Decided(await library_persons.get(tx, collection, person_id), entry)

        return await once.run(self._database, work)

    async def _decide(
        self,
        tx: Connection,
        collection: Collection,
        action: Action,
        act: Callable[[Facts], None],
        actor: str,
        *,
        faces: Iterable[UUID] = (),
        others: Iterable[UUID] = (),
        whole: Iterable[UUID] = (),
    ) -> UUID | None:
        """The entry of the journal; None where nothing changed. `act` is given the `faces` with their persons, the `others`,
        and `whole` persons with all their faces."""
        before = await stored.load(tx, collection, faces, others, whole=whole)
        after = before.copy()
        act(after)
        after.clear_covers()
        after.drop_empty_groups(before)
        changes = difference(before, after)
        if not changes:
            return None
        await stored.write(tx, collection, changes, after)
        return await journal.record(tx, collection, actor, action, changes)

    async def _named(self, tx: Connection, collection: Collection, name: str) -> UUID | None:
        """Others who make a person of this name wait. Raises AmbiguousName."""
        await library_persons.one_at_a_time(tx, collection, name)
        found = await library_persons.named(tx, collection, name)
        if len(found) > 1:
            ids: list[JsonValue] = [str(one) for one in found[:100]]
            raise AmbiguousName(f"There are {len(found)} persons of this name; say which by person_id.", person_ids=ids)
        return found[0] if found else None

    async def _lock(self, tx: Connection, wanted: UUID, missing: Callable[[UUID], NotFound] = persons.missing) -> Collection:
        """Raises `missing` before there is a library."""
        try:
            return await collections.lock(tx, self.collection_id)
        except NotFound:
            raise missing(wanted) from None


def _action(values: Mapping[str, object]) -> Action:
    if "name" in values:
        return Action.RENAME_PERSON
    if "hidden" in values:
        return Action.HIDE_PERSON if values["hidden"] else Action.UNHIDE_PERSON
    return Action.CHANGE_PERSON
