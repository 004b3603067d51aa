"""Who asks, and what they may: scopes, API keys as text, callers."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

MAX_NAME_CHARACTERS = 100
MAX_COLLECTIONS = 1000
"""That a key may be limited to."""
OVERLAP = timedelta(hours=24)
"""For which the secret before a rotation is good, unless it is said otherwise."""

_TOKEN = re.compile(r"kl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)


class Scope(StrEnum):
    """`read`: look, search, compare. `enrol`: add persons, faces and photos. `write`: that, and change or erase what is in a
    collection. `admin`: everything, with collections themselves, keys and the audit log."""

    READ = "read"
    ENROL = "enrol"
    WRITE = "write"
    ADMIN = "admin"


_INCLUDED: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.ENROL: frozenset({Scope.ENROL}),
    # Not `read`: whoever feeds a collection need not be able to search it.
    Scope.WRITE: frozenset({Scope.WRITE, Scope.ENROL}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `id` names the key, and is never the key itself. `collections`: None for all of them."""

    id: str
    name: str
    scopes: frozenset[Scope]
    collections: frozenset[str] | None = None
    rate_limit: int | None = None

    @property
    def actor(self) -> str:
        """How the journal and the audit log call it."""
        return self.id if self.name == self.id else f"{self.name} ({self.id})"

    @property
    def effective_scopes(self) -> frozenset[Scope]:
        """With those that others include."""
        return frozenset(included for scope in self.scopes for included in _INCLUDED[scope])

    def may(self, scope: Scope) -> bool:
        return scope in self.effective_scopes

    def reaches(self, collection_id: str) -> bool:
        return self.collections is None or collection_id in self.collections


BOOTSTRAP = Caller("bootstrap", "bootstrap", frozenset({Scope.ADMIN}))
"""Whoever has the API key of the environment, or of DATA_DIR."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is kept. `previous_sha256` is good until `previous_until`."""

    id: str
    name: str
    scopes: frozenset[Scope]
    collections: frozenset[str] | None
    rate_limit: int | None
    created_at: datetime
    created_by: str
    rotated_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    sha256: bytes = field(repr=False)
    previous_sha256: bytes | None = field(repr=False)
    previous_until: datetime | None

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.name, self.scopes, self.collections, self.rate_limit)

    def state(self, now: datetime) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def opened_by(self, digest: bytes, now: datetime) -> bool:
        """Whether the secret with this digest is the key's, or was before a rotation whose overlap is not over. Takes the same
        time whatever is compared."""
        current = hmac.compare_digest(digest, self.sha256)
        previous = hmac.compare_digest(digest, self.previous_sha256 or bytes(32))
        overlapping = self.previous_sha256 is not None and self.previous_until is not None and now < self.previous_until
        return current or (previous and overlapping)


@dataclass(frozen=True, slots=True)
class Secret:
    """A key as its owner has it: `kl_<id>_<secret>`. Shown once, and kept by nobody but its owner."""

    id: str
    token: str = field(repr=False)

    @staticmethod
    def new(key_id: str | None = None) -> Secret:
        """256 random bits; with `key_id` another secret of that key."""
        key_id = key_id or secrets.token_hex(6)
        return Secret(key_id, f"kl_{key_id}_{secrets.token_urlsafe(32)}")

    @property
    def sha256(self) -> bytes:
        return digest(self.token)


def key_id_of(token: str) -> str | None:
    """The id in a key; None for what cannot be one."""
    found = _TOKEN.fullmatch(token)
    return found[1] if found else None


def digest(token: str) -> bytes:
    """SHA-256. A slow hash (scrypt, bcrypt, Argon2) is for passwords, which can be guessed; it would cost 50 ms and more a
    request. Nobody guesses 256 random bits, and one round of SHA-256, 1 µs, does not lead back to them."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
