"""The review of an enrolment: which of the items of a request become faces, and why the others do not. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeGuard

from serve_app.errors import DuplicateFace, JsonValue, KinlensError, LowQualityFace, ResemblesAnother, UnlikePerson
from serve_app.faces import EmbeddedFace, FloatArray, OperatingPoint, cosine_similarity
from serve_app.identity.people import Candidate
from serve_app.services.pipeline import Extraction, FaceChoice
from serve_app.services.review import ReviewLimits, review_quality
from serve_app.services.verification import GivenEmbedding

_WHO = ("person_id", "face_id")


@dataclass(frozen=True, slots=True)
class Item:
    """What is to be enrolled; an error where it could not even be read. `taken_at`: when the picture was taken; None for
    now."""

    source: bytes | GivenEmbedding | KinlensError
    taken_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class EnrolOptions:
    """`face`: the only face of a picture, or its largest. `review`: off enrols what the review would refuse, and says so.
    `tells_who`: off for those who may not search, who would find out in this way whose a face is."""

    face: FaceChoice = FaceChoice.ONLY
    detection_threshold: float | None = None
    review: bool = True
    tells_who: bool = True


@dataclass(frozen=True, slots=True)
class RefusedItem:
    index: int
    error: KinlensError


@dataclass(frozen=True, slots=True)
class PreparedItem:
    """An item with its face, and who is like it: `own` of the person's faces, `other` of everybody else's."""

    index: int
    item: Item
    embedding: FloatArray
    found: EmbeddedFace | None = None
    extraction: Extraction | None = None
    sha256: bytes | None = None
    own: Candidate | None = None
    other: Candidate | None = None
    warnings: tuple[KinlensError, ...] = ()


class Reviewer:
    """`point`: without one nobody can say which two faces match, and nothing is refused for being like somebody else."""

    def __init__(self, limits: ReviewLimits, point: OperatingPoint | None) -> None:
        self._limits = limits
        self._point = point

    def judge(self, prepared: Sequence[PreparedItem], options: EnrolOptions, refused: list[RefusedItem]) -> list[PreparedItem]:
        """Those to enrol, with their warnings; the others join `refused`."""
        accepted: list[PreparedItem] = []
        for one in prepared:
            twin = next((other for other in accepted if self._same(one, other, options)), None)
            if twin is not None:
                error = DuplicateFace(f"This repeats item {twin.index} of the same request.", same_as=twin.index)
                refused.append(RefusedItem(one.index, error))
                continue
            siblings = [cosine_similarity(one.embedding, other.embedding) for other in prepared if other is not one]
            withheld = self._withheld(one)
            if withheld is not None:
                refused.append(RefusedItem(one.index, withheld))
                continue
            found = (self._review(one), self._duplicate(one), self._resembles(one, siblings))
            serious = [_told(problem, options) for problem in found if problem]
            maybe = [_told(problem, options) for problem in self._maybe_known(one, siblings)]
            if serious and options.review:
                refused.append(RefusedItem(one.index, serious[0]))
                continue
            accepted.append(replace(one, warnings=(*serious, *maybe, *self._unlike(one, siblings))))
        return accepted

    def _same(self, one: PreparedItem, other: PreparedItem, options: EnrolOptions) -> bool:
        if one.sha256 is not None and one.sha256 == other.sha256:
            return True
        limit = self._limits.max_similarity_to_own
        return options.review and cosine_similarity(one.embedding, other.embedding) >= limit

    def _review(self, one: PreparedItem) -> LowQualityFace | None:
        if one.found is None or one.found.quality is None:
            return None
        reasons = review_quality(one.found.quality, one.found.face.detection_score, self._limits)
        if not reasons:
            return None
        listed: list[JsonValue] = [
            {"metric": reason.metric, "value": reason.value, "limit": reason.limit, "message": reason.message}
            for reason in reasons
        ]
        return LowQualityFace(" ".join(reason.message for reason in reasons), reasons=listed)

    def _duplicate(self, one: PreparedItem) -> DuplicateFace | None:
        own, limit = one.own, self._limits.max_similarity_to_own
        if own is None or own.similarity < limit:
            return None
        return DuplicateFace(
            f"The person has a face with similarity {own.similarity:.4f} to this one; the limit is {limit:g}.",
            metric="similarity_to_own",
            value=own.similarity,
            limit=limit,
            face_id=str(own.face_id),
        )

    def _withheld(self, one: PreparedItem) -> ResemblesAnother | None:
        """Whatever was asked for: under another name they would be recognised."""
        if not self._would_match(one.other) or not one.other.withheld:
            return None
        return ResemblesAnother("The face matches somebody who must not be recognised.")

    def _resembles(self, one: PreparedItem, siblings: Sequence[float]) -> ResemblesAnother | None:
        """Compared with the person's faces and those that come with it. Where there are none, nothing can be said: among
        many persons somebody is always alike."""
        references = [*siblings, *([one.own.similarity] if one.own else [])]
        if not references or not self._would_match(one.other) or one.other.similarity <= max(references):
            return None
        own = max(references)
        return ResemblesAnother(
            f"The face is more like another person (similarity {one.other.similarity:.4f}) than like this one ({own:.4f}).",
            metric="similarity_to_other",
            value=one.other.similarity,
            limit=own,
            person_id=str(one.other.person_id),
            face_id=str(one.other.face_id),
        )

    def _maybe_known(self, one: PreparedItem, siblings: Sequence[float]) -> list[KinlensError]:
        """Of a first face: somebody else it matches. It may be the same person under two names."""
        if one.own is not None or siblings or not self._would_match(one.other):
            return []
        return [
            ResemblesAnother(
                f"The person's first face matches another person (similarity {one.other.similarity:.4f}).",
                metric="similarity_to_other",
                value=one.other.similarity,
                limit=self._point.threshold if self._point else None,
                person_id=str(one.other.person_id),
                face_id=str(one.other.face_id),
            )
        ]

    def _unlike(self, one: PreparedItem, siblings: Sequence[float]) -> list[KinlensError]:
        """Of a face so unlike the person's others that the model would not even suggest them to be one person."""
        references = [*siblings, *([one.own.similarity] if one.own else [])]
        if not references or self._point is None or max(references) >= self._point.suggest_threshold:
            return []
        return [
            UnlikePerson(
                f"The face is unlike the person's others (similarity {max(references):.4f}); it may be somebody else's.",
                metric="similarity_to_own",
                value=max(references),
                limit=self._point.suggest_threshold,
            )
        ]

    def _would_match(self, other: Candidate | None) -> TypeGuard[Candidate]:
        return other is not None and self._point is not None and other.similarity >= self._point.threshold


def _told(error: KinlensError, options: EnrolOptions) -> KinlensError:
    if options.tells_who or not isinstance(error, ResemblesAnother):
        return error
    return ResemblesAnother(error.detail, **{name: error.details[name] for name in error.details if name not in _WHO})
