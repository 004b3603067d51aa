"""What reads pictures without looking for faces in them."""

from __future__ import annotations

from typing import Protocol

from serve_app.imaging.images import ImageLimits
from serve_app.imaging.regions import Region
from serve_app.photos import PictureInfo, ThumbnailFormat

STORED_LIMITS = ImageLimits(60 << 20, 178_000_000)
"""Of pictures that are stored: the most that MAX_IMAGE_BYTES and MAX_IMAGE_PIXELS may be. These two bind uploads; lowered
later, they must not take away what was accepted before."""


class PictureReader(Protocol):
    """Every method raises ImageError for bytes that are no readable picture, CapacityError and PartUnavailable."""

    async def inspect(self, image: bytes) -> PictureInfo:
        """What the picture says of itself. It has been decoded: what passes here can be shown."""
        ...

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes:
        """The picture, encoded anew, its longer side at most `side_px`. Limited by STORED_LIMITS only."""
        ...

    async def cut(self, image: bytes, region: Region, side_px: int, image_format: ThumbnailFormat) -> bytes:
        """A square part of the picture, likewise; the square's side at most `side_px`."""
        ...
