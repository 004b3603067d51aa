"""Which vectors are near which: exact, block by block, never all against all in memory. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.faces import FloatArray

IntArray = npt.NDArray[np.int64]

_ROWS, _COLUMNS = 1024, 8192
"""Of a block of similarities: 32 MiB, and as much again while it is looked through."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Pairs `a` < `b` (E,), sorted, each once. `nearest`: (N,) greatest similarity of each vector to another one, also where
    that is no pair; -1 for a vector that is alone."""

    a: IntArray
    b: IntArray
    nearest: FloatArray


def near_pairs(vectors: FloatArray, floor: float, most: int, check: Callable[[], None]) -> Neighbours:
    """Pairs whose dot product is at least `floor`: of each of the (N, D) vectors those with its `most` nearest. `check` is
    called between blocks, and may raise. About N^2 D / 10^11 seconds on two cores."""
    count = len(vectors)
    return pairs_of(vectors, np.arange(count), floor, most, check)


def pairs_of(vectors: FloatArray, wanted: IntArray, floor: float, most: int, check: Callable[[], None]) -> Neighbours:
    """The same for the vectors `wanted` (their numbers, rising) with all others. `nearest` is in the order of `wanted`."""
    count = max(len(vectors), 1)
    keys = [np.empty(0, dtype=np.int64)]
    nearest = np.full(len(wanted), -1.0, dtype=np.float32)
    for first in range(0, len(wanted), _ROWS):
        block = slice(first, first + _ROWS)
        rows, columns, nearest[block] = _block(vectors, wanted[block], floor, most, check)
        keys.append(np.minimum(rows, columns) * count + np.maximum(rows, columns))
    unique = np.unique(np.concatenate(keys))
    return Neighbours(unique // count, unique % count, nearest)


def _block(
    vectors: FloatArray, wanted: IntArray, floor: float, most: int, check: Callable[[], None]
) -> tuple[IntArray, IntArray, FloatArray]:
    """Pairs of some rows with all, and the nearest of each row."""
    some, nearest = vectors[wanted], np.full(len(wanted), -1.0, dtype=np.float32)
    found = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    for start in range(0, len(vectors), _COLUMNS):
        check()
        similarities = some @ vectors[start : start + _COLUMNS].T
        own = np.flatnonzero((wanted >= start) & (wanted < start + _COLUMNS))
        similarities[own, wanted[own] - start] = -1.0
        np.maximum(nearest, similarities.max(axis=1), out=nearest)
        rows, columns = np.nonzero(similarities >= floor)
        # Cut down after each block: of a person with thousands of faces every pair is near.
        found = _top(
            np.concatenate((found[0], rows)),
            np.concatenate((found[1], columns + start)),
            np.concatenate((found[2], similarities[rows, columns])),
            most,
        )
    return wanted[found[0]], found[1], nearest


def nearest_of(probes: FloatArray, own: IntArray, vectors: npt.NDArray[np.floating], floor: float, most: int) -> IntArray:
    """Numbers of the (N, D) vectors that are near one of the (W, D) probes: the nearest of each, and those of its `most`
    nearest that are at least `floor` like it. `own`: (W,) number of the vector that is the probe itself, -1 for none."""
    chosen = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(probes), _ROWS):
        some, mine = probes[first : first + _ROWS], own[first : first + _ROWS]
        best, similarity = np.full(len(some), -1, dtype=np.int64), np.full(len(some), -1.0, dtype=np.float32)
        found = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        for start in range(0, len(vectors), _COLUMNS):
            similarities = some @ vectors[start : start + _COLUMNS].astype(np.float32).T
            here = np.flatnonzero((mine >= start) & (mine < start + _COLUMNS))
            similarities[here, mine[here] - start] = -1.0
            nearest = similarities.argmax(axis=1)
            value = similarities[np.arange(len(some)), nearest]
            best, similarity = np.where(value > similarity, nearest + start, best), np.maximum(similarity, value)
            rows, columns = np.nonzero(similarities >= floor)
            found = _top(
                np.concatenate((found[0], rows)),
                np.concatenate((found[1], columns + start)),
                np.concatenate((found[2], similarities[rows, columns])),
                most,
            )
        chosen += [found[1], best[best >= 0]]
    return np.unique(np.concatenate(chosen))


def _top(rows: IntArray, columns: IntArray, similarities: FloatArray, most: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Of each row the `most` greatest; of equals those that come first."""
    order = np.lexsort((columns, -similarities, rows))
    rows = rows[order]
    kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < most
    return rows[kept], columns[order][kept], similarities[order][kept]
