"""Every error Kinlens answers with, in one tree.

    KinlensError
    ├── InvalidRequest        422   a field is missing, unknown or malformed
    │   ├── InvalidEmbedding  422   wrong dimension, NaN, infinite or zero
    │   └── InvalidCursor     422   a page that was not ours, or of another listing
    ├── PayloadError                the body as a whole
    │   ├── PayloadTooLarge   413
    │   └── UnsupportedMedia  415
    ├── ImageError                  bytes that should have been a picture
    │   ├── InvalidImage      422
    │   ├── ImageTooLarge     413
    │   ├── UnsupportedImage  415
    │   └── FileUnreadable    422   of a scanned folder
    ├── ImageUrlError         422   a picture that should have been fetched
    │   ├── ImageUrlRefused
    │   └── ImageUrlFailed
    ├── FaceRejected          422   a picture was read, its faces do not fit
    │   ├── NoFaceDetected
    │   ├── MultipleFaces
    │   ├── LowQualityFace          the enrolment review says why: metric, value, limit
    │   ├── DuplicateFace
    │   ├── ResemblesAnother
    │   └── UnlikePerson            a warning
    ├── AccessError                 who is asking
    │   ├── Unauthorized      401
    │   ├── Forbidden         403
    │   └── ScanRefused       403
    ├── RouteError                  what is being asked
    │   ├── NotFound          404
    │   └── MethodNotAllowed  405
    ├── Conflict              409
    │   ├── AlreadyExists
    │   ├── EmbeddingModelMismatch
    │   ├── AmbiguousName
    │   ├── AlreadyUndone
    │   ├── NothingToUndo
    │   └── IdempotencyKeyReused
    ├── CapacityError               we would, but not now
    │   ├── Overloaded        503
    │   ├── RateLimited       429
    │   └── DeadlineExceeded  504
    ├── PartUnavailable             a part of us is down
    │   ├── ModelUnavailable  503
    │   ├── DatabaseUnavailable
    │   └── ObjectStoreUnavailable
    └── InternalError         500

Services raise these; `serve_app.api.app` alone renders them, as RFC 9457 problem details. They cross process borders
between deployments, so each one must survive pickling.

`ConfigurationError` stands beside the tree: it stops a start and never reaches the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

JsonScalar = str | int | float | bool | None
JsonValue = JsonScalar | list["JsonValue"] | dict[str, "JsonValue"]


RETRY_AFTER_S = 1
"""When to come back to a queue of bounded length: it drains within about a second."""


class KinlensError(Exception):
    """Base of all errors that a client may see.

    `detail` is one sentence for a person; `details` are machine-readable extras (JSON values only).
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Error"

    def __init__(self, detail: str, **details: JsonValue) -> None:
        super().__init__(detail)
        self.detail = detail
        self.details = details

    def __str__(self) -> str:
        return self.detail


class InvalidRequest(KinlensError):
    code, status, title = "invalid_request", 422, "The request is not valid"


class InvalidEmbedding(InvalidRequest):
    code, title = "invalid_embedding", "The embedding is not valid"


class InvalidCursor(InvalidRequest):
    code, title = "invalid_cursor", "The cursor is not valid"


class PayloadError(KinlensError):
    code, status, title = "payload_error", 400, "The request body cannot be read"


class PayloadTooLarge(PayloadError):
    code, status, title = "payload_too_large", 413, "The request body is too large"


class UnsupportedMedia(PayloadError):
    code, status, title = "unsupported_media_type", 415, "The request body has an unsupported content type"


class ImageError(KinlensError):
    code, status, title = "image_error", 422, "The image cannot be used"


class InvalidImage(ImageError):
    code, title = "invalid_image", "The image is damaged or not an image"


class ImageTooLarge(ImageError):
    code, status, title = "image_too_large", 413, "The image is too large"


class UnsupportedImage(ImageError):
    code, status, title = "unsupported_image", 415, "The image format is not supported"


class FileUnreadable(ImageError):
    code, title = "file_unreadable", "The file or folder cannot be read"


class ImageUrlError(KinlensError):
    code, status, title = "image_url_error", 422, "The image URL cannot be used"


class ImageUrlRefused(ImageUrlError):
    code, title = "image_url_refused", "The image URL is refused"


class ImageUrlFailed(ImageUrlError):
    code, title = "image_url_failed", "The image URL could not be fetched"


class FaceRejected(KinlensError):
    code, status, title = "face_rejected", 422, "The faces in the image do not fit the request"


class NoFaceDetected(FaceRejected):
    code, title = "no_face_detected", "No face was detected"


class MultipleFaces(FaceRejected):
    code, title = "multiple_faces", "More than one face was detected"


class LowQualityFace(FaceRejected):
    """`details["reasons"]`: each with metric, value and limit."""

    code, title = "low_quality_face", "The face is not good enough to enrol"


class DuplicateFace(FaceRejected):
    code, title = "duplicate_face", "The person already has this face"


class ResemblesAnother(FaceRejected):
    code, title = "resembles_another", "The face is more like another person"


class UnlikePerson(FaceRejected):
    """Only ever a warning: people change."""

    code, title = "unlike_person", "The face is unlike the person's others"


class AccessError(KinlensError):
    code, status, title = "access_error", 403, "Access is refused"


class Unauthorized(AccessError):
    code, status, title = "unauthorized", 401, "A valid API key is needed"


class Forbidden(AccessError):
    """`details["required_scope"]`: what the key lacks."""

    code, title = "forbidden", "The API key does not allow this"


class ScanRefused(AccessError):
    code, title = "scan_refused", "The folder may not be scanned"


class RouteError(KinlensError):
    code, status, title = "route_error", 400, "The request cannot be routed"


class NotFound(RouteError):
    code, status, title = "not_found", 404, "There is nothing at this address"


class MethodNotAllowed(RouteError):
    code, status, title = "method_not_allowed", 405, "The method is not allowed at this address"


class Conflict(KinlensError):
    code, status, title = "conflict", 409, "The request conflicts with the current state"


class AlreadyExists(Conflict):
    code, title = "already_exists", "It exists already"


class EmbeddingModelMismatch(Conflict):
    code, title = "embedding_model_mismatch", "Embeddings of different models cannot be compared"


class AmbiguousName(Conflict):
    """`details["person_ids"]`: who they are."""

    code, title = "ambiguous_name", "Several persons have this name"


class AlreadyUndone(Conflict):
    code, title = "already_undone", "It was undone already"


class NothingToUndo(Conflict):
    """`details["kept"]`: what stays as it is, and why."""

    code, title = "nothing_to_undo", "Nothing of it can be undone"


class MustNotBeRecognised(Conflict):
    code, title = "must_not_be_recognised", "The person must not be recognised, and so must stay"


class IdempotencyKeyReused(Conflict):
    code, title = "idempotency_key_reused", "The idempotency key belongs to another request"


class CapacityError(KinlensError):
    code, status, title = "capacity_error", 503, "There is no capacity for this request"


class Overloaded(CapacityError):
    """All places are taken. `details["retry_after_s"]` becomes the Retry-After header."""

    code, title = "overloaded", "The service is overloaded"


class RateLimited(CapacityError):
    """`details["limit"]`: `rate` or `concurrency`; `details["retry_after_s"]` becomes the Retry-After header."""

    code, status, title = "rate_limited", 429, "The API key asks too often"


class TooManyFailures(RateLimited):
    code, title = "too_many_failures", "Too many unknown API keys came from this address"


class DeadlineExceeded(CapacityError):
    code, status, title = "deadline_exceeded", 504, "The request took longer than its time limit"


class PartUnavailable(KinlensError):
    code, status, title = "part_unavailable", 503, "A part of the service is unavailable"


class ModelUnavailable(PartUnavailable):
    code, title = "model_unavailable", "The model is unavailable"


class DatabaseUnavailable(PartUnavailable):
    code, title = "database_unavailable", "The database is unavailable"


class ObjectStoreUnavailable(PartUnavailable):
    code, title = "object_store_unavailable", "The object store is unavailable"


class InternalError(KinlensError):
    code, status, title = "internal_error", 500, "The service failed"


class ConfigurationError(Exception):
    """A setting, a model file or an operating point that does not fit. Raised at start, before any traffic."""


def error_classes(root: type[KinlensError] = KinlensError) -> Iterator[type[KinlensError]]:
    """All classes below `root`, depth first, `root` excluded."""
    for child in root.__subclasses__():
        yield child
        yield from error_classes(child)
