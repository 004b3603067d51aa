"""The words of photos: written in the transaction that changes the photo, and gone with it.

`photo_texts` has a document for each photo. `photo_vocabulary` has the words of letters in them, for those that are
misspelt; whoever writes a document keeps its words from being removed until the commit, and whoever erases a photo removes
the words that no other has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from serve_app.identity.people import Collection
from serve_app.photos import PictureTexts
from serve_app.storage.database import Connection, Row
from serve_app.text.photo_document import HEARD, VERSION, Document, PhotoTexts, day_of, document

_BATCH = 200
"""Photos read in one transaction."""


@dataclass(frozen=True, slots=True)
class _Read:
    photo_id: UUID
    collection_key: int
    document: Document


@dataclass(frozen=True, slots=True)
class WordMismatches:
    """What is wrong with a collection's documents. `missing`: photos that were read and have none. `misplaced`: with another
    collection, picture or date than their photo. `unused_words`: of the vocabulary, in no document. Of `sampled` photos:
    `outdated`, whose document is not what they say now; `unknown_words`, theirs that are not in the vocabulary."""

    missing: int
    misplaced: int
    unused_words: int
    sampled: int
    outdated: int
    unknown_words: int


async def refresh(tx: Connection, photo_ids: Sequence[UUID]) -> None:
    """Makes documents of what the rows of the photos and their tags say now; words that no photo has any more are gone. The
    photos must be locked, or new."""
    before = await _vocabularies(tx, photo_ids)
    await _write(tx, [_read(row) for row in await tx.fetch(f"{_PHOTOS} WHERE p.id = ANY($1::uuid[])", list(photo_ids))])
    if before:
        after = await _vocabularies(tx, photo_ids)
        for collection_key, words in before.items():
            await prune(tx, collection_key, sorted(words - after.get(collection_key, set())))


async def vocabulary_of(connection: Connection, photo_id: UUID) -> list[str]:
    """The photo's words that may be in the vocabulary; for `prune`, before the photo is deleted."""
    return sorted({word for words in (await _vocabularies(connection, [photo_id])).values() for word in words})


async def _vocabularies(connection: Connection, photo_ids: Sequence[UUID]) -> dict[int, set[str]]:
    """By the key of the collection."""
    rows = await connection.fetch(
        "SELECT t.collection_key, array_agg(DISTINCT word) AS words"
        " FROM photo_texts t, unnest(tsvector_to_array(t.words)) word"
        " WHERE t.photo_id = ANY($1::uuid[]) AND word ~ '^~?[a-z]{2,}$' GROUP BY t.collection_key",
        list(photo_ids),
    )
    return {row["collection_key"]: set(row["words"]) for row in rows}


async def prune(tx: Connection, collection_key: int, words: Sequence[str]) -> None:
    """Removes those of the words that no photo has any more."""
    if not (dead := await _dead(tx, collection_key, words)):
        return
    # In one order always. Whoever writes one of these words at this moment is waited for, and then has it.
    await tx.execute(
        "SELECT 1 FROM photo_vocabulary WHERE collection_key = $1 AND word = ANY($2::text[]) ORDER BY word FOR UPDATE",
        collection_key,
        dead,
    )
    await tx.execute(
        "DELETE FROM photo_vocabulary WHERE collection_key = $1 AND word = ANY($2::text[])",
        collection_key,
        await _dead(tx, collection_key, dead),
    )


async def _dead(tx: Connection, collection_key: int, words: Sequence[str]) -> list[str]:
    if not words:
        return []
    known = await tx.fetch(
        "SELECT word FROM photo_vocabulary WHERE collection_key = $1 AND word = ANY($2::text[])", collection_key, list(words)
    )
    dead = []
    for row in known:
        # One by one, with the word in the statement: the planner then knows a frequent one, of which it finds a photo at
        # once, from a rare one, for which it asks the index.
        if not await tx.fetchval(
            f"SELECT true FROM photo_texts WHERE collection_key = {collection_key:d}"
            f" AND words @@ '{_safe(row['word'])}'::tsquery LIMIT 1"
        ):
            dead.append(row["word"])
    return dead


def _safe(word: str) -> str:
    assert word.isascii() and word.removeprefix(HEARD).isalnum()
    return word


async def read_some(tx: Connection) -> int:
    """Makes documents of photos that have none, or one by other rules; returns of how many. Photos that somebody else is
    writing to are left for another time."""
    rows = await tx.fetch(
        f"{_PHOTOS} WHERE p.words_version < $1 OR p.words_version > $1"
        f" ORDER BY p.id LIMIT {_BATCH:d} FOR NO KEY UPDATE OF p SKIP LOCKED",
        VERSION,
    )
    # On a thread: so many long texts take longer than requests may wait.
    await _write(tx, await asyncio.to_thread(lambda: [_read(row) for row in rows]))
    return len(rows)


async def mismatches(connection: Connection, collection: Collection, sample: int) -> WordMismatches:
    """Of one moment, while others write. Photos that are still to be read do not count."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(
            """
            SELECT
                (SELECT count(*) FROM photos p WHERE p.collection_key = $1 AND p.words_version = $2
                    AND NOT EXISTS (SELECT 1 FROM photo_texts t WHERE t.photo_id = p.id)) AS missing,
                (SELECT count(*) FROM photo_texts t JOIN photos p ON p.id = t.photo_id
                    WHERE $1 IN (t.collection_key, p.collection_key)
                    AND (t.collection_key, t.image_id, t.taken_at) <> (p.collection_key, p.image_id, p.taken_at)) AS misplaced,
                (SELECT count(*) FROM photo_vocabulary v WHERE v.collection_key = $1 AND v.word NOT IN (
                    SELECT word FROM ts_stat(format('SELECT words FROM photo_texts WHERE collection_key = %s', $1::integer))
                )) AS unused_words
            """,
            collection.key,
            VERSION,
        )
        assert row is not None
        chosen = await connection.fetch(
            "SELECT id FROM photos WHERE collection_key = $1 AND words_version = $2 ORDER BY random() LIMIT $3",
            collection.key,
            VERSION,
            sample,
        )
        outdated, words = 0, set[str]()
        for start in range(0, len(chosen), _BATCH):
            ids = [one["id"] for one in chosen[start : start + _BATCH]]
            rows = await connection.fetch(f"{_PHOTOS} WHERE p.id = ANY($1::uuid[])", ids)
            read = [_read(one) for one in rows]
            words.update(*(one.document.vocabulary for one in read))
            outdated += await connection.fetchval(
                "SELECT count(*) FROM unnest($1::uuid[], $2::text[]) given (id, words)"
                " JOIN photo_texts t ON t.photo_id = given.id WHERE t.words <> given.words::tsvector",
                [one.photo_id for one in read],
                [_tsvector(one.document) for one in read],
            )
        unknown = await connection.fetchval(
            "SELECT count(*) FROM (SELECT unnest($2::text[]) EXCEPT"
            " SELECT word FROM photo_vocabulary WHERE collection_key = $1) w",
            collection.key,
            sorted(words),
        )
    return WordMismatches(row["missing"], row["misplaced"], row["unused_words"], len(chosen), outdated, unknown)


async def unread(connection: Connection, collection: Collection) -> int:
    """Photos that text search does not know yet; 10,000 at most are counted."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM (SELECT 1 FROM photos WHERE (words_version < $2 OR words_version > $2)"
            " AND collection_key = $1 LIMIT 10000) s",
            collection.key,
            VERSION,
        )
    )


_PHOTOS = """
    SELECT p.id, p.collection_key, p.file_name, p.folder, p.taken_at, p.taken_local, p.created_at, p.camera, p.lens,
           p.latitude, p.texts, ARRAY(SELECT t.tag FROM photo_tags t WHERE t.photo_id = p.id ORDER BY t.tag) AS tags
    FROM photos p
"""


def _read(row: Row) -> _Read:
    day = day_of(row["file_name"], row["taken_local"], row["taken_at"], row["created_at"])
    texts = PhotoTexts(
        row["file_name"],
        row["folder"],
        tuple(row["tags"]),
        row["camera"],
        row["lens"],
        picture_texts(row["texts"]),
        day,
        row["latitude"] is not None and row["latitude"] < 0,
    )
    return _Read(row["id"], row["collection_key"], document(texts))


def picture_texts(value: Mapping[str, object] | None) -> PictureTexts:
    """Of the column `texts`."""
    if not value:
        return PictureTexts()
    keywords = value.get("keywords")
    return PictureTexts(
        keywords=tuple(map(str, keywords)) if isinstance(keywords, list) else (),
        **{name: str(text) for name in _TEXTS if (text := value.get(name)) is not None},
    )


_TEXTS = ("title", "caption", "sublocation", "city", "state", "country")


def texts_column(texts: PictureTexts) -> dict[str, object] | None:
    """For the column `texts`; None where nobody wrote anything."""
    found: dict[str, object] = {name: text for name in _TEXTS if (text := getattr(texts, name)) is not None}
    if texts.keywords:
        found["keywords"] = list(texts.keywords)
    return found or None


async def _write(tx: Connection, found: Sequence[_Read]) -> None:
    if not found:
        return
    # Locks in one order always: photos by id, then words.
    ordered = sorted(found, key=lambda one: one.photo_id)
    await tx.execute(
        "INSERT INTO photo_texts (photo_id, collection_key, image_id, taken_at, words)"
        " SELECT p.id, p.collection_key, p.image_id, p.taken_at, given.words::tsvector"
        " FROM unnest($1::uuid[], $2::text[]) given (id, words) JOIN photos p ON p.id = given.id"
        " ON CONFLICT (photo_id) DO UPDATE SET taken_at = excluded.taken_at, words = excluded.words",
        [one.photo_id for one in ordered],
        [_tsvector(one.document) for one in ordered],
    )
    await tx.execute(
        "UPDATE photos SET words_version = $2 WHERE id = ANY($1::uuid[]) AND words_version <> $2",
        [one.photo_id for one in ordered],
        VERSION,
    )
    for collection_key in sorted({one.collection_key for one in found}):
        words = sorted({word for one in found if one.collection_key == collection_key for word in one.document.vocabulary})
        await _keep(tx, collection_key, words)


async def _keep(tx: Connection, collection_key: int, words: Sequence[str]) -> None:
    """Puts the words there, and keeps them there until the commit."""
    missing = list(words)
    while missing:
        await tx.execute(
            "INSERT INTO photo_vocabulary (collection_key, word) SELECT $1, word FROM unnest($2::text[]) word ORDER BY word"
            " ON CONFLICT DO NOTHING",
            collection_key,
            missing,
        )
        rows = await tx.fetch(
            "SELECT word FROM photo_vocabulary WHERE collection_key = $1 AND word = ANY($2::text[]) ORDER BY word"
            " FOR KEY SHARE",
            collection_key,
            missing,
        )
        # One that was there, and was being removed: now it is gone, and can be put there.
        there = {row["word"] for row in rows}
        missing = [word for word in missing if word not in there]


def _tsvector(made: Document) -> str:
    """Words are ASCII letters, digits and a sign in front; nothing in them needs escaping."""
    return " ".join(
        f"'{word}':{','.join(f'{place}{letter}' for place, letter in places[:250])}" for word, places in made.places.items()
    )
