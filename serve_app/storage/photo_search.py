"""Photos by what is written of them and who is in them: candidates first, the newest of many, and then how well each fits.

A term is found in the words of a photo, in the persons in it, or in either. Where a term is a matter of words alone, the
index of words finds the candidates; else persons do (photo_pages), and a term that may be either is looked for both ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from serve_app.faces import FloatArray
from serve_app.identity.people import Collection
from serve_app.photos import PhotoFilter
from serve_app.storage.database import Connection
from serve_app.storage.photo_pages import Bind, Order, joins, page_query, smallest
from serve_app.storage.vectors import VectorTables, stack
from serve_app.text.photo_document import WEIGHTS
from serve_app.text.text_queries import Form

MAX_CANDIDATES = 1000
"""Photos that are ranked: the newest of those that fit."""
EXACT, LOOSE, TYPO = 1.0, 0.7, 0.4
"""How much a word counts that is the very one, begins with it or sounds like it, or is misspelt."""

_MAX_SIMILAR = 12
_VOCABULARY_SIMILARITY = "0.25"
_LEXEME = re.compile(r"[@~]?[a-z0-9]+")
_BY_DATE = Order()


@dataclass(frozen=True, slots=True)
class WantedTerm:
    """`forms`: by EXACT, LOOSE and TYPO, what the words of a photo have; `person_ids`: or who is in it, which counts
    `person_score`."""

    forms: tuple[tuple[float, tuple[Form, ...]], ...] = ()
    person_ids: tuple[UUID, ...] = ()
    person_score: float = 1.0

    def tsquery(self) -> str:
        forms = [form for _, found in self.forms for form in found]
        beginnings = {form.words for form in forms if form.prefix}
        # A beginning has the whole word, too.
        return tsquery([form for form in forms if form.prefix or form.words not in beginnings])


@dataclass(frozen=True, slots=True)
class RankedPhoto:
    """`scores`: of each term, from 0 for not there to 1; without any term every photo fits."""

    photo_id: UUID
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores) if self.scores else 1.0


def tsquery(forms: Sequence[Form], letters: str = "") -> str:
    """One of the forms, in fields of these weights; all words are ASCII letters and digits. `letters`: empty for any field."""
    return " | ".join(_phrase(form, letters) for form in forms)


def _phrase(form: Form, letters: str) -> str:
    parts = []
    for place, word in enumerate(form.words, start=1):
        assert _LEXEME.fullmatch(word), word
        mark = ("*" if form.prefix and place == len(form.words) else "") + letters
        parts.append(f"'{word}'{':' if mark else ''}{mark}")
    return f"({' <-> '.join(parts)})"


async def candidates(
    connection: Connection, collection: Collection, terms: Sequence[WantedTerm], wanted: PhotoFilter
) -> list[UUID]:
    """Photos that have every term and fulfil the filter, the newest, each once."""
    by_words = [term for term in terms if term.forms and not term.person_ids]
    by_persons = [term for term in terms if term.person_ids and not term.forms]
    either = [term for term in terms if term.forms and term.person_ids]
    wanted = replace(wanted, groups=(*wanted.groups, *(term.person_ids for term in by_persons)))
    if by_words:
        return await _by_words(connection, collection, [one.tsquery() for one in by_words], wanted, either)
    if not either:
        return await _by_persons(connection, collection, wanted, ())
    first, others = either[0], either[1:]
    found = await _by_words(connection, collection, [first.tsquery()], wanted, others)
    meeting = replace(wanted, groups=(*wanted.groups, first.person_ids))
    return list(dict.fromkeys([*found, *await _by_persons(connection, collection, meeting, others)]))


async def any_of(
    connection: Connection, collection: Collection, terms: Sequence[WantedTerm], wanted: PhotoFilter
) -> list[UUID]:
    """Photos that have one of the terms at least."""
    found: list[UUID] = []
    words = [term.tsquery() for term in terms if term.forms]
    if words:
        found += await _by_words(connection, collection, [" | ".join(f"({one})" for one in words)], wanted, ())
    person_ids = tuple(dict.fromkeys(person_id for term in terms for person_id in term.person_ids))
    if person_ids:
        found += await _by_persons(connection, collection, replace(wanted, groups=(*wanted.groups, person_ids)), ())
    return list(dict.fromkeys(found))


async def among(connection: Connection, collection: Collection, photo_ids: Sequence[UUID], wanted: PhotoFilter) -> list[UUID]:
    """Those of the photos that fulfil the filter, in the order given."""

    def only(bind: Bind) -> list[str]:
        return [f"q.id = ANY({bind(list(photo_ids))}::uuid[])"]

    query, values = page_query(collection, wanted, _BY_DATE, None, len(photo_ids), None, only)
    there = {row["id"] for row in await connection.fetch(query, *values)}
    return [photo_id for photo_id in dict.fromkeys(photo_ids) if photo_id in there]


async def found_at_all(connection: Connection, collection: Collection, terms: Sequence[WantedTerm]) -> list[bool]:
    """Whether any photo has the words of the term; True where it is about persons."""
    found = []
    for term in terms:
        there = bool(term.person_ids) or await connection.fetchval(
            f"SELECT true FROM photo_texts WHERE collection_key = $1 AND words @@ {_literal(term.tsquery())} LIMIT 1",
            collection.key,
        )
        found.append(bool(there))
    return found


async def _by_words(
    connection: Connection,
    collection: Collection,
    queries: Sequence[str],
    wanted: PhotoFilter,
    either: Sequence[WantedTerm],
) -> list[UUID]:
    values: list[object] = [collection.key]

    def bind(value: object) -> str:
        values.append(value)
        return f"${len(values)}"

    filters, of_photo = joins(wanted, bind)
    conditions = [
        "t.collection_key = $1",
        f"t.words @@ {_literal(' & '.join(f'({query})' for query in queries))}",
        *filters,
    ]
    for term in either:
        persons = f"SELECT s.image_id FROM faces s WHERE s.person_id = ANY({bind(list(term.person_ids))}::uuid[])"
        conditions.append(f"(t.words @@ {_literal(term.tsquery())} OR t.image_id IN ({persons}))")
    photos = "JOIN photos q ON q.id = t.photo_id" if of_photo else ""
    rows = await connection.fetch(
        f"SELECT t.photo_id FROM photo_texts t {photos} WHERE {' AND '.join(conditions)}"
        f" ORDER BY t.taken_at DESC, t.photo_id DESC LIMIT {MAX_CANDIDATES:d}",
        *values,
    )
    return [row["photo_id"] for row in rows]


def _literal(query: str) -> str:
    """In the statement itself, so that the planner knows frequent words from rare ones; `_phrase` lets nothing else in than
    ASCII letters and digits."""
    quoted = query.replace("'", "''")
    return f"'{quoted}'::tsquery"


async def _by_persons(
    connection: Connection, collection: Collection, wanted: PhotoFilter, either: Sequence[WantedTerm]
) -> list[UUID]:
    def more(bind: Bind) -> list[str]:
        return [
            f"((SELECT words FROM photo_texts WHERE photo_id = q.id) @@ {_literal(term.tsquery())} OR (SELECT true FROM faces"
            f" WHERE image_id = q.image_id AND person_id = ANY({bind(list(term.person_ids))}::uuid[]) LIMIT 1))"
            for term in either
        ]

    leading = await smallest(connection, collection, wanted)
    query, values = page_query(collection, wanted, _BY_DATE, None, MAX_CANDIDATES, leading, more)
    return [row["id"] for row in await connection.fetch(query, *values)]


async def ranked(
    connection: Connection, collection: Collection, photo_ids: Sequence[UUID], terms: Sequence[WantedTerm]
) -> list[RankedPhoto]:
    """The photos by how well they fit, the newest first among equals; none that has not been read yet, unless all is about
    persons."""
    if not any(term.forms for term in terms):
        return await _ranked_by_persons(connection, collection, photo_ids, terms)
    values: list[object] = [collection.key, list(photo_ids)]

    def bind(value: object) -> str:
        values.append(value)
        return f"${len(values)}"

    columns = [f"{_score(term, bind)} AS s{place}" for place, term in enumerate(terms)]
    rows = await connection.fetch(
        f"SELECT {', '.join(['t.photo_id', *columns])} FROM photo_texts t"
        " WHERE t.collection_key = $1 AND t.photo_id = ANY($2::uuid[]) ORDER BY t.taken_at DESC, t.photo_id DESC",
        *values,
    )
    places = range(len(terms))
    found = [RankedPhoto(row["photo_id"], tuple(row[f"s{place}"] for place in places)) for row in rows]
    # Sorting is stable: equals stay in the order of their dates.
    return sorted(found, key=lambda one: -round(one.score, 6))


async def _ranked_by_persons(
    connection: Connection, collection: Collection, photo_ids: Sequence[UUID], terms: Sequence[WantedTerm]
) -> list[RankedPhoto]:
    """In the order given; everybody of a term counts the same."""
    if not terms:
        return [RankedPhoto(photo_id, ()) for photo_id in photo_ids]
    there = await persons_in(connection, photo_ids, [person_id for term in terms for person_id in term.person_ids])
    found = []
    for photo_id in photo_ids:
        persons = there.get(photo_id, set())
        scores = [term.person_score if persons & set(term.person_ids) else 0.0 for term in terms]
        found.append(RankedPhoto(photo_id, tuple(scores)))
    return sorted(found, key=lambda one: -round(one.score, 6))


def _score(term: WantedTerm, bind: Bind) -> str:
    """The best of the ways in which the term may be found: how it is written, and where it stands."""
    ways: list[tuple[float, str]] = []
    for quality, forms in term.forms:
        if forms:
            ways += [
                (quality * weight, f"t.words @@ {_literal(tsquery(forms, letter))}") for letter, weight in WEIGHTS.items()
            ]
    if term.person_ids:
        ids = bind(list(term.person_ids))
        there = f"(SELECT true FROM faces WHERE image_id = t.image_id AND person_id = ANY({ids}::uuid[]) LIMIT 1)"
        ways.append((term.person_score, there))
    ways.sort(key=lambda way: -way[0])
    cases = " ".join(f"WHEN {condition} THEN {score:.4f}" for score, condition in ways)
    return f"(CASE {cases} ELSE 0 END)::real" if cases else "0::real"


async def similar_words(
    connection: Connection, collection: Collection, words: Sequence[str], most_wrong: int = 2
) -> dict[str, list[str]]:
    """For each of the words, those of the vocabulary that may be meant; what is too far off is the caller's to leave out."""
    if not words:
        return {}
    await connection.execute("SELECT set_config('pg_trgm.similarity_threshold', $1, false)", _VOCABULARY_SIMILARITY)
    rows = await connection.fetch(
        "SELECT asked.word, array(SELECT v.word FROM photo_vocabulary v WHERE v.collection_key = $1 AND v.word % asked.word"
        " AND v.word < '~' AND length(v.word) BETWEEN length(asked.word) - $3 AND length(asked.word) + $3"
        f" ORDER BY similarity(v.word, asked.word) DESC, v.word LIMIT {4 * _MAX_SIMILAR:d}) AS found"
        " FROM unnest($2::text[]) asked (word)",
        collection.key,
        list(words),
        most_wrong,
    )
    return {row["word"]: list(row["found"]) for row in rows}


async def known(
    connection: Connection, collection: Collection, beginnings: Sequence[str], words: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Those of `beginnings` with which a word of the vocabulary begins, and those of `words` that are in it."""
    rows = await connection.fetch(
        "SELECT asked.word FROM unnest($2::text[]) asked (word) WHERE EXISTS (SELECT 1 FROM photo_vocabulary v"
        # The vocabulary sorts by bytes, and no letter comes after z.
        " WHERE v.collection_key = $1 AND v.word >= asked.word AND v.word < asked.word || '{')",
        collection.key,
        list(beginnings),
    )
    exact = await connection.fetch(
        "SELECT word FROM photo_vocabulary WHERE collection_key = $1 AND word = ANY($2::text[])", collection.key, list(words)
    )
    return {row["word"] for row in rows}, {row["word"] for row in exact}


async def persons_in(connection: Connection, photo_ids: Sequence[UUID], person_ids: Sequence[UUID]) -> dict[UUID, set[UUID]]:
    """Which of the persons are in each of the photos."""
    rows = await connection.fetch(
        "SELECT q.id, f.person_id FROM photos q JOIN faces f ON f.image_id = q.image_id"
        " WHERE q.id = ANY($1::uuid[]) AND f.person_id = ANY($2::uuid[])",
        list(photo_ids),
        list(person_ids),
    )
    found: dict[UUID, set[UUID]] = {}
    for row in rows:
        found.setdefault(row["id"], set()).add(row["person_id"])
    return found


async def similar_faces(
    connection: Connection,
    collection: Collection,
    probe: FloatArray,
    person_ids: Sequence[UUID],
    least: float,
    limit: int,
) -> dict[UUID, float]:
    """Photos with a face of nobody, or of one of the persons, that is at least so like the probe, (D,) float32 of unit norm:
    the similarity of the best face, the best first. Hidden faces are left out."""
    rows = await connection.fetch(
        "SELECT q.id, max(near.similarity) AS similarity FROM ("
        f" SELECT e.face_id, -(e.embedding <#> $1) AS similarity FROM {VectorTables.of(collection).embeddings} e"
        " WHERE (e.person_id IS NULL OR e.person_id = ANY($2::uuid[])) AND -(e.embedding <#> $1) >= $3"
        " ORDER BY 2 DESC LIMIT $4) near"
        " JOIN faces f ON f.id = near.face_id AND NOT f.hidden JOIN photos q ON q.image_id = f.image_id"
        " GROUP BY q.id ORDER BY 2 DESC, q.id",
        probe,
        list(person_ids),
        least,
        limit,
    )
    return {row["id"]: min(1.0, float(row["similarity"])) for row in rows}


async def most_alike(
    connection: Connection,
    collection: Collection,
    probe: FloatArray,
    photo_ids: Sequence[UUID],
    person_ids: Sequence[UUID],
    *,
    nobody: bool,
) -> dict[UUID, tuple[UUID, float]]:
    """Of each photo the face of one of the persons, or (`nobody`) of nobody, that is most like the probe, and its similarity.
    Hidden faces are left out."""
    rows = await connection.fetch(
        "SELECT DISTINCT ON (q.id) q.id, f.id AS face_id, -(e.embedding <#> $1) AS similarity"
        " FROM photos q JOIN faces f ON f.image_id = q.image_id"
        f" JOIN {VectorTables.of(collection).embeddings} e ON e.face_id = f.id"
        " WHERE q.id = ANY($2::uuid[]) AND NOT f.hidden AND (f.person_id = ANY($3::uuid[]) OR $4 AND f.person_id IS NULL)"
        " ORDER BY q.id, e.embedding <#> $1, f.id",
        probe,
        list(photo_ids),
        list(person_ids),
        nobody,
    )
    return {row["id"]: (row["face_id"], max(-1.0, min(1.0, float(row["similarity"])))) for row in rows}


async def embedding_of(connection: Connection, collection: Collection, face_id: UUID) -> FloatArray | None:
    """(D,) float32, unit norm; None for a face that is not of this collection, or hidden."""
    row = await connection.fetchrow(
        f"SELECT e.embedding FROM {VectorTables.of(collection).embeddings} e JOIN faces f ON f.id = e.face_id"
        " WHERE e.face_id = $1 AND f.collection_key = $2 AND NOT f.hidden",
        face_id,
        collection.key,
    )
    if row is None:
        return None
    found: FloatArray = stack([row["embedding"]], collection.contract.dim)[0]
    return found
