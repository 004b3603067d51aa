"""One file from an FTP server, however often the connection is lost meanwhile; taken only when it is whole and unchanged."""

from __future__ import annotations

import hashlib
from contextlib import closing

from serve_app.imports.ftp import FtpRefused, FtpSession
from serve_app.imports.ftp_listing import Facts
from serve_app.imports.photo_sending import HEAD_BYTES, MAX_FILE_BYTES, refusal_of

_OVERLAP_BYTES = 4096
"""Read once more where a transfer goes on: that it is the same file still, and that the server began where it was told."""
_MAX_ROUNDS = 20
_MAX_CHANGES = 3


class Unfit(Exception):
    """The file is not taken: `code` and `detail` say why. `harmless`: it is no photo, and nothing is missing without it."""

    def __init__(self, code: str, detail: str, *, harmless: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.harmless = harmless


class Download:
    """`twice`: read once more, and compare: the only proof where the server tells neither size nor hash."""

    def __init__(self, path: str, file_name: str, *, twice: bool = False) -> None:
        self.facts = Facts()
        self._path = path
        self._file_name = file_name
        self._twice = twice
        self._data = bytearray()
        self._begun = False
        self._rounds = 0
        self._changes = 0
        self._may_resume = True
        self._first: bytes | None = None
        """SHA-256 of the first reading, during the second."""

    @property
    def received(self) -> int:
        """Bytes so far."""
        return len(self._data)

    def run(self, session: FtpSession) -> bytes:
        """The whole file. Raises Unfit, and FtpLost: call it again then, and it goes on where it stopped."""
        while True:
            self._rounds += 1
            if self._rounds > _MAX_ROUNDS:
                raise Unfit("unreadable", f"Its transfer broke off {_MAX_ROUNDS} times.")
            try:
                data = self._round(session)
            except FtpRefused as error:
                raise Unfit("unreadable", f"{error}") from error
            if data is not None:
                return data

    def _round(self, session: FtpSession) -> bytes | None:
        """None: to be begun or gone on with once more."""
        now = session.facts(self._path)
        if self._begun and now != self.facts:
            self._changed()
            return None
        self.facts, self._begun = now, True
        if now.size is not None and now.size > MAX_FILE_BYTES:
            raise self._too_large(now.size)
        if not self._receive(session):
            return None
        if session.facts(self._path) != self.facts:
            self._changed()
            return None
        size = self.facts.size
        if size is not None and len(self._data) < size:
            return None  # cut short without a word; the next round reads the rest, or it is too often
        digest = hashlib.sha256(self._data)
        stated = session.sha256(self._path)
        if stated is not None:
            if stated != digest.hexdigest():
                self._restart(f"The server computes another SHA-256 of it ({stated}) than it sends ({digest.hexdigest()}).")
                return None
        elif self._twice or size is None:
            if self._first is None:
                self._first = digest.digest()
                self._data.clear()
                self._rounds = 0
                return None
            if self._first != digest.digest():
                self._restart("Read twice, it was not the same.")
                return None
        return bytes(self._data)

    def _receive(self, session: FtpSession) -> bool:
        """Adds what is missing. False: what was there is not what the server has; begin anew."""
        start = max(0, len(self._data) - _OVERLAP_BYTES) if self._may_resume else 0
        if start == 0:
            self._data.clear()
        if start and start + _OVERLAP_BYTES == self.facts.size:
            return True  # it broke off at its very end
        looked = start > 0
        try:
            with closing(session.retrieve(self._path, start)) as chunks:
                known = bytes(self._data[start:])
                for chunk in chunks:
                    if known:
                        same = min(len(known), len(chunk))
                        if chunk[:same] != known[:same]:
                            self._may_resume = False
                            return False
                        known, chunk = known[same:], chunk[same:]
                    self._data += chunk
                    if not looked and len(self._data) >= HEAD_BYTES:
                        self._look()
                        looked = True
                    if len(self._data) > min(MAX_FILE_BYTES, self.facts.size or MAX_FILE_BYTES):
                        if len(self._data) > MAX_FILE_BYTES:
                            raise self._too_large(len(self._data))
                        self._restart("The server sends more of it than it has.")
                        return False
        except FtpRefused:
            if start == 0:
                raise
            self._may_resume = False  # it knows no REST
            return False
        if not looked:
            self._look()
        return True

    def _look(self) -> None:
        refusal = refusal_of(bytes(self._data[:HEAD_BYTES]), self._file_name)
        if refusal is not None:
            # An empty file is a copy that went wrong rather than something else.
            raise Unfit(*refusal, harmless=bool(self._data))

    def _too_large(self, size: int) -> Unfit:
        refusal = refusal_of(b"\0" * HEAD_BYTES, self._file_name)
        if refusal is not None and refusal[0] == "unsupported_image":
            return Unfit(*refusal, harmless=True)  # a video is a video first
        return Unfit("image_too_large", f"It has {size} bytes or more; no server takes more than {MAX_FILE_BYTES}.")

    def _changed(self) -> None:
        self._begun = False
        self._restart("It changes while it is read.", code="changed_while_read")

    def _restart(self, reason: str, *, code: str = "corrupted") -> None:
        """From the beginning. Raises Unfit when that was so before."""
        self._changes += 1
        if self._changes >= _MAX_CHANGES:
            raise Unfit(code, reason)
        self._data.clear()
        self._first = None
