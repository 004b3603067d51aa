"""Parts of pictures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FACE_MARGIN = 0.4
"""Of a thumbnail of a face: what is shown on each side of its box, as a share of the box. Hair, chin and ears."""


@dataclass(frozen=True, slots=True)
class Region:
    """Of a picture as displayed; shares of its width and height, in [0, 1]: so that it is the same at any size."""

    left: float
    top: float
    right: float
    bottom: float


def square_around(box: Sequence[float], width_px: int, height_px: int) -> tuple[Region, float]:
    """The square that shows a face, and its side in pixels. It lies within the picture: where the face is near an edge it is
    moved, where the picture is too small it is smaller."""
    x1, y1, x2, y2 = box
    side = max(1.0, min((1 + 2 * FACE_MARGIN) * max(x2 - x1, y2 - y1), width_px, height_px))
    left = _within((x1 + x2 - side) / 2, width_px - side)
    top = _within((y1 + y2 - side) / 2, height_px - side)
    return (
        Region(left / width_px, top / height_px, (left + side) / width_px, (top + side) / height_px),
        side,
    )


def _within(value: float, most: float) -> float:
    return min(max(value, 0.0), max(most, 0.0))
