from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.text.fusion import K, fuse

RANKINGS = st.lists(st.lists(st.integers(0, 20), max_size=12), max_size=5)


def test_the_sum_of_reciprocal_ranks() -> None:
    found = fuse([["a", "b"], ["b", "c"]])
    assert [item for item, _ in found] == ["b", "a", "c"]
    assert [score for _, score in found] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])
    assert K == 60


def test_weights_and_equals() -> None:
    assert [item for item, _ in fuse([["a"], ["b"]], [0.5, 1.0])] == ["b", "a"]
    assert [item for item, _ in fuse([["a"], ["b"]])] == ["a", "b"], "equals: the first ranking's come first"
    with pytest.raises(ValueError):
        fuse([["a"]], [1.0, 2.0])


def test_an_item_counts_once_a_ranking() -> None:
    assert dict(fuse([["a", "a", "b"]])) == pytest.approx({"a": 1 / 61, "b": 1 / 62})
    assert fuse([]) == [] and fuse([[], []]) == []


@given(RANKINGS)
def test_everybody_is_there_once_and_scores_fall(rankings: list[list[int]]) -> None:
    found = fuse(rankings)
    assert {item for item, _ in found} == {item for ranking in rankings for item in ranking}
    assert len(found) == len({item for item, _ in found})
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True) and all(0 < score <= len(rankings) / 61 for score in scores)


@given(st.lists(st.integers(0, 20), unique=True, max_size=12))
def test_one_ranking_stays_as_it_is(ranking: list[int]) -> None:
    assert [item for item, _ in fuse([ranking])] == ranking
    assert [item for item, _ in fuse([ranking, ranking])] == ranking


@given(RANKINGS, st.integers(0, 20))
def test_to_be_first_in_one_more_never_harms(rankings: list[list[int]], item: int) -> None:
    place = dict(fuse(rankings)).get(item, 0.0)
    assert dict(fuse([*rankings, [item]]))[item] > place
