"""Why a face is nobody's, in JSON and in words."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.grouping.clustering import Alone
from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.decisions import Why

PERSON = UUID(int=7)
CODES = ["too_small", "blurred", "low_detection_score", "no_neighbour", "not_core", "between_persons", "same_picture",
         "rejected", "unassigned_by_user", "person_deleted", "hidden"]  # fmt: skip


@given(
    st.builds(
        Unassigned,
        st.sampled_from([*CODES, "something_new"]),
        st.none() | st.just("similarity"),
        st.none() | st.floats(-1, 1000),
        st.none() | st.floats(-1, 1000),
        st.none() | st.uuids(),
    )
)
def test_what_is_kept_is_read_again_and_has_words(reason: Unassigned) -> None:
    kept = json.loads(json.dumps(reason.to_json(), allow_nan=False))
    assert Unassigned.from_json(kept) == reason
    assert reason.message.endswith(".") and "{" not in reason.message


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_words_of_its_own(code: str) -> None:
    said = Unassigned(code, "metric", 0.25, 0.5, PERSON).message
    assert "metric" not in said and said != Unassigned("something_new", "metric", 0.25, 0.5).message


def test_the_codes_of_grouping_and_of_users_are_known() -> None:
    documented = {line.split()[0].rstrip(",") for line in (Alone.__doc__ or "").splitlines() if line.startswith("    no")}
    assert documented and documented <= set(CODES)
    assert {why.value for why in Why} <= set(CODES)


def test_numbers_explain() -> None:
    assert Unassigned("blurred", "sharpness", 0.0999, 0.1).message == "The face is blurred: sharpness 0.0999; 0.10 is needed."
    assert "27 px wide; at least 40 px" in Unassigned("too_small", "size_px", 27.4, 40.0).message
    assert "39.99 px wide; at least 40 px" in Unassigned("too_small", "size_px", 39.99, 40.0).message
    assert Unassigned("something_new").message == "Something new."
    assert Unassigned("something_new", "x", 1.0, 2.0).message == "Something new: x is 1.000; the limit is 2.000."
