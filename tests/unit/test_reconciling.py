"""Which of the faces found in a photo are those known from before."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from serve_app.grouping.reconciling import MIN_IOU, KnownFace, iou, match_boxes, reconcile

coordinates = st.integers(0, 60).map(float)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates).map(
    lambda four: (min(four[0], four[2]), min(four[1], four[3]), max(four[0], four[2]), max(four[1], four[3]))
)
found_boxes = st.lists(boxes, max_size=8)


def known_faces() -> st.SearchStrategy[list[KnownFace]]:
    faces = st.lists(st.tuples(boxes, st.booleans(), st.booleans()), max_size=8)
    return faces.map(
        lambda several: [
            # Enrolment is a user's decision.
            KnownFace(UUID(int=index + 1), box, enrolled, decided or enrolled)
            for index, (box, enrolled, decided) in enumerate(several)
        ]
    )


@given(known_faces(), found_boxes)
def test_every_face_found_becomes_one_face_and_what_was_decided_stays(
    known: list[KnownFace], found: list[tuple[float, ...]]
) -> None:
    result = reconcile(known, found)
    places = [place for _, place in (*result.same, *result.enrolled)] + list(result.new)
    assert sorted(places) == list(range(len(found)))
    named = [face_id for face_id, _ in (*result.same, *result.enrolled)] + list(result.gone)
    assert len(named) == len(set(named))
    of = {one.id: one for one in known}
    assert all(of[face_id].enrolled for face_id, _ in result.enrolled)
    assert not any(of[face_id].enrolled for face_id, _ in result.same)
    assert not any(of[face_id].enrolled or of[face_id].decided for face_id in result.gone)
    for face_id, place in (*result.same, *result.enrolled):
        assert iou(of[face_id].box, found[place]) >= MIN_IOU
    # What is neither found again nor removed: a user's.
    left = set(of) - set(named)
    assert all(of[face_id].decided for face_id in left)


@given(known_faces(), found_boxes)
def test_the_order_of_what_is_known_does_not_matter(known: list[KnownFace], found: list[tuple[float, ...]]) -> None:
    first, second = reconcile(known, found), reconcile(known[::-1], found)
    assert (set(first.same), set(first.enrolled), first.new, first.gone) == (
        set(second.same), set(second.enrolled), second.new, second.gone
    )  # fmt: skip


@given(found_boxes, found_boxes)
def test_nobody_would_rather_be_paired_otherwise(known: list[tuple[float, ...]], found: list[tuple[float, ...]]) -> None:
    pairs = match_boxes(known, found)
    assert len({index for index, _ in pairs}) == len({place for _, place in pairs}) == len(pairs)
    by_known = {index: iou(known[index], found[place]) for index, place in pairs}
    by_found = {place: iou(known[index], found[place]) for index, place in pairs}
    for index, one in enumerate(known):
        for place, other in enumerate(found):
            overlap = iou(one, other)
            if overlap >= MIN_IOU:
                assert overlap <= max(by_known.get(index, -1.0), by_found.get(place, -1.0))


@given(found_boxes)
def test_indexing_again_changes_nothing(found: list[tuple[float, ...]]) -> None:
    visible = [box for box in found if box[2] > box[0] and box[3] > box[1]]
    known = [KnownFace(UUID(int=index + 1), box, False, False) for index, box in enumerate(visible)]
    again = reconcile(known, visible)
    assert again.new == () and again.gone == () and len(again.same) == len(visible)


def test_a_face_that_moved_a_little_is_the_same_and_one_that_left_goes() -> None:
    known = [
        KnownFace(UUID(int=1), (0, 0, 100, 100), False, False),
        KnownFace(UUID(int=2), (300, 0, 400, 100), False, False),
        KnownFace(UUID(int=3), (600, 0, 700, 100), False, True),
    ]
    result = reconcile(known, [(10, 5, 108, 103), (900, 0, 950, 50)])
    assert result.same == ((UUID(int=1), 0),) and result.new == (1,) and result.gone == (UUID(int=2),)


def test_an_enrolled_face_is_the_one_found_and_takes_the_place_of_what_indexing_found_before() -> None:
    box = (0.0, 0.0, 50.0, 50.0)
    indexed, enrolled = KnownFace(UUID(int=1), box, False, False), KnownFace(UUID(int=2), (1, 1, 51, 51), True, True)
    result = reconcile([indexed, enrolled], [box])
    assert result.enrolled == ((UUID(int=2), 0),) and result.gone == (UUID(int=1),) and not result.new and not result.same


def test_two_persons_enrolled_with_one_face_both_stay() -> None:
    box = (0.0, 0.0, 50.0, 50.0)
    known = [KnownFace(UUID(int=number), box, True, True) for number in (1, 2)]
    result = reconcile(known, [box])
    assert result.enrolled == ((UUID(int=1), 0),) and not result.gone and not result.new


def test_boxes_without_area_are_nobody() -> None:
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0.0 and iou((0, 0, 1e-200, 1e-200), (0, 0, 1e-200, 1e-200)) == 0.0
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0 and iou((0, 0, 10, 10), (20, 0, 30, 10)) == 0.0
