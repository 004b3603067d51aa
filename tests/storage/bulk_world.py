"""What tests of `kinlens index` share."""

from __future__ import annotations

from pathlib import Path

from serve_app.storage import checks, collections
from tests.api.conftest import JPEG
from tests.storage.bulk_program import COLLECTION
from tests.storage.conftest import StoredWorld


def photo(number: int, faces: int = 2) -> bytes:
    return JPEG + bytes([faces, number % 4]) + number.to_bytes(4, "big") * 8


def fill(root: Path, count: int) -> None:
    for number in range(count):
        folder = root / f"{number % 3}" / "Müller & Söhne"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.jpg").write_bytes(photo(number))


def listed(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jpg"))


async def whole(world: StoredWorld, photos: int, faces: int) -> None:
    """Each picture once, each face once, all objects there, everything in step."""
    rows = await world.rows(
        "SELECT (SELECT count(*) FROM photos) AS photos, (SELECT count(DISTINCT sha256) FROM images) AS pictures,"
        " (SELECT count(*) FROM faces) AS faces, (SELECT count(*) FROM embeddings) AS vectors,"
        " (SELECT count(*) FROM photos WHERE indexed_at IS NULL) AS unindexed, (SELECT count(*) FROM photo_texts) AS texts"
    )
    assert dict(rows[0]) == {"photos": photos, "pictures": photos, "faces": faces, "vectors": faces,
                             "unindexed": 0, "texts": photos}  # fmt: skip
    named = {row["key"] for row in await world.rows("SELECT object_key AS key FROM images UNION SELECT crop_key FROM faces")}
    assert len(named) == photos + faces
    assert named <= await world.object_keys()
    async with world.gallery.database.connection() as connection:
        found = await checks.mismatches(connection, await collections.get(connection, COLLECTION))
    assert not any(getattr(found, name) for name in found.__slots__), found
