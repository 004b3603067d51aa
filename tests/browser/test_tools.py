"""Compare, Analyze and System in a browser, with the real models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.conftest import OpenTab, Tab, file
from tests.data import package_image

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload


def group() -> FilePayload:
    """Six faces."""
    return file("<b>group</b>.jpg", package_image("t1.jpg"))


def test_compare(tab: Tab) -> None:
    page = tab.sign_in("/compare")
    tab.check_accessible()
    page.get_by_label("First photo").set_input_files([group()])
    page.get_by_text("6 faces").wait_for()
    page.get_by_text("Choose the other photo.").wait_for()
    page.get_by_label("Second photo").set_input_files([group()])
    page.get_by_text("36 pairs of faces, 6 matches.").wait_for()
    first = page.locator(".pair").first
    assert "Same person" in first.inner_text()
    label = first.get_by_role("img").get_attribute("aria-label")
    assert label is not None and label.startswith(("Similarity 1.000, threshold", "Similarity 0.999, threshold"))
    assert "pairs of different people match by mistake" in page.locator(".worth").inner_text()
    first.get_by_role("button").focus()
    assert page.locator(".overlay .box.chosen").count() == 2
    tab.check_accessible()
    tab.shot("compare")
    tab.expected.append("422")
    page.get_by_label("Second photo").set_input_files([file("half.jpg", package_image("t1.jpg")[:5000])])
    page.get_by_text("damaged or incomplete").wait_for()
    assert page.locator(".pair").count() == 0


def test_analyze(tab: Tab) -> None:
    page = tab.sign_in("/analyze")
    page.get_by_label("A photo").set_input_files([group()])
    page.get_by_text("6 faces, the largest first.").wait_for()
    assert page.locator(".overlay .box").count() == 6 and page.locator(".overlay .box-point").count() == 30
    card = page.locator(".analyzed-face").first.inner_text()
    for said in ("Looks", "years old", "Gender", "Sharpness", "Pose", "Covered"):
        assert said in card
    assert "Race" not in card
    # The first one looks away: by how much, and how much enrolment would take, in words.
    verdicts = page.locator(".verdict")
    assert verdicts.count() == 6
    first = verdicts.first.inner_text()
    assert "Too poor to recognise somebody by" in first
    turned = re.search(r"The face is turned (\d+) degrees to the side; (\d+) are accepted", first)
    assert turned and int(turned[1]) > int(turned[2]) == 40
    assert page.get_by_text("Good enough to recognise somebody by").count() >= 4
    tab.check_accessible()
    tab.shot("analyze")
    page.get_by_label("Race").check()
    page.get_by_text("Race cannot be had").wait_for()


def test_system(tab: Tab, client: httpx.Client) -> None:
    def counted() -> dict[int, int]:
        """Requests by the beginning of their slot."""
        return {slot["at"]: slot["requests"] for slot in client.get("/api/v1/system").json()["requests"]["slots"]}

    # One whose stages are told: of others there may be none in the last minutes.
    client.post("/api/v1/face/verify-face", files={"file": package_image("t1.jpg")}).raise_for_status()
    # Those of a quarter of an hour ago may be told to the page, and then no more.
    before = counted()
    page = tab.sign_in("/system")
    page.get_by_text("YuNet").first.wait_for()
    tab.until("document.querySelectorAll('.status-list .good').length >= 6")
    plot = page.locator("svg.plot")
    plot.wait_for()
    label = plot.get_attribute("aria-label")
    assert label is not None and re.search(
        r"^[\d,]+ requests in the last 15 minutes, .+ 95 of 100 answers began within", label
    ), label
    page.get_by_role("heading", name="Where the time of a request went, on average").wait_for()
    # From now on it stays as it is: whoever reads in the table goes on reading.
    page.get_by_text("As a table").click()
    rows = page.locator(".plot-box tbody tr")
    told = client.get("/api/v1/system").json()["requests"]
    assert told["replicas_answered"] == 1 and told["lately"]["requests"] > 0
    # Every request that is counted stands in the table; more may have come since.
    shown = sum(int(row.locator("td").first.inner_text().replace(",", "")) for row in rows.all())
    assert 0 < shown <= sum((before | counted()).values())
    stored = page.locator("section", has=page.get_by_role("heading", name="Stored"))
    assert re.search(r"Photos\s+[\d,]+", stored.inner_text()) and "a folder of this machine" in stored.inner_text()
    # It is asked for again, and what is open stays open.
    page.wait_for_timeout(5500)
    assert rows.first.is_visible()
    tab.check_accessible()
    tab.shot("system")


@pytest.mark.parametrize("view", ["photos", "people", "search", "journal", "compare", "analyze", "jobs", "system"])
def test_nothing_sticks_out_on_a_phone(open_tab: OpenTab, view: str) -> None:
    tab = open_tab(width=360, height=700, is_mobile=True, has_touch=True, color_scheme="dark")
    page = tab.sign_in(f"/{view}")
    page.locator("h1").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    tab.check_accessible()
    tab.shot(f"{view}-phone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["photos", "people", "search", "journal", "compare", "analyze", "jobs", "system"])
def test_every_view_is_accessible_in_both_themes(open_tab: OpenTab, view: str, scheme: str) -> None:
    tab = open_tab(color_scheme=scheme)
    page = tab.sign_in(f"/{view}")
    page.locator("h1").wait_for()
    page.wait_for_timeout(600)
    tab.check_accessible()
    tab.shot(f"{view}-{scheme}")


def test_it_works_without_any_other_machine(tab: Tab) -> None:
    """Every request of every view goes to the service; the fixture sees to it."""
    page = tab.sign_in()
    for name in ("People", "Search", "Journal", "Compare", "Analyze", "Jobs", "System", "Photos"):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        page.get_by_role("heading", level=1, name=name).wait_for()
        assert page.title() == f"{name} · Kinlens"
        assert page.evaluate("document.activeElement.tagName") in ("H1", "INPUT")
