"""What clustering was measured at, for a person: text that is Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deployments.models.attribute_report import table
from deployments.models.cluster_evaluation import NamedFaces, Result

_HEAD = ("algorithm", "BCubed P", "R", "F1", "pairwise P", "R", "F1", "purity", "groups", "alone", "parameters")
_UNSEEN_HEAD = ("algorithm", "BCubed F1", "least", "pairwise F1", "least", "purity", "least")


def describe_clustering(faces: NamedFaces, results: Sequence[Result]) -> list[str]:
    persons = len(set(faces.persons))
    return [
        f"{len(faces.persons)} faces of {persons} persons; {faces.unreadable} photos without a usable face. A face that is"
        " alone counts as a group of one, for every algorithm. All but ours have the best parameters of a grid, chosen on"
        " these very photos.",
        "",
        *table(_HEAD, [_row(result) for result in results]),
    ]


def describe_halves(halves: Sequence[Sequence[Result]]) -> list[str]:
    """Means over the halves, and the least."""
    names = list(dict.fromkeys(result.algorithm for half in halves for result in half))
    rows = []
    for name in names:
        figures = np.array(
            [
                (result.scores.bcubed.f1, result.scores.pairwise.f1, result.scores.purity)
                for half in halves
                for result in half
                if result.algorithm == name
            ]
        )
        pairs = zip(figures.mean(axis=0), figures.min(axis=0), strict=True)
        rows.append([name, *(f"{value:.4f}" for pair in pairs for value in pair)])
    return [
        f"{len(halves)} halves of the persons; parameters were chosen on the half that is not measured.",
        "",
        *table(_UNSEEN_HEAD, rows),
    ]


def _row(result: Result) -> list[str]:
    scores = result.scores
    figures = [value for one in (scores.bcubed, scores.pairwise) for value in (one.precision, one.recall, one.f1)] + [
        scores.purity
    ]
    return [
        result.algorithm,
        *(f"{value:.4f}" for value in figures),
        str(scores.groups),
        str(scores.alone),
        result.parameters,
    ]
