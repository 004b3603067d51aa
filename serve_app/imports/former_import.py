"""`kinlens import-sqlite`: photos, tags, persons and whose face is whose, out of the former application's database.

Everything goes through the API of a running instance, and what is there already is left as it is: so it may be run again,
after whatever broke off or when more of the files were found.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath

from serve_app.errors import FileUnreadable, ImageTooLarge, Overloaded
from serve_app.grouping.reconciling import match_boxes
from serve_app.imports import former_schema
from serve_app.imports.former_schema import Box
from serve_app.imports.library_client import KnownPhoto, LibraryClient, Refused
from serve_app.imports.photo_sending import MAX_FILE_BYTES, Outgoing, PhotoSender
from serve_app.imports.service_client import GaveUp
from serve_app.server_files import NotAFile, read_file, text_of
from serve_app.storage.former_database import FormerDatabase
from serve_app.text import photo_names
from serve_app.text.photo_names import folder_of

_AT_ONCE = 4
_NO_ID = "It has no id of its own."


@dataclass(frozen=True, slots=True)
class FormerOptions:
    """`root`: where the files lie now. `prefix`: what the database's paths begin with, in place of it. `sized`: boxes in one
    column are x, y, width, height. `wait_s`: for the faces to be found."""

    root: Path | None = None
    prefix: str = ""
    sized: bool = False
    wait_s: float = 3600


@dataclass(frozen=True, slots=True)
class Outcome:
    """`what`: photo, tags, person or face. `status`: imported, known, kept (a user of Kinlens decided otherwise), unsupported,
    unmatched (no face is found there) or failed."""

    what: str
    former_id: str
    status: str
    kinlens_id: str = ""
    code: str = ""
    detail: str = ""


@dataclass(slots=True)
class Summary:
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    gave_up: str | None = None

    @property
    def complete(self) -> bool:
        """Nothing failed. Faces that are not found again are told of, and no fault."""
        return self.gave_up is None and not any(status == "failed" for _, status in self.counts)


@dataclass(frozen=True, slots=True)
class FormerPhoto:
    """`folder`: None where the way to the file is all that says so."""

    id: str
    path: str
    sha256: str | None
    folder: str | None
    file_name: str
    tags: tuple[str, ...]
    taken_at: datetime | None


class FormerImport:
    """`record` is told of everything once."""

    def __init__(
        self,
        database: FormerDatabase,
        library: LibraryClient,
        sender: PhotoSender,
        options: FormerOptions,
        record: Callable[[Outcome], None],
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self._database = database
        self._library = library
        self._sender = sender
        self._options = options
        self._record_outcome = record
        self._progress = progress
        self._summary = Summary()

    async def run(self) -> Summary:
        """Raises ConfigurationError for what no repetition can help."""
        try:
            await self._sender.check()
            photos = await self._photos()
            persons = await self._persons()
            await self._faces(photos, persons)
        except GaveUp as error:
            self._summary.gave_up = str(error)
        except Refused as error:
            self._summary.gave_up = f"The service refuses it: {error.detail}"
        return self._summary

    async def _photos(self) -> dict[str, KnownPhoto]:
        """Those of the library, by their former ids."""
        by_digest = {one.sha256: one async for one in self._library.photos()}
        found: dict[str, KnownPhoto] = {}
        total, done = self._database.count("photos"), 0
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(photo: FormerPhoto) -> None:
            nonlocal done
            try:
                known = await self._photo(photo, by_digest)
                if known is not None:
                    found[photo.id] = known
                    await self._tags(photo, known)
            finally:
                places.release()
            done += 1
            self._progress("photos", done, total)

        try:
            async with asyncio.TaskGroup() as tasks:
                for photo in read_photos(self._database, lambda bad: self._fail("photo", bad, "bad_id", _NO_ID)):
                    await places.acquire()
                    tasks.create_task(one(photo))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return found

    async def _photo(self, photo: FormerPhoto, by_digest: Mapping[str, KnownPhoto]) -> KnownPhoto | None:
        known = by_digest.get(photo.sha256 or "")
        if known is not None:
            self._record(Outcome("photo", photo.id, "known", known.id))
            return known
        if self._options.root is None:
            self._fail(
                "photo", photo.id, "no_file", "The library does not have it, and without --photos-root no file is read."
            )
            return None
        parts = parts_of(photo.path, self._options.root, self._options.prefix)
        if parts is None:
            self._fail("photo", photo.id, "outside", "Its path leads to no file below --photos-root.")
            return None
        try:
            file = await asyncio.to_thread(read_file, self._options.root, parts, MAX_FILE_BYTES)
        except NotAFile as error:
            self._fail("photo", photo.id, "no_file", f"There is no such file below --photos-root ({error.reason}).")
            return None
        except (FileUnreadable, ImageTooLarge, Overloaded) as error:
            self._fail("photo", photo.id, error.code, error.detail)
            return None
        folder = folder_of(list(map(text_of, parts[:-1]))) if photo.folder is None else photo.folder
        taken_at = photo.taken_at or file.modified_at
        sent = await self._sender.send(Outgoing(file.data, photo.file_name, folder, photo.tags, taken_at))
        match sent.status:
            case "created" | "exists":
                status = "imported" if sent.status == "created" else "known"
                self._record(Outcome("photo", photo.id, status, sent.photo_id))
                return await self._library.photo(sent.photo_id)
            case _:
                self._record(Outcome("photo", photo.id, sent.status, sent.photo_id, sent.code, sent.detail))
                return None

    async def _tags(self, photo: FormerPhoto, known: KnownPhoto) -> None:
        missing = [tag for tag in photo.tags if tag not in known.tags]
        if not missing:
            return
        try:
            await self._library.add_tags(known.id, missing)
        except Refused as error:
            self._fail("tags", photo.id, error.code, error.detail)
        else:
            self._record(Outcome("tags", photo.id, "imported", known.id))

    async def _persons(self) -> dict[str, str]:
        """Ids in the library by former ids."""
        there = {external_id: person_id async for person_id, external_id in self._library.persons()}
        found: dict[str, str] = {}
        for row in self._database.rows("persons"):
            former_id = former_schema.identity(row.get("id"))
            if former_id is None or former_id in found:
                self._fail("person", str(row.get("id"))[:100], "bad_id", _NO_ID)
                continue
            external_id = f"former:{former_id}"
            if external_id in there:
                found[former_id] = there[external_id]
                self._record(Outcome("person", former_id, "known", found[former_id]))
                continue
            name = " ".join(former_schema.text(row.get("name")).split())
            try:
                found[former_id] = await self._library.make_person(name, external_id)
            except Refused as error:
                self._fail("person", former_id, error.code, error.detail)
            else:
                self._record(Outcome("person", former_id, "imported", found[former_id]))
        return found

    async def _faces(self, photos: Mapping[str, KnownPhoto], persons: Mapping[str, str]) -> None:
        """Assigns the faces that are found where the former application saw them."""
        wanted: dict[str, list[tuple[Box, str]]] = defaultdict(list)
        for row in self._database.rows("faces"):
            photo_id = former_schema.identity(row.get("photo_id"))
            person_id = former_schema.identity(row.get("person_id"))
            if person_id is None:
                self._summary.counts["face", "of nobody"] += 1
                continue
            shown = f"{photo_id}/{person_id}"
            box = former_schema.box(row, sized=self._options.sized)
            if photo_id is None or photo_id not in photos:
                self._record(Outcome("face", shown, "unmatched", "", "no_photo", "Its photo is not in the library."))
            elif person_id not in persons:
                self._fail("face", shown, "no_person", "Its person is not in the library.")
            elif box is None:
                self._fail("face", shown, "bad_box", "Its box is not understood.")
            else:
                wanted[photo_id].append((box, person_id))
        if not wanted:
            return
        if not await self._library.index_faces([photos[one].id for one in wanted], self._options.wait_s):
            detail = f"Their faces were not found within {self._options.wait_s:g} s."
            self._summary.gave_up = f"{detail} Run it again when the jobs are done."
            return
        for done, (photo_id, boxes) in enumerate(wanted.items(), 1):
            await self._faces_of(photo_id, photos[photo_id], boxes, persons)
            self._progress("photos with faces", done, len(wanted))

    async def _faces_of(
        self, photo_id: str, photo: KnownPhoto, boxes: list[tuple[Box, str]], persons: Mapping[str, str]
    ) -> None:
        try:
            faces = await self._library.faces(photo.id)
        except Refused as error:
            self._fail("face", photo_id, error.code, error.detail)
            return
        former = [former_schema.in_pixels(box, photo.width_px, photo.height_px) for box, _ in boxes]
        pairs = dict(match_boxes(former, [face.box for face in faces]))
        for index, (_, former_person) in enumerate(boxes):
            shown, person_id = f"{photo_id}/{former_person}", persons[former_person]
            if index not in pairs:
                self._record(Outcome("face", shown, "unmatched", "", "no_face", "No face is found where it was."))
                continue
            face = faces[pairs[index]]
            if face.by_user or face.hidden:
                status = "known" if face.person_id == person_id else "kept"
                self._record(Outcome("face", shown, status, face.id))
                continue
            try:
                await self._library.assign(face.id, person_id)
            except Refused as error:
                self._fail("face", shown, error.code, error.detail)
            else:
                self._record(Outcome("face", shown, "imported", face.id))

    def _fail(self, what: str, former_id: str, code: str, detail: str) -> None:
        self._record(Outcome(what, former_id, "failed", "", code, detail))

    def _record(self, outcome: Outcome) -> None:
        self._summary.counts[outcome.what, outcome.status] += 1
        if outcome.code:
            self._summary.reasons[outcome.what, outcome.status, outcome.code] += 1
        self._record_outcome(outcome)


def read_photos(database: FormerDatabase, bad: Callable[[str], None] = lambda _: None) -> Iterator[FormerPhoto]:
    """Each row with an id that was not there before; `bad` is told of the others."""
    tags = _tags_by_photo(database)
    seen: set[str] = set()
    for row in database.rows("photos"):
        photo_id = former_schema.identity(row.get("id"))
        if photo_id is None or photo_id in seen:
            bad(str(row.get("id"))[:100])
            continue
        seen.add(photo_id)
        name, folder = former_schema.text(row.get("file_name")), former_schema.text(row.get("folder"))
        path = former_schema.text(row.get("path")) or "/".join(one for one in (folder.rstrip("/"), name) if one)
        parts = [one for one in folder.replace("\\", "/").split("/") if one not in ("", ".", "..")]
        yield FormerPhoto(
            photo_id,
            path,
            former_schema.sha256(row.get("sha256")),
            folder_of(parts) if folder else None,
            name or path.replace("\\", "/").rpartition("/")[2] or photo_id,
            _good_tags([*former_schema.tags(row.get("tags")), *tags.get(photo_id, ())]),
            former_schema.moment(row.get("taken_at")),
        )


def _tags_by_photo(database: FormerDatabase) -> dict[str, list[str]]:
    names = {
        former_schema.identity(row.get("id")): former_schema.text(row.get("name"))
        for row in database.rows("tags")
        if "id" in row and "name" in row
    }
    found: dict[str, list[str]] = defaultdict(list)
    for row in database.rows("photo_tags"):
        photo_id = former_schema.identity(row.get("photo_id"))
        tag = former_schema.text(row.get("tag")) or names.get(former_schema.identity(row.get("tag_id")) or "", "")
        if photo_id is not None and tag:
            found[photo_id].append(tag)
    return found


def _good_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """As the library keeps them; those that it would refuse are left out, and no more than a photo may have."""
    kept: dict[str, None] = {}
    for tag in tags:
        try:
            kept[photo_names.tag(tag)] = None
        except ValueError:
            continue
    return tuple(kept)[: photo_names.MAX_TAGS]


def parts_of(path: str, root: Path, prefix: str) -> tuple[bytes, ...] | None:
    """The way from the root to the file; None for a path that leads elsewhere. Looks at no file."""
    plain = path.replace("\\", "/") if PureWindowsPath(path).drive or "/" not in path else path
    for above in filter(None, (prefix, str(root))):
        start = above.replace("\\", "/").rstrip("/") + "/"
        if plain.startswith(start):
            plain = plain[len(start) :]
            break
    else:
        if PurePosixPath(plain).is_absolute() or PureWindowsPath(plain).drive:
            return None
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in plain or len(parts) > 100:
        return None
    return tuple(os.fsencode(part) for part in parts)
