"""What the former application's database is expected to look like: its tables and columns, by the names they may have. Pure.

docs/operations.md lists them. Whatever else is in the file is left alone, and named.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from serve_app.errors import ConfigurationError

Value = str | int | float | bytes | None
Box = tuple[float, float, float, float]

TABLES: Mapping[str, tuple[str, ...]] = {
    "photos": ("photos", "photo", "images", "image", "pictures", "assets", "media"),
    "faces": ("faces", "face", "face_detections", "detected_faces"),
    "persons": ("persons", "person", "people", "identities"),
    "photo_tags": ("photo_tags", "photos_tags", "image_tags", "photo_tag"),
    "tags": ("tags", "tag", "keywords"),
}
COLUMNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "photos": {
        "id": ("id", "photo_id", "image_id", "uuid"),
        "path": ("path", "file_path", "filepath", "full_path", "relative_path", "storage_path", "location"),
        "file_name": ("file_name", "filename", "original_filename", "name"),
        "folder": ("folder", "directory", "dir", "album"),
        "sha256": ("sha256", "file_hash", "checksum", "content_hash", "hash"),
        "taken_at": ("taken_at", "date_taken", "captured_at", "taken", "exif_date", "timestamp"),
        "tags": ("tags", "keywords", "labels"),
    },
    "faces": {
        "photo_id": ("photo_id", "image_id", "picture_id", "asset_id", "photo"),
        "person_id": ("person_id", "identity_id", "assigned_person_id", "person"),
        "box": ("bbox", "box", "bounding_box", "face_box"),
        "x1": ("x1", "left", "bbox_x1", "bbox_left", "box_x1", "xmin", "x_min"),
        "y1": ("y1", "top", "bbox_y1", "bbox_top", "box_y1", "ymin", "y_min"),
        "x2": ("x2", "right", "bbox_x2", "bbox_right", "box_x2", "xmax", "x_max"),
        "y2": ("y2", "bottom", "bbox_y2", "bbox_bottom", "box_y2", "ymax", "y_max"),
        "x": ("x", "bbox_x", "box_x"),
        "y": ("y", "bbox_y", "box_y"),
        "width": ("w", "width", "bbox_w", "bbox_width", "box_w", "box_width"),
        "height": ("h", "height", "bbox_h", "bbox_height", "box_h", "box_height"),
    },
    "persons": {"id": ("id", "person_id", "uuid"), "name": ("name", "display_name", "full_name", "label")},
    "photo_tags": {
        "photo_id": ("photo_id", "image_id", "photo"),
        "tag_id": ("tag_id",),
        "tag": ("tag", "name", "label"),
    },
    "tags": {"id": ("id", "tag_id"), "name": ("name", "tag", "label")},
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBERS = re.compile(r"[-+0-9.eE,;\s]+")
_MAX_BOX_TEXT = 1000


@dataclass(frozen=True, slots=True)
class TableMap:
    """`columns`: field of ours to the column's name. `ignored`: columns that mean nothing to us."""

    table: str
    columns: Mapping[str, str]
    ignored: tuple[str, ...]


def find_tables(tables: Mapping[str, Sequence[str]], given: Mapping[str, str]) -> dict[str, TableMap]:
    """`tables`: those of the file, with their columns. `given`: `photos` or `photos.path` to a name of the file, which then
    counts. Raises ConfigurationError for what cannot be imported so."""
    known = {*TABLES, *(f"{kind}.{name}" for kind, fields in COLUMNS.items() for name in fields)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigurationError(f"--map {unknown[0]}: there is no such table or column to be mapped.")
    found: dict[str, TableMap] = {}
    for kind, names in TABLES.items():
        table = _named(tables, given[kind], kind) if kind in given else _first(tables, names)
        if table is None:
            continue
        columns: dict[str, str] = {}
        for field, aliases in COLUMNS[kind].items():
            key = f"{kind}.{field}"
            column = _named(tables[table], given[key], key) if key in given else _first(tables[table], aliases)
            if column is not None and (column not in columns.values() or key in given):
                columns[field] = column
        ignored = tuple(name for name in tables[table] if name not in columns.values())
        found[kind] = TableMap(table, columns, ignored)
    _check(found)
    return found


def _check(found: Mapping[str, TableMap]) -> None:
    photos = found.get("photos")
    if photos is None or "id" not in photos.columns or not {"path", "file_name", "sha256"} & set(photos.columns):
        raise ConfigurationError(
            "The file has no table of photos with an id and a path, a file name or a SHA-256. --map photos=TABLE and"
            " --map photos.path=COLUMN name them."
        )


def _first(names: Mapping[str, object] | Sequence[str], wanted: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[one] for one in wanted if one in by_lower), None)


def _named(names: Mapping[str, object] | Sequence[str], wanted: str, key: str) -> str:
    if wanted not in names:
        raise ConfigurationError(f"--map {key}={wanted}: the file has no such table or column.")
    return wanted


def identity(value: Value) -> str | None:
    """An id as text; None where it is none."""
    if isinstance(value, bool) or value is None or isinstance(value, bytes | float):
        return None
    text = str(value).strip()
    return text if 0 < len(text) <= 150 and text.isprintable() else None


def text(value: Value) -> str:
    return value.strip() if isinstance(value, str) else str(value) if isinstance(value, int) else ""


def sha256(value: Value) -> str | None:
    found = value.hex() if isinstance(value, bytes) and len(value) == 32 else text(value).lower()
    return found if _SHA256.fullmatch(found) else None


def moment(value: Value) -> datetime | None:
    """ISO 8601, EXIF's colons, or seconds since 1970; UTC where no zone is given."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC) if 0 < value < 1e11 else None
        given = text(value)
        if re.match(r"\d{4}:\d\d:\d\d ", given):
            given = given[:10].replace(":", "-") + given[10:]
        found = datetime.fromisoformat(given)
    except (ValueError, OverflowError, OSError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def tags(value: Value) -> list[str]:
    """A JSON array, or words between commas."""
    given = text(value)
    if given.startswith("["):
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            return []
        return [one.strip() for one in found if isinstance(one, str) and one.strip()] if isinstance(found, list) else []
    return [part.strip() for part in given.split(",") if part.strip()]


def box(row: Mapping[str, Value], *, sized: bool) -> Box | None:
    """x1, y1, x2, y2 of a row of faces: of four columns, or of one with a list or an object. `sized`: lists are x, y, width,
    height. None for nonsense."""
    for names, is_sized in ((("x1", "y1", "x2", "y2"), False), (("x", "y", "width", "height"), True)):
        if all(name in row for name in names):
            return _box([row[name] for name in names], sized=is_sized)
    given = row.get("box")
    if not isinstance(given, str) or len(given) > _MAX_BOX_TEXT:
        return None
    if _NUMBERS.fullmatch(given):
        return _box(list(re.split(r"[,;\s]+", given.strip())), sized=sized)
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list):
        return _box(found, sized=sized)
    if not isinstance(found, dict):
        return None
    lower = {str(name).lower(): value for name, value in found.items()}
    for names, is_sized in (
        (("x1", "y1", "x2", "y2"), False),
        (("left", "top", "right", "bottom"), False),
        (("x", "y", "w", "h"), True),
        (("x", "y", "width", "height"), True),
        (("left", "top", "width", "height"), True),
    ):
        if all(name in lower for name in names):
            return _box([lower[name] for name in names], sized=is_sized)
    return None


def _box(values: Sequence[object], *, sized: bool) -> Box | None:
    try:
        found = [float(one) for one in values if isinstance(one, str | int | float) and not isinstance(one, bool)]
    except (ValueError, OverflowError):
        return None
    if len(found) != 4 or not all(map(math.isfinite, found)):
        return None
    x1, y1, x2, y2 = found
    if sized:
        x2, y2 = x1 + x2, y1 + y2
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def in_pixels(found: Box, width_px: int, height_px: int) -> Box:
    """A box of parts of the picture, 0 to 1, in pixels; any other as it is."""
    if max(found) > 1.0 + 1e-6:
        return found
    x1, y1, x2, y2 = found
    return x1 * width_px, y1 * height_px, x2 * width_px, y2 * height_px
