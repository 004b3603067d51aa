"""What a replica does with a picture beside looking for faces: read what it says of itself, make it smaller. Without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import ImageError
from serve_app.exif import read_info
from serve_app.images import ImageLimits
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.services.pictures import STORED_LIMITS
from serve_app.thumbnails import make_thumbnail


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """`image`: encoded bytes."""

    image: bytes


@dataclass(frozen=True, slots=True)
class ThumbnailRequest:
    """`image`: encoded bytes. `side_px`: of the longer side."""

    image: bytes
    side_px: int
    image_format: ThumbnailFormat


class PictureEngine:
    """Safe to call from several threads. `limits`: of uploads, which are inspected; what is stored may be larger."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    def run(self, requests: Sequence[InspectRequest | ThumbnailRequest]) -> list[PictureInfo | bytes | ImageError]:
        """One answer a request, in order: PictureInfo, the bytes of the thumbnail, or why the picture cannot be read."""
        return [self._run(request) for request in requests]

    def _run(self, request: InspectRequest | ThumbnailRequest) -> PictureInfo | bytes | ImageError:
        try:
            if isinstance(request, InspectRequest):
                return read_info(request.image, self._limits)
            return make_thumbnail(request.image, request.side_px, request.image_format, STORED_LIMITS)
        except ImageError as error:
            return error
