"""The filters of photos in an address: the same wherever photos are listed or searched."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query

from serve_app.api.forms import FieldValue, validate
from serve_app.api.photo_schemas import MAX_PERSONS, MAX_TAGS_WANTED, PhotoFilterFields
from serve_app.errors import JsonValue
from serve_app.photos import PersonsMatch, PhotoFilter


async def plain_filter(
    tag: Annotated[list[str], Query(max_length=MAX_TAGS_WANTED, description="Several: all of them.")] = [],  # noqa: B006
    untagged: Annotated[bool, Query(description="Only photos without any tag.")] = False,
    taken_from: Annotated[str | None, Query(description="Only photos taken at or after this.")] = None,
    taken_to: Annotated[str | None, Query(description="Only photos taken before this.")] = None,
    folder: Annotated[str | None, Query(description="Only photos of this folder; empty: of none.")] = None,
    subfolders: Annotated[bool, Query(description="Those below `folder`, too; all, where that is empty.")] = False,
) -> PhotoFilter:
    """All but the persons. Raises InvalidRequest."""
    tags: list[JsonValue] = [*tag]
    given: dict[str, FieldValue] = {"tag": tags, "taken_from": taken_from, "taken_to": taken_to, "folder": folder}
    fields = validate(PhotoFilterFields, {name: value for name, value in given.items() if value is not None})
    return PhotoFilter(
        tags=fields.tag,
        untagged=untagged,
        taken_from=fields.taken_from,
        taken_to=fields.taken_to,
        folder=fields.folder,
        subfolders=subfolders,
    )


PlainFilter = Annotated[PhotoFilter, Depends(plain_filter)]


async def photo_filter(
    plain: PlainFilter,
    person_id: Annotated[list[UUID], Query(max_length=MAX_PERSONS, description="Several: see `persons`.")] = [],  # noqa: B006
    persons: Annotated[
        PersonsMatch, Query(description="Whether any, all or none of `person_id` must be in a photo.")
    ] = PersonsMatch.ANY,
) -> PhotoFilter:
    return PhotoFilter(
        person_ids=tuple(sorted(set(person_id))),
        persons=persons,
        tags=plain.tags,
        untagged=plain.untagged,
        taken_from=plain.taken_from,
        taken_to=plain.taken_to,
        folder=plain.folder,
        subfolders=plain.subfolders,
    )


WantedPhotos = Annotated[PhotoFilter, Depends(photo_filter)]
