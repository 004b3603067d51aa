"""Scores of clustering against examples worked out by hand, what the evaluation reads, and the algorithms beside ours."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.models.cluster_evaluation import NamedFaces, compare, compare_halves, read_named
from deployments.models.cluster_peers import chinese_whispers, peers
from deployments.models.cluster_report import describe_clustering, describe_halves
from deployments.models.cluster_scores import score
from serve_app.errors import ConfigurationError
from serve_app.faces import FloatArray, l2_normalize
from serve_app.grouping.clustering import GroupingLimits

LIMITS = GroupingLimits(0.46, 0.30)


def test_by_hand() -> None:
    """Two persons a, b in groups {a a b}, {b}, and one a alone."""
    found = score([0, 0, 0, 1, -1], ["a", "a", "b", "b", "a"])
    assert found.bcubed.precision == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1 + 1) / 5)
    assert found.bcubed.recall == pytest.approx((2 / 3 + 2 / 3 + 1 / 2 + 1 / 2 + 1 / 3) / 5)
    assert found.pairwise.precision == pytest.approx(1 / 3) and found.pairwise.recall == pytest.approx(1 / 4)
    assert found.purity == pytest.approx(4 / 5) and (found.groups, found.alone) == (1, 2)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(-1, 5), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_the_truth_is_perfect_and_nothing_is_more(pairs: list[tuple[int, str]]) -> None:
    labels, persons = [label for label, _ in pairs], [person for _, person in pairs]
    perfect = score(["abcd".index(person) for person in persons], persons)
    assert perfect.bcubed.f1 == perfect.pairwise.f1 == perfect.purity == pytest.approx(1)
    found = score(labels, persons)
    for value in (found.bcubed.precision, found.bcubed.recall, found.pairwise.f1, found.purity):
        assert 0 <= value <= 1 + 1e-9
    alone = score([-1] * len(pairs), persons)
    assert alone.purity == alone.bcubed.precision == 1 and alone.groups == 0


def faces(count: int = 30, persons: int = 6, seed: int = 0) -> NamedFaces:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(persons, 48))
    names = [index % persons for index in range(count)]
    vectors: FloatArray = l2_normalize(centres[names] + 0.6 * random.normal(size=(count, 48)))
    return NamedFaces(vectors, tuple(f"p{name}" for name in names), 2)


def test_all_four_are_compared_and_told_of() -> None:
    results = compare(faces(), LIMITS, peers(), lambda name: None)
    assert {one.algorithm for one in results} == {"Kinlens", "DBSCAN", "HDBSCAN", "Chinese whispers"}
    assert all(one.scores.bcubed.f1 == pytest.approx(1) for one in results)
    lines = describe_clustering(faces(), results)
    assert lines[0].startswith("30 faces of 6 persons; 2 photos without") and "similar 0.46" in "\n".join(lines)
    halves = list(compare_halves(faces(), LIMITS, {"Chinese whispers": chinese_whispers}, 2, lambda name: None))
    assert len(halves) == 4 and "4 halves" in describe_halves(halves)[0]


def test_whispers_end_in_the_groups_that_are_there() -> None:
    named = faces()
    trial = next(one for one in chinese_whispers(named.embeddings) if one.parameters == "similarity 0.40")
    assert score(trial.labels.tolist(), named.persons).bcubed.f1 == pytest.approx(1)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigurationError, match=r"kinlens\[evaluation\]"):
        peers()


def test_photos_come_from_a_csv_or_from_folders(tmp_path: Path) -> None:
    for name in ("ann/1.jpg", "ann/more/2.PNG", "bob/1.webp", "bob/notes.txt", "loose.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [one.person for one in read_named(tmp_path)] == ["ann", "ann", "bob"]
    table = tmp_path / "table.csv"
    table.write_text("file,identity\nann/1.jpg,Ann\nbob/1.webp,\nloose.jpg,Bob\n")
    assert [(one.path.name, one.person) for one in read_named(table)] == [("1.jpg", "Ann"), ("loose.jpg", "Bob")]


@pytest.mark.parametrize("text", ["", "file,identity\n", "file,identity\na.jpg,Ann\n", "file,name\na.jpg,Ann\n", "\x00\xff"])
def test_what_names_nobody_is_refused(tmp_path: Path, text: str) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError):
        read_named(table)
    with pytest.raises(ConfigurationError):
        read_named(tmp_path / "nowhere.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError):
        read_named(tmp_path / "empty")
