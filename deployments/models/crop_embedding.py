"""Crops as they are stored, embedded again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from serve_app.faces import CROP_SIZE_PX, Crops, FloatArray, RGBImage

_CROPS_A_PASS = 32


class EmbedsCrops(Protocol):
    def embed(self, crops: Crops) -> FloatArray: ...


class CropEmbedding:
    """A recognizer that reads PNG."""

    def __init__(self, recognizer: EmbedsCrops) -> None:
        self._recognizer = recognizer

    def embed_all(self, files: Sequence[bytes]) -> list[FloatArray | None]:
        """The (D,) float32 embedding of each, of unit norm; None for what is not a whole PNG of 112 x 112 pixels."""
        found: list[FloatArray | None] = [None] * len(files)
        crops = [(place, crop) for place, data in enumerate(files) if (crop := _read(data)) is not None]
        for start in range(0, len(crops), _CROPS_A_PASS):
            some = crops[start : start + _CROPS_A_PASS]
            embeddings = self._recognizer.embed(np.stack([crop for _, crop in some]))
            for (place, _), embedding in zip(some, embeddings, strict=True):
                if np.isfinite(embedding).all():
                    found[place] = embedding
        return found


def _read(data: bytes) -> RGBImage | None:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            # Before anything is unpacked.
            if image.size != (CROP_SIZE_PX, CROP_SIZE_PX):
                return None
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError):
        return None
