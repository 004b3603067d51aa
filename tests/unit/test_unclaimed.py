from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.faces import FloatArray, l2_normalize
from serve_app.grouping import neighbours
from serve_app.grouping.unclaimed import Unclaimed

DIM = 8
FLOOR, MOST = 0.4, 3


def unit(random: np.random.Generator, count: int) -> FloatArray:
    """As the database keeps them: halves."""
    return l2_normalize(random.normal(size=(count, DIM))).astype(np.float16).astype(np.float32)


def packed(face_ids: Iterable[UUID]) -> bytes:
    return b"".join(one.bytes for one in face_ids)


def expected(
    known: dict[UUID, FloatArray], probes: dict[UUID, FloatArray], slack: float, nearest_from: float = -1.0
) -> set[UUID]:
    """One after the other. A product of matrices rounds otherwise, on each CPU in its own way: who is found in any case where
    likenesses may be off by `slack`, or, where it is below zero, who may be found."""
    found = set()
    for own, probe in probes.items():
        alike = {face_id: float(one @ probe) for face_id, one in known.items() if face_id != own}
        for face_id, similarity in alike.items():
            before = sum(other > similarity - slack for one, other in alike.items() if one != face_id)
            if (before < MOST and similarity >= FLOOR + slack) or (before < 1 and similarity >= nearest_from + slack):
                found.add(face_id)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_as_one_after_the_other(seed: int, count: int) -> None:
    """Also in blocks, and after faces have come, gone, and got other embeddings."""
    random = np.random.default_rng(seed)
    ids = [UUID(int=number) for number in random.permutation(count).tolist()]
    known = dict(zip(ids, unit(random, count), strict=True))
    unclaimed = Unclaimed(DIM)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(neighbours, "_ROWS", 3)
        patched.setattr(neighbours, "_COLUMNS", 7)
        for _ in range(3):
            chosen = [one for one in ids if random.random() < 0.7]
            lacking = unclaimed.keep(packed(chosen))
            assert set(lacking) <= set(chosen) and lacking == sorted(lacking)
            changed = [one for one in chosen if one not in lacking and random.random() < 0.2]
            known |= dict(zip(changed, unit(random, len(changed)), strict=True))
            new = [*lacking, *changed]
            unclaimed.add(new, np.stack([known[one] for one in new]) if new else np.empty((0, DIM), np.float32))
            claimed = {one for one in chosen if random.random() < 0.1}
            unclaimed.remove(claimed)
            left = {one: known[one] for one in chosen if one not in claimed}
            assert len(unclaimed) == len(left)
            probes = {one: known[one] for one in [*ids[:4], *list(left)[:4]]}
            found = unclaimed.nearest(list(probes), np.stack(list(probes.values())), FLOOR, MOST)
            # Who is unlike everybody may find a row that nobody has, and so nobody.
            assert expected(left, probes, 1e-5, nearest_from=1e-3) <= found <= expected(left, probes, -1e-5)


def test_rows_are_used_again() -> None:
    random, unclaimed = np.random.default_rng(1), Unclaimed(DIM)
    for start in range(0, 20_000, 1000):
        ids = [UUID(int=start + number) for number in range(1000)]
        assert unclaimed.keep(packed(ids)) == ids
        unclaimed.add(ids, unit(random, 1000))
    assert len(unclaimed) == 1000 and len(unclaimed._vectors) <= 2 * 1024


def test_nobody() -> None:
    unclaimed, probe = Unclaimed(DIM), np.eye(1, DIM, dtype=np.float32)
    assert unclaimed.keep(b"") == []
    unclaimed.remove([UUID(int=1)])
    assert unclaimed.nearest([UUID(int=1)], probe, -1.0, 5) == set()
    assert unclaimed.nearest([], probe[:0], -1.0, 5) == set()
    unclaimed.add([UUID(int=1)], probe)
    assert unclaimed.nearest([UUID(int=1)], probe, 0.0, 5) == set()
    assert unclaimed.nearest([UUID(int=2)], probe, 0.0, 5) == {UUID(int=1)}
