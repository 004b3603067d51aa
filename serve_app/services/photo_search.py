"""Photos by what is written of them, who is in them, what they show, and a selfie: several rankings, made one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Protocol
from uuid import UUID

from serve_app.errors import CapacityError, InvalidRequest, NotFound, PartUnavailable
from serve_app.identity.people import Collection
from serve_app.photos import Photo, PhotoFilter
from serve_app.services.search_terms import Meaning, meanings, person_ids
from serve_app.services.selfies import MatchedFace, NotSeen, Seen, Selfie, Selfies
from serve_app.storage import collections, person_names, photo_search, photo_words, photos
from serve_app.storage.database import Connection, Database
from serve_app.storage.person_names import NamedPerson
from serve_app.storage.photo_search import RankedPhoto
from serve_app.text.fusion import fuse
from serve_app.text.photo_document import texts_of
from serve_app.text.photo_matches import Match, Matcher, shown
from serve_app.text.text_queries import Term, parse

logger = logging.getLogger("ray.serve")

SEMANTIC_WEIGHT = 0.5
"""Of what a picture shows beside what is written of it: written words are what somebody said, and a model always finds
something. With k of 60, the first that a model finds comes after 60 that have the words."""
MAX_SEMANTIC = 100
"""Photos that a model adds."""
_NO_FILTER = PhotoFilter()


class SemanticRanker(Protocol):
    async def rank(self, collection_id: str, text: str, limit: int) -> list[UUID] | None:
        """Photos that show most of what the text says, the best first; None where no model is loaded."""
        ...

    async def rank_among(self, collection_id: str, text: str, photo_ids: Sequence[UUID]) -> list[UUID] | None: ...


@dataclass(frozen=True, slots=True)
class PersonsWanted:
    """Ids of persons, or names."""

    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    none: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PhotoQuestion:
    """`text`: as it was typed. `semantic`: whether pictures are looked at, too. `after`: where the page before ended: the
    place in the ranking and the photo there."""

    text: str | None = None
    wanted: PhotoFilter = _NO_FILTER
    persons: PersonsWanted = PersonsWanted()
    selfie: Selfie | None = None
    semantic: bool = True
    limit: int = 100
    after: tuple[int, UUID] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """`text_score`: 0 to 1; `semantic_rank`: from 1; `face`: its face most like the selfie. None where it was not found so.
    `complete`: it has every word."""

    photo: Photo
    score: float
    text_score: float | None
    semantic_rank: int | None
    face: MatchedFace | None
    complete: bool
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Understood:
    """`ignored`: words that nothing in the library has. `first`, `last`: the days that a date of the text means."""

    terms: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    persons: tuple[NamedPerson, ...] = ()
    first: date | None = None
    last: date | None = None


@dataclass(frozen=True, slots=True)
class FoundPhotos:
    """`places`: of each hit in the whole ranking, from 0. `more`: there are further ones. `semantic`: None where nothing was
    asked of the model, else whether it answered. `unread`: photos whose words are not known yet."""

    hits: list[Hit] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    more: bool = False
    complete: bool = True
    understood: Understood = Understood()
    seen: Seen | None = None
    semantic: bool | None = None
    unread: int = 0


@dataclass(frozen=True, slots=True)
class _Ranking:
    """`semantic`: what the model said; None where it did not. `asked`: whether it was to."""

    order: list[tuple[UUID, float]]
    by_text: dict[UUID, RankedPhoto]
    semantic: list[UUID] | None
    asked: bool
    complete: bool
    meanings: list[Meaning]
    ignored: list[Term]


class PhotoSearch:
    """Every method raises InvalidRequest, NotFound for a person who is not there, DatabaseUnavailable and Overloaded."""

    def __init__(self, database: Database, selfies: Selfies, semantic: SemanticRanker, collection_id: str) -> None:
        self._database = database
        self._selfies = selfies
        self._semantic = semantic
        self.collection_id = collection_id

    async def search(self, question: PhotoQuestion) -> FoundPhotos:
        """Every word must be found, unless no photo has them all: then those that have most. Raises also what
        Selfies.look raises."""
        terms = _parsed(question.text) if question.text is not None else []
        collection = await self._existing()
        if collection is None:
            return FoundPhotos(understood=_understood([], terms))
        await person_names.refresh(self._database, collection)
        async with self._database.connection() as connection:
            wanted = await self._with_persons(connection, collection, question.wanted, question.persons)
        seen = None if question.selfie is None else await self._selfies.look(collection, question.selfie)
        if seen is not None and seen.person_id is not None:
            wanted = replace(wanted, groups=(*wanted.groups, (seen.person_id,)))
        similar = seen.photos if isinstance(seen, NotSeen) else None
        found = await self._ranking(collection, terms, wanted, similar, semantic=question.semantic)
        return await self._page(collection, question, found, seen)

    async def persons_named(self, references: Sequence[str]) -> list[tuple[NamedPerson, ...]]:
        """For each id or name, who is meant. Raises NotFound for one that is nobody's."""
        collection = await self._existing()
        if collection is None:
            if references:
                raise _nobody(references[0])
            return []
        await person_names.refresh(self._database, collection)
        async with self._database.connection() as connection:
            return [await _persons(connection, collection, one) for one in references]

    async def _existing(self) -> Collection | None:
        async with self._database.connection() as connection:
            try:
                return await collections.get(connection, self.collection_id)
            except NotFound:
                return None

    async def _with_persons(
        self, connection: Connection, collection: Collection, wanted: PhotoFilter, persons: PersonsWanted
    ) -> PhotoFilter:
        async def ids(reference: str) -> tuple[UUID, ...]:
            return tuple(one.id for one in await _persons(connection, collection, reference))

        groups = [await ids(one) for one in persons.all]
        if persons.any:
            groups.append(tuple(dict.fromkeys([found for one in persons.any for found in await ids(one)])))
        nobody = [found for one in persons.none for found in await ids(one)]
        return replace(wanted, groups=(*wanted.groups, *groups), without=(*wanted.without, *dict.fromkeys(nobody)))

    async def _ranking(
        self,
        collection: Collection,
        terms: Sequence[Term],
        wanted: PhotoFilter,
        similar: Mapping[UUID, float] | None,
        *,
        semantic: bool,
    ) -> _Ranking:
        """`similar`: the photos that may be meant by a selfie; None for all."""
        async with self._database.connection() as connection:
            among = None if similar is None else await photo_search.among(connection, collection, list(similar), wanted)
            asked = await meanings(connection, collection, terms)
            by_text, used, complete = await _by_text(connection, collection, asked, terms, wanted, among)
        shows = None
        words = " ".join(one.term.text for one in asked if one.of_words)
        if words and semantic:
            shows = await self._showing(collection, words, [one for one in used if not one.of_words], wanted, among)
        rankings: list[list[UUID]] = [[one.photo_id for one in by_text]]
        weights = [1.0]
        if shows:
            rankings.append(shows)
            weights.append(SEMANTIC_WEIGHT)
        if among is not None:
            found = {photo_id for ranking in rankings for photo_id in ranking}
            rankings.append([photo_id for photo_id in among if not terms or photo_id in found])
            weights.append(1.0)
        fused = fuse(rankings, weights)
        if sum(bool(ranking) for ranking in rankings) == 1:
            # One way only: its own measure says more than a place.
            scores = {one.photo_id: one.score for one in by_text} or (similar if among else None) or {}
            fused = [(photo_id, scores.get(photo_id, score)) for photo_id, score in fused]
        ignored = [one.term for one in asked if one not in used and one.term not in {other.term for other in used}]
        texts = {one.photo_id: one for one in by_text}
        return _Ranking(fused, texts, shows, semantic and bool(words), complete, used, ignored)

    async def _showing(
        self,
        collection: Collection,
        words: str,
        others: Sequence[Meaning],
        wanted: PhotoFilter,
        among: list[UUID] | None,
    ) -> list[UUID] | None:
        """Photos that show it, and fulfil all else; None where no model says so."""
        try:
            if wanted == _NO_FILTER and not others and among is None:
                found = await self._semantic.rank(collection.id, words, MAX_SEMANTIC)
            else:
                async with self._database.connection() as connection:
                    if among is None:
                        among = await photo_search.candidates(connection, collection, [one.wanted() for one in others], wanted)
                    elif others:
                        scored = await photo_search.ranked(connection, collection, among, [one.wanted() for one in others])
                        among = [one.photo_id for one in scored if all(one.scores)]
                found = await self._semantic.rank_among(collection.id, words, among)
        except (CapacityError, PartUnavailable) as error:
            # What is written is found all the same.
            logger.warning("photos were not searched by what they show: %s", error.detail)
            return None
        return None if found is None else found[:MAX_SEMANTIC]

    async def _page(self, collection: Collection, question: PhotoQuestion, found: _Ranking, seen: Seen | None) -> FoundPhotos:
        ids = [photo_id for photo_id, _ in found.order]
        start = 0
        if question.after is not None:
            place, photo_id = question.after
            # Photos came and went since: behind the last one that was shown, wherever it is now.
            start = ids.index(photo_id) + 1 if photo_id in ids else place + 1
        page = found.order[start : start + question.limit]
        async with self._database.connection() as connection:
            there = {one.id: one for one in await photos.of_ids(connection, collection, [photo_id for photo_id, _ in page])}
            persons = await photo_search.persons_in(connection, list(there), person_ids(found.meanings))
            unread = await photo_words.unread(connection, collection)
            faces = {} if seen is None else await self._selfies.matched(connection, collection, seen, list(there))
        shows = {photo_id: rank for rank, photo_id in enumerate(found.semantic or (), start=1)}
        # On a thread: hundreds of photos may have thousands of words each.
        matches = await asyncio.to_thread(_all_matches, list(there.values()), found.meanings, persons)
        hits, places = [], []
        for place, (photo_id, score) in enumerate(page, start=start):
            photo = there.get(photo_id)
            if photo is None:
                continue  # Erased meanwhile.
            text = found.by_text.get(photo_id)
            hits.append(
                Hit(
                    photo,
                    round(score, 6),
                    None if text is None or not found.meanings else round(text.score, 4),
                    shows.get(photo_id),
                    faces.get(photo_id),
                    found.complete and text is not None,
                    matches[photo_id],
                )
            )
            places.append(place)
        return FoundPhotos(
            hits,
            places,
            start + question.limit < len(ids),
            found.complete,
            _understood(found.meanings, found.ignored),
            seen,
            found.semantic is not None if found.asked else None,
            unread,
        )


async def _by_text(
    connection: Connection,
    collection: Collection,
    asked: list[Meaning],
    terms: Sequence[Term],
    wanted: PhotoFilter,
    among: list[UUID] | None,
) -> tuple[list[RankedPhoto], list[Meaning], bool]:
    """The photos, the best first; what the terms were taken for; and whether the photos have all of them."""

    async def having(found: Sequence[Meaning], *, every: bool = True) -> list[RankedPhoto]:
        meant = [one.wanted() for one in found]
        if among is not None:
            ids = among
        elif every:
            ids = await photo_search.candidates(connection, collection, meant, wanted)
        else:
            ids = await photo_search.any_of(connection, collection, meant, wanted)
        scored = await photo_search.ranked(connection, collection, ids, meant) if ids else []
        return [one for one in scored if (all if every else any)(one.scores)] if meant else scored

    known = [one for one in asked if not one.nothing]
    if not terms:
        return (await having([]) if among is None else []), [], True
    if not known:
        return [], [], False
    if len(known) == len(asked) and (found := await having(known)):
        return found, known, True
    forgiving = [one for one in await meanings(connection, collection, terms, forgiving=True) if not one.nothing]
    if forgiving != known and (found := await having(forgiving)):
        return found, forgiving, len(forgiving) == len(asked)
    if len(known) < len(asked) and (found := await having(known)):
        return found, known, False
    there = await photo_search.found_at_all(connection, collection, [one.wanted() for one in forgiving])
    some = [one for one, exists in zip(forgiving, there, strict=True) if exists]
    if not some:
        return [], [], False
    found = await having(some) if len(some) < len(forgiving) else []
    return found or await having(some, every=False), some, False


async def _persons(connection: Connection, collection: Collection, reference: str) -> tuple[NamedPerson, ...]:
    """By id, or all whose name has every word of it. Raises NotFound."""
    try:
        person = await person_names.by_id(connection, collection, UUID(reference))
    except ValueError:
        found = await person_names.called(connection, collection, reference)
        if not found:
            raise _nobody(reference) from None
        return found
    if person is None:
        raise _nobody(reference)
    return (person,)


def _nobody(reference: str) -> NotFound:
    shown_name = reference[:64].encode("utf-8", "replace").decode()
    return NotFound(f"Nobody in the library is called {shown_name!r}.", person=shown_name)


def _parsed(text: str) -> list[Term]:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidRequest(f"The text {error}.") from None


def _all_matches(
    found: Sequence[Photo], meant: Sequence[Meaning], persons: Mapping[UUID, set[UUID]]
) -> dict[UUID, tuple[Match, ...]]:
    matcher = Matcher()
    return {photo.id: _matches(matcher, photo, meant, persons.get(photo.id, set())) for photo in found}


def _matches(matcher: Matcher, photo: Photo, found: Sequence[Meaning], persons: set[UUID]) -> tuple[Match, ...]:
    texts = texts_of(photo)
    matches = []
    for meaning in found:
        term = meaning.term.text
        matches += [Match(term, "person", one.name, meaning.how, one.id) for one in meaning.persons if one.id in persons]
        written = matcher.best(texts, term, meaning.ways())
        if written is not None:
            matches.append(replace(written, text=shown(written.text, term)))
    return tuple(matches)


def _understood(found: Sequence[Meaning], ignored: Sequence[Term]) -> Understood:
    dates = [one.term.date for one in found if one.term.date is not None]
    firsts = [one.first for one in dates if one.first is not None]
    lasts = [one.last for one in dates if one.last is not None]
    persons = {person.id: person for one in found for person in one.persons}
    return Understood(
        tuple(one.term.text for one in found),
        tuple(term.text for term in ignored),
        tuple(persons.values()),
        max(firsts, default=None),
        min(lasts, default=None),
    )
