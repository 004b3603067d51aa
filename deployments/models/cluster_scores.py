"""How well groups of faces agree with the persons they show. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

Labels = Sequence[int]
"""A group for each face; whoever is below 0 is alone, and counts as a group of one."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Precision: of what is together, how much belongs together. Recall: of what belongs together, how much is."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


@dataclass(frozen=True, slots=True)
class ClusterScores:
    """`bcubed`: the mean over faces (Bagga and Baldwin 1998, DOI 10.3115/980451.980859). `pairwise`: over pairs of faces, so
    that a person with many counts with its square. `purity`: share of the faces that are of the most frequent person of
    their group. `groups`: of two faces and more. `alone`: faces in no such group."""

    bcubed: Agreement
    pairwise: Agreement
    purity: float
    groups: int
    alone: int


def score(labels: Labels, persons: Sequence[Hashable]) -> ClusterScores:
    """Of at least one face."""
    # Each face that is alone gets a number of its own.
    found = [label if label >= 0 else -1 - index for index, label in enumerate(labels)]
    groups, truth = Counter(found), Counter(persons)
    cells = Counter(zip(found, persons, strict=True))
    count = len(found)
    together = _pairs(cells.values())
    largest: dict[int, int] = {}
    for (group, _), size in cells.items():
        largest[group] = max(largest.get(group, 0), size)
    return ClusterScores(
        bcubed=Agreement(
            sum(size * size / groups[group] for (group, _), size in cells.items()) / count,
            sum(size * size / truth[person] for (_, person), size in cells.items()) / count,
        ),
        pairwise=Agreement(_share(together, _pairs(groups.values())), _share(together, _pairs(truth.values()))),
        purity=sum(largest.values()) / count,
        groups=sum(size > 1 for size in groups.values()),
        alone=sum(size == 1 for size in groups.values()),
    )


def _pairs(sizes: Iterable[int]) -> int:
    return sum(size * (size - 1) // 2 for size in sizes)


def _share(part: int, whole: int) -> float:
    """Of no pair, none is wrong."""
    return part / whole if whole else 1.0
