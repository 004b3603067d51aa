from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidEmbedding
from serve_app.faces import Decision, OperatingPoint, cosine_similarity, l2_normalize, parse_embedding

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
