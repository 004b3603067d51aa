"""Clustering algorithms that ours is measured beside, each over a grid of its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from serve_app.errors import ConfigurationError
from serve_app.faces import FloatArray
from serve_app.grouping.neighbours import IntArray

_CW_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Trial:
    """One algorithm with one setting. `labels`: (N,), below 0 for noise."""

    parameters: str
    labels: IntArray


Peer = Callable[[FloatArray], Iterator[Trial]]
"""Of (N, D) unit vectors, every trial of the grid."""


def peers() -> dict[str, Peer]:
    """Raises ConfigurationError where scikit-learn is missing."""
    try:
        import sklearn.cluster  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "The comparison needs scikit-learn: install kinlens[evaluation], or `uv sync --extra evaluation`."
        ) from error
    return {"DBSCAN": dbscan, "HDBSCAN": hdbscan, "Chinese whispers": chinese_whispers}


def dbscan(vectors: FloatArray) -> Iterator[Trial]:
    from sklearn.cluster import DBSCAN

    distances = np.clip(1 - vectors @ vectors.T, 0, 2)
    for radius, core in itertools.product(np.arange(0.30, 0.81, 0.02), (1, 2, 3, 4)):
        found = DBSCAN(eps=float(radius), min_samples=core, metric="precomputed").fit(distances)
        yield Trial(f"cosine distance {radius:.2f}, {core} core", found.labels_)


def hdbscan(vectors: FloatArray) -> Iterator[Trial]:
    """By stability of clusters, leaves of the tree, either with a least distance, and cut at one distance."""
    from sklearn.cluster import HDBSCAN

    for smallest, core in itertools.product((2, 3), (1, 2, 3)):
        for method, epsilon in itertools.product(("eom", "leaf"), np.arange(0.0, 1.26, 0.1)):
            try:
                found = HDBSCAN(
                    min_cluster_size=smallest,
                    min_samples=core,
                    cluster_selection_epsilon=float(epsilon),
                    cluster_selection_method=method,
                    copy=True,
                ).fit(vectors)
            except TypeError:
                # scikit-learn before the fix of its issue 33219, with NumPy 2.4, for some distances; the cuts below remain.
                continue
            yield Trial(f"size {smallest}, {core} core, {method}, distance {epsilon:.1f}", found.labels_)
        tree = HDBSCAN(min_cluster_size=smallest, min_samples=core, copy=True).fit(vectors)
        for cut in np.arange(0.60, 1.26, 0.02):
            labels = tree.dbscan_clustering(float(cut), min_cluster_size=smallest)
            yield Trial(f"size {smallest}, {core} core, cut at {cut:.2f}", labels)


def chinese_whispers(vectors: FloatArray) -> Iterator[Trial]:
    """Biemann 2006, DOI 10.3115/1654758.1654774: every face takes on the group that most of its neighbours, weighted by
    similarity, are in, one face after another in random order, until nothing changes."""
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -1)
    for threshold in np.arange(0.20, 0.71, 0.01):
        yield Trial(f"similarity {threshold:.2f}", _whisper(similarities, float(threshold)))


def _whisper(similarities: FloatArray, threshold: float) -> IntArray:
    count = len(similarities)
    labels: IntArray = np.arange(count)
    neighbours = [np.flatnonzero(row >= threshold) for row in similarities]
    random = np.random.default_rng(0)
    for _ in range(_CW_ROUNDS):
        changed = False
        for face in random.permutation(count):
            near = neighbours[face]
            if not len(near):
                continue
            votes = np.bincount(labels[near], weights=similarities[face, near], minlength=count)
            best = int(votes.argmax())
            if votes[best] > votes[labels[face]]:
                labels[face], changed = best, True
        if not changed:
            break
    return labels
