"""Faces of the library in a browser: found after an upload, named, put right, looked for."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.api.conftest import KEY
from tests.browser.conftest import OpenTab, Tab, file
from tests.browser.service import Models, Running, serving
from tests.browser.test_photos import picture
from tests.data import package_image

HOSTILE = """<img src=x onerror="window.broken=1">"'&</script><script>window.broken=1</script>"""

NAMED = "[...document.querySelectorAll('.person-name')].filter((one) => /Matt|Zo/.test(one.textContent)).length === {}"
"""There may be others: groups without a name."""


@pytest.fixture(scope="module")
def album(models: Models, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A library whose photos are looked at for faces."""
    folder = tmp_path_factory.mktemp("album")
    with serving(models, lambda: database_url, folder, library="album", indexing=True) as running:
        yield running


@pytest.fixture(scope="module")
def photo(album: Running) -> str:
    """The id of a photo with six faces, which have been found."""
    with httpx.Client(base_url=album.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        files = [("files", (f"{HOSTILE[:60]}.jpg", package_image("t1.jpg")))]
        answer = client.post("/api/v1/photos/upload", files=files, params={"tags": [HOSTILE[:90]]})
        photo_id = str(answer.json()["results"][0]["photo"]["id"])
        for _ in range(1200):
            if len(client.get(f"/api/v1/photos/{photo_id}/faces").json()["faces"]) == 6:
                return photo_id
            time.sleep(0.1)
    raise AssertionError("the faces were not found")


def looked_at(client: httpx.Client) -> None:
    """What has been uploaded, to the last photo."""
    for _ in range(1200):
        if not [job for job in client.get("/api/v1/jobs").json()["items"] if job["state"] in ("queued", "running")]:
            return
        time.sleep(0.1)
    raise AssertionError("the jobs did not end")


@pytest.fixture
def tab(open_tab: OpenTab, album: Running) -> Tab:
    return open_tab(album)


def name_face(tab: Tab, number: int, name: str) -> None:
    tab.page.get_by_role("button", name=re.compile(rf"(Name|Change): face {number}")).click()
    dialog = tab.page.get_by_role("dialog", name="Who is this?")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_role("button", name="Save").click()
    tab.page.locator(".photo-face").get_by_role("link", name=name).wait_for()


def test_faces_of_a_photo_get_names(tab: Tab, photo: str) -> None:
    page = tab.sign_in(f"/photos/{photo}")
    page.locator(".photo-face").nth(5).wait_for()
    assert page.locator(".overlay .box").count() == 6
    name_face(tab, 1, "Matthias")
    name_face(tab, 2, "Zoë Brünn")
    assert sorted(page.locator(".box-label").all_text_contents()) == ["Matthias", "Zoë Brünn"]
    tab.check_accessible()
    tab.shot("photo-faces")
    page.get_by_role("button", name="Not a face: face 6").click()
    page.get_by_text("The face is hidden.").wait_for()
    tab.until("document.querySelectorAll('.overlay .box').length === 5")
    page.get_by_role("button", name="Undo").last.click()
    page.get_by_text("Undone.").wait_for()
    tab.until("document.querySelectorAll('.overlay .box').length === 6")


def test_people(tab: Tab, photo: str) -> None:
    page = tab.sign_in("/people")
    page.get_by_role("link", name=re.compile("Matthias")).wait_for()
    page.locator(".person img[src]").first.wait_for()
    tab.check_accessible()
    tab.shot("people")
    page.get_by_role("checkbox", name=re.compile("Matthias")).check()
    page.get_by_role("checkbox", name=re.compile("Zoë")).check()
    page.get_by_role("button", name="Same person").click()
    page.get_by_role("dialog", name="Is this one person?").get_by_role("button", name="Same person").click()
    page.get_by_text("They are one person now").wait_for()
    tab.until(NAMED.format(1))
    page.get_by_role("button", name="Undo").click()
    tab.until(NAMED.format(2))
    page.get_by_role("link", name=re.compile("Matthias")).click()
    page.get_by_role("heading", name="Matthias").wait_for()
    page.get_by_role("button", name="Rename").click()
    dialog = page.get_by_role("dialog", name="Rename")
    dialog.get_by_label("Name").fill("Matt")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Matt", exact=True).wait_for()
    tab.check_accessible()
    tab.shot("person")
    page.get_by_role("checkbox", name="Choose face 1").check()
    page.get_by_role("button", name="Use as cover").click()
    page.get_by_text("This face stands for the person now.").wait_for()
    page.get_by_role("link", name="1 photo").click()
    page.get_by_text("1 photo", exact=True).wait_for()
    page.get_by_text("person: Matt", exact=True).wait_for()
    page.go_back()
    page.get_by_role("button", name="Hide", exact=True).click()
    page.get_by_text("Matt is hidden.").wait_for()
    page.get_by_role("link", name="← People").click()
    page.get_by_role("link", name=re.compile("Zoë")).wait_for()
    tab.until(NAMED.format(1))
    page.get_by_label("Hidden ones").check()
    page.get_by_role("link", name=re.compile("Matt")).click()
    page.get_by_role("button", name="Show again").click()
    page.get_by_text("Matt is shown again.").wait_for()
    page.get_by_role("checkbox", name="Choose face 1").check()
    page.get_by_role("button", name="Not this person").click()
    page.get_by_text("Not this person, and never again.").wait_for()
    tab.until("document.querySelectorAll('.face').length === 0")
    page.get_by_role("button", name="Undo").last.click()
    tab.until("document.querySelectorAll('.face').length === 1")


def test_search(tab: Tab, photo: str) -> None:
    page = tab.sign_in("/search")
    page.get_by_label("Names, tags, places, dates, cameras").fill("zoe brunn")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=zoe%20brunn")
    page.locator(".hit").wait_for()
    assert "person: Zoë Brünn" in page.locator(".hit").inner_text()
    tab.check_accessible()
    tab.shot("search")
    page.get_by_label("Names, tags, places, dates, cameras").fill("nobody at all")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("Nothing was found")).wait_for()
    page.go_back()
    page.locator(".hit a").click()
    page.get_by_role("dialog", name="Photo").wait_for()
    page.keyboard.press("Escape")
    page.get_by_label("Names, tags, places, dates, cameras").fill("")
    page.keyboard.press("Enter")
    page.get_by_text("Search by a face").click()
    page.get_by_label("A face to look for").set_input_files([file("selfie.jpg", package_image("t1.jpg"))])
    page.get_by_text(re.compile("the largest face: .* threshold 0.36")).wait_for()
    page.locator(".hit").wait_for()


def test_jobs(tab: Tab, photo: str, album: Running) -> None:
    page = tab.sign_in("/jobs")
    page.get_by_role("heading", name="Finding faces").first.wait_for()
    page.get_by_text(re.compile("1 of 1 item done")).first.wait_for()
    page.get_by_role("button", name="Find faces").click()
    page.get_by_text("There is nothing to do: every photo has been looked at.").wait_for()
    tab.until("document.querySelectorAll('.job').length >= 2")
    # A photo whose file is lost.
    with httpx.Client(base_url=album.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        answer = client.post("/api/v1/photos/upload", files=[("files", ("lost.jpg", picture(300)))])
        lost = answer.json()["results"][0]["photo"]
        looked_at(client)
        objects = (album.services.settings.data_dir / "objects").rglob("*")
        (original,) = [path for path in objects if path.is_file() and path.read_bytes() == picture(300)]
        original.unlink()
        client.post("/api/v1/index/faces", json={"photo_ids": [lost["id"]], "only_new": False})
    job = page.locator(".job").filter(has_text="1 failed")
    job.get_by_text("Failed", exact=True).wait_for()
    job.get_by_text("Failures").click()
    job.get_by_role("link", name="Photo").wait_for()
    tab.check_accessible()
    tab.shot("jobs")
    original.write_bytes(picture(300))
    job.get_by_role("button", name="Retry failed").click()
    page.locator(".job").first.get_by_text("1 of 1 item done").wait_for()


def test_names_and_tags_are_text_whatever_they_say(tab: Tab, photo: str) -> None:
    page = tab.sign_in(f"/photos/{photo}")
    page.locator(".photo-face").nth(5).wait_for()
    name_face(tab, 3, HOSTILE)
    assert HOSTILE in page.locator(".box-label").all_text_contents()
    page.get_by_label("Add a tag").fill(HOSTILE[:100])
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("button", name=f"Remove the tag {HOSTILE[:100].strip()}").wait_for()
    page.keyboard.press("Escape")
    page.locator(".tile").first.wait_for()
    for path in ("/people", "/search?q=img", "/photos?tag=" + "%3Cimg%20src%3Dx%3E"):
        page.goto(tab.url + path)
        page.locator("h1").wait_for()
        page.wait_for_timeout(500)
    page.goto(tab.url + "/people")
    page.get_by_text(HOSTILE, exact=True).click()
    page.get_by_role("heading", name=HOSTILE).wait_for()
    assert page.evaluate("window.broken === undefined && !document.querySelector('img[src=x]')")
