"""Groups of faces: what always holds, whatever the faces; and what decides where it could be either."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidEmbedding
from serve_app.faces import FloatArray, OperatingPoint, l2_normalize
from serve_app.grouping.clustering import Alone, FacesToGroup, Grouping, GroupingLimits, belonging, group_faces
from serve_app.grouping.merging import NEIGHBOURS
from serve_app.grouping.neighbours import IntArray, near_pairs, pairs_of

LIMITS = GroupingLimits(0.46, 0.30)
NOBODY = -1


def ints(*values: int) -> IntArray:
    return np.array(values, dtype=np.int64)


def pairs(*values: tuple[int, int]) -> IntArray:
    return np.array(values, dtype=np.int64).reshape(-1, 2)


def faces(
    embeddings: FloatArray,
    pictures: IntArray | None = None,
    persons: IntArray | None = None,
    rejections: IntArray | None = None,
    present: IntArray | None = None,
) -> FacesToGroup:
    none = np.full(len(embeddings), -1, dtype=np.int64)
    whose = none if persons is None else persons
    return FacesToGroup(
        embeddings,
        none if pictures is None else pictures,
        whose,
        int(whose.max(initial=-1)) + 1,
        pairs() if rejections is None else rejections,
        pairs() if present is None else present,
    )


def alike(*rows: list[float]) -> FloatArray:
    """Unit vectors with these cosines: `rows` is the lower half of the matrix, without the diagonal."""
    gram = np.eye(len(rows) + 1)
    for i, row in enumerate(rows, 1):
        gram[i, :i] = gram[:i, i] = row
    return np.asarray(np.linalg.cholesky(gram), dtype=np.float32)


def codes(grouping: Grouping) -> dict[int, str]:
    return {face: one.code for face, one in grouping.alone.items()}


@dataclass(frozen=True)
class Case:
    faces: FacesToGroup
    order: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Faces around a few directions, near and far, some twice; in a few pictures; with persons that do and do not agree."""
    count = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centres = random.normal(size=(draw(st.integers(1, 8)), 16))
    chosen = random.integers(0, len(centres), count)
    embeddings = l2_normalize(centres[chosen] + draw(st.floats(0.05, 1.5)) * random.normal(size=(count, 16)))
    if draw(st.booleans()):
        embeddings[-1] = embeddings[0]
    persons = draw(st.integers(0, 4))
    whose = random.integers(0, persons, count) if persons else np.full(count, -1)
    whose = np.where(random.random(count) < draw(st.floats(0, 0.6)), whose, -1)
    made = faces(embeddings, random.integers(-1, draw(st.integers(1, 30)), count), whose.astype(np.int64))
    made = replace(made, person_count=persons)
    if persons:
        some = draw(st.integers(0, 10))
        told = np.column_stack((random.integers(0, count, some), random.integers(0, persons, some)))
        made = replace(made, rejections=told[::2], present=told[1::2])
    return Case(made, draw(st.permutations(range(count))))


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([1, 2, 8]))
def test_what_users_said_holds_whatever_the_faces_are_like(case: Case, much: int) -> None:
    given_faces = case.faces
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.grouping.merging.MUCH", much)
        grouping = group_faces(given_faces, LIMITS)
    fixed = given_faces.persons >= 0
    assert (grouping.groups[fixed] == given_faces.persons[fixed]).all()
    assert grouping.persons[: given_faces.person_count].tolist() == list(range(given_faces.person_count))
    assert (grouping.persons[given_faces.person_count :] == NOBODY).all()
    for group in range(len(grouping.persons)):
        members = np.flatnonzero(grouping.groups == group)
        assert group < given_faces.person_count or len(members) > 1
        found = members[~fixed[members]]
        for face in found:
            picture = given_faces.pictures[face]
            assert picture < 0 or (given_faces.pictures[members] == picture).sum() == 1
    for told in (given_faces.rejections, given_faces.present):
        for face, person in told:
            assert fixed[face] or grouping.groups[face] != person


@settings(max_examples=100, deadline=None)
@given(cases())
def test_whoever_is_alone_says_why(case: Case) -> None:
    grouping = group_faces(case.faces, LIMITS)
    assert set(grouping.alone) == set(np.flatnonzero(grouping.groups < 0).tolist())
    for one in grouping.alone.values():
        barred = one.code in ("rejected", "same_picture")
        assert one.value >= one.limit if barred else one.value < one.limit, one
        assert np.isfinite([one.value, one.limit]).all() and -1 <= one.value <= 2
        assert one.group is None or 0 <= one.group < len(grouping.persons)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_order_of_the_faces_does_not_matter(case: Case) -> None:
    given_faces, order = case.faces, np.array(case.order)
    # Which of two that are the same in everything is which, nobody can tell.
    assume(len(np.unique(given_faces.embeddings, axis=0)) == len(order))
    place = np.argsort(order)
    shuffled = FacesToGroup(
        given_faces.embeddings[order],
        given_faces.pictures[order],
        given_faces.persons[order],
        given_faces.person_count,
        np.column_stack((place[given_faces.rejections[:, 0]], given_faces.rejections[:, 1])),
        np.column_stack((place[given_faces.present[:, 0]], given_faces.present[:, 1])),
    )
    one, other = group_faces(given_faces, LIMITS), group_faces(shuffled, LIMITS)
    assert partition(one.groups) == partition(other.groups[place])
    assert partition(one.groups) == partition(group_faces(given_faces, LIMITS).groups)
    again = group_faces(given_faces, LIMITS)
    assert (again.groups == one.groups).all() and again.alone == one.alone


def partition(groups: IntArray) -> set[frozenset[int]]:
    """Of those who are not alone."""
    return {frozenset(np.flatnonzero(groups == group).tolist()) for group in set(groups.tolist()) - {-1}}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_points_nowhere_is_refused(bad: float) -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors[2, 1] = bad
    with pytest.raises(InvalidEmbedding):
        group_faces(faces(vectors), LIMITS)
    with pytest.raises(InvalidEmbedding):
        belonging(vectors, LIMITS)
    vectors[2] = 0
    with pytest.raises(InvalidEmbedding):
        group_faces(faces(vectors), LIMITS)


def test_nobody_and_one() -> None:
    assert group_faces(faces(np.empty((0, 8), dtype=np.float32)), LIMITS).groups.tolist() == []
    alone = group_faces(faces(np.eye(1, 8, dtype=np.float32)), LIMITS)
    assert alone.groups.tolist() == [NOBODY] and codes(alone) == {0: "no_neighbour"}


def test_a_weak_likeness_counts_where_nothing_else_is_like_it() -> None:
    apart = alike([0.40], [0.05, 0.02], [0.03, 0.04, 0.01])
    assert group_faces(faces(apart), LIMITS).groups.tolist() == [0, 0, NOBODY, NOBODY]
    family = alike([0.40], [0.37, 0.36], [0.36, 0.37, 0.38])
    found = group_faces(faces(family), LIMITS)
    assert found.groups.tolist() == [NOBODY] * 4 and set(codes(found).values()) == {"not_core"}


def test_below_the_lowest_no_lead_helps() -> None:
    found = group_faces(faces(alike([0.29])), LIMITS)
    assert found.groups.tolist() == [NOBODY, NOBODY]
    one = found.alone[0]
    assert replace(one, value=0.29) == Alone("no_neighbour", "similarity", 0.29, 0.30)
    assert one.value == pytest.approx(0.29, abs=1e-5)


def test_what_is_only_linked_by_a_chain_stays_apart() -> None:
    """a like b, b like c, c like d, but a not like d: one after another they would all be one."""
    chain = alike([0.60], [0.10, 0.58], [0.05, 0.10, 0.60])
    assert group_faces(faces(chain), LIMITS).groups.tolist() == [0, 0, 1, 1]


def test_two_of_one_picture_are_two_however_alike() -> None:
    twins = alike([0.95], [0.90, 0.85])
    found = group_faces(faces(twins, ints(7, 7, 8)), LIMITS)
    assert found.groups.tolist() == [0, NOBODY, 0]
    assert found.alone[1].code == "same_picture" and found.alone[1].value >= found.alone[1].limit
    # A picture that is none says nothing.
    assert group_faces(faces(twins, ints(-1, -1, -1)), LIMITS).groups.tolist() == [0, 0, 0]
    # And a user may say so.
    assert group_faces(faces(twins, ints(7, 7, 8), ints(0, 0, -1)), LIMITS).groups.tolist() == [0, 0, 0]


def test_a_person_in_the_picture_is_not_in_it_twice() -> None:
    found = group_faces(faces(alike([0.9]), None, ints(0, -1), present=pairs((1, 0))), LIMITS)
    assert found.groups.tolist() == [0, NOBODY]
    assert (found.alone[1].code, found.alone[1].group) == ("same_picture", 0)


def test_a_rejection_holds_for_all_faces_of_the_person_and_passes_on() -> None:
    """Two faces that are one, one of which is not the person: neither is."""
    vectors = alike([0.9], [0.8, 0.8], [0.8, 0.8, 0.95])
    found = group_faces(faces(vectors, None, ints(0, 0, -1, -1), rejections=pairs((2, 0))), LIMITS)
    assert found.groups.tolist() == [0, 0, 1, 1]
    alone = group_faces(faces(vectors[:3], None, ints(0, 0, -1), rejections=pairs((2, 0))), LIMITS)
    assert (alone.alone[2].code, alone.alone[2].group) == ("rejected", 0)


def test_persons_are_never_one_and_who_lies_between_them_is_neither() -> None:
    vectors = alike([0.9], [0.60, 0.58], [0.2, 0.2, 0.2])
    found = group_faces(faces(vectors, None, ints(0, 1, -1, -1)), LIMITS)
    assert found.groups.tolist()[:3] == [0, 1, NOBODY]
    between = found.alone[2]
    assert (between.code, between.metric, between.group, between.limit) == ("between_persons", "margin", 0, LIMITS.margin)
    assert between.value == pytest.approx(0.02, abs=1e-5)
    clear = alike([0.9], [0.60, 0.50])
    assert group_faces(faces(clear, None, ints(0, 1, -1)), LIMITS).groups.tolist() == [0, 1, 0]


def test_a_person_who_changed_is_found_by_either_look() -> None:
    """A child and an adult, merged by a user: a face like one of them belongs to both."""
    vectors = alike([0.8], [0.1, 0.1], [0.1, 0.1, 0.8], [0.6, 0.6, 0.0, 0.1], [0.1, 0.0, 0.6, 0.6, 0.0])
    assert group_faces(faces(vectors, None, ints(0, 0, 0, 0, -1, -1)), LIMITS).groups.tolist() == [0] * 6


def test_two_that_bar_each_other_do_not_join_one_person_in_the_same_round() -> None:
    vectors = alike([0.2], [0.7, 0.1], [0.1, 0.7, 0.1])
    found = group_faces(faces(vectors, ints(1, 2, 3, 3), ints(0, 0, -1, -1)), LIMITS)
    assert sorted(found.groups.tolist()) == [NOBODY, 0, 0, 0]


def test_a_large_person_is_found_by_more_neighbours_than_are_looked_at() -> None:
    random = np.random.default_rng(3)
    centre = random.normal(size=64)
    near = l2_normalize(centre + 0.6 * random.normal(size=(6 * NEIGHBOURS, 64)))
    far = l2_normalize(random.normal(size=(50, 64)))
    found = group_faces(faces(np.concatenate((near, far))), LIMITS).groups
    assert (found[: len(near)] == found[0]).all() and found[0] >= 0 and not (found[len(near) :] == found[0]).any()


def test_belonging() -> None:
    vectors = alike([0.7], [0.7, 0.7], [0.1, 0.1, 0.1])
    assert belonging(vectors, LIMITS).tolist() == [True, True, True, False]
    assert belonging(vectors[:1], LIMITS).tolist() == [True]
    assert belonging(vectors[:0], LIMITS).tolist() == []


def test_limits_follow_the_operating_point() -> None:
    point = OperatingPoint("model", "photos", 0.36, 0.30, None, None)
    limits = GroupingLimits.of(point)
    assert limits.similar == pytest.approx(0.46) and limits.lowest == 0.30
    assert GroupingLimits.of(replace(point, threshold=0.30)).similar == pytest.approx(0.40)


def test_pairs_are_those_of_comparing_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.grouping.neighbours._ROWS", 7)
    monkeypatch.setattr("serve_app.grouping.neighbours._COLUMNS", 11)
    vectors = l2_normalize(np.random.default_rng(5).normal(size=(60, 6)))
    all_pairs = vectors @ vectors.T
    np.fill_diagonal(all_pairs, -1)
    found = near_pairs(vectors, 0.3, 60, lambda: None)
    wanted = np.argwhere(np.triu(all_pairs >= 0.3))
    assert np.column_stack((found.a, found.b)).tolist() == wanted.tolist()
    assert found.nearest == pytest.approx(all_pairs.max(axis=1), abs=1e-6)
    few = near_pairs(vectors, -1.0, 3, lambda: None)
    nearest = {(min(i, j), max(i, j)) for i, row in enumerate(all_pairs) for j in np.argsort(-row)[:3].tolist()}
    assert set(zip(few.a.tolist(), few.b.tolist(), strict=True)) == nearest
    some = pairs_of(vectors, ints(4, 50), 0.3, 60, lambda: None)
    assert np.column_stack((some.a, some.b)).tolist() == [one for one in wanted.tolist() if {4, 50} & set(one)]


def test_whoever_does_not_want_it_any_more_stops_it() -> None:
    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    with pytest.raises(Stop):
        group_faces(faces(np.eye(4, dtype=np.float32)), LIMITS, check)
