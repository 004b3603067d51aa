"""What is known of faces and persons when users decide on them, and how it changed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from serve_app.errors import JsonValue, NotFound
from serve_app.identity.people import Metadata

FacePerson = tuple[UUID, UUID]
"""A face and a person whose it is not."""
PersonPair = tuple[UUID, UUID]
"""Two persons who are not the same, the smaller id first."""
PersonValues = Mapping[str, JsonValue]
"""Fields of a `PersonState` as JSON."""


class Maker(StrEnum):
    """Who decided whose a face is, or founded a person."""

    USER = "user"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class FaceState:
    """What is decided of a face. `unassigned`: why it is nobody's, as canonical JSON; a note, not a decision."""

    person_id: UUID | None
    decided_by: str = Maker.USER
    hidden: bool = False
    unassigned: str | None = None

    def decides_as(self, other: FaceState) -> bool:
        return (self.person_id, self.decided_by, self.hidden) == (other.person_id, other.decided_by, other.hidden)


WAITING = FaceState(None, Maker.MACHINE)
"""For the machine to look at."""


@dataclass(frozen=True, slots=True)
class PersonState:
    name: str
    metadata: Metadata
    external_id: str | None
    hidden: bool
    cover_face_id: UUID | None
    founded_by: str
    created_at: datetime

    @property
    def nobody(self) -> bool:
        """Nothing but a group of faces that the machine made."""
        told = self.name or self.external_id or self.metadata or self.hidden
        return self.founded_by == Maker.MACHINE and not told


@dataclass(slots=True)
class Facts:
    """`others`: how many faces each person has that are not among `faces`. Persons and faces that do not exist are absent.
    All rejections and distinctions of `persons` are there."""

    faces: dict[UUID, FaceState] = field(default_factory=dict)
    persons: dict[UUID, PersonState] = field(default_factory=dict)
    rejections: set[FacePerson] = field(default_factory=set)
    distinctions: set[PersonPair] = field(default_factory=set)
    others: Mapping[UUID, int] = field(default_factory=dict)

    def copy(self) -> Facts:
        return Facts(dict(self.faces), dict(self.persons), set(self.rejections), set(self.distinctions), dict(self.others))

    def face(self, face_id: UUID) -> FaceState:
        """Raises NotFound."""
        if face_id not in self.faces:
            raise NotFound(f"There is no face {face_id} in this collection.", face_id=str(face_id))
        return self.faces[face_id]

    def person(self, person_id: UUID) -> PersonState:
        """Raises NotFound."""
        if person_id not in self.persons:
            raise NotFound(f"There is no person {person_id} in this collection.", person_id=str(person_id))
        return self.persons[person_id]

    def faces_of(self, person_ids: Iterable[UUID]) -> list[UUID]:
        wanted = set(person_ids)
        return [face_id for face_id, state in self.faces.items() if state.person_id in wanted]

    def has_faces(self, person_id: UUID) -> bool:
        return bool(self.others.get(person_id)) or any(one.person_id == person_id for one in self.faces.values())

    def remove_person(self, person_id: UUID) -> None:
        """With what is said of it; it must have no faces left."""
        del self.persons[person_id]
        self.rejections = {one for one in self.rejections if one[1] != person_id}
        self.distinctions = {one for one in self.distinctions if person_id not in one}

    def clear_covers(self) -> None:
        """A face that left a person is not its cover any more."""
        for person_id, state in self.persons.items():
            cover = state.cover_face_id
            if cover is not None and cover in self.faces and self.faces[cover].person_id != person_id:
                self.persons[person_id] = replace(state, cover_face_id=None)

    def drop_empty_groups(self, before: Facts) -> None:
        """Groups of the machine's that had faces `before` and have none now."""
        left = {state.person_id for state in before.faces.values()} - {state.person_id for state in self.faces.values()}
        for person_id in left:
            if person_id in self.persons and self.persons[person_id].nobody and not self.has_faces(person_id):
                self.remove_person(person_id)


@dataclass(frozen=True, slots=True)
class Changes:
    """From before to after. A person that was not there, or is not any more, is None; of one that was and is, there are the
    fields that changed. Of rejections and distinctions: whether each came or went."""

    faces: Mapping[UUID, tuple[FaceState, FaceState]]
    persons: Mapping[UUID, tuple[PersonValues | None, PersonValues | None]]
    rejections: Mapping[FacePerson, bool]
    distinctions: Mapping[PersonPair, bool]

    def __bool__(self) -> bool:
        return bool(self.faces or self.persons or self.rejections or self.distinctions)


def difference(before: Facts, after: Facts) -> Changes:
    """Faces neither come nor go."""
    return Changes(
        {one: (state, after.faces[one]) for one, state in before.faces.items() if after.faces[one] != state},
        {
            one: _changed(before.persons.get(one), after.persons.get(one))
            for one in sorted({*before.persons, *after.persons})
            if before.persons.get(one) != after.persons.get(one)
        },
        {one: one in after.rejections for one in sorted(before.rejections ^ after.rejections)},
        {one: one in after.distinctions for one in sorted(before.distinctions ^ after.distinctions)},
    )


def _changed(before: PersonState | None, after: PersonState | None) -> tuple[PersonValues | None, PersonValues | None]:
    old, new = (None if state is None else person_values(state) for state in (before, after))
    if old is None or new is None:
        return old, new
    names = [name for name in old if old[name] != new[name]]
    return {name: old[name] for name in names}, {name: new[name] for name in names}


def pair(first: UUID, second: UUID) -> PersonPair:
    return (first, second) if first < second else (second, first)


def person_values(state: PersonState) -> dict[str, JsonValue]:
    return {
        "name": state.name,
        "metadata": dict(state.metadata),
        "external_id": state.external_id,
        "hidden": state.hidden,
        "cover_face_id": None if state.cover_face_id is None else str(state.cover_face_id),
        "founded_by": state.founded_by,
        "created_at": state.created_at.isoformat(),
    }


def person_state(values: PersonValues) -> PersonState:
    """Of all fields."""
    metadata, external_id = values["metadata"], values["external_id"]
    assert isinstance(metadata, dict)
    return PersonState(
        str(values["name"]),
        metadata,
        None if external_id is None else str(external_id),
        bool(values["hidden"]),
        cover_of(values),
        str(values["founded_by"]),
        datetime.fromisoformat(str(values["created_at"])),
    )


def cover_of(values: PersonValues) -> UUID | None:
    cover = values.get("cover_face_id")
    return None if cover is None else UUID(str(cover))
