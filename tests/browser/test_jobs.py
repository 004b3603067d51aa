"""Jobs in a browser, on a real worker: progress, failures with their reasons, another try, cancelling."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import KEY
from tests.browser.conftest import OpenTab, Tab
from tests.browser.service import Models, Running, serving
from tests.data import package_image

GROUP = package_image("t1.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def works(models: Models, database_url: str, folder: Path) -> Iterator[Running]:
    with serving(models, lambda: database_url, folder, library="works", indexing=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(works: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=works.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def photos(client: httpx.Client) -> list[str]:
    """The ids of 24 photos, in which faces have been looked for."""
    ids = []
    for number in range(24):
        files = [("files", (f"{number}.jpg", GROUP + bytes([number])))]
        ids.append(str(client.post("/api/v1/photos/upload", files=files).json()["results"][0]["photo"]["id"]))
    for _ in range(2400):
        if not [job for job in client.get("/api/v1/jobs").json()["items"] if job["state"] in ("queued", "running")]:
            return ids
        time.sleep(0.1)
    raise AssertionError("the photos were not looked at")


@pytest.fixture
def tab(open_tab: OpenTab, works: Running) -> Tab:
    return open_tab(works)


def stored(folder: Path, data: bytes) -> Path:
    """The file of the object store that holds it."""
    (found,) = (path for path in (folder / "objects").rglob("*") if path.is_file() and path.read_bytes() == data)
    return found


def test_a_failure_is_told_with_its_reason_and_tried_again(
    tab: Tab, client: httpx.Client, folder: Path, photos: list[str]
) -> None:
    lost = stored(folder, GROUP + bytes([1]))
    lost.rename(lost.with_suffix(".away"))
    answer = client.post("/api/v1/index/faces", json={"photo_ids": photos[:3], "only_new": False})
    assert answer.json()["progress"]["total"] == 3
    page = tab.sign_in("/jobs")
    card = page.locator(".job").first
    # The last item may be told before the job is over.
    card.locator(".job-state").get_by_text("Done, not all of it", exact=True).wait_for()
    card.get_by_text("2 of 3 items done, 1 failed").wait_for()
    card.get_by_text("Failures").click()
    card.get_by_text("The photo's picture is missing in the object store.").wait_for()
    assert card.get_by_role("link", name="Photo").get_attribute("href") == f"/photos/{photos[1]}"
    assert card.get_by_role("button", name="Cancel").is_hidden()
    tab.check_accessible()
    tab.shot("jobs-failed")
    lost.with_suffix(".away").rename(lost)
    card.get_by_role("button", name="Retry failed").click()
    card.locator(".job-state").get_by_text("Done", exact=True).wait_for()
    card.get_by_text("3 of 3 items done").wait_for()
    assert card.get_by_role("button", name="Retry failed").is_hidden() and card.get_by_text("Failures").is_hidden()


@pytest.fixture
def slowly(models: Models) -> Iterator[None]:
    """The page looks for new jobs every four seconds: the job must last longer on any machine."""
    models.delay_s = 2.0
    yield
    models.delay_s = 0.0


def test_progress_is_seen_and_a_job_can_be_cancelled(
    open_tab: OpenTab, works: Running, photos: list[str], slowly: None
) -> None:
    tab = open_tab(works, color_scheme="dark")
    page = tab.sign_in("/jobs")
    with httpx.Client(base_url=works.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        job = client.post("/api/v1/index/faces", json={"photo_ids": photos, "only_new": False}).json()["job_id"]
        card = page.locator(".job").first
        page.get_by_text("1 running.").wait_for()
        bar = "document.querySelector('.job progress')"
        tab.until(f"{bar}.value > 0 && {bar}.value < {bar}.max && {bar}.max === 24")
        assert re.search(r"\d+ of 24 items done", card.inner_text())
        assert card.locator("progress").get_attribute("aria-label") == "Finding faces: progress"
        card.get_by_role("button", name="Cancel").click()
        card.get_by_text("Cancelled", exact=True).wait_for()
        tab.check_accessible()
        tab.shot("jobs-cancelled-dark")
        said = card.inner_text()
        found = re.search(r"(\d+) of 24 items done, (\d+) cancelled", said)
        assert found and 0 < int(found[2]) < 24, said
        # What was in hand is brought to its end.
        for _ in range(600):
            state = client.get(f"/api/v1/jobs/{job}").json()
            if not state["progress"]["remaining"]:
                break
            time.sleep(0.1)
        assert state["state"] == "cancelled" and state["progress"]["cancelled"] > 0
    assert card.get_by_role("button", name="Cancel").is_hidden()


def test_there_is_nothing_to_do(tab: Tab, photos: list[str]) -> None:
    page = tab.sign_in("/jobs")
    page.get_by_role("button", name="Find faces").click()
    page.get_by_text("There is nothing to do: every photo has been looked at.").wait_for()
