"""Face recognizers: 112 x 112 crops to unit embeddings. SFace and the ArcFace family differ in normalisation only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deployments.models.session import Session
from serve_app.faces import Crops, FloatArray, l2_normalize


@dataclass(frozen=True, slots=True)
class Normalization:
    """Network input = (pixel - mean) / std."""

    mean: float
    std: float


SFACE = Normalization(0.0, 1.0)
"""SFace subtracts and scales inside its graph (opencv_zoo, face_recognition_sface)."""


class Recognizer:
    """Embeds crops; safe to call from several threads. `dim`: length D of an embedding."""

    def __init__(self, session: Session, normalization: Normalization, dim: int) -> None:
        self._session = session
        self._normalization = normalization
        self._input = session.get_inputs()[0].name
        self.dim = dim

    def embed(self, crops: Crops) -> FloatArray:
        """(N, 112, 112, 3) uint8 RGB to (N, D) float32 of unit L2 norm, in one forward pass."""
        if not len(crops):
            return np.empty((0, self.dim), dtype=np.float32)
        blob = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), dtype=np.float32)
        if self._normalization.mean or self._normalization.std != 1:
            blob -= self._normalization.mean
            blob /= self._normalization.std
        return l2_normalize(self._session.run(None, {self._input: blob})[0])
