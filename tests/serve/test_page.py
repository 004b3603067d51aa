"""The pages before a whole instance: a photo on its way from the browser to the replicas and back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests import data
from tests.browser.conftest import ARGUMENTS, chromium, file  # noqa: F401  a fixture
from tests.serve.conftest import KEY, Served

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture
def page(chromium: str, served: Served) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        opened = browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-GB")
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()


def test_an_upload_becomes_a_face_and_a_name_that_is_found(page: Page, served: Served) -> None:
    page.goto(f"{served.url}/photos")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Files to add").set_input_files(
        [file("tom.png", data.package_image("Tom_Hanks_54745.png"), "image/png")]
    )
    page.get_by_text("Upload finished, 1 added").wait_for()
    page.locator(".tile img[src]").first.wait_for()
    with served.client() as client:
        deadline = time.monotonic() + 60
        # The Indexing deployment finds it.
        while not (faces := client.get("/api/v1/faces?limit=5").json()["items"]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        person = client.post("/api/v1/persons", json={"name": "Tom Hanks"}).json()["id"]
        answer = client.post(f"/api/v1/faces/{faces[0]['id']}/assign-person", json={"person_id": person})
        assert answer.status_code == 200, answer.text
    page.get_by_role("link", name="Search").click()
    page.get_by_role("searchbox").fill("tom hanks")
    page.keyboard.press("Enter")
    page.locator("main img[src]").first.wait_for()
    page.get_by_role("link", name="System").click()
    replicas = page.get_by_role("group", name="Replicas of each deployment")
    replicas.wait_for()
    assert {"Ingress", "Detection", "Embedding", "Indexing"} <= set(replicas.inner_text().split())
