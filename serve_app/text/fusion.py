"""Several rankings as one. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

K = 60
"""Of reciprocal rank fusion: how little the first places differ (Cormack, Clarke and Buettcher, "Reciprocal rank fusion
outperforms Condorcet and individual rank learning methods", SIGIR 2009; 60 is theirs)."""

ItemT = TypeVar("ItemT", bound=Hashable)


def fuse(rankings: Sequence[Sequence[ItemT]], weights: Sequence[float] | None = None, k: int = K) -> list[tuple[ItemT, float]]:
    """Items by falling sum of weight / (k + rank), rank from 1, over the rankings they are in. Of equal sums the one that is
    first in the first ranking comes first. Raises ValueError for as many weights as there are not rankings."""
    given = [1.0] * len(rankings) if weights is None else list(weights)
    sums: dict[ItemT, float] = {}
    for ranking, weight in zip(rankings, given, strict=True):
        for rank, item in enumerate(dict.fromkeys(ranking), start=1):
            sums[item] = sums.get(item, 0.0) + weight / (k + rank)
    # Sorting is stable: equals stay in the order they came in.
    return sorted(sums.items(), key=lambda entry: -entry[1])
