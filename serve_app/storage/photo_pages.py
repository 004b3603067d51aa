"""How pages of photos are found: which index leads.

The planner knows how many photos a tag or a person has, but not that they may all lie at the far end of the order: of
somebody who died long ago no recent photo is found, however many one looks at. So it is counted here, up to a limit. The
smallest set of photos leads when it is small, and is sorted; else the photos are walked in their order, each looked at,
which is quick because many of them fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.photos import PersonsMatch, PhotoFilter, PhotoSort
from serve_app.storage.database import Connection

Bind = Callable[[object], str]
"""Keeps an argument of a statement; its place in it."""

MAX_SORTED = 20_000
"""Photos of a tag or faces of a person that are sorted for a page; 25 to 40 ms."""


WORTH_A_WALK, WALKED = 6_000, 2_000
"""Where so many photos would be sorted, the page may well be among so many of the first. That is tried before: it takes half
of the time where it succeeds, and as much again where it does not."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: the date it is sorted by, and the photo."""

    moment: datetime
    photo_id: UUID


@dataclass(frozen=True, slots=True)
class Order:
    sort: PhotoSort = PhotoSort.TAKEN
    descending: bool = True


@dataclass(frozen=True, slots=True)
class _Set:
    """Photos that have something. `rows` finds the `column` of all by `{value}`, from a table `t` in which that is `key`;
    `test` says it of one, by `{of}` and `{value}`."""

    column: str
    key: str
    rows: str
    test: str
    value: object


def _sets(wanted: PhotoFilter) -> list[_Set]:
    tags = [
        _Set(
            "id",
            "t.photo_id",
            "SELECT t.photo_id FROM photo_tags t WHERE t.collection_key = $1 AND t.tag = {value}",
            # A value, here and below: EXISTS would become a join, in whatever order the planner likes.
            "(SELECT true FROM photo_tags WHERE photo_id = {of} AND tag = {value} LIMIT 1)",
            tag,
        )
        for tag in wanted.tags
    ]
    groups = list(wanted.groups)
    if wanted.person_ids and wanted.persons is PersonsMatch.ANY:
        groups.append(wanted.person_ids)
    elif wanted.persons is PersonsMatch.ALL:
        groups += [(person_id,) for person_id in wanted.person_ids]
    return [*tags, *(_persons(group) for group in dict.fromkeys(groups))]


def _persons(person_ids: Sequence[UUID]) -> _Set:
    return _Set(
        "image_id",
        "t.image_id",
        "SELECT t.image_id FROM faces t WHERE t.person_id = ANY({value}::uuid[])",
        "(SELECT true FROM faces WHERE image_id = {of} AND person_id = ANY({value}::uuid[]) LIMIT 1)",
        list(person_ids),
    )


async def smallest(connection: Connection, collection: Collection, wanted: PhotoFilter) -> int | None:
    """Which set of the filter leads; None for none of them."""
    return (await leading_set(connection, collection, wanted))[0]


async def leading_set(connection: Connection, collection: Collection, wanted: PhotoFilter) -> tuple[int | None, int]:
    """As `smallest`, and how many it has, `MAX_SORTED` + 1 for more; 0 for a filter without sets."""
    sets = _sets(wanted)
    if not sets:
        return None, 0
    counts = ", ".join(
        f"(SELECT count(*) FROM ({one.rows.format(value=f'${place}')} LIMIT {MAX_SORTED + 1:d}) s) AS n{place - 2}"
        for place, one in enumerate(sets, start=2)
    )
    # The comparison gives $1 its type where only persons are counted.
    row = await connection.fetchrow(f"SELECT {counts} WHERE $1::integer >= 0", collection.key, *(one.value for one in sets))
    assert row is not None
    least, index = min((int(row[f"n{index}"]), index) for index in range(len(sets)))
    return (index if least <= MAX_SORTED else None), least


def joins(wanted: PhotoFilter, bind: Bind) -> tuple[list[str], bool]:
    """What a row `t` of photo_texts must fulfil, beside its collection, which is $1, in a form that the planner may make joins
    of: for statements that look at all that fit. And whether some of it is about the photo, `q`."""
    found = []
    for one in _sets(wanted):
        column = "photo_id" if one.column == "id" else one.column
        # Its own `t` hides this one.
        found.append(f"t.{column} IN ({one.rows.format(value=bind(one.value))})")
    if wanted.taken_from is not None:
        found.append(f"t.taken_at >= {bind(wanted.taken_from)}")
    if wanted.taken_to is not None:
        found.append(f"t.taken_at < {bind(wanted.taken_to)}")
    nobody = _nobody(wanted)
    if nobody:
        found.append(
            "NOT EXISTS (SELECT 1 FROM faces s WHERE s.image_id = t.image_id"
            f" AND s.person_id = ANY({bind(list(nobody))}::uuid[]))"
        )
    of_photo = _of_photo(wanted, bind)
    return [*found, *of_photo], bool(of_photo)


def page_query(
    collection: Collection,
    wanted: PhotoFilter,
    order: Order,
    after: Position | None,
    limit: int,
    leading: int | None,
    more: Callable[[Bind], list[str]] | None = None,
    walked: int | None = None,
) -> tuple[str, list[object]]:
    """The statement that finds the ids of a page, in no order, and its arguments. `leading`: see `smallest`. `more`: what a
    photo `q` must fulfil beside the filter. `walked`: look at so many photos only, of those that fulfil what their own row
    says; then there may be more than are found."""
    values: list[object] = [collection.key]

    def bind(value: object) -> str:
        values.append(value)
        return f"${len(values)}"

    conditions = ["q.collection_key = $1", *_plain_conditions(wanted, bind)]
    tests = list(more(bind)) if more else []
    sets = [(one, bind(one.value)) for one in _sets(wanted)]
    leader = None if leading is None or walked is not None else sets[leading]
    inside = []
    for one, place in sets:
        if leader is not None and one is not leader[0] and one.column == leader[0].column:
            # Before the photos are looked up.
            inside.append(one.test.format(of=leader[0].key, value=place))
        elif leader is None or one is not leader[0]:
            tests.append(one.test.format(of=f"q.{one.column}", value=place))
    if leader is not None:
        rows = " AND ".join([leader[0].rows.format(value=leader[1]), *inside])
        conditions.append(f"q.{leader[0].column} = ANY(ARRAY({rows}))")
    if after is not None:
        compared = "<" if order.descending else ">"
        conditions.append(f"(q.{order.sort}, q.id) {compared} ({bind(after.moment)}, {bind(after.photo_id)})")
    direction = "DESC" if order.descending else "ASC"
    ordered = f"ORDER BY q.{order.sort} {direction}, q.id {direction}"
    photos = f"photos q WHERE {' AND '.join(conditions)}"
    if tests and (leader is not None or walked is not None):
        # Sorted first, then looked at one by one until the page is full.
        bound = "OFFSET 0" if walked is None else f"LIMIT {walked:d}"
        photos = f"(SELECT q.id, q.image_id, q.{order.sort} FROM {photos} {ordered} {bound}) q WHERE {' AND '.join(tests)}"
    elif tests:
        photos += f" AND {' AND '.join(tests)}"
    return f"SELECT q.id FROM {photos} {ordered} LIMIT {bind(limit)}", values


def _plain_conditions(wanted: PhotoFilter, bind: Bind) -> list[str]:
    conditions = _of_photo(wanted, bind)
    if wanted.taken_from is not None:
        conditions.append(f"q.taken_at >= {bind(wanted.taken_from)}")
    if wanted.taken_to is not None:
        conditions.append(f"q.taken_at < {bind(wanted.taken_to)}")
    nobody = _nobody(wanted)
    if nobody:
        place = bind(list(nobody))
        conditions.append(f"(SELECT count(*) FROM faces WHERE image_id = q.image_id AND person_id = ANY({place}::uuid[])) = 0")
    return conditions


def _of_photo(wanted: PhotoFilter, bind: Bind) -> list[str]:
    conditions = []
    if wanted.untagged:
        conditions.append("q.tag_count = 0")
    if wanted.folder is not None and wanted.subfolders and wanted.folder:
        # Not a range: what sorts between is another matter in every locale.
        conditions.append(f"(q.folder = {bind(wanted.folder)} OR starts_with(q.folder, {bind(wanted.folder + '/')}))")
    elif wanted.folder is not None and not wanted.subfolders:
        conditions.append(f"q.folder = {bind(wanted.folder)}")
    return conditions


def _nobody(wanted: PhotoFilter) -> tuple[UUID, ...]:
    return (*wanted.without, *(wanted.person_ids if wanted.persons is PersonsMatch.NONE else ()))
