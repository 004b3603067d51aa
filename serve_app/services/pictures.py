"""What reads pictures without looking for faces in them."""

from __future__ import annotations

from typing import Protocol

from serve_app.photos import PictureInfo, ThumbnailFormat


class PictureReader(Protocol):
    """Every method raises ImageError for bytes that are no readable picture, CapacityError and PartUnavailable."""

    async def inspect(self, image: bytes) -> PictureInfo:
        """What the picture says of itself. It has been decoded: what passes here can be shown."""
        ...

    async def thumbnail(self, image: bytes, side_px: int, image_format: ThumbnailFormat) -> bytes:
        """The picture, encoded anew, its longer side at most `side_px`."""
        ...
