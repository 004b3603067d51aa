"""Files that make decoders work out of all proportion to their size and their pixels. Pure."""

from __future__ import annotations

import re

from serve_app.errors import ImageTooLarge

MAX_SCANS = 100
"""Of a JPEG. Encoders write one, or ten or so where it is progressive. A scan may take 75 bytes of the file and 33 ms of 49
megapixels: 20 MB of them would hold a thread for hours. libtiff has the same limit for JPEG within TIFF (tif_jpeg.c)."""
MAX_SEGMENTS = 10_000
"""Of a JPEG. 20 MB of the longest ones are 320."""
MAX_CHUNKS = 100_000
"""Of a PNG. 20 MB in pieces of 8 kB, as libpng writes pixels, are 2,500; 1.6 million empty ones take 5 s at each reading."""

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""One that ends what went before it: no stuffed 0xFF (followed by 0), no restart, no filling (ITU-T T.81, B.1.1). What lies
below 0xC0 is reserved and not to be taken for a segment: libjpeg reads on behind it, and would find the scans in there."""
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA


def check_jpeg(data: bytes) -> None:
    """Raises ImageTooLarge where the first picture has more than MAX_SCANS or MAX_SEGMENTS.

    What follows its end (other pictures, a film) does not count, nor does what segments hold.
    """
    scans, segments, at = 0, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.start() + 1], found.end()
        if marker == _EOI:
            return
        scans += marker == _SOS
        segments += 1
        if scans > MAX_SCANS or segments > MAX_SEGMENTS:
            raise ImageTooLarge(
                f"The JPEG has more than {MAX_SCANS} scans or {MAX_SEGMENTS} segments.",
                max_scans=MAX_SCANS,
                max_segments=MAX_SEGMENTS,
            )
        if marker != _SOI:
            at += int.from_bytes(data[at : at + 2], "big")


def check_png(data: bytes) -> None:
    """Raises ImageTooLarge where there are more than MAX_CHUNKS."""
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data) or data[at + 4 : at + 8] == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise ImageTooLarge(f"The PNG has more than {MAX_CHUNKS} chunks.", max_chunks=MAX_CHUNKS)
