"""The questions that the library has, naming of groups, taking apart, and the journal, in a browser with real models. Each test
goes on from where the one before left the library."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from PIL import Image, ImageOps

from tests.api.conftest import KEY
from tests.browser.conftest import OpenTab, Tab, file
from tests.browser.service import Models, Running, serving
from tests.browser.test_people import HOSTILE
from tests.data import package_image

API = "/api/v1"
NAMES = ("Anna", "Berta", "Carla", "Dora", "Eve")


@dataclass(frozen=True)
class Faces:
    """Five faces of a photo, and of each a copy in a photo of its own. Two copies are as in a mirror: they are Anna and Berta,
    and the faces of the photo two `groups` without a name. The other three are too small to be grouped, and the faces of the
    photo are Carla, Dora and Eve. `faces`: those of the groups, and the small ones."""

    running: Running
    client: httpx.Client
    faces: list[str]
    groups: list[str]
    persons: list[str]

    def get(self, path: str) -> dict[str, object]:
        answer = self.client.get(f"{API}{path}")
        assert answer.status_code == 200, answer.text
        found: dict[str, object] = answer.json()
        return found

    def owner(self, number: int) -> object:
        return self.get(f"/faces/{self.faces[number]}")["person_id"]


@pytest.fixture(scope="module")
def faces(models: Models, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    folder = tmp_path_factory.mktemp("review")
    with (
        serving(models, lambda: database_url, folder, library="review", indexing=True) as running,
        httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):
        yield filled(running, client)


def filled(running: Running, client: httpx.Client) -> Faces:
    def upload(name: str, data: bytes) -> str:
        answer = client.post(f"{API}/photos/upload", files=[("files", (name, data))])
        return str(answer.json()["results"][0]["photo"]["id"])

    def looked_at(photo: str, count: int) -> list[Any]:
        for _ in range(1200):
            found: list[Any] = client.get(f"{API}/photos/{photo}/faces").json()["faces"]
            if len(found) == count and all(one["unassigned"] or one["person_id"] for one in found):
                return found
            time.sleep(0.1)
        raise AssertionError("the faces were not grouped")

    photo = upload("group.jpg", package_image("t1.jpg"))
    originals = looked_at(photo, 6)[:5]
    cuts = [mirrored(one["bbox"]) for one in originals[:2]] + [small(one["bbox"]) for one in originals[2:]]
    copies = [str(looked_at(upload(f"{number}.jpg", cut), 1)[0]["id"]) for number, cut in enumerate(cuts)]
    ids = [str(one["id"]) for one in originals]
    # Clustering has made pairs of them. What users take out of a pair leaves the other.
    groups = [str(client.get(f"{API}/faces/{face}").json()["person_id"]) for face in ids[:2]]
    persons = []
    for face, name in zip([*copies[:2], *ids[2:]], NAMES, strict=True):
        answer = client.post(f"{API}/faces/{face}/assign-person", json={"name": name})
        persons.append(str(answer.json()["person_id"]))
    return Faces(running, client, [*ids[:2], *copies[2:]], groups, persons)


def mirrored(box: list[float]) -> bytes:
    """The face of the picture, as in a mirror: alike, and not the same."""
    return jpeg(ImageOps.mirror(cut_out(box)))


def small(box: list[float]) -> bytes:
    """The face, 36 pixels wide."""
    cut = cut_out(box)
    share = 36 / (box[2] - box[0])
    return jpeg(cut.resize((round(cut.width * share), round(cut.height * share)), Image.Resampling.LANCZOS))


def cut_out(box: list[float]) -> Image.Image:
    x1, y1, x2, y2 = box
    margin = 0.7 * max(x2 - x1, y2 - y1)
    with Image.open(io.BytesIO(package_image("t1.jpg"))) as image:
        return image.crop((int(max(0, x1 - margin)), int(max(0, y1 - margin)), int(x2 + margin), int(y2 + margin)))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def tab(open_tab: OpenTab, faces: Faces) -> Tab:
    return open_tab(faces.running)


def test_a_group_is_named_after_somebody_it_looks_like(tab: Tab, faces: Faces) -> None:
    berta = faces.persons[1]
    page = tab.sign_in(f"/people/{faces.groups[1]}")
    page.get_by_role("heading", name="Unnamed").wait_for()
    page.get_by_role("button", name="Name", exact=True).click()
    dialog = page.get_by_role("dialog", name="Who is this?")
    choice = dialog.get_by_role("button", name=re.compile("Berta Same person: 0"))
    choice.locator("img[src]").wait_for()
    tab.check_accessible()
    tab.shot("naming")
    choice.click()
    page.get_by_text("This is Berta.").wait_for()
    page.get_by_role("heading", name="Berta").wait_for()
    tab.until("document.querySelectorAll('.face').length === 2")
    assert faces.owner(1) == berta
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Undone.").wait_for()
    assert faces.owner(1) == faces.groups[1]
    page.get_by_role("button", name="Redo").click()
    page.get_by_text("Done again.").wait_for()
    assert faces.owner(1) == berta


def test_questions_are_answered_by_keys(open_tab: OpenTab, faces: Faces) -> None:
    tab = open_tab(faces.running, color_scheme="dark")
    page = tab.sign_in("/people")
    page.get_by_role("link", name="Same person?").click()
    asked = page.locator(".review-question")
    asked.get_by_text("Are these Anna?").wait_for()
    page.locator(".review-side img[src]").nth(1).wait_for()
    assert "threshold 0.36" in str(page.locator(".review-scale svg").get_attribute("aria-label"))
    tab.check_accessible()
    tab.shot("review")
    page.keyboard.press("n")
    page.get_by_text("Not Anna, and not asked again.").wait_for()
    asked.get_by_text(re.compile("Is this ")).wait_for()
    # What was taken back is asked again, before the question that was about to be answered.
    page.get_by_role("button", name="Undo").click()
    asked.get_by_text("Are these Anna?").wait_for()
    page.keyboard.press("y")
    page.get_by_text("They are Anna now.").wait_for()
    assert faces.owner(0) == faces.persons[0]
    answered = {}
    for key in ("y", "x", "n"):
        asked.get_by_text(re.compile("Is this ")).wait_for()
        (name,) = (one for one in NAMES[2:] if one in asked.inner_text())
        assert name not in answered
        answered[name] = key
        page.keyboard.press(key)
        tab.until(
            f"!document.querySelector('.review-question').textContent.includes('{name}')"
            " || document.querySelector('.review').hidden"
        )
    page.get_by_text("4 questions answered. There is nothing to ask any more.").first.wait_for()
    for name, key in answered.items():
        face = faces.get(f"/faces/{faces.faces[NAMES.index(name)]}")
        assert (face["person_name"], face["hidden"]) == (name if key == "y" else None, key == "x")
    tab.check_accessible()
    # The keys mean nothing where something is typed.
    page.get_by_role("link", name="← People").click()
    page.get_by_label("Name", exact=True).fill("nyx")
    page.get_by_text("Nobody fits.").wait_for()


def test_the_journal(tab: Tab, faces: Faces) -> None:
    page = tab.sign_in("/people")
    page.locator(".view-head").get_by_role("link", name="Journal").click()
    page.get_by_role("heading", name="Journal").wait_for()
    entries = page.locator(".journal-entry")
    merged = entries.filter(has_text="became part of Anna").filter(has=page.get_by_role("button"))
    merged.wait_for()
    assert "bootstrap" in merged.inner_text()
    tab.check_accessible()
    tab.shot("journal")
    merged.get_by_role("button", name=re.compile("^Undo: ")).click()
    page.get_by_text("Undone.").wait_for()
    assert faces.owner(0) == faces.groups[0]
    entries.first.get_by_role("button", name=re.compile("^Redo: ")).click()
    entries.nth(1).get_by_text("Redone").wait_for()
    assert faces.owner(0) == faces.persons[0]
    page.get_by_label("Show").select_option("Faces hidden")
    page.wait_for_url("**/journal?action=hide_faces")
    tab.until("document.querySelectorAll('.journal-entry').length === 1")
    assert entries.inner_text().startswith("Hid a face")
    page.get_by_label("Show").select_option("Persons dissolved")
    page.get_by_text("Nothing of the kind was done.").wait_for()
    page.goto(f"{tab.url}/journal?person={faces.persons[0]}")
    page.get_by_text("about Anna").wait_for()
    page.get_by_role("button", name="Not only about Anna").click()
    page.wait_for_url(re.compile("/journal$"))
    entries.filter(has_text="Said who a face is not").wait_for()


def test_taking_apart(tab: Tab, faces: Faces) -> None:
    anna = faces.persons[0]
    page = tab.sign_in(f"/people/{anna}")
    page.get_by_role("heading", name="Anna").wait_for()
    page.get_by_role("checkbox", name="Choose face 2").check()
    page.get_by_role("button", name="Somebody else").click()
    dialog = page.get_by_role("dialog", name="Who is it then?")
    dialog.get_by_label("Name, if you know it").fill(HOSTILE)
    page.keyboard.press("Enter")
    page.get_by_text("1 face became somebody else.").wait_for()
    tab.until("document.querySelectorAll('.face').length === 1")
    page.locator(".view-head").get_by_role("link", name="Journal").click()
    page.get_by_text("about Anna").wait_for()
    page.locator(".journal-entry").filter(has_text="Took a face from Anna").filter(has_text=HOSTILE).wait_for()
    assert page.evaluate("window.broken === undefined && !document.querySelector('img[src=x]')")
    page.get_by_role("button", name=re.compile("^Undo: Took a face from Anna")).click()
    page.get_by_text("Undone.").wait_for()
    assert faces.get(f"/persons/{anna}")["face_count"] == 2


def test_a_search_by_a_face_says_by_which_face(tab: Tab, faces: Faces) -> None:
    page = tab.sign_in("/search")
    page.get_by_text("Search by a face").click()
    box = faces.get(f"/faces/{faces.faces[0]}")["bbox"]
    assert isinstance(box, list)
    page.get_by_label("A face to look for").set_input_files([file("<b>me</b>.jpg", mirrored(box))])
    seen = page.get_by_role("region", name="Who the face is")
    seen.get_by_role("heading", name="This is Anna").wait_for()
    seen.get_by_alt_text("The face it was recognised by").wait_for()
    assert "Most alike: similarity" in seen.inner_text()
    hits = page.locator(".hit")
    tab.until("document.querySelectorAll('.hit-face img[src]').length === 2")
    for text in hits.all_inner_texts():
        assert re.search(r"Same person\s+Similarity [01]\.\d{3}, threshold 0\.36", text)
    tab.check_accessible()
    tab.shot("search-face")
