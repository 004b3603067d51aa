"""HTTP ranges (RFC 9110, section 14): one range of bytes, or the whole."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d{1,15})?-(\d{1,15})?")


def byte_range(header: str | None, size_bytes: int) -> tuple[int, int]:
    """Start and length of what is asked for. The whole for no range, several, or one that cannot be met, as a server may."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or size_bytes == 0:
        return 0, size_bytes
    first, last = match.groups()
    if first is None:
        length = min(int(last or 0), size_bytes)
        return (size_bytes - length, length) if length else (0, size_bytes)
    start = int(first)
    end = min(int(last), size_bytes - 1) if last is not None else size_bytes - 1
    return (start, end - start + 1) if start <= end else (0, size_bytes)
