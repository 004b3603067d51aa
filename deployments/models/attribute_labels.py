"""What a CSV says of the faces in its photos, in the words of the attribute models."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.models.evaluation import photos_root
from serve_app.attributes import Attribute
from serve_app.errors import ConfigurationError

OLDEST_YEARS = 122
"""Nobody is known to have become older; what is above is no age."""

AGE_BANDS = ((0, "0-12"), (13, "13-19"), (20, "20-34"), (35, "35-49"), (50, "50-64"), (65, "65 and older"))
"""First year of each group and its name."""

_SYNONYMS: dict[Attribute, dict[str, str]] = {
    Attribute.GENDER: {"f": "female", "woman": "female", "m": "male", "man": "male"},
    Attribute.EMOTION: {
        "angry": "anger",
        "disgusted": "disgust",
        "fearful": "fear",
        "happy": "happiness",
        "sad": "sadness",
        "surprised": "surprise",
    },
    Attribute.RACE: {"latino": "latino hispanic", "hispanic": "latino hispanic"},
}
"""Other words for the classes of config/attributes.toml. UTKFace's "other" is none of them: it stands for several."""


@dataclass(frozen=True, slots=True)
class LabelledPhoto:
    """`name`: as the CSV writes it. `kind`: empty where the CSV has none. `labels`: what it says of the largest face, as it
    writes that; never empty."""

    path: Path
    name: str
    kind: str
    labels: Mapping[Attribute, str]


def read_labels(path: Path) -> list[LabelledPhoto]:
    """The photos of a CSV with the column file, at least one of age, gender, race and emotion, and perhaps kind. Paths are
    relative to the CSV's folder or the one above.

    Raises ConfigurationError when it is no such file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or ()
            rows = [row for row in reader if row.get("file")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read as a CSV: {error}.") from error
    attributes = [attribute for attribute in Attribute if attribute.value in columns]
    if "file" not in columns or not attributes:
        raise ConfigurationError(f"{path} must have the column file, and at least one of {', '.join(Attribute)}.")
    root = photos_root(path, rows[0]["file"] if rows else "")
    photos = []
    for row in rows:
        labels = {attribute: (row[attribute.value] or "").strip() for attribute in attributes}
        photos.append(
            LabelledPhoto(
                root / row["file"],
                row["file"],
                (row.get("kind") or "").strip(),
                {name: text for name, text in labels.items() if text},
            )
        )
    return photos


def age_of(label: str) -> float | None:
    """Years; None for what is no single age, like 10-19."""
    try:
        years = float(label)
    except ValueError:
        return None
    return years if 0 <= years <= OLDEST_YEARS else None


def class_of(attribute: Attribute, label: str) -> str:
    """`label` as the models name it: lower case, one word for each class. What is no class stays what it is."""
    words = " ".join(label.lower().replace("_", " ").replace("-", " ").split())
    return _SYNONYMS[attribute].get(words, words)


def age_band(years: float) -> str:
    """The group of AGE_BANDS; `years` >= 0."""
    return next(name for first, name in reversed(AGE_BANDS) if years >= first)
