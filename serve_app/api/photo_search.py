"""Finding photos: by text, by person, and by everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from serve_app.api.cursors import decode_cursor, encode_cursor
from serve_app.api.deps import ServicesDep, admitted, answer, bounded, read_request, tell_results
from serve_app.api.forms import decode_base64
from serve_app.api.openapi import problems, request_body
from serve_app.api.photo_filters import PlainFilter, WantedPhotos
from serve_app.api.photo_search_schemas import (
    MAX_NAMED,
    MAX_TEXT,
    HitAnswer,
    MatchAnswer,
    NamedPersonAnswer,
    PersonPhotoPage,
    PhotoHitPage,
    PhotoSearchAnswer,
    PhotoSearchFields,
    SelfieAnswer,
    SelfiePerson,
    UnderstoodAnswer,
)
from serve_app.api.photos import photo_answer, position_of, position_text
from serve_app.api.writes import READ_ERRORS
from serve_app.errors import (
    DeadlineExceeded,
    EmbeddingModelMismatch,
    ImageTooLarge,
    InvalidCursor,
    InvalidImage,
    InvalidRequest,
    ModelUnavailable,
    NoFaceDetected,
    PayloadError,
    PayloadTooLarge,
    UnsupportedImage,
    UnsupportedMedia,
)
from serve_app.identity.people import Candidate
from serve_app.photos import PersonsMatch, PhotoFilter, PhotoSort
from serve_app.services.photo_search import FoundPhotos, Hit, PersonsWanted, PhotoQuestion
from serve_app.services.photos import PhotoQuery
from serve_app.services.selfies import Seen, Selfie
from serve_app.storage.person_names import NamedPerson
from serve_app.storage.photo_pages import Order

router = APIRouter(prefix="/search", tags=["photos"])

_MAX_PERSONS_SHOWN = 100
_ERRORS = (*READ_ERRORS, InvalidRequest, InvalidCursor, DeadlineExceeded)
_PICTURE_ERRORS = (
    PayloadError, PayloadTooLarge, UnsupportedMedia, InvalidImage, ImageTooLarge, UnsupportedImage, NoFaceDetected,
    ModelUnavailable, EmbeddingModelMismatch,
)  # fmt: skip
_Text = Annotated[str, Query(max_length=MAX_TEXT, description="Names, tags, places, dates, cameras, file names.")]


@router.get("/photos", response_model=PhotoHitPage, summary="Find photos by text", responses=problems(*_ERRORS))
async def search_photos(
    q: _Text,
    request: Request,
    services: ServicesDep,
    wanted: WantedPhotos,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: str | None = None,
    semantic: Annotated[bool, Query(description="false looks at words only, not at what photos show.")] = True,
) -> Response:
    """The best first. Every word must be found, as it is written, as the beginning of a word, or misspelt; words in quotation
    marks must follow each other. Where no photo has them all, those that have most."""
    key, listing = services.secrets.cursors, f"search {wanted} {semantic} {q}"
    after = None if cursor is None else _place(decode_cursor(key, listing, cursor))
    question = PhotoQuestion(text=q, wanted=wanted, semantic=semantic, limit=limit, after=after)

    async def work() -> Response:
        found = await services.gallery.photo_search.search(question)
        last = f"{found.places[-1]} {found.hits[-1].photo.id}" if found.more and found.hits else None
        return answer(
            PhotoHitPage(
                items=[_hit(one) for one in found.hits],
                complete=found.complete,
                understood=_understood(found),
                semantic=_semantic(found),
                unread_photos=found.unread,
                next_cursor=None if last is None else encode_cursor(key, listing, last),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


def _place(text: str) -> tuple[int, UUID]:
    place, _, photo_id = text.partition(" ")
    return int(place), UUID(photo_id)


@router.get(
    "/by-person", response_model=PersonPhotoPage, summary="Photos of a person", responses=problems(*READ_ERRORS, InvalidCursor)
)
async def search_by_person(
    request: Request,
    services: ServicesDep,
    plain: PlainFilter,
    person_id: Annotated[list[UUID], Query(max_length=MAX_NAMED, description="Several: see `match`.")] = [],  # noqa: B006
    name: Annotated[
        list[Annotated[str, Query(max_length=200)]],
        Query(max_length=MAX_NAMED, description="Everybody who has all its words in the name counts as one."),
    ] = [],  # noqa: B006
    match: Annotated[
        PersonsMatch, Query(description="Whether any, all or none of them must be in a photo.")
    ] = PersonsMatch.ANY,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The newest first. A person or a name that nobody has is a 404."""
    if not person_id and not name:
        raise InvalidRequest("Give `person_id` or `name`.", errors=[{"field": "person_id", "message": "is missing"}])
    references = [*map(str, person_id), *name]
    meant = await services.gallery.photo_search.persons_named(references)
    groups = [tuple(person.id for person in group) for group in meant]
    everybody = tuple(dict.fromkeys(person_id for group in groups for person_id in group))
    wanted: PhotoFilter
    if match is PersonsMatch.ALL:
        wanted = replace(plain, groups=tuple(groups))
    elif match is PersonsMatch.ANY:
        wanted = replace(plain, groups=(everybody,))
    else:
        wanted = replace(plain, without=everybody)
    key, listing = services.secrets.cursors, f"by-person {plain} {match} {order} {references}"
    after = None if cursor is None else position_of(decode_cursor(key, listing, cursor))
    query = PhotoQuery(wanted, Order(PhotoSort.TAKEN, order == "desc"), after, limit + 1)
    found = await services.gallery.photos.page(query)
    items, more = found[:limit], len(found) > limit
    tell_results(request, len(items))
    return answer(
        PersonPhotoPage(
            items=[photo_answer(one) for one in items],
            next_cursor=encode_cursor(key, listing, position_text(items[-1], PhotoSort.TAKEN)) if more else None,
            persons=_persons([person for group in meant for person in group]),
        )
    )


@router.post(
    "/photos",
    response_model=PhotoSearchAnswer,
    summary="Find photos by everything at once",
    dependencies=[Depends(admitted)],
    responses=problems(*_ERRORS, *_PICTURE_ERRORS),
    openapi_extra=request_body(
        PhotoSearchFields,
        files=("file",),
        raw=True,
        json_example={"text": "beach august 2024", "persons": {"all": ["Anna"], "none": ["Bob"]}, "image": "/9j/4AAQ..."},
    ),
)
async def search_everything(request: Request, services: ServicesDep) -> Response:
    """A selfie, persons, text, dates, tags and a folder: all that is given must hold. Nothing is kept of the selfie."""
    fields = await read_request(request, services, PhotoSearchFields, files=frozenset({"file"}), raw_file="file")

    async def work() -> Response:
        image = fields.file if fields.image is None else await decode_base64(fields.image)
        selfie = None if image is None and fields.face_id is None else Selfie(image, fields.face_id)
        question = PhotoQuestion(
            text=fields.text,
            wanted=PhotoFilter(
                tags=fields.tags,
                taken_from=fields.taken_from,
                taken_to=fields.taken_to,
                folder=fields.folder,
                subfolders=fields.subfolders,
            ),
            persons=PersonsWanted(fields.persons.all, fields.persons.any, fields.persons.none),
            selfie=selfie,
            semantic=fields.semantic,
            limit=fields.limit,
        )
        found = await services.gallery.photo_search.search(question)
        tell_results(request, len(found.hits))
        return answer(
            PhotoSearchAnswer(
                items=[_hit(one) for one in found.hits],
                complete=found.complete,
                understood=_understood(found),
                semantic=_semantic(found),
                unread_photos=found.unread,
                selfie=None if found.seen is None else _selfie(found.seen),
            )
        )

    return await bounded(request, work(), services.settings.worker_timeout)


def _hit(hit: Hit) -> HitAnswer:
    return HitAnswer(
        photo=photo_answer(hit.photo),
        score=hit.score,
        text_score=hit.text_score,
        semantic_rank=hit.semantic_rank,
        similarity=None if hit.face is None else hit.face.similarity,
        face_id=None if hit.face is None else hit.face.face_id,
        decision=None if hit.face is None else hit.face.decision,
        complete=hit.complete,
        matches=[
            MatchAnswer(term=one.term, field=one.field, text=one.text, how=one.how, person_id=one.person_id)
            for one in hit.matches
        ],
    )


def _understood(found: FoundPhotos) -> UnderstoodAnswer:
    meant = found.understood
    return UnderstoodAnswer(
        terms=list(meant.terms),
        ignored=list(meant.ignored),
        persons=_persons(meant.persons),
        taken_from=meant.first,
        taken_to=None if meant.last is None else meant.last + timedelta(days=1),
    )


def _persons(persons: Sequence[NamedPerson]) -> list[NamedPersonAnswer]:
    distinct = {person.id: person for person in persons}
    return [NamedPersonAnswer(id=one.id, name=one.name) for one in list(distinct.values())[:_MAX_PERSONS_SHOWN]]


def _semantic(found: FoundPhotos) -> Literal["used", "unavailable", "off"]:
    if found.semantic is None:
        return "off"
    return "used" if found.semantic else "unavailable"


def _selfie(seen: Seen) -> SelfieAnswer:
    return SelfieAnswer(
        decision=None if seen.decision is None else seen.decision.value,
        best=_selfie_person(seen.best),
        second=_selfie_person(seen.second),
        margin=seen.margin,
        threshold=seen.point.threshold if seen.point else None,
        suggest_threshold=seen.point.suggest_threshold if seen.point else None,
        face_count=seen.face_count,
    )


def _selfie_person(candidate: Candidate | None) -> SelfiePerson | None:
    if candidate is None:
        return None
    return SelfiePerson(
        id=candidate.person_id, name=candidate.name, similarity=candidate.similarity, face_id=candidate.face_id
    )
