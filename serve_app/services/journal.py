"""The journal of the photo library: who decided what, and taking it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from serve_app.errors import AlreadyUndone, JsonValue, NotFound, NothingToUndo
from serve_app.identity import undoing
from serve_app.identity.decisions import Action
from serve_app.identity.facts import Changes, difference
from serve_app.identity.people import Collection
from serve_app.identity.undoing import Kept
from serve_app.services.writing import Once
from serve_app.storage import collections, journal, person_names
from serve_app.storage import decisions as stored
from serve_app.storage.database import Connection, Database
from serve_app.storage.journal import Entry

_TOLD = 100
"""Things that were kept, of an error."""


@dataclass(frozen=True, slots=True)
class JournalQuery:
    """`after`: the last entry of the page before. `subjects`: persons and faces, all of them in an entry."""

    after: UUID | None
    limit: int
    subjects: Sequence[UUID] = ()
    action: Action | None = None


@dataclass(frozen=True, slots=True)
class Undone:
    """`journal_id`: of the undoing; `undoes`: of what was undone. `changes`: what it changed; `kept`: what it left alone."""

    journal_id: UUID
    undoes: UUID
    changes: Changes
    kept: list[Kept]


class Journal:
    """Every method raises NotFound, DatabaseUnavailable and Overloaded."""

    def __init__(self, database: Database, collection_id: str) -> None:
        self._database = database
        self.collection_id = collection_id

    async def page(self, query: JournalQuery) -> list[Entry]:
        """Newest first; entries without their faces."""
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                return []
            return await journal.page(
                connection, collection, query.after, query.limit, subjects=query.subjects, action=query.action
            )

    async def names(self, entries: Sequence[Entry]) -> dict[UUID, str]:
        """Of the persons whom the entries are about, of some of each, as far as they are there now."""
        wanted = {person_id for entry in entries for person_id in entry.person_ids[: journal.MAX_LISTED]}
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                return {}
            return await person_names.of_ids(connection, collection, sorted(wanted))

    async def get(self, entry_id: UUID) -> Entry:
        async with self._database.connection() as connection:
            try:
                collection = await collections.get(connection, self.collection_id)
            except NotFound:
                raise journal.missing(entry_id) from None
            return await journal.get(connection, collection, entry_id)

    async def undo(self, entry_id: UUID, actor: str, once: Once[Undone]) -> Undone:
        """What the entry changed is as it was before, where it is still as the entry left it. Of several who undo the same,
        one does. Raises AlreadyUndone, NothingToUndo."""

        async def work(tx: Connection) -> Undone:
            try:
                collection = await collections.lock(tx, self.collection_id)
            except NotFound:
                raise journal.missing(entry_id) from None
            return await self._undo(tx, collection, entry_id, actor)

        return await once.run(self._database, work)

    async def _undo(self, tx: Connection, collection: Collection, entry_id: UUID, actor: str) -> Undone:
        seen = (await journal.get(tx, collection, entry_id)).changes
        now = await stored.load(
            tx,
            collection,
            undoing.needed_faces(seen),
            undoing.needed_persons(seen),
            whole=[one for one, (before, _) in seen.persons.items() if before is None],
        )
        # Locked after the persons, as an erasure does; it may have taken something out of the entry while we waited.
        entry = await journal.get(tx, collection, entry_id, lock=True)
        if entry.undone_by is not None:
            raise AlreadyUndone("This was undone already.", journal_id=str(entry_id), undone_by=str(entry.undone_by))
        wanted = {str(values["external_id"]) for both in entry.changes.persons.values() for values in both
                  if values and values.get("external_id")}  # fmt: skip
        holders = await stored.external_ids(tx, collection, wanted)
        taken = {external_id for external_id, person_id in holders.items() if person_id not in now.persons}
        after, kept = undoing.undo(entry.changes, now, taken)
        changes = difference(now, after)
        if not changes:
            told: list[JsonValue] = [{"reason": one.reason, **_ids(one)} for one in kept[:_TOLD]]
            raise NothingToUndo(
                "Everything this changed was changed again since, or erased.", journal_id=str(entry_id), kept=told
            )
        await stored.write(tx, collection, changes, after, entry.at)
        undone = await journal.record(tx, collection, actor, Action.UNDO, changes, undoes=entry_id)
        return Undone(undone, entry_id, changes, kept)


def _ids(kept: Kept) -> dict[str, JsonValue]:
    ids = {"face_id": kept.face_id, "person_id": kept.person_id, "other_person_id": kept.other_person_id}
    told: dict[str, JsonValue] = {name: str(value) for name, value in ids.items() if value is not None}
    return told | ({"field": kept.field} if kept.field else {})
