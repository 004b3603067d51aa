"""Faces that nobody has, in memory, for new ones to be compared with. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

import numpy as np
import numpy.typing as npt

from serve_app.faces import FloatArray
from serve_app.grouping.neighbours import IntArray, nearest_of

_ID_BYTES = 16
_FIRST_ROWS = 1024


class Unclaimed:
    """N faces of D values take some 2 to 4 N D bytes. It is as true as when `keep` and `add` were last called: whoever is
    found must be looked up. Not for several threads at once."""

    def __init__(self, dim: int) -> None:
        # Bytes: a UUID takes ten times as long to make.
        self._places: dict[bytes, int] = {}
        self._ids: list[bytes | None] = []
        self._vacant: list[int] = []
        self._vectors: npt.NDArray[np.float16] = np.zeros((0, dim), dtype=np.float16)

    def __len__(self) -> int:
        return len(self._places)

    def keep(self, face_ids: bytes) -> list[UUID]:
        """Only these, of 16 bytes each, are nobody's now; returns those that are to be added."""
        now = {face_ids[start : start + _ID_BYTES] for start in range(0, len(face_ids), _ID_BYTES)}
        self._remove(self._places.keys() - now)
        return [UUID(bytes=one) for one in sorted(now - self._places.keys())]

    def add(self, face_ids: Sequence[UUID], embeddings: FloatArray) -> None:
        """With their (N, D) embeddings; those that are there get new ones."""
        places = [self._place(one.bytes) for one in face_ids]
        if len(self._ids) > len(self._vectors):
            rows = max(_FIRST_ROWS, len(self._ids) + len(self._ids) // 4)
            self._vectors = np.concatenate((self._vectors, np.zeros((rows, embeddings.shape[1]), dtype=np.float16)))[:rows]
        self._vectors[places] = embeddings

    def remove(self, face_ids: Collection[UUID]) -> None:
        self._remove({one.bytes for one in face_ids} & self._places.keys())

    def nearest(self, face_ids: Sequence[UUID], embeddings: FloatArray, floor: float, most: int) -> set[UUID]:
        """Those near one of the W faces with their (W, D) embeddings, which need not be among them: of each the nearest, and
        of its `most` nearest those that are at least `floor` like it. Takes about W N D / 10^10 seconds."""
        own: IntArray = np.array([self._places.get(one.bytes, -1) for one in face_ids], dtype=np.int64)
        found = nearest_of(embeddings, own, self._vectors[: len(self._ids)], floor, most)
        # A row that nobody has is like nothing; it is the nearest of whoever is like nothing else.
        return {UUID(bytes=one) for place in found.tolist() if (one := self._ids[place]) is not None}

    def _place(self, face_id: bytes) -> int:
        if face_id not in self._places:
            if not self._vacant:
                self._vacant.append(len(self._ids))
                self._ids.append(None)
            place = self._vacant.pop()
            self._places[face_id], self._ids[place] = place, face_id
        return self._places[face_id]

    def _remove(self, face_ids: Collection[bytes]) -> None:
        places = [self._places.pop(one) for one in face_ids]
        self._vectors[places] = 0.0
        self._vacant += places
        for place in places:
            self._ids[place] = None
