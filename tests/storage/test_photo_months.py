"""How many photos there are of each month, through the API on a real database."""

from __future__ import annotations

import pytest

from tests.storage.conftest import StoredWorld
from tests.storage.test_photos_api import add, taken

MONTHS = "/api/v1/photos/months"


async def months(stored: StoredWorld, query: str = "") -> list[tuple[str, int]]:
    response = await stored.client.get(f"{MONTHS}?{query}")
    assert response.status_code == 200, response.text
    return [(one["month"], one["photo_count"]) for one in response.json()["items"]]


async def test_months(stored: StoredWorld) -> None:
    assert await months(stored) == []
    for number, date in enumerate(("2024-08-31T23:30", "2024-09-01T00:30", "2023-01-05T12:00", "2024-08-01T00:00")):
        await add(stored, number, taken(date), tags='["sea"]' if number % 2 else "[]")
    assert await months(stored) == [("2024-09", 1), ("2024-08", 2), ("2023-01", 1)]
    assert await months(stored, "tag=sea") == [("2024-09", 1), ("2024-08", 1)]
    assert await months(stored, "untagged=true&taken_to=2024-01-01") == [("2023-01", 1)]
    assert await months(stored, "tag=nothing") == []
    # Where the former service had its paths, too.
    assert (await stored.client.get("/api/photos/months")).status_code == 200


async def test_by_the_clock_of_the_camera(stored: StoredWorld) -> None:
    """As the pages show them: an hour after midnight in Rome it is still yesterday in Greenwich."""
    await add(stored, 0, taken("2024-09-01T00:30", 120))
    assert await months(stored) == [("2024-09", 1)]


@pytest.mark.parametrize("query", ["mnoth=2024", "taken_from=x", "person_id=1", "tag=a%00"])
async def test_what_is_refused(stored: StoredWorld, query: str) -> None:
    assert (await stored.client.get(f"{MONTHS}?{query}")).status_code == 422
