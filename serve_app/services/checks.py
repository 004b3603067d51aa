"""`kinlens db check`: whether each collection's rows belong together, and whether its searches find what they should."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from serve_app.errors import NotFound, Overloaded
from serve_app.faces import FloatArray
from serve_app.identity.people import Collection, SearchFilter
from serve_app.storage import checks, collections, maintenance, photo_embeddings, photo_words, search
from serve_app.storage.checks import Mismatches
from serve_app.storage.database import Connection
from serve_app.storage.maintenance import IndexState
from serve_app.storage.photo_words import WordMismatches

TOP_K = 10
MIN_PERSON_RECALL = 0.95
"""At 1, of what a search answers. The tenth is a stranger: which of them comes before which, templates need not know."""
MIN_INDEX_RECALL = 0.95
"""At 1, of the nearest template. Of the ten nearest, the others are strangers, which are about equally far: on vectors without
any structure a fresh index finds half of them."""
MAX_BLOAT = 1.5
"""Of the index, against one that was just built."""
MAX_DEAD_SHARE = 0.2
"""Of the rows of the templates' table: each is a row that every search through the index may have to step over."""
MIN_BLOAT_BYTES = 8 << 20
"""A smaller index is not worth a word."""
_SAME = 1e-6
"""Similarities that differ by less are equal: which of two equal persons comes first is nobody's fault."""

Connect = Callable[[], AbstractAsyncContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class Recall:
    """The share, in [0, 1], of the truly nearest one and ten that were found."""

    at_1: float
    at_10: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. `reindex`: whether a fresh index is the remedy."""

    detail: str
    reindex: bool = False


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """`persons`: of what a search by templates answers, against comparing every face. `index`: of the nearest templates,
    through the index against without it; None where there is no valid index. Both None without a face to search for.
    `fresh_index_bytes`: an estimate; None where there is no index."""

    collection: Collection
    state: IndexState
    mismatches: Mismatches
    sampled: int
    persons: Recall | None
    index: Recall | None
    fresh_index_bytes: int | None
    findings: tuple[Finding, ...]

    @property
    def reindex(self) -> bool:
        return any(finding.reindex for finding in self.findings)


async def check_collection(
    connection: Connection, collection: Collection, sample: int, progress: Callable[[int, int], None]
) -> CollectionReport:
    """Searches for `sample` of its faces both ways, which takes as long as so many searches that read every face; and reads
    the texts of as many photos again.
    `progress`: how many of how many are done. Give a dedicated connection."""
    rows = await checks.mismatches(connection, collection)
    state = await maintenance.index_state(connection, collection)
    faces = await maintenance.sample_embeddings(connection, collection, sample) if sample else []
    persons, index = await _measure(connection, collection, [face for _, face in faces], state.index_valid is True, progress)
    fresh = None if state.index_bytes is None else checks.fresh_index_bytes(state.templates, collection.contract.dim)
    leftovers = await checks.invalid_indexes(connection, collection)
    orphans = await photo_embeddings.orphans(connection, collection)
    words = await photo_words.mismatches(connection, collection, sample)
    findings = (
        *_row_findings(rows),
        *_word_findings(words),
        *_orphan_findings(orphans),
        *_index_findings(collection, state, fresh, leftovers),
        *_recall_findings(persons, index),
    )
    return CollectionReport(collection, state, rows, len(faces), persons, index, fresh, findings)


async def check_all(
    connect: Connect, collection_id: str | None, sample: int, progress: Callable[[int, int], None]
) -> AsyncIterator[CollectionReport]:
    """One collection or all of them. Raises NotFound, DatabaseUnavailable."""
    async with connect() as connection:
        for collection in await _chosen(connection, collection_id):
            try:
                with checks.still_there(collection):
                    report = await check_collection(connection, collection, sample, progress)
            except NotFound:
                if collection_id is not None:
                    raise
            else:
                yield report


async def reindex(connect: Connect, collection: Collection) -> None:
    """A fresh index, or the first one where it is missing, while searches and writes go on.

    Raises Overloaded while another process maintains indexes, DatabaseUnavailable.
    """
    async with connect() as connection, maintenance.only_one(connection) as mine:
        if not mine:
            raise Overloaded("Another process is maintaining indexes; try again when it is done.")
        await checks.drop_invalid_indexes(connection, collection)
        present = (await maintenance.index_state(connection, collection)).index_valid is True
        await maintenance.choose_search_mode(connection, await collections.get(connection, collection.id))
        if present:
            await maintenance.reindex(connection, collection)


async def _chosen(connection: Connection, collection_id: str | None) -> Sequence[Collection]:
    if collection_id is not None:
        return [await collections.get(connection, collection_id)]
    return await collections.all_collections(connection)


async def _measure(
    connection: Connection,
    collection: Collection,
    probes: Sequence[FloatArray],
    indexed: bool,
    progress: Callable[[int, int], None],
) -> tuple[Recall | None, Recall | None]:
    persons: list[tuple[float, float]] = []
    index: list[tuple[float, float]] = []
    for done, probe in enumerate(probes):
        progress(done, len(probes))
        truth = [one.similarity for one in await search.exact(connection, collection, probe, TOP_K, SearchFilter())]
        found = [one.similarity for one in await search.by_templates(connection, collection, probe, TOP_K, SearchFilter())]
        persons.append((recall(found, truth, 1), recall(found, truth, TOP_K)))
        if indexed:
            nearest = [near for _, near in await search.exact_templates(connection, collection, probe, TOP_K)]
            through = [near for _, near in await checks.indexed_templates(connection, collection, probe, TOP_K)]
            index.append((recall(through, nearest, 1), recall(through, nearest, TOP_K)))
    progress(len(probes), len(probes))
    return _mean(persons), _mean(index)


def recall(found: Sequence[float], truth: Sequence[float], k: int) -> float:
    """The share of the `k` truly nearest that were found; 1 where there is nothing to find.

    Both are similarities, falling. What is as similar as the last of the truly nearest counts as one of them.
    """
    wanted = truth[:k]
    if not wanted:
        return 1.0
    return min(1.0, sum(similarity >= wanted[-1] - _SAME for similarity in found[:k]) / len(wanted))


def _mean(values: Sequence[tuple[float, float]]) -> Recall | None:
    if not values:
        return None
    first, tenth = zip(*values, strict=True)
    return Recall(sum(first) / len(values), sum(tenth) / len(values))


def _row_findings(rows: Mismatches) -> list[Finding]:
    described = (
        (rows.faces_without_embedding, "faces have no embedding: no search finds them"),
        (rows.embeddings_without_face, "embeddings have no face: they should have been erased with it"),
        (rows.embeddings_of_another_person, "embeddings count for another person than their face"),
        (rows.persons_without_templates, "persons have faces but no template: a search by templates never finds them"),
        (rows.templates_without_person, "templates stand for nobody: they should have been erased"),
        (rows.pictures_of_nothing, "pictures belong to no face and no photo: they should have been erased"),
        (rows.photos_of_another_collection, "photos belong to another collection than their picture or their tags"),
        (rows.photos_with_wrong_tag_count, "photos count their tags wrong: the list of untagged photos is not true"),
        (rows.jobs_with_wrong_counts, "jobs count their items wrong: they end too early, or never"),
    )
    return [Finding(f"{count:,} {text}.") for count, text in described if count]


def _word_findings(words: WordMismatches) -> list[Finding]:
    described = (
        (words.missing, "photos have no words: text search does not find them"),
        (words.misplaced, "photos are another collection's, picture's or date's to text search than they are"),
        (words.outdated, f"of {words.sampled:,} photos are found by other words than theirs"),
        (words.unknown_words, f"words of {words.sampled:,} photos are not in the vocabulary: misspelt, they are not found"),
        (words.unused_words, "words of the vocabulary are no photo's: they should have been erased with it"),
    )
    return [Finding(f"{count:,} {text}.") for count, text in described if count]


def _orphan_findings(orphans: int) -> list[Finding]:
    detail = f"{orphans:,} embeddings of photos have no photo: they should have been erased with it."
    return [Finding(detail)] if orphans else []


def _index_findings(
    collection: Collection, state: IndexState, fresh_bytes: int | None, leftovers: Sequence[str]
) -> list[Finding]:
    findings = [Finding(f"The index {name} is not valid: a build broke off.", reindex=True) for name in leftovers]
    if collection.search_mode == "exact" and state.faces > search.EXACT_MAX_FACES:
        findings.append(Finding(f"{state.faces:,} faces are too many to be searched one by one.", reindex=True))
    elif collection.search_mode == "templates" and state.templates > search.HNSW_MIN_TEMPLATES and state.index_bytes is None:
        findings.append(Finding(f"{state.templates:,} templates are searched without an index.", reindex=True))
    if state.index_bytes is not None and state.index_bytes >= MIN_BLOAT_BYTES and fresh_bytes is not None:
        if state.index_bytes > MAX_BLOAT * fresh_bytes:
            times = state.index_bytes / fresh_bytes
            findings.append(Finding(f"The index is {times:.1f} times the size of a fresh one.", reindex=True))
        if state.dead > MAX_DEAD_SHARE * max(1, state.templates):
            findings.append(Finding(f"{state.dead:,} dead rows are in the way of searches.", reindex=True))
    return findings


def _recall_findings(persons: Recall | None, index: Recall | None) -> list[Finding]:
    findings = []
    if index is not None and index.at_1 < MIN_INDEX_RECALL:
        findings.append(Finding(f"The index finds {index.at_1:.3f} of the nearest templates.", reindex=True))
    if persons is not None and persons.at_1 < MIN_PERSON_RECALL:
        blame = "" if findings else " The index is not to blame: the templates do not stand for their faces."
        findings.append(Finding(f"A search finds {persons.at_1:.3f} of the persons it should.{blame}"))
    return findings
