"""`kinlens migrate-ftp`: every photo below a folder of an FTP server, into the library of a running instance.

One connection lists, the others read; what is read goes through the API. Run again it finishes what broke off: a ledger
knows the files that are there already, and the library is asked whether they still are.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from serve_app.errors import ConfigurationError
from serve_app.imports.ftp import MAX_ENTRIES, FtpRefused, FtpSession
from serve_app.imports.ftp_connection import FtpAddress, FtpLost
from serve_app.imports.ftp_listing import Entry, Facts, Kind, bad_name, moment, shown, text_of, wired
from serve_app.imports.ftp_reading import Download, Unfit
from serve_app.imports.migration_ledger import Done, Ledger
from serve_app.imports.photo_sending import Outgoing, PhotoSender
from serve_app.imports.service_client import GaveUp, longer_pause_s, until_it_gives_up
from serve_app.text.photo_names import folder_of

ResultT = TypeVar("ResultT")

_MAX_DEPTH = 64
_MAX_FOLDERS = 1_000_000
_MAX_PATH = 4000
_QUEUE = 256
_ATTEMPTS = 6
"""Of what a server that answers does not do."""

Status = Literal["copied", "known", "unsupported", "failed", "skipped"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the report. `known`: the library has this very picture already. `unsupported`: a raw photo, a video, or no
    picture. `skipped`: hidden, or a link; nothing of it was read. `failed`: it should be there and is not."""

    path: str
    status: Status
    photo_id: str = ""
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """`path`: where to begin; empty: where the server puts the user. `folder`: of the library, above those of the server.
    `give_up_after_s`: without a single answer of the server. `twice`: read each file twice."""

    path: str = ""
    folder: str = ""
    workers: int = 4
    give_up_after_s: float = 300
    twice: bool = False


@dataclass(slots=True)
class Summary:
    """`bytes_read`: of the files that were copied. `gave_up`: why not everything was looked at."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes_read: int = 0
    gave_up: str | None = None

    @property
    def complete(self) -> bool:
        """Every photo that the server shows is in the library."""
        return self.gave_up is None and not self.statuses["failed"]


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    folder: _Folder
    entry: Entry

    @property
    def path(self) -> str:
        return _join(self.folder.path, self.entry.name)


class FtpMigration:
    """`record` is told of each file once, in no promised order; `progress` of how many are done, and found so far."""

    def __init__(
        self,
        address: FtpAddress,
        sender: PhotoSender,
        ledger: Ledger,
        options: MigrationOptions,
        record: Callable[[Outcome], None],
        progress: Callable[[int, int], None] = lambda done, found: None,
    ) -> None:
        self._sender = sender
        self._ledger = ledger
        self._options = options
        self._record_outcome = record
        self._progress = progress
        self._summary = Summary()
        self._found = 0
        self._answered_at = time.monotonic()
        self._sessions = [FtpSession(address), *(FtpSession(address, known=True) for _ in range(options.workers))]
        # Of its own: the default one has fewer threads than there may be workers.
        self._threads = ThreadPoolExecutor(options.workers + 1, "ftp")

    async def run(self) -> Summary:
        """Raises ConfigurationError for what no repetition can help: a wrong address, password or key."""
        try:
            with until_it_gives_up(self._summary):
                await self._sender.check()
                files: asyncio.Queue[_File | None] = asyncio.Queue(_QUEUE)
                async with asyncio.TaskGroup() as tasks, aclosing(self._files(self._sessions[0])) as walking:
                    # Before there are others: a wrong password shall be tried once.
                    first = await anext(walking, None)
                    for session in self._sessions[1:]:
                        tasks.create_task(self._work(session, files))
                    if first is not None:
                        await files.put(first)
                    async for file in walking:
                        await files.put(file)
                    for _ in range(self._options.workers):
                        await files.put(None)
        finally:
            for session in self._sessions:
                session.abort()
            self._threads.shutdown()
            for session in self._sessions:
                session.drop()
        return self._summary

    async def _work(self, session: FtpSession, files: asyncio.Queue[_File | None]) -> None:
        while (file := await files.get()) is not None:
            try:
                outcome = await self._copy(session, file)
            except GaveUp as error:
                self._record(Outcome(shown(file.path), "failed", code="gave_up", detail=str(error)))
                raise
            self._record(outcome)
        # So that a server that takes few connections has one free for whoever still waits.
        session.drop()

    async def _copy(self, session: FtpSession, file: _File) -> Outcome:
        """Raises GaveUp."""
        before = await self._dealt_with(session, file)
        if before is not None:
            return before
        path, name = file.path, text_of(file.entry.name)
        download = Download(path, name, twice=self._options.twice)
        try:
            data = await self._asked(session, lambda: download.run(session), lambda: download.received)
        except Unfit as unfit:
            if unfit.harmless:
                self._keep(path, download.facts, code=unfit.code, detail=unfit.detail)
            return Outcome(shown(path), "unsupported" if unfit.harmless else "failed", "", unfit.code, unfit.detail)
        except FtpRefused as error:
            return Outcome(shown(path), "failed", "", "unreadable", f"{error}")
        parts = [*self._options.folder.split("/"), *map(text_of, file.folder.parts)]
        folder = folder_of([part for part in parts if part])
        sent = await self._sender.send(Outgoing(data, name, folder, taken_at=moment(download.facts.modified)))
        match sent.status:
            case "created" | "exists":
                digest = hashlib.sha256(data).hexdigest()
                self._keep(path, download.facts, sha256=digest, photo_id=sent.photo_id)
                self._summary.bytes_read += len(data)
                return Outcome(shown(path), "copied" if sent.status == "created" else "known", sent.photo_id)
            case "unsupported":
                self._keep(path, download.facts, code=sent.code, detail=sent.detail)
                return Outcome(shown(path), "unsupported", "", sent.code, sent.detail)
            case _:
                return Outcome(shown(path), "failed", sent.photo_id, sent.code, sent.detail)

    async def _dealt_with(self, session: FtpSession, file: _File) -> Outcome | None:
        """What became of the file in an earlier run, if that holds still."""
        if file.path not in self._ledger:
            return None
        facts = file.entry.facts
        if not facts.complete:
            try:
                facts = await self._asked(session, lambda: session.facts(file.path))
            except FtpRefused:
                return None
        done = self._ledger.find(file.path, facts.size, facts.modified)
        if done is None:
            return None
        if not done.photo_id:
            return Outcome(shown(file.path), "unsupported", "", done.code, done.detail)
        if await self._sender.holds(done.photo_id, done.sha256):
            return Outcome(shown(file.path), "known", done.photo_id)
        return None

    def _keep(self, path: str, facts: Facts, **what: str) -> None:
        if facts.size is not None and facts.modified is not None:
            self._ledger.keep(Done(path, facts.size, facts.modified, **what))

    async def _files(self, session: FtpSession) -> AsyncGenerator[_File, None]:
        """Everything that may be a photo. What is none by its name or kind is recorded here."""
        path = wired(self._options.path)
        if not path.startswith("/"):
            top = await self._asked(session, session.start_folder)
            path = _join(top if top.startswith("/") and "\n" not in top else "/", path)
        waiting = [_Folder(path.rstrip("/") or "/", ())]
        seen: set[str] = set()
        count = 0
        while waiting:
            folder = waiting.pop()
            count += 1
            try:
                listing = await self._asked(session, functools.partial(session.listing, folder.path))
            except FtpRefused as error:
                if not folder.parts:
                    raise ConfigurationError(f"{shown(folder.path)} cannot be listed: {error}") from error
                self._problem(folder.path, "unreadable", f"The folder cannot be listed: {error}")
                continue
            for line in listing.unreadable:
                self._problem(_join(folder.path, line[:200]), "unreadable", "The server's line is not understood.")
            if listing.cut:
                self._problem(folder.path, "too_many_entries", f"Only its first {MAX_ENTRIES} entries were looked at.")
            below: list[_Folder] = []
            for entry in sorted(listing.entries, key=lambda one: one.name):
                found = await self._sorted(session, folder, entry, seen)
                if isinstance(found, _Folder):
                    below.append(found)
                elif found is not None:
                    self._found += 1
                    yield found
            if count + len(waiting) + len(below) > _MAX_FOLDERS:
                self._problem(
                    folder.path, "too_many_folders", f"It has more than {_MAX_FOLDERS} folders; those below it are left."
                )
                continue
            waiting += reversed(below)
        session.drop()

    async def _sorted(self, session: FtpSession, folder: _Folder, entry: Entry, seen: set[str]) -> _File | _Folder | None:
        """A file to copy, a folder to look into; None for what was recorded here."""
        path = _join(folder.path, entry.name)
        reason = bad_name(entry.name)
        if reason is not None:
            self._problem(path, "bad_name", reason)
        elif entry.name.startswith("."):
            self._skip(path, "hidden", "Its name begins with a dot.")
        elif entry.kind is Kind.LINK:
            self._skip(path, "link", "It is a link; what it leads to is copied where it lies.")
        elif entry.kind is Kind.FILE:
            return _File(folder, entry)
        elif entry.kind is Kind.FOLDER or (not session.tells_kinds and await self._is_folder(session, path)):
            if entry.unique is not None and entry.unique in seen:
                self._skip(path, "link", "Another way to a folder that was looked into.")
            elif len(folder.parts) >= _MAX_DEPTH or len(path) > _MAX_PATH:
                self._problem(path, "too_deep", "The folder lies too deep; its path may lead in a circle.")
            else:
                seen.update({entry.unique} if entry.unique is not None else ())
                return _Folder(path, (*folder.parts, entry.name))
        elif not session.tells_kinds:
            return _File(folder, entry)
        else:
            self._skip(path, "not_a_file", "It is neither a file nor a folder.")
        return None

    async def _is_folder(self, session: FtpSession, path: str) -> bool:
        return await self._asked(session, lambda: session.is_folder(path))

    async def _asked(
        self, session: FtpSession, call: Callable[[], ResultT], received: Callable[[], int] = lambda: 0
    ) -> ResultT:
        """The result, asked for again while it is a matter of time. `received`: grows while the call gets on, though it may
        be lost in the end. Raises GaveUp, Unfit, FtpRefused."""
        attempt = in_vain = 0
        while True:
            before = received()
            attempt += 1
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
            except FtpLost as error:
                if received() != before:
                    self._answered_at, attempt, in_vain = time.monotonic(), 1, 0
                elif not error.connecting:
                    # The server is there, and does not do it.
                    in_vain += 1
                    if in_vain >= _ATTEMPTS:
                        raise FtpRefused(f"{error}") from error
                pause_s = longer_pause_s(attempt)
                if time.monotonic() + pause_s - self._answered_at > self._options.give_up_after_s:
                    raise GaveUp(f"The FTP server did not answer for {self._options.give_up_after_s:g} s. {error}") from error
                await asyncio.sleep(pause_s)
            else:
                self._answered_at = time.monotonic()
                return result

    def _problem(self, path: str, code: str, detail: str) -> None:
        self._found += 1
        self._record(Outcome(shown(path), "failed", "", code, detail))

    def _skip(self, path: str, code: str, detail: str) -> None:
        self._found += 1
        self._record(Outcome(shown(path), "skipped", "", code, detail))

    def _record(self, outcome: Outcome) -> None:
        self._summary.statuses[outcome.status] += 1
        if outcome.code:
            self._summary.reasons[outcome.status, outcome.code] += 1
        self._record_outcome(outcome)
        self._progress(self._summary.statuses.total(), self._found)


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if name else folder
