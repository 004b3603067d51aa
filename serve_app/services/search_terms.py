"""What each term of a search may mean in this library: words of photos, persons, or either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.storage import person_names, photo_search
from serve_app.storage.database import Connection
from serve_app.storage.person_names import NamedPerson
from serve_app.storage.photo_search import EXACT, LOOSE, TYPO, WantedTerm
from serve_app.text.calendar_words import CALENDAR_KEYS
from serve_app.text.photo_document import HEARD
from serve_app.text.photo_matches import How
from serve_app.text.text_queries import Form, Term
from serve_app.text.words import distance, sound, typos_allowed

_MAX_TYPOS = 8
"""Words that a misspelt one may mean."""
_MIN_COMPOUND = 5
"""Letters of a word with which a longer one, of which there is no photo, may begin."""
_PERSON_SCORES = {How.EXACT: 1.0, How.BEGINNING: 0.8, How.SOUND: 0.7, How.TYPO: 0.5}


@dataclass(frozen=True, slots=True)
class Meaning:
    """`exact`, `loose`, `typos`: forms that may be in the words of a photo; none where no photo can have them. `persons`:
    who it may be, all found in the same way."""

    term: Term
    exact: tuple[Form, ...] = ()
    loose: tuple[Form, ...] = ()
    typos: tuple[Form, ...] = ()
    persons: tuple[NamedPerson, ...] = ()
    how: How = How.EXACT

    @property
    def nothing(self) -> bool:
        return not (self.exact or self.loose or self.typos or self.persons)

    @property
    def of_words(self) -> bool:
        """Neither a person nor a date."""
        return not self.persons and self.term.date is None

    def wanted(self) -> WantedTerm:
        forms = ((EXACT, self.exact), (LOOSE, self.loose), (TYPO, self.typos))
        return WantedTerm(
            tuple((quality, one) for quality, one in forms if one),
            tuple(person.id for person in self.persons),
            _PERSON_SCORES[self.how],
        )

    def ways(self) -> list[tuple[How, Sequence[Form]]]:
        return [(How.EXACT, self.exact), (How.BEGINNING, self.loose), (How.TYPO, self.typos)]


async def meanings(
    connection: Connection, collection: Collection, terms: Sequence[Term], *, forgiving: bool = False
) -> list[Meaning]:
    """Misspelt words are looked for only where a term means nothing else; with `forgiving`, everywhere. Terms that together
    are the name of one person become one."""
    named = await person_names.beginning(connection, collection, sorted({word for term in terms for word in term.names}))
    simple = {word for term in terms if (word := _simple(term)) is not None}
    heard = {word: one for word in simple if (one := sound(word)) is not None}
    beginnings, whole = await photo_search.known(
        connection, collection, sorted(simple), sorted({one for word in heard.values() for one in (word, HEARD + word)})
    )
    found = []
    for term in terms:
        meaning = _with_persons(Meaning(term, term.exact, term.loose), named, term.names)
        word = _simple(term)
        if word is not None and not (
            word in beginnings
            or any(one.startswith(word) for one in CALENDAR_KEYS)
            or (word in heard and {heard[word], HEARD + heard[word]} & whole)
        ):
            meaning = replace(meaning, exact=(), loose=())
        found.append(meaning)
    wrong = [one for one in found if forgiving or one.nothing]
    if any(_misspelt(one.term) for one in wrong):
        corrected = await _corrected(connection, collection, wrong)
        found = [corrected.get(id(one), one) for one in found]
    return _joined(found)


def _simple(term: Term) -> str | None:
    """The one word of letters that the term is; None for dates, numbers and what has several parts."""
    if term.date is not None or len(term.exact) != 1 or len(term.exact[0].words) != 1:
        return None
    word = term.exact[0].words[0]
    return word if word.isalpha() else None


def _misspelt(term: Term) -> bool:
    word = _simple(term)
    return word is not None and not term.quoted and typos_allowed(word) > 0


def _with_persons(meaning: Meaning, named: Sequence[NamedPerson], words: Sequence[str]) -> Meaning:
    """With those who fit best: where somebody is called so, nobody who is called nearly so."""
    ways: dict[How, list[NamedPerson]] = {}
    for person in named:
        if words and (how := fits(words, person)) is not None:
            ways.setdefault(how, []).append(person)
    for how in (How.EXACT, How.SOUND, How.BEGINNING):
        if how in ways:
            return replace(meaning, persons=tuple(ways[how]), how=how)
    return meaning


def fits(words: Sequence[str], person: NamedPerson) -> How | None:
    """How the person is called so: every word in its name, or by sound, or beginning one."""
    ways = [_fits(word, person) for word in words]
    for how in (How.BEGINNING, How.SOUND):
        if None in ways:
            return None
        if how in ways:
            return how
    return How.EXACT


def _fits(word: str, person: NamedPerson) -> How | None:
    if word in person.words:
        return How.EXACT
    if sound(word) in person.heard:
        return How.SOUND
    return How.BEGINNING if len(word) > 1 and any(one.startswith(word) for one in person.words) else None


async def _corrected(connection: Connection, collection: Collection, wrong: Sequence[Meaning]) -> dict[int, Meaning]:
    """The meanings with what else may be meant, by their identity."""
    words = {id(one): word for one in wrong if _misspelt(one.term) and (word := _simple(one.term)) is not None}
    asked = sorted(set(words.values()))
    similar = await photo_search.similar_words(connection, collection, asked)
    inside = sorted({word[:length] for word in asked for length in range(_MIN_COMPOUND, len(word))})
    _, parts = await photo_search.known(connection, collection, [], inside)
    named = await person_names.similar(connection, collection, asked)
    found: dict[int, Meaning] = {}
    for one in wrong:
        word = words.get(id(one))
        if word is None:
            continue
        most = typos_allowed(word)
        near = [
            (away, other)
            for other in (*similar.get(word, ()), *CALENDAR_KEYS)
            if other != word and (away := distance(word, other, most)) is not None
        ]
        typos = tuple(Form((other,)) for _, other in sorted(set(near))[:_MAX_TYPOS])
        # Hochzeitsfeier begins with Hochzeit.
        typos += tuple(Form((part,)) for part in sorted(parts, key=len, reverse=True) if word.startswith(part))[:1]
        persons = tuple(person for person in named if any(distance(word, name, most) is not None for name in person.words))
        if one.persons or not persons:
            found[id(one)] = replace(one, typos=typos)
        else:
            found[id(one)] = replace(one, typos=typos, persons=persons, how=How.TYPO)
    return found


def _joined(found: Sequence[Meaning]) -> list[Meaning]:
    """Terms side by side that are of one person's name, as one. "Anna and Bob" are two, whoever is called Anna Bob."""
    joined: list[Meaning] = []
    for one in found:
        before = joined[-1] if joined else None
        if before is None or one.term.parted or not one.persons or not before.persons:
            joined.append(one)
            continue
        there = {person.id for person in one.persons}
        both = tuple(person for person in before.persons if person.id in there)
        if not both:
            joined.append(one)
            continue
        names = (*before.term.names, *one.term.names)
        term = replace(before.term, text=f"{before.term.text} {one.term.text}", names=names, date=None)
        written = bool(before.exact or before.loose) and bool(one.exact or one.loose)
        how = max(before.how, one.how, key=list(_PERSON_SCORES).index)
        joined[-1] = Meaning(term, (Form(names),) if written else (), persons=both, how=how)
    return joined


def person_ids(found: Sequence[Meaning]) -> list[UUID]:
    return list(dict.fromkeys(person.id for meaning in found for person in meaning.persons))
