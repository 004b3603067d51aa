"""The faces found in a photo now against those known from before: which is which. Pure.

A face is the same where its box is: it keeps its id, its person and what users said of it, whatever detector looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

Box = Sequence[float]
"""x1, y1, x2, y2 in pixels."""

MIN_IOU = 0.5
"""Overlap (intersection over union) from which two boxes are of one face. Detectors leave no two faces of a picture that
overlap so much, and two detectors' boxes of one face do: the customary limit of detection benchmarks (Everingham et al. 2010,
DOI 10.1007/s11263-009-0275-4, section 4.2)."""


@dataclass(frozen=True, slots=True)
class KnownFace:
    """`enrolled`: it came by enrolment and not by indexing. `decided`: a user said something of it."""

    id: UUID
    box: Box
    enrolled: bool
    decided: bool


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Places are those of the faces found; each is in exactly one of `same`, `enrolled` and `new`.

    `same`: known faces found by indexing, with the place of what they are now. `enrolled`: likewise of enrolled faces, which
    stay as they are. `gone`: known faces that are to be removed.
    """

    same: tuple[tuple[UUID, int], ...]
    enrolled: tuple[tuple[UUID, int], ...]
    new: tuple[int, ...]
    gone: tuple[UUID, ...]


def reconcile(known: Sequence[KnownFace], found: Sequence[Box]) -> Reconciled:
    """Pairs known and found faces one to one, those that overlap most first. The same input gives the same answer.

    A known face that was not found again goes only if indexing found it and no user said anything of it. So does one that
    was enrolled since: the enrolled face is that face.
    """
    own = [one for one in known if one.enrolled]
    twice = {
        one.id
        for one in known
        if not (one.enrolled or one.decided) and any(iou(one.box, other.box) >= MIN_IOU for other in own)
    }
    # Where two overlap as much, the enrolled face comes first, then what a user decided, then the older.
    faces = sorted((one for one in known if one.id not in twice), key=lambda one: (not one.enrolled, not one.decided, one.id))
    pairs = match_boxes([one.box for one in faces], found)
    at = {place: index for index, place in pairs}
    paired = {index for index, _ in pairs}
    return Reconciled(
        same=tuple((faces[index].id, place) for index, place in pairs if not faces[index].enrolled),
        enrolled=tuple((faces[index].id, place) for index, place in pairs if faces[index].enrolled),
        new=tuple(place for place in range(len(found)) if place not in at),
        gone=tuple(
            sorted(
                twice
                | {one.id for index, one in enumerate(faces) if index not in paired and not (one.enrolled or one.decided)}
            )
        ),
    )


def match_boxes(known: Sequence[Box], found: Sequence[Box]) -> list[tuple[int, int]]:
    """Places of `known` and `found` that are one face, ordered by the former. Of equal overlaps the earlier places win."""
    overlaps = [
        (-overlap, index, place)
        for index, one in enumerate(known)
        for place, other in enumerate(found)
        if (overlap := iou(one, other)) >= MIN_IOU
    ]
    taken_known: set[int] = set()
    taken_found: set[int] = set()
    pairs = []
    for _, index, place in sorted(overlaps):
        if index not in taken_known and place not in taken_found:
            taken_known.add(index)
            taken_found.add(place)
            pairs.append((index, place))
    return sorted(pairs)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    union = _area(a) + _area(b) - common
    return common / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
