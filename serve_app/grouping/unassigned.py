"""Why a face belongs to nobody: kept with the face as JSON, told to people in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from serve_app.errors import JsonValue

_WORDS = {
    "too_small": ("The face is {value} px wide; at least {limit} px are needed to tell whose it is.", 0),
    "low_detection_score": ("The detector gives the face a score of {value}; at least {limit} is needed.", 2),
    "blurred": ("The face is blurred: sharpness {value}; {limit} is needed.", 2),
    "no_neighbour": ("No face is like it: the nearest has a similarity of {value}; {limit} is the least.", 2),
    "not_core": ("It is not certain whose it is: the nearest has a similarity of {value}; {limit} would be needed.", 2),
    "between_persons": ("It could be one of two persons: the nearer leads by {value}; {limit} is needed.", 2),
    "same_picture": ("The nearest, of similarity {value}, is somebody else: both are in one photo.", 2),
    "rejected": ("The nearest, of similarity {value}, is who a user said it is not.", 2),
    "unassigned_by_user": ("A user said that it is nobody's.", 0),
    "person_deleted": ("A user deleted the person whose it was.", 0),
    "hidden": ("A user hid it.", 0),
}
"""A sentence for each code, and the digits its numbers are given with."""
_OTHERWISE = "{code}: {metric} is {value}; the limit is {limit}."


@dataclass(frozen=True, slots=True)
class Unassigned:
    """`metric`: what was measured, for comparison with `limit`. `person_id`: the person who would have been nearest."""

    code: str
    metric: str | None = None
    value: float | None = None
    limit: float | None = None
    person_id: UUID | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """What the database keeps; what is None is left out."""
        named: dict[str, JsonValue] = {"code": self.code, "metric": self.metric, "value": self.value, "limit": self.limit}
        if self.person_id is not None:
            named["person_id"] = str(self.person_id)
        return {name: value for name, value in named.items() if value is not None}

    @staticmethod
    def from_json(kept: Mapping[str, JsonValue]) -> Unassigned:
        person_id = kept.get("person_id")
        return Unassigned(
            str(kept["code"]),
            None if (metric := kept.get("metric")) is None else str(metric),
            _number(kept.get("value")),
            _number(kept.get("limit")),
            None if person_id is None else UUID(str(person_id)),
        )

    @property
    def message(self) -> str:
        """A sentence for a person."""
        if self.code not in _WORDS and self.metric is None:
            return f"{self.code.replace('_', ' ').capitalize()}."
        words, digits = _WORDS.get(self.code, (_OTHERWISE, 3))
        return words.format(
            code=self.code.replace("_", " ").capitalize(),
            metric=self.metric,
            value=_shown(self.value, digits, self.limit),
            limit=_shown(self.limit, digits, None),
        )


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _shown(value: float | None, digits: int, limit: float | None) -> str:
    if value is None:
        return "unknown"
    text = f"{value:.{digits}f}"
    # "0.10; at least 0.10 is needed" would explain nothing.
    return f"{value:.{digits + 2}f}" if limit is not None and text == f"{limit:.{digits}f}" and value != limit else text
