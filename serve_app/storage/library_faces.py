"""Faces of the library: one, those of a photo, and pages of all."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from serve_app.grouping.unassigned import Unassigned
from serve_app.identity.library_faces import FaceFilter, FaceQuery, FaceSort, Hidden, LibraryFace
from serve_app.identity.people import Collection
from serve_app.storage import faces
from serve_app.storage.database import Connection, Row

SIZE = "coalesce((f.quality ->> 'size_px')::double precision, 0)"
"""As the index `faces_by_size` has it."""

_SORTED_BY = {FaceSort.FOUND: "f.id", FaceSort.TAKEN: "f.taken_at", FaceSort.SIZE: SIZE}

_COLUMNS = """
    SELECT f.id, q.id AS photo_id, f.person_id, p.name AS person_name, f.bbox, f.landmarks, f.detection_score, f.quality,
           f.found_by, f.decided_by, f.hidden, f.unassigned, f.taken_at, f.created_at, i.object_key, i.width_px, i.height_px
    FROM faces f
    LEFT JOIN images i ON i.id = f.image_id
    LEFT JOIN photos q ON q.image_id = f.image_id
    LEFT JOIN persons p ON p.id = f.person_id
"""


async def get(connection: Connection, collection: Collection, face_id: UUID) -> LibraryFace:
    """Raises NotFound."""
    row = await connection.fetchrow(_COLUMNS + " WHERE f.id = $1 AND f.collection_key = $2", face_id, collection.key)
    if row is None:
        raise faces.missing(face_id)
    return _face(row)


async def some(connection: Connection, collection: Collection, face_ids: list[UUID]) -> dict[UUID, LibraryFace]:
    """Those that are there."""
    rows = await connection.fetch(
        f"{_COLUMNS} WHERE f.id = ANY($1::uuid[]) AND f.collection_key = $2", face_ids, collection.key
    )
    return {row["id"]: _face(row) for row in rows}


async def of_image(connection: Connection, collection: Collection, image_id: UUID) -> list[LibraryFace]:
    """All of a picture, hidden ones too, the largest first."""
    rows = await connection.fetch(
        f"{_COLUMNS} WHERE f.image_id = $1 AND f.collection_key = $2 ORDER BY {SIZE} DESC, f.id", image_id, collection.key
    )
    return [_face(row) for row in rows]


async def page(connection: Connection, collection: Collection, query: FaceQuery) -> list[LibraryFace]:
    sql, values = page_query(collection, query)
    return [_face(row) for row in await connection.fetch(sql, *values)]


def page_query(collection: Collection, query: FaceQuery) -> tuple[str, list[object]]:
    """The statement of a page and its arguments."""
    values: list[object] = [collection.key]

    def bind(value: object) -> str:
        values.append(value)
        return f"${len(values)}"

    conditions = ["f.collection_key = $1", *_conditions(query.filter, bind)]
    sorted_by, direction = _SORTED_BY[query.sort], "DESC" if query.descending else "ASC"
    if query.after is not None:
        compared, face_id = "<" if query.descending else ">", bind(query.after.face_id)
        if query.sort is FaceSort.FOUND:
            conditions.append(f"f.id {compared} {face_id}")
        else:
            conditions.append(f"({sorted_by}, f.id) {compared} ({bind(query.after.value)}, {face_id})")
    order = f"f.id {direction}" if query.sort is FaceSort.FOUND else f"{sorted_by} {direction}, f.id {direction}"
    wanted = " AND ".join(conditions)
    chosen = f"SELECT f.id FROM faces f WHERE {wanted}"
    if query.sort is not FaceSort.FOUND and (query.filter.person_id or query.filter.photo_id or query.filter.reasons):
        # All of these, and then the order: in the order's index the planner would pass over everybody else's faces. OFFSET
        # keeps it from looking into the subquery.
        chosen = f"SELECT f.id FROM (SELECT f.id, f.taken_at, f.quality FROM faces f WHERE {wanted} OFFSET 0) f"
    # The page is chosen first: pictures and names are looked up of its faces only.
    return f"{_COLUMNS} WHERE f.id IN ({chosen} ORDER BY {order} LIMIT {bind(query.limit)}) ORDER BY {order}", values


def _conditions(wanted: FaceFilter, bind: Callable[[object], str]) -> list[str]:
    conditions = []
    if wanted.person_id is not None:
        conditions.append(f"f.person_id = {bind(wanted.person_id)}")
    if wanted.photo_id is not None:
        conditions.append(
            f"f.image_id = (SELECT image_id FROM photos WHERE collection_key = $1 AND id = {bind(wanted.photo_id)})"
        )
    if wanted.unassigned is not None:
        conditions.append(f"f.person_id IS {'' if wanted.unassigned else 'NOT '}NULL")
    if wanted.reasons:
        conditions.append(f"f.person_id IS NULL AND f.unassigned ->> 'code' = ANY({bind(list(wanted.reasons))}::text[])")
    if wanted.hidden is not Hidden.INCLUDE:
        conditions.append("f.hidden" if wanted.hidden is Hidden.ONLY else "NOT f.hidden")
    if wanted.decided_by is not None:
        conditions.append(f"f.decided_by = {bind(wanted.decided_by.value)}")
    if wanted.found_by is not None:
        conditions.append(f"f.found_by = {bind(wanted.found_by.value)}")
    if wanted.min_size_px is not None:
        conditions.append(f"{SIZE} >= {bind(wanted.min_size_px)}")
    return conditions


def _face(row: Row) -> LibraryFace:
    flat = row["landmarks"]
    return LibraryFace(
        id=row["id"],
        photo_id=row["photo_id"],
        person_id=row["person_id"],
        person_name=row["person_name"],
        bbox=row["bbox"],
        landmarks=None if flat is None else [flat[i : i + 2] for i in range(0, len(flat), 2)],
        detection_score=row["detection_score"],
        quality=row["quality"],
        found_by=row["found_by"],
        decided_by=row["decided_by"],
        hidden=row["hidden"],
        unassigned=None if row["unassigned"] is None else Unassigned.from_json(row["unassigned"]),
        taken_at=row["taken_at"],
        created_at=row["created_at"],
        image_key=row["object_key"],
        width_px=row["width_px"],
        height_px=row["height_px"],
    )
