"""What a key may not do is not offered, and signing in says why a key is refused."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api.conftest import KEY
from tests.browser.conftest import OpenTab, Tab
from tests.browser.service import Running
from tests.data import package_image

VIEWS = {"Photos", "People", "Search", "Journal", "Compare", "Analyze", "Jobs", "System"}


def made(client: httpx.Client, *scopes: str, **fields: object) -> tuple[str, str]:
    """A new key, and its id."""
    answer = client.post("/api/v1/keys", json={"name": f"browser {' '.join(scopes)}", "scopes": scopes, **fields})
    assert answer.status_code == 201, answer.text
    body = answer.json()
    return str(body["key"]), str(body["id"])


def signed_in(tab: Tab, key: str, path: str) -> None:
    tab.page.goto(tab.url + path)
    tab.page.get_by_label("API key").fill(key)
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.wait_for_url(tab.url + path)
    tab.page.locator("h1").wait_for()


def offered(tab: Tab) -> set[str]:
    links = tab.page.get_by_role("navigation").get_by_role("link")
    links.first.wait_for()
    return {text for text in links.all_inner_texts() if text}


@pytest.fixture(scope="module")
def photo(client: httpx.Client) -> Iterator[str]:
    answer = client.post("/api/v1/photos/upload", files=[("files", ("scopes.jpg", package_image("t1.jpg") + b"scopes"))])
    photo_id = str(answer.json()["results"][0]["photo"]["id"])
    yield photo_id
    # Others count what is there.
    assert client.delete(f"/api/v1/photos/{photo_id}").is_success


def test_a_reader_sees_all_and_changes_nothing(tab: Tab, client: httpx.Client, photo: str) -> None:
    key, _ = made(client, "read")
    signed_in(tab, key, "/photos")
    page = tab.page
    assert offered(tab) == VIEWS
    page.locator(".tile").first.wait_for()
    assert page.get_by_role("button", name="Add photos").count() == 0
    page.goto(f"{tab.url}/photos/{photo}")
    page.get_by_role("button", name="Download the original").wait_for()
    assert page.get_by_role("button", name="Erase this photo").count() == 0
    assert page.locator(".tag-form").is_hidden()
    tab.check_accessible()
    page.goto(f"{tab.url}/jobs")
    page.get_by_role("heading", level=1, name="Jobs").wait_for()
    assert page.get_by_role("button", name="Find faces").count() == 0
    assert page.get_by_role("button", name="Group faces anew").count() == 0
    # The service would not do it either.
    refused = httpx.delete(f"{tab.url}/api/v1/photos/{photo}", headers={"Authorization": f"Bearer {key}"})
    assert refused.status_code == 403


def test_whoever_adds_photos_does_not_erase_them(tab: Tab, client: httpx.Client, photo: str) -> None:
    key, _ = made(client, "read", "enrol")
    signed_in(tab, key, "/photos")
    page = tab.page
    page.get_by_role("button", name="Add photos").wait_for()
    page.goto(f"{tab.url}/photos/{photo}")
    page.locator("dialog.lightbox").wait_for()
    assert page.get_by_role("button", name="Erase this photo").count() == 0


def test_a_key_of_another_collection_gets_its_tools_only(tab: Tab, client: httpx.Client) -> None:
    client.post("/api/v1/collections", json={"id": "tenant", "name": "Tenant"})
    key, _ = made(client, "read", "write", collections=["tenant"])
    signed_in(tab, key, "/compare")
    page = tab.page
    assert offered(tab) == {"Compare", "Analyze"}
    page.goto(f"{tab.url}/photos")
    page.get_by_text("is not good for this. It is limited to other collections.").wait_for()
    tab.check_accessible()


def test_a_key_that_may_not_look_is_told_so(tab: Tab, client: httpx.Client) -> None:
    key, _ = made(client, "enrol")
    signed_in(tab, key, "/photos")
    tab.page.get_by_text("is not good for this. Its scopes: enrol.").wait_for()
    assert tab.page.get_by_role("navigation").get_by_role("link").count() == 0
    tab.check_accessible()


def test_a_key_that_is_revoked_leads_back_to_signing_in(tab: Tab, client: httpx.Client) -> None:
    tab.expected.append("401")
    key, key_id = made(client, "read")
    signed_in(tab, key, "/jobs")
    assert client.delete(f"/api/v1/keys/{key_id}").status_code in (200, 204)
    page = tab.page
    # Loaded anew, and within seconds wherever it was.
    page.wait_for_url(tab.url + "/sign-in?next=%2Fjobs")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("it may have been revoked, or have expired").wait_for()
    assert page.get_by_label("API key").get_attribute("aria-invalid") == "true"
    tab.check_accessible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_signing_in(open_tab: OpenTab, service: Running, scheme: str) -> None:
    tab = open_tab(width=390, height=800, color_scheme=scheme)
    page = tab.page
    page.goto(tab.url + "/people")
    field = page.get_by_label("API key")
    field.wait_for()
    tab.until("document.activeElement?.id === 'key'")
    assert field.get_attribute("type") == "password" and field.get_attribute("autocomplete") == "current-password"
    tab.check_accessible()
    tab.shot(f"sign-in-{scheme}")
    field.fill(KEY)
    page.get_by_role("button", name="Show").click()
    assert field.get_attribute("type") == "text"
    page.keyboard.press("Shift+Tab")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(tab.url + "/people")
    # Loaded anew, the tab is still signed in; another tab is not.
    page.reload()
    page.get_by_role("heading", level=1, name="People").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(tab.url + "/sign-in")
    assert page.evaluate("sessionStorage.length") == 0
