"""What a replica does with a picture beside looking for faces: read what it says of itself, make it smaller. Without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import ImageError
from serve_app.imaging.exif import read_info
from serve_app.imaging.images import ImageLimits
from serve_app.imaging.regions import Region
from serve_app.imaging.thumbnails import cut_thumbnail, make_thumbnail
from serve_app.observing.stages import Stage, stage
from serve_app.photos import PictureInfo, ThumbnailFormat
from serve_app.services.pictures import STORED_LIMITS


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


@dataclass(frozen=True, slots=True)
class CutRequest:
    """`image`: encoded bytes. `side_px`: of the square that is cut out."""

    image: bytes
    region: Region
    side_px: int
    image_format: ThumbnailFormat


PictureRequest = InspectRequest | ThumbnailRequest | CutRequest


class PictureEngine:
    """Safe to call from several threads. `limits`: of uploads, which are inspected; what is stored may be larger."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    def run(self, requests: Sequence[PictureRequest]) -> list[PictureInfo | bytes | ImageError]:
        """One answer a request, in order: PictureInfo, the bytes of the thumbnail, or why the picture cannot be read."""
        with stage(Stage.PICTURE):
            return [self._run(request) for request in requests]

    def _run(self, request: PictureRequest) -> PictureInfo | bytes | ImageError:
        try:
            if isinstance(request, InspectRequest):
                return read_info(request.image, self._limits)
            if isinstance(request, CutRequest):
                return cut_thumbnail(request.image, request.region, request.side_px, request.image_format, STORED_LIMITS)
            return make_thumbnail(request.image, request.side_px, request.image_format, STORED_LIMITS)
        except ImageError as error:
            return error
