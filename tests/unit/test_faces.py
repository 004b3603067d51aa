from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidEmbedding
from serve_app.faces import (
    MAX_TEMPLATES,
    TEMPLATE_COSINE,
    Decision,
    FloatArray,
    OperatingPoint,
    cosine_similarity,
    l2_normalize,
    mean_templates,
    parse_embedding,
    templates_of,
)

POINT = OperatingPoint("m", "data", 0.36, 0.30, 0.001, 0.03)


@pytest.mark.parametrize(
    ("similarity", "decision"),
    [(0.36, Decision.MATCH), (0.3599, Decision.AMBIGUOUS), (0.30, Decision.AMBIGUOUS), (0.2999, Decision.UNKNOWN)],
)
def test_decisions_change_at_the_thresholds_themselves(similarity: float, decision: Decision) -> None:
    assert POINT.decide(similarity) is decision


def test_l2_normalize_rows() -> None:
    rows = l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.dtype == np.float32
    assert np.allclose(rows, np.array([[0.6, 0.8], [0.0, 0.0]]), atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_refused(bad: float) -> None:
    with pytest.raises(InvalidEmbedding, match="NaN or infinity"):
        parse_embedding([1.0, bad], 2)


def test_wrong_length_says_both_lengths() -> None:
    with pytest.raises(InvalidEmbedding) as caught:
        parse_embedding([1.0] * 3, 4)
    assert caught.value.details == {"expected_dim": 4, "dim": 3}


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-200, 0.0]])
def test_zero_is_refused(values: list[float]) -> None:
    with pytest.raises(InvalidEmbedding, match="zero"):
        parse_embedding(values, 2)


@given(st.lists(st.floats(-1e300, 1e300).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=4, max_size=4).filter(any))
def test_any_finite_vector_becomes_a_unit_vector(values: list[float]) -> None:
    vector = parse_embedding(values, 4)
    assert np.isclose(np.linalg.norm(vector.astype(np.float64)), 1.0, atol=1e-6)
    assert np.isclose(cosine_similarity(vector, vector), 1.0, atol=1e-6)


def random_persons(sizes: list[int], similarity: float) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(len(sizes))
    centers = l2_normalize(rng.standard_normal((len(sizes), 32)).astype(np.float32))
    noise = l2_normalize(rng.standard_normal((sum(sizes), 32)).astype(np.float32))
    faces = l2_normalize(similarity * np.repeat(centers, sizes, axis=0) + (1 - similarity) * noise)
    return faces, np.cumsum([0, *sizes[:-1]])


@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.9])
def test_templates_of_many_persons_are_those_of_each(similarity: float) -> None:
    sizes = [1, 5, 2, 5, 9, 1, 3]
    faces, starts = random_persons(sizes, similarity)
    means, enough = mean_templates(faces, starts)
    for index, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        templates, counts = templates_of(faces[start : start + size])
        assert sum(counts) == size and (len(templates) == 1 or not enough[index])
        if enough[index]:
            assert counts == [size] and templates[0] == pytest.approx(means[index], abs=1e-6)


def test_every_face_is_like_one_of_its_templates_unless_there_are_too_many() -> None:
    rng = np.random.default_rng(1)
    alike = l2_normalize(rng.standard_normal(64) + 0.05 * rng.standard_normal((20, 64)))
    odd = l2_normalize(rng.standard_normal((3, 64)))
    templates, counts = templates_of(np.vstack([alike, odd]))
    assert sorted(counts) == [1, 1, 1, 20] and np.linalg.norm(templates, axis=1) == pytest.approx(1, abs=1e-5)
    assert ((np.vstack([alike, odd]) @ templates.T).max(axis=1) >= TEMPLATE_COSINE).all()
    strangers = l2_normalize(rng.standard_normal((500, 64)))
    templates, counts = templates_of(strangers)
    assert len(templates) == MAX_TEMPLATES and sum(counts) == 500


def test_nobody_has_no_templates() -> None:
    assert templates_of(np.empty((0, 8), dtype=np.float32))[1] == []
