"""Taking a change back: what it changed is as it was before, where it is still as the change left it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum
from uuid import UUID

from serve_app.errors import JsonValue
from serve_app.identity.facts import Changes, FacePerson, FaceState, Facts, cover_of, person_state, person_values


class KeptFor(StrEnum):
    """Why something stays as it is."""

    CHANGED = "changed_since"
    FACE_GONE = "face_gone"
    PERSON_GONE = "person_gone"
    REJECTED = "rejected_since"
    EXTERNAL_ID_TAKEN = "external_id_taken"
    HAS_FACES = "has_faces"


@dataclass(frozen=True, slots=True)
class Kept:
    """What was not taken back: a face, a person or a field of it, or what is said of a face and a person or of two."""

    reason: KeptFor
    face_id: UUID | None = None
    person_id: UUID | None = None
    field: str | None = None
    other_person_id: UUID | None = None


@dataclass(slots=True)
class _Undoing:
    changes: Changes
    now: Facts
    taken: Collection[str]
    after: Facts
    kept: list[Kept] = field(default_factory=list)

    def faces(self) -> None:
        back = {one for one, (before, after) in self.changes.persons.items() if before and not after}
        for face_id, (before, after) in self.changes.faces.items():
            reason = self._face_kept(face_id, before, after, back)
            if reason is None:
                self.after.faces[face_id] = before
            else:
                self.kept.append(Kept(reason, face_id))

    def _face_kept(self, face_id: UUID, before: FaceState, after: FaceState, back: Collection[UUID]) -> KeptFor | None:
        present = self.now.faces.get(face_id)
        if present is None:
            return KeptFor.FACE_GONE
        if not present.decides_as(after):
            return KeptFor.CHANGED
        if before.person_id is None:
            return None
        if before.person_id not in self.now.persons and before.person_id not in back:
            return KeptFor.PERSON_GONE
        rejection = (face_id, before.person_id)
        if rejection in self.now.rejections and not self.changes.rejections.get(rejection):
            return KeptFor.REJECTED
        return None

    def changed_persons(self) -> None:
        for person_id, (before, after) in self.changes.persons.items():
            if before is None or after is None:
                continue
            present = self.now.persons.get(person_id)
            if present is None:
                self.kept.append(Kept(KeptFor.PERSON_GONE, person_id=person_id))
                continue
            values = person_values(present)
            for name, old in before.items():
                reason = None
                if values[name] != after[name]:
                    reason = KeptFor.CHANGED
                elif name == "external_id" and self._is_taken(old, person_id):
                    reason = KeptFor.EXTERNAL_ID_TAKEN
                elif name == "cover_face_id" and not self._covers(cover_of(before), person_id):
                    reason = KeptFor.CHANGED
                if reason is None:
                    values[name] = old
                else:
                    self.kept.append(Kept(reason, person_id=person_id, field=name))
            self.after.persons[person_id] = person_state(values)

    def lost_persons(self) -> None:
        """They come back; but nobody comes back whose faces all stay elsewhere."""
        for person_id, (before, after) in self.changes.persons.items():
            if before is None or after is not None:
                continue
            theirs = [one for one, (state, _) in self.changes.faces.items() if state.person_id == person_id]
            if person_id in self.now.persons or (theirs and not any(self._is_at(one, person_id) for one in theirs)):
                self.kept.append(Kept(KeptFor.CHANGED, person_id=person_id))
                continue
            state = person_state(before)
            if self._is_taken(state.external_id, person_id):
                self.kept.append(Kept(KeptFor.EXTERNAL_ID_TAKEN, person_id=person_id, field="external_id"))
                state = replace(state, external_id=None)
            if not self._covers(state.cover_face_id, person_id):
                state = replace(state, cover_face_id=None)
            self.after.persons[person_id] = state

    def new_persons(self) -> None:
        """They go, unless somebody has made more of them."""
        for person_id, (before, after) in self.changes.persons.items():
            if before is not None or after is None:
                continue
            present = self.now.persons.get(person_id)
            if present is None:
                self.kept.append(Kept(KeptFor.PERSON_GONE, person_id=person_id))
            elif self.after.has_faces(person_id):
                self.kept.append(Kept(KeptFor.HAS_FACES, person_id=person_id))
            elif replace(present, cover_face_id=None) != replace(person_state(after), cover_face_id=None):
                self.kept.append(Kept(KeptFor.CHANGED, person_id=person_id))
            else:
                self.after.remove_person(person_id)

    def sayings(self) -> None:
        for rejection, came in self.changes.rejections.items():
            self._saying(rejection, came, self.now.rejections, self.after.rejections, self._rejection_kept)
        for distinction, came in self.changes.distinctions.items():
            self._saying(distinction, came, self.now.distinctions, self.after.distinctions, self._distinction_kept)

    def _saying(
        self,
        said: tuple[UUID, UUID],
        came: bool,
        now: set[tuple[UUID, UUID]],
        after: set[tuple[UUID, UUID]],
        kept: Callable[[tuple[UUID, UUID]], Kept | None],
    ) -> None:
        if (said in now) != came:
            # As it was before already: nothing to take back.
            return
        if came:
            after.discard(said)
            return
        reason = kept(said)
        if reason is None:
            after.add(said)
        else:
            self.kept.append(reason)

    def _rejection_kept(self, said: FacePerson) -> Kept | None:
        face_id, person_id = said
        if face_id not in self.after.faces:
            return Kept(KeptFor.FACE_GONE, face_id, person_id)
        if person_id not in self.after.persons:
            return Kept(KeptFor.PERSON_GONE, face_id, person_id)
        if self._is_at(face_id, person_id):
            return Kept(KeptFor.CHANGED, face_id, person_id)
        return None

    def _distinction_kept(self, said: tuple[UUID, UUID]) -> Kept | None:
        if not all(one in self.after.persons for one in said):
            return Kept(KeptFor.PERSON_GONE, person_id=said[0], other_person_id=said[1])
        return None

    def _is_at(self, face_id: UUID, person_id: UUID) -> bool:
        state = self.after.faces.get(face_id)
        return state is not None and state.person_id == person_id

    def _covers(self, face_id: UUID | None, person_id: UUID) -> bool:
        return face_id is None or self._is_at(face_id, person_id)

    def _is_taken(self, external_id: JsonValue, person_id: UUID) -> bool:
        if external_id is None:
            return False
        return external_id in self.taken or any(
            state.external_id == external_id for one, state in self.after.persons.items() if one != person_id
        )


def undo(changes: Changes, now: Facts, taken: Collection[str]) -> tuple[Facts, list[Kept]]:
    """`now` with the changes taken back as far as possible, and what was kept.

    `now` must have: the persons and faces that the changes name, covers too; the persons that these faces have; and all
    faces of persons that may go. `taken`: external ids of persons who are not in it.
    """
    work = _Undoing(changes, now, taken, now.copy())
    work.faces()
    # In this order external ids are freed before they are needed, and persons are there before what is said of them.
    work.new_persons()
    work.changed_persons()
    work.lost_persons()
    work.sayings()
    work.after.clear_covers()
    return work.after, work.kept


def needed_faces(changes: Changes) -> set[UUID]:
    return {*changes.faces, *(face for face, _ in changes.rejections), *covers(changes)}


def covers(changes: Changes) -> set[UUID]:
    """Of the persons, before and after."""
    found = {cover_of(values) for both in changes.persons.values() for values in both if values is not None}
    return {one for one in found if one is not None}


def needed_persons(changes: Changes) -> set[UUID]:
    of_faces = {state.person_id for both in changes.faces.values() for state in both if state.person_id is not None}
    said = {one for both in changes.distinctions for one in both} | {person for _, person in changes.rejections}
    return {*changes.persons, *of_faces, *said}
