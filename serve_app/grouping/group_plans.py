"""What clustering is going to change: from the faces of a collection as they are to who has which. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import numpy as np

from serve_app.faces import FloatArray
from serve_app.grouping.clustering import Alone, FacesToGroup, Grouping, GroupingLimits, belonging, group_faces
from serve_app.grouping.neighbours import IntArray
from serve_app.grouping.person_sums import PersonSums
from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.facts import FacePerson
from serve_app.identity.people import new_id

CODES = frozenset({"no_neighbour", "not_core", "between_persons", "same_picture", "rejected"})
"""Of reasons why a face was left alone; it is looked at again. What else stands there speaks against the face itself."""

_ROUNDS = 4
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class GroupedFace:
    """A face that may be grouped, and who has it. `fixed`: a user said so, and nobody else may have it."""

    id: UUID
    person_id: UUID | None
    image_id: UUID | None
    fixed: bool
    unassigned: Unassigned | None


@dataclass(frozen=True, slots=True)
class Move:
    """A face from one person to another; None is nobody. `reason`: why it is nobody's then."""

    face_id: UUID
    before: UUID | None
    after: UUID | None
    reason: Unassigned | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """`founded`: persons of `moves` who are to be made."""

    moves: tuple[Move, ...]
    founded: frozenset[UUID]


@dataclass(slots=True)
class _Numbers:
    """Persons and pictures as numbers."""

    of: dict[UUID, int] = field(default_factory=dict)

    def add(self, one: UUID | None) -> int:
        return -1 if one is None else self.of.setdefault(one, len(self.of))


def joined(parts: Sequence[FloatArray], dim: int) -> FloatArray:
    """(N, D) of many (n, D)."""
    return np.concatenate([np.empty((0, dim), dtype=np.float32), *parts])


def plan_settling(
    faces: Sequence[GroupedFace],
    embeddings: FloatArray,
    rejections: Collection[FacePerson],
    present: Collection[FacePerson],
    limits: GroupingLimits,
    check: Callable[[], None] = lambda: None,
    known: PersonSums | None = None,
) -> Plan:
    """For faces that nobody has, among those whom persons have, which all stay: as `faces` as well, or `known`.
    `embeddings`: (N, D) of `faces`. `present`: face and person who is in its picture already. `check`: see `group_faces`."""
    owners = [one.person_id for one in faces]
    known = known or PersonSums.none(embeddings.shape[1])
    persons, grouping = _group(faces, embeddings, owners, known, rejections, present, limits, check)
    ids = dict(enumerate(persons))
    plan = _plan(faces, grouping, _founding(grouping, ids, owners), ids)
    # What was left alone before was seen beside all others; these here are only some of them.
    waited = {one.id for one in faces if one.unassigned is not None}
    return Plan(tuple(move for move in plan.moves if move.after is not None or move.face_id not in waited), plan.founded)


def plan_regrouping(
    faces: Sequence[GroupedFace],
    embeddings: FloatArray,
    kept: Collection[UUID],
    rejections: Collection[FacePerson],
    limits: GroupingLimits,
    check: Callable[[], None] = lambda: None,
) -> Plan:
    """For all faces anew. `kept`: persons who stay whoever they are, with the faces that are like each other; the others are
    what the machine made of faces, and go on where most of their faces are. Planned again after it was done, it moves
    nothing."""
    owners = [one.person_id for one in faces]
    for _ in range(_ROUNDS):
        anchors = _anchors(faces, embeddings, owners, kept, rejections, limits)
        nobody = PersonSums.none(embeddings.shape[1])
        persons, grouping = _group(faces, embeddings, anchors, nobody, rejections, (), limits, check)
        ids = dict(enumerate(persons))
        found = [ids.get(int(group)) for group in grouping.groups]
        if [one if one in kept else None for one in owners] == found:
            break
        # A face that a person gets holds on to others from then on: until nobody gets any more.
        owners = found
    made = [None if one.person_id in kept else one.person_id for one in faces]
    return _plan(faces, grouping, _founding(grouping, ids, made), ids)


def _anchors(
    faces: Sequence[GroupedFace],
    embeddings: FloatArray,
    owners: Sequence[UUID | None],
    kept: Collection[UUID],
    rejections: Collection[FacePerson],
    limits: GroupingLimits,
) -> list[UUID | None]:
    """Who certainly has each face: by a user's word, or because it is like the others of somebody who stays."""
    found = [one.person_id if one.fixed else None for one in faces]
    shown: set[tuple[UUID, UUID]] = {
        (one.image_id, one.person_id) for one in faces if one.fixed and one.image_id is not None and one.person_id is not None
    }
    places: dict[UUID, list[int]] = {}
    for place, owner in enumerate(owners):
        if owner is not None and owner in kept:
            places.setdefault(owner, []).append(place)
    for person_id, theirs in places.items():
        alike = belonging(embeddings[theirs], limits).tolist()
        for place, like in zip(theirs, alike, strict=True):
            one = faces[place]
            # Of somebody whose faces are all unlike each other, none is more right than another.
            if one.fixed or not (like or not any(alike)) or (one.id, person_id) in rejections:
                continue
            # Since a user gave the person another face of the picture, this one is somebody else.
            if one.image_id is not None:
                if (one.image_id, person_id) in shown:
                    continue
                shown.add((one.image_id, person_id))
            found[place] = person_id
    return found


def _group(
    faces: Sequence[GroupedFace],
    embeddings: FloatArray,
    owners: Sequence[UUID | None],
    known: PersonSums,
    rejections: Collection[FacePerson],
    present: Collection[FacePerson],
    limits: GroupingLimits,
    check: Callable[[], None],
) -> tuple[list[UUID], Grouping]:
    """The persons of the first groups, and the groups of the faces."""
    persons, pictures = _Numbers(), _Numbers()
    whose = np.array([persons.add(one) for one in (*owners, *known.persons)], dtype=np.int64)
    places = {one.id: place for place, one in enumerate(faces)}

    def numbered(pairs: Collection[FacePerson]) -> IntArray:
        known = sorted((places[face], persons.of[one]) for face, one in pairs if face in places and one in persons.of)
        return np.array(known, dtype=np.int64).reshape(-1, 2)

    grouping = group_faces(
        FacesToGroup(
            np.concatenate((embeddings, known.sums)),
            np.array([*(pictures.add(one.image_id) for one in faces), *(-1 for _ in known.persons)], dtype=np.int64),
            whose,
            len(persons.of),
            numbered(rejections),
            numbered(present),
            np.concatenate((np.ones(len(faces), dtype=np.int64), known.counts)),
        ),
        limits,
        check,
    )
    return list(persons.of), replace(grouping, groups=grouping.groups[: len(faces)])


def _founding(grouping: Grouping, ids: dict[int, UUID], made: Sequence[UUID | None]) -> frozenset[UUID]:
    """Gives each new group an id: that of one of the persons `made` by the machine who had most of its faces, each once; a
    fresh one where there is none. Adds them to `ids`; returns the fresh ones."""
    taken = set(ids.values())
    shared = Counter(
        (int(group), one) for group, one in zip(grouping.groups, made, strict=True) if one is not None and group >= len(taken)
    )
    named: dict[int, UUID] = {}
    for (group, person_id), _ in sorted(shared.items(), key=lambda item: (-item[1], item[0][1], item[0][0])):
        if group not in named and person_id not in taken:
            named[group] = person_id
            taken.add(person_id)
    fresh = {group: new_id() for group in range(len(ids), len(grouping.persons)) if group not in named}
    ids |= named | fresh
    return frozenset(fresh.values())


def _plan(faces: Sequence[GroupedFace], grouping: Grouping, founded: frozenset[UUID], ids: dict[int, UUID]) -> Plan:
    moves = []
    for place, (one, group) in enumerate(zip(faces, grouping.groups.tolist(), strict=True)):
        if one.fixed:
            continue
        after = ids.get(group)
        reason = None if after is not None else _reason(grouping.alone[place], ids)
        if (after, reason) != (one.person_id, one.unassigned if after is None else None):
            moves.append(Move(one.id, one.person_id, after, reason))
    return Plan(tuple(moves), founded)


def _reason(alone: Alone, ids: dict[int, UUID]) -> Unassigned:
    person_id = None if alone.group is None else ids[alone.group]
    # Of a face that is the only one there is nothing to compare with.
    value = None if alone.value <= -1 else round(alone.value, _DIGITS)
    return Unassigned(alone.code, alone.metric, value, round(alone.limit, _DIGITS), person_id)
