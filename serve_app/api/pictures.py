"""The picture a request means, whichever way it came."""

from __future__ import annotations

from serve_app.api.deps import Services
from serve_app.api.forms import decode_base64
from serve_app.api.person_fields import ProbeFields
from serve_app.api.schemas import ImageFields
from serve_app.errors import InvalidRequest
from serve_app.services.search import Probe
from serve_app.services.verification import GivenEmbedding

_PICTURE_FIELDS = ("file", "image", "image_url")


async def one_image(fields: ImageFields, services: Services) -> bytes:
    """The one picture of a request. Raises InvalidRequest unless there is exactly one, ImageError, ImageUrlError."""
    given = [name for name in _PICTURE_FIELDS if getattr(fields, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"Send one picture as `file`, `image` or `image_url`; {' and '.join(given) or 'none'} came.", given=[*given]
        )
    if fields.file is not None:
        return fields.file
    if fields.image is not None:
        return await decode_base64(fields.image)
    return await services.fetcher.fetch(fields.image_url or "")


async def probe_of(fields: ProbeFields, services: Services) -> Probe:
    """The picture or the embedding of a search. Raises what `one_image` does."""
    if fields.embedding is None:
        return await one_image(fields, services)
    if any(getattr(fields, name) is not None for name in _PICTURE_FIELDS):
        raise InvalidRequest("Send a picture or an `embedding`, not both.")
    return GivenEmbedding(fields.embedding, fields.model)
