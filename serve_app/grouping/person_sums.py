"""Persons as few vectors, for grouping: the sums of faces that are like each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from serve_app.faces import FloatArray
from serve_app.grouping.neighbours import IntArray


@dataclass(frozen=True, slots=True)
class PersonSums:
    """`persons`: whose each row is, those of one beside each other. `sums`: (R, D) float32, each of `counts` (R,) faces."""

    persons: tuple[UUID, ...]
    sums: FloatArray
    counts: IntArray

    @staticmethod
    def none(dim: int) -> PersonSums:
        return PersonSums((), np.empty((0, dim), dtype=np.float32), np.empty(0, dtype=np.int64))

    @staticmethod
    def of(persons: Sequence[UUID], faces: Sequence[FloatArray], templates: Sequence[FloatArray]) -> PersonSums:
        """`faces`: of each person (N, D), at least one. `templates`: (T, D) of each, at least one; what is most like the same
        template is one sum. So whoever is one person to a search is one here, and a child's faces are not added to a man's."""
        if not persons:
            raise ValueError("without a person there is no number of values; see `none`")
        owners = np.repeat(np.arange(len(persons)), [len(one) for one in faces])
        numbers: IntArray = np.array([len(one) for one in templates], dtype=np.int64)
        first = np.cumsum(numbers) - numbers
        every, stands = np.concatenate(faces), np.concatenate(templates)
        best, similarity = first[owners], np.full(len(owners), -2.0, dtype=np.float32)
        for ordinal in range(int(numbers.max())):
            # The last again where a person has fewer.
            place = first[owners] + np.minimum(ordinal, numbers[owners] - 1)
            value = np.einsum("nd,nd->n", every, stands[place])
            best, similarity = np.where(value > similarity, place, best), np.maximum(similarity, value)
        used, row, counts = np.unique(best, return_inverse=True, return_counts=True)
        sums = np.zeros((len(used), every.shape[1]), dtype=np.float32)
        np.add.at(sums, row, every)
        whose = np.repeat(np.arange(len(persons)), numbers)[used]
        return PersonSums(tuple(persons[one] for one in whose.tolist()), sums, counts.astype(np.int64))
