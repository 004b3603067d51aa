"""What each route asks of a key: one scope, and for which collections it must be good. The whole of it stands here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from serve_app.access import Scope


class Subject(Enum):
    """What a route is about, and so which keys that are limited to collections may use it."""

    NOTHING_STORED = auto()
    """No collection: every key."""
    COLLECTION = auto()
    """The one in its path. For other keys it is not there: a 404, so that nobody learns which there are."""
    LIBRARY = auto()
    """The photo library. Others are refused with a 403: everybody knows that there is one."""
    OWN = auto()
    """The route itself keeps to the collections of the key."""
    EVERYTHING = auto()
    """Only keys that are not limited."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`scope`: None for any key. `audited`: what the audit log calls it; None for what it does not tell of."""

    scope: Scope | None
    subject: Subject
    audited: str | None = None


def _rules(scope: Scope | None, subject: Subject, *routes: str) -> dict[tuple[str, str], Rule]:
    """`routes`: METHOD path, below /api/v1, and what the audit log calls it."""
    found = {}
    for route in routes:
        method, path, *audited = route.split()
        found[method, path] = Rule(scope, subject, audited[0] if audited else None)
    return found


RULES: dict[tuple[str, str], Rule] = {
    **_rules(None, Subject.NOTHING_STORED, "GET /me", "GET /models"),
    **_rules(
        Scope.READ,
        Subject.NOTHING_STORED,
        "POST /face/verify-face",
        "POST /face/analyze-face-advanced",
        "POST /face/extract-embedding",
        "POST /face/batch-extract",
        "POST /compare/compare-faces",
        "POST /compare/batch-extract",
    ),
    # Numbers of all collections together.
    **_rules(Scope.READ, Subject.EVERYTHING, "GET /system", "GET /metrics"),
    **_rules(Scope.READ, Subject.OWN, "GET /collections"),
    **_rules(Scope.ADMIN, Subject.OWN, "POST /collections collection.create"),
    **_rules(
        Scope.READ,
        Subject.COLLECTION,
        "GET /collections/{collection_id}",
        "GET /collections/{collection_id}/persons",
        "GET /collections/{collection_id}/persons/{person_id}",
        "GET /collections/{collection_id}/persons/{person_id}/faces",
        "GET /collections/{collection_id}/do-not-recognise",
        "GET /collections/{collection_id}/faces",
        "GET /collections/{collection_id}/faces/{face_id}",
        "GET /collections/{collection_id}/faces/{face_id}/crop",
        "GET /collections/{collection_id}/faces/{face_id}/image",
        "GET /collections/{collection_id}/persons/{person_id}/export person.export",
        "POST /collections/{collection_id}/search search",
        "POST /collections/{collection_id}/identify identify",
        "POST /collections/{collection_id}/persons/{person_id}/verify verify",
    ),
    **_rules(
        Scope.ENROL,
        Subject.COLLECTION,
        "POST /collections/{collection_id}/persons person.create",
        "POST /collections/{collection_id}/persons/{person_id}/faces face.enrol",
        "POST /collections/{collection_id}/faces:batch face.enrol",
    ),
    **_rules(
        Scope.WRITE,
        Subject.COLLECTION,
        "PATCH /collections/{collection_id} collection.change",
        "PATCH /collections/{collection_id}/persons/{person_id} person.change",
        "DELETE /collections/{collection_id}/persons/{person_id} person.erase",
        "POST /collections/{collection_id}/persons:delete person.erase",
        "PUT /collections/{collection_id}/do-not-recognise/{person_id} person.withhold",
        "DELETE /collections/{collection_id}/do-not-recognise/{person_id} person.release",
        "POST /collections/{collection_id}/faces/{face_id}/move face.move",
        "DELETE /collections/{collection_id}/faces/{face_id} face.erase",
        "POST /collections/{collection_id}/faces:delete face.erase",
    ),
    **_rules(Scope.ADMIN, Subject.COLLECTION, "DELETE /collections/{collection_id} collection.erase"),
    **_rules(
        Scope.READ,
        Subject.LIBRARY,
        "GET /photos",
        "GET /photos/months",
        "GET /photos/{photo_id}",
        "GET /photos/{photo_id}/tags",
        "GET /photos/{photo_id}/image",
        "GET /photos/{photo_id}/thumbnail",
        "GET /photos/{photo_id}/faces",
        "GET /tags",
        "GET /search/photos",
        "GET /search/by-person library.search",
        "POST /search/photos library.search",
        "GET /storage/{file_path}",
        "GET /faces",
        "GET /faces/{face_id}",
        "GET /faces/{face_id}/thumbnail",
        "GET /faces/{face_id}/suggestions library.suggest",
        "GET /persons",
        "GET /persons/{person_id}",
        "GET /persons/{person_id}/faces",
        "GET /persons/{person_id}/suggestions library.suggest",
        "GET /review library.suggest",
        "GET /journal",
        "GET /journal/{journal_id}",
        "GET /jobs",
        "GET /jobs/{job_id}",
        "GET /jobs/{job_id}/items",
        "GET /jobs/{job_id}/events",
    ),
    **_rules(Scope.ENROL, Subject.LIBRARY, "POST /photos/upload"),
    **_rules(
        Scope.WRITE,
        Subject.LIBRARY,
        "DELETE /photos/{photo_id} photo.erase",
        "POST /photos/{photo_id}/tags",
        "POST /persons person.create",
        "PUT /persons/{person_id} person.change",
        "DELETE /persons/{person_id} person.dissolve",
        "POST /persons/{person_id}/merge person.merge",
        "POST /persons/{person_id}/split person.split",
        "POST /persons/{person_id}/not-same person.distinguish",
        "POST /faces/assign-person face.assign",
        "POST /faces/unassign face.unassign",
        "POST /faces/hide face.hide",
        "POST /faces/unhide face.unhide",
        "POST /faces/{face_id}/assign-person face.assign",
        "POST /faces/{face_id}/unassign face.unassign",
        "POST /faces/{face_id}/reject-person face.reject",
        "POST /faces/{face_id}/hide face.hide",
        "POST /faces/{face_id}/unhide face.unhide",
        "POST /journal/{journal_id}/undo journal.undo",
        "POST /index/faces",
        "POST /index/embeddings",
        "POST /index/faces-cluster",
        "POST /jobs/{job_id}/cancel",
        "POST /jobs/{job_id}/retry-failed",
    ),
    # Of files that lie on the server.
    **_rules(Scope.ADMIN, Subject.LIBRARY, "POST /photos/scan-path"),
    **_rules(Scope.ADMIN, Subject.OWN, "GET /audit"),
    **_rules(
        Scope.ADMIN,
        Subject.EVERYTHING,
        "GET /keys",
        "POST /keys key.create",
        "GET /keys/{key_id}",
        "POST /keys/{key_id}/rotate key.rotate",
        "DELETE /keys/{key_id} key.revoke",
    ),
}

PUBLIC = frozenset(
    {
        ("GET", "/api/v1/health"),
        ("GET", "/api/v1/health/parts"),
        ("GET", "/api/health"),
        ("GET", "/api/v1/ready"),
        # Addressed by signature.
        ("GET", "/api/v1/objects/{key}"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("HEAD", "/openapi.json"),
    }
)
"""Routes without a key, whole. The pages of the web UI are those of `api.web`."""

STRICTEST = Rule(Scope.ADMIN, Subject.EVERYTHING)


def rule_of(method: str, path: str) -> Rule:
    """`path`: of the route, below /api/v1. One that nobody declared asks for everything; a test finds it."""
    return RULES.get((method, path), STRICTEST)
