"""What search is compared with, in this process and without a database: faiss and NumPy over the same faces."""

from __future__ import annotations

import time
from collections.abc import Iterator

import faiss
import numpy as np

from benchmarks.gallery import Gallery, IntArray, Ranking, rank
from serve_app.faces import FloatArray

M = 16
EF_CONSTRUCTION = 64
_EF_SEARCH = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_FLAT_AT_ONCE = 256


class Faiss:
    """IndexHNSWFlat, and the IndexFlatIP in which it keeps its vectors. Faces, not persons: it does less."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._hnsw = faiss.IndexHNSWFlat(gallery.faces.shape[1], M, faiss.METRIC_INNER_PRODUCT)
        self._hnsw.hnsw.efConstruction = EF_CONSTRUCTION
        begun = time.perf_counter()
        self._hnsw.add(gallery.faces)
        self.build_s = time.perf_counter() - begun
        self._flat = faiss.downcast_index(self._hnsw.storage)

    @property
    def ef_search(self) -> int:
        return int(self._hnsw.hnsw.efSearch)

    def hnsw(self, probes: FloatArray, top_k: int) -> IntArray:
        """(Q, K) nearest faces."""
        return np.asarray(self._hnsw.search(probes, top_k)[1], dtype=np.int64)

    def flat(self, probes: FloatArray, top_k: int) -> IntArray:
        blocks = [probes[start : start + _FLAT_AT_ONCE] for start in range(0, len(probes), _FLAT_AT_ONCE)]
        return np.concatenate([np.asarray(self._flat.search(block, top_k)[1], dtype=np.int64) for block in blocks])

    def tune(self, probes: FloatArray, persons: IntArray, recall: float) -> Iterator[tuple[int, float]]:
        """Raises efSearch until the nearest face is of the right person as often as `recall`: each step and its recall."""
        for ef_search in _EF_SEARCH:
            self._hnsw.hnsw.efSearch = ef_search
            reached = float((self._gallery.person_of[self.hnsw(probes, 1)[:, 0]] == persons).mean())
            yield ef_search, reached
            if reached >= recall:
                break


def numpy_exact(gallery: Gallery, probe: FloatArray, top_k: int) -> Ranking:
    return rank((gallery.faces @ probe)[None], gallery, top_k)
