"""Real photos and weights for tests. They are large, partly not redistributable, and so lie outside the project:
KINLENS_TEST_DATA, else a folder `shared` beside the checkout. Tests that need what is not there are skipped, visibly."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("KINLENS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))
PHOTOS = ROOT / "facedata" / "dev"
INSIGHTFACE_ROOT = ROOT / "models" / "insightface"
REFERENCE = ROOT / "models" / "reference"
DEEPFACE_HOME = ROOT / "models" / "deepface"


@dataclass(frozen=True, slots=True)
class Photo:
    """One line of the manifest."""

    path: Path
    kind: str
    identity: str
    face_count: int | None


def photo(name: str) -> Path:
    """A photo by its path below `dev`, or skip."""
    path = PHOTOS / name
    if not path.is_file():
        pytest.skip(f"test photo {name} is not here (KINLENS_TEST_DATA)")
    return path


def read(name: str) -> bytes:
    return photo(name).read_bytes()


def package_image(name: str) -> bytes:
    """A picture that comes with insightface: always there."""
    found = find_spec("insightface")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0], "data", "images", name).read_bytes()


@cache
def manifest() -> tuple[Photo, ...]:
    """All photos of the manifest; empty where the data is not here."""
    path = PHOTOS / "manifest.csv"
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as stream:
        return tuple(
            Photo(
                PHOTOS.parent / row["file"],
                row["kind"],
                row["identity"],
                int(row["n_faces"]) if row["n_faces"] else None,
            )
            for row in csv.DictReader(stream)
        )


def require(path: Path) -> Path:
    """`path`, or skip."""
    if not path.exists():
        pytest.skip(f"{path.name} is not here (KINLENS_TEST_DATA)")
    return path
