"""Cursors of listings: where a page ended, signed, and good for the very same listing only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from serve_app.errors import InvalidCursor

_SIGNATURE_BYTES = 16


def derive_key(secret: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose, from one secret: HMAC-SHA256 as the expand step of RFC 5869 does with one block."""
    return hmac.digest(secret, f"kinlens {purpose}".encode() + b"\x01", hashlib.sha256)


def encode_cursor(key: bytes, listing: str, position: str) -> str:
    """`listing`: what is listed, with its filters."""
    data = position.encode()
    return base64.urlsafe_b64encode(_sign(key, listing, data) + data).rstrip(b"=").decode("ascii")


def decode_cursor(key: bytes, listing: str, cursor: str) -> str:
    """The position. Raises InvalidCursor for one that was altered, made elsewhere, or made for another listing."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        signature, data = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if hmac.compare_digest(signature, _sign(key, listing, data)):
            return data.decode()
    except (binascii.Error, ValueError):
        pass
    raise InvalidCursor("The cursor is not of this listing; begin without one.")


def _sign(key: bytes, listing: str, data: bytes) -> bytes:
    return hmac.digest(key, listing.encode("utf-8", "surrogateescape") + b"\0" + data, hashlib.sha256)[:_SIGNATURE_BYTES]
