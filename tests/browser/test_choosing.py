"""Many photos at once, going to a month, folders that are dropped, and everything by keyboard, in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import KEY
from tests.browser.conftest import OpenTab, Tab, file
from tests.browser.service import Models, Running, serving
from tests.browser.test_people import HOSTILE
from tests.browser.test_photos import PHOTOS, picture

CHOSEN = "document.querySelectorAll('.tile.chosen').length === {}"


@dataclass(frozen=True)
class Album:
    """Thirty photos, `ids` the newest first: of each month from December 2023 back to July 2021 one."""

    running: Running
    client: httpx.Client
    ids: list[str]

    def tags(self, place: int) -> list[str]:
        found: list[str] = self.client.get(f"{PHOTOS}/{self.ids[place]}/tags").json()["tags"]
        return found


@pytest.fixture(scope="module")
def album(models: Models, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Album]:
    folder = tmp_path_factory.mktemp("choosing")
    with (
        serving(models, lambda: database_url, folder, library="choosing") as running,
        httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):
        ids = []
        for number in range(30):
            year, month = 2023 - number // 12, 12 - number % 12
            taken = {"taken_at": f"{year}-{month:02d}-10T12:00:00Z"}
            files = [("files", (f"{number:02d}.jpg", picture(400 + number)))]
            answer = client.post(f"{PHOTOS}/upload", params=taken, files=files)
            ids.append(str(answer.json()["results"][0]["photo"]["id"]))
        yield Album(running, client, ids)


@pytest.fixture
def tab(open_tab: OpenTab, album: Album) -> Tab:
    return open_tab(album.running)


def test_choosing_with_the_mouse(tab: Tab, album: Album) -> None:
    page = tab.sign_in()
    tiles = page.locator(".tile")
    tiles.first.wait_for()
    bar = page.get_by_role("group", name="Chosen photos")
    tiles.nth(0).click(modifiers=["Control"])
    bar.get_by_text("1 photo chosen").wait_for()
    # From then on a click chooses, and with the shift key all up to there.
    tiles.nth(3).click(modifiers=["Shift"])
    bar.get_by_text("4 photos chosen").wait_for()
    tiles.nth(1).click()
    bar.get_by_text("3 photos chosen").wait_for()
    assert page.url.endswith("/photos")
    tab.until("document.querySelectorAll('[role=checkbox][aria-checked=true]').length === 3")
    page.evaluate("scrollTo(0, 0)")
    tab.check_accessible()
    tab.shot("choosing")
    bar.get_by_role("button", name="All shown").click()
    bar.get_by_text("30 photos chosen").wait_for()
    page.keyboard.press("Escape")
    bar.wait_for(state="hidden")
    assert not page.locator(".tile[role]").count()
    tiles.first.click()
    page.get_by_role("dialog", name="Photo").wait_for()


def test_tagging_many_by_keyboard(tab: Tab, album: Album) -> None:
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    page.locator(".tile").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Space")
    tab.until(CHOSEN.format(3))
    page.get_by_role("button", name="Add a tag").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Add a tag: 3 photos")
    dialog.get_by_label("Tag").fill(HOSTILE[:90])
    page.keyboard.press("Enter")
    page.get_by_text("3 photos got the tag").wait_for()
    assert [album.tags(place) for place in range(4)] == [[HOSTILE[:90]]] * 3 + [[]]
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Undone.").wait_for()
    assert [album.tags(place) for place in range(3)] == [[]] * 3
    # What has the tag already is not touched by undoing.
    album.client.post(f"{PHOTOS}/{album.ids[1]}/tags", json={"add": ["sea"]})
    page.reload()
    page.locator(".tile").first.wait_for()
    page.locator(".tile").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("Control+a")
    tab.until("document.querySelector('.chosen-count').textContent === '30 photos chosen'")
    page.get_by_role("button", name="Add a tag").click()
    page.get_by_role("dialog").get_by_label("Tag").fill("sea")
    page.keyboard.press("Enter")
    page.get_by_text("29 photos got the tag sea.").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Undone.").wait_for()
    assert [album.tags(place) for place in range(3)] == [[], ["sea"], []]
    page.get_by_role("button", name="Remove a tag").click()
    page.get_by_role("dialog").get_by_label("Tag").fill("sea")
    page.keyboard.press("Enter")
    page.get_by_text("The tag sea was taken from 1 photo.").wait_for()
    assert album.tags(1) == []
    assert page.evaluate("window.broken === undefined && !document.querySelector('img[src=x]')")


def test_a_tag_of_one_photo_is_taken_back(tab: Tab, album: Album) -> None:
    page = tab.sign_in(f"/photos/{album.ids[4]}")
    page.get_by_label("Add a tag").fill("by mistake")
    page.keyboard.press("Enter")
    page.get_by_text("Tagged with by mistake.").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("The tag by mistake is gone.").wait_for()
    assert album.tags(4) == []


def test_indexing_and_erasing_many(tab: Tab, album: Album) -> None:
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    page.get_by_role("button", name="Select", exact=True).click()
    page.get_by_text("Choose photos", exact=True).wait_for()
    assert page.get_by_role("button", name="Erase").is_disabled()
    for place in range(3):
        page.locator(f".tile[data-id='{album.ids[place]}']").click()
    page.get_by_role("button", name="Find faces again").click()
    page.get_by_text("Faces are looked for in 3 photos.").wait_for()
    job, *_ = album.client.get("/api/v1/jobs").json()["items"]
    assert job["progress"]["total"] == 3
    # One is gone already: the others go all the same.
    album.client.delete(f"{PHOTOS}/{album.ids[1]}").raise_for_status()
    tab.expected.append("404")
    page.get_by_role("button", name="Erase").click()
    dialog = page.get_by_role("dialog", name="Erase 3 photos?")
    assert "cannot be undone" in dialog.inner_text()
    tab.check_accessible()
    dialog.get_by_role("button", name="Cancel").click()
    assert album.client.get(f"{PHOTOS}/{album.ids[0]}").status_code == 200
    page.get_by_role("button", name="Erase").click()
    page.get_by_role("dialog").get_by_role("button", name="Erase").click()
    page.get_by_text("2 photos were erased.").wait_for()
    failed = page.locator(".bulk-failures")
    failed.get_by_text("1 photo failed", exact=True).wait_for()
    assert re.search(r"01\.jpg: .*photo", failed.inner_text())
    page.evaluate("scrollTo(0, 0)")
    tab.until(f"document.querySelector('.tile').dataset.id === '{album.ids[1]}'")
    assert album.client.get(f"{PHOTOS}/{album.ids[0]}").status_code == 404
    page.get_by_text("1 photo chosen").wait_for()
    tab.check_accessible()


def test_a_long_press(open_tab: OpenTab, album: Album) -> None:
    tab = open_tab(album.running, width=390, height=800, has_touch=True, is_mobile=True)
    page = tab.sign_in()
    tile = page.locator(".tile").nth(1)
    tile.wait_for()
    box = tile.bounding_box()
    assert box is not None
    point = {"x": box["x"] + 20, "y": box["y"] + 20}
    finger = page.context.new_cdp_session(page)
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    # On a busy machine half a second may be longer, and the finger waits.
    page.get_by_text("1 photo chosen").wait_for()
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.locator(".tile").nth(2).tap()
    page.get_by_text("2 photos chosen").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    tab.check_accessible()
    tab.shot("choosing-phone")


def test_to_a_month(tab: Tab, album: Album) -> None:
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    reached = "document.querySelector('.tile[tabindex=\"0\"]')?.dataset.id === '{}'"
    page.get_by_label("Go to").select_option("April 2022 (1 photo)")
    tab.until(reached.format(album.ids[20]))
    month = page.get_by_role("heading", name="April 2022")
    assert 0 <= month.evaluate("(one) => one.getBoundingClientRect().top") < 800
    slider = page.get_by_role("slider", name="Month")
    assert str(slider.get_attribute("aria-valuetext")).endswith("1 photo")
    slider.focus()
    page.keyboard.press("End")
    tab.until(reached.format(album.ids[29]))
    # One goes on from there, and the slider stays where it was put.
    assert page.evaluate("document.activeElement.className") == "scrubber-slider"
    page.wait_for_timeout(400)
    assert slider.get_attribute("aria-valuetext") == "July 2021, 1 photo"
    page.get_by_label("Order").select_option("Oldest first")
    page.wait_for_url("**order=asc**")
    tab.until(f"document.querySelector('.tile')?.dataset.id === '{album.ids[29]}'")
    page.get_by_label("Go to").select_option("December 2022 (1 photo)")
    tab.until(reached.format(album.ids[12]))
    # In the order they were added there are no months.
    page.get_by_label("Order").select_option("Last added first")
    page.get_by_label("Go to").wait_for(state="hidden")


def test_a_folder_that_is_dropped(tab: Tab, album: Album, tmp_path: Path) -> None:
    inner = tmp_path / "Summer" / "Rome"
    inner.mkdir(parents=True)
    (inner / "colosseum.jpg").write_bytes(picture(500))
    (inner / ".hidden.jpg").write_bytes(picture(501))
    (tmp_path / "Summer" / "notes.txt").write_text("no picture")
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    mouse = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "Summer")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        mouse.send("Input.dispatchDragEvent", {"type": kind, "x": 500, "y": 400, "data": data})
    panel = page.get_by_role("region", name="Uploads")
    panel.get_by_text("Upload finished, 1 added, 1 not supported").wait_for()
    (found,) = [one for one in album.client.get(PHOTOS).json()["items"] if one["file_name"] == "colosseum.jpg"]
    assert found["folder"] == "Summer/Rome"
    album.client.delete(f"{PHOTOS}/{found['id']}")


def test_how_far_an_upload_is_and_that_it_failed(tab: Tab, album: Album) -> None:
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    # Some twenty seconds for the whole of it: it is looked at in the middle.
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 40_000}
    network.send("Network.emulateNetworkConditions", slow)
    name = f"{HOSTILE[:40]}.jpg"
    page.get_by_label("Files to add").set_input_files([file(name, picture(600) + bytes(700_000))])
    panel = page.get_by_role("region", name="Uploads")
    bar = panel.get_by_role("progressbar")
    bar.wait_for()
    assert HOSTILE[:40] in str(bar.get_attribute("aria-label"))
    tab.until("document.querySelector('.upload-list progress').value > 0.1")
    assert bar.evaluate("(one) => one.value") < 1
    network.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    panel.get_by_text("Upload finished, 1 added").wait_for()
    tab.expected.append("ERR_INTERNET_DISCONNECTED")
    network.send("Network.emulateNetworkConditions", {**slow, "offline": True})
    page.get_by_label("Files to add").set_input_files([file("later.jpg", picture(601))])
    panel.get_by_text("Failed. The service does not answer.").wait_for()
    tab.check_accessible()
    network.send("Network.emulateNetworkConditions", {**slow, "offline": False, "uploadThroughput": -1})
    panel.get_by_role("button", name="Retry failed").click()
    panel.get_by_text("Upload finished, 2 added").wait_for()
    page.get_by_role("link", name="later.jpg").wait_for()
    assert page.evaluate("window.broken === undefined")
    for one in album.client.get(PHOTOS, params={"limit": 500}).json()["items"]:
        if one["id"] not in album.ids:
            album.client.delete(f"{PHOTOS}/{one['id']}")


def tab_to(tab: Tab, text: str) -> None:
    """With the Tab key alone."""
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        focused = "document.activeElement.closest('a, button, input')"
        if text in str(tab.page.evaluate(f"{focused}?.getAttribute('aria-label') || {focused}?.textContent")):
            return
    raise AssertionError(f"{text} was not reached")


def test_from_signing_in_to_a_found_photo_by_keyboard(tab: Tab, album: Album) -> None:
    page = tab.page
    page.goto(f"{tab.url}/")
    page.get_by_label("API key").wait_for()
    tab.until("document.activeElement.id === 'key' || document.activeElement.tagName === 'BODY'")
    for _ in range(10):
        if page.evaluate("document.activeElement.tagName") == "INPUT":
            break
        page.keyboard.press("Tab")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.locator(".tile").first.wait_for()
    # Asked for before the way there: the browser needs a moment until it hands choosers over.
    with page.expect_file_chooser() as chooser:
        tab_to(tab, "Add photos")
        page.keyboard.press("Enter")
    chooser.value.set_files([file("by-keyboard-alone.jpg", picture(700))])
    page.get_by_text("Upload finished, 1 added").wait_for()
    page.get_by_role("link", name="by-keyboard-alone.jpg").wait_for()
    page.evaluate("document.activeElement.blur()")
    tab_to(tab, "Search")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search")
    tab.until("document.activeElement.id === 'search-text'")
    page.keyboard.type("keyboard alone")
    page.keyboard.press("Enter")
    page.locator(".hit").wait_for()
    tab_to(tab, "by-keyboard-alone.jpg")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Photo")
    dialog.get_by_role("heading", name="by-keyboard-alone.jpg").wait_for()
    # The focus stays inside, and goes back.
    tab_to(tab, "Erase this photo")
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Erase this photo?").wait_for()
    tab_to(tab, "Erase")
    page.keyboard.press("Enter")
    page.get_by_text("by-keyboard-alone.jpg was erased.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_on_a_phone(open_tab: OpenTab, album: Album, scheme: str) -> None:
    """No serious finding of axe-core in either colours, and nothing wider than the window."""
    tab = open_tab(album.running, width=360, height=740, color_scheme=scheme, has_touch=True, is_mobile=True)
    page = tab.sign_in()
    for view in ("Photos", "People", "Search", "Journal"):
        page.get_by_role("navigation").get_by_role("link", name=view).click()
        page.get_by_role("heading", level=1, name=view).wait_for()
        page.wait_for_timeout(300)
        tab.check_accessible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view
    page.goto(f"{tab.url}/people/review")
    page.get_by_text("There is nothing to ask.").first.wait_for()
    tab.check_accessible()
    tab.shot(f"journal-phone-{scheme}")
