"""Pictures and vectors that are only compared are stored nowhere."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.api.conftest import image
from tests.storage.conftest import StoredWorld

VECTOR = [0.1, 0.2, 0.3, 0.9]


def files_with(marker: bytes, folder: Path, since: float) -> list[Path]:
    found = []
    # Other tests' files come and go meanwhile.
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with suppress(OSError):
                if path.lstat().st_mtime >= since and path.is_file() and marker in path.read_bytes():
                    found.append(path)
    return found


async def everything(world: StoredWorld) -> dict[str, int]:
    tables = await world.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    counted = {row[0]: (await world.rows(f'SELECT count(*) FROM public."{row[0]}"'))[0][0] for row in tables}
    # They tell that somebody asked, and how often he may.
    return {name: count for name, count in counted.items() if name not in ("audit", "rate_limits", "server_secrets")}


async def test_probes_leave_nothing(stored: StoredWorld) -> None:
    people = await stored.collection()
    ada = await stored.person(people, name="Ada")
    await stored.enrol_vector(people, ada, VECTOR)
    rows, keys, since = await everything(stored), await stored.object_keys(), time.time() - 1
    marker = f"marker-{secrets.token_hex(16)}".encode()
    probe = image(1) + marker
    once = {"Idempotency-Key": "a"}
    for path in (
        "/api/v1/face/verify-face",
        "/api/v1/face/extract-embedding",
        "/api/v1/face/analyze-face-advanced",
        f"{people}/search",
        f"{people}/identify",
        f"{people}/persons/{ada}/verify",
    ):
        answer = await stored.client.post(path, files={"file": ("probe.jpg", probe, "image/jpeg")}, headers=once)
        assert answer.status_code == 200, (path, answer.text)
    selfie = await stored.client.post("/api/v1/search/photos", files={"selfie": ("probe.jpg", probe, "image/jpeg")})
    assert selfie.status_code in (200, 404, 422), selfie.text
    assert await everything(stored) == rows
    assert await stored.object_keys() == keys
    assert files_with(marker, Path(tempfile.gettempdir()), since) == []
    assert files_with(marker, stored.folder, since) == []
    # And what is to be kept is found there: these are the right places.
    photo = ("kept.jpg", image(1, 5) + marker, "image/jpeg")
    uploaded = await stored.client.post("/api/v1/photos/upload", files={"files": photo})
    assert uploaded.status_code in (200, 201), uploaded.text
    assert files_with(marker, stored.folder, since) != []
