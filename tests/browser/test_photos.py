"""The library in a browser: signing in, the wall of photos, one of them large, tags, filters, uploads."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.api.conftest import KEY
from tests.browser.conftest import PLAIN_HOST, OpenTab, Tab, file
from tests.data import package_image

PHOTOS = "/api/v1/photos"


def picture(number: int, width: int = 480, height: int = 320) -> bytes:
    """Each number another colour, so that no two are the same file."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), ((number * 37) % 256, (number * 91) % 256, (number * 53) % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="package")
def library(client: httpx.Client) -> list[str]:
    """Ids of 30 photos of three months, the newest first."""
    made = []
    for number in range(30):
        day = f"2024-{8 - number // 10:02d}-{28 - number % 10:02d}T12:00:00Z"
        fields = {"taken_at": day, "folder": "Italy/Rome", "tags": "holiday" if number % 2 else "work"}
        size = (320, 480) if number % 3 else (480, 320)
        files = [("files", (f"photo-{number:02d}.jpg", picture(number, *size)))]
        answer = client.post(f"{PHOTOS}/upload", params=fields, files=files)
        made.append(str(answer.json()["results"][0]["photo"]["id"]))
    return made


def test_signing_in_and_out(tab: Tab, library: list[str]) -> None:
    tab.expected.append("401")
    page = tab.page
    page.goto(f"{tab.url}/photos?tag=work")
    page.wait_for_url("**/sign-in?next=%2Fphotos%3Ftag%3Dwork")
    tab.check_accessible()
    page.get_by_label("API key").fill("not-the-key-at-all")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text("This key is not good, or no more").wait_for()
    page.get_by_label("API key").fill("ключ")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text("That is not an API key").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.wait_for_url("**/photos?tag=work")
    page.locator(".tile img[src]").first.wait_for()
    assert page.evaluate("JSON.stringify([localStorage.length, document.cookie])") == '[0,""]'
    page.reload()
    page.locator(".tile").first.wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    assert page.evaluate("sessionStorage.length") == 0
    page.goto(f"{tab.url}/photos")
    page.get_by_label("API key").wait_for()


def test_a_key_that_is_not_to_be_kept_is_gone_with_the_page(tab: Tab, library: list[str]) -> None:
    tab.page.goto(f"{tab.url}/photos")
    tab.page.get_by_label("Stay signed in").uncheck()
    tab.page.get_by_label("API key").fill(KEY)
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.locator(".tile").first.wait_for()
    tab.page.reload()
    tab.page.get_by_label("API key").wait_for()


def test_a_key_that_is_refused_later_leads_back_to_signing_in(tab: Tab, library: list[str]) -> None:
    tab.expected.append("401")
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    page.evaluate("sessionStorage.setItem('kinlens.key', 'another-key-than-before')")
    page.goto(f"{tab.url}/photos/{library[0]}")
    page.wait_for_url(f"**/sign-in?next=%2Fphotos%2F{library[0]}")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Photo").wait_for()


def test_photos_stand_in_months(tab: Tab, library: list[str]) -> None:
    page = tab.sign_in()
    page.locator(".tile img[src]").first.wait_for()
    assert page.get_by_role("heading", level=2).all_inner_texts()[:2] == ["August 2024", "July 2024"]
    first = page.locator(".tile").first
    assert first.get_attribute("aria-label") == "photo-00.jpg, Wed, 28 August 2024"
    tab.check_accessible()
    tab.shot("photos")
    # The name of the month stays in sight.
    page.mouse.wheel(0, 260)
    tab.until("scrollY > 200")
    tab.until("Math.round(document.querySelector('.month-name').getBoundingClientRect().top) === 56")


def test_everything_by_keyboard(tab: Tab, library: list[str]) -> None:
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()

    def focused() -> str:
        found: str = page.evaluate("document.activeElement.dataset.id ?? document.activeElement.className")
        return found

    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    assert focused() == library[1]
    page.keyboard.press("End")
    assert focused() == library[-1]
    page.keyboard.press("ArrowUp")
    above = focused()
    assert above in library[:-1]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    assert focused() == library[0]
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Photo").wait_for()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/photos/{library[1]}")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/photos/{library[2]}")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    page.wait_for_url("**/photos")
    # Where the eye was last, the focus is.
    tab.until(f"document.activeElement?.dataset.id === '{library[1]}'")
    # One stop for the Tab key, however many photos there are.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.timeline')") is None


def test_one_photo(tab: Tab, library: list[str]) -> None:
    page = tab.sign_in(f"/photos/{library[3]}")
    dialog = page.get_by_role("dialog", name="Photo")
    dialog.get_by_role("heading", name="photo-03.jpg").wait_for()
    assert "480 × 320 pixels" in dialog.inner_text() and "Italy/Rome" in dialog.inner_text()
    tab.until("document.querySelector('.lightbox-image:not(.under)').naturalWidth > 0")
    tab.check_accessible()
    tab.shot("photo")
    page.keyboard.press("z")
    page.locator(".lightbox.zoomed").wait_for()
    page.keyboard.press("z")
    page.keyboard.press("i")
    dialog.get_by_text("Italy/Rome").wait_for(state="hidden")
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_bytes() == picture(3)
    dialog.get_by_role("button", name="Close").click()
    page.wait_for_url("**/photos")


def test_tags(tab: Tab, library: list[str], client: httpx.Client) -> None:
    page = tab.sign_in(f"/photos/{library[5]}")
    dialog = page.get_by_role("dialog", name="Photo")
    dialog.get_by_label("Add a tag").fill("  best of  ")
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Remove the tag best of").wait_for()
    assert client.get(f"{PHOTOS}/{library[5]}").json()["tags"] == ["best of", "holiday"]
    dialog.get_by_role("link", name="best of").click()
    page.wait_for_url("**/photos?tag=best%20of")
    page.get_by_text("1 photo", exact=True).wait_for()
    page.get_by_role("button", name="Remove the filter: tag best of").click()
    page.wait_for_url("**/photos")
    page.go_back()
    page.wait_for_url("**/photos?tag=best%20of")
    page.locator(".tile").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove the tag best of").click()
    dialog.get_by_role("button", name="Remove the tag best of").wait_for(state="detached")
    assert client.get(f"{PHOTOS}/{library[5]}").json()["tags"] == ["holiday"]


def test_filters(tab: Tab, library: list[str]) -> None:
    page = tab.sign_in("/photos?folder=Italy%2FRome")
    page.get_by_text("30 photos", exact=True).wait_for()
    page.get_by_label("From", exact=True).fill("2024-07-01")
    page.get_by_label("To", exact=True).fill("2024-07-28")
    page.get_by_text("10 photos", exact=True).wait_for()
    page.get_by_label("Tag", exact=True).fill("work")
    page.keyboard.press("Enter")
    page.get_by_text("5 photos", exact=True).wait_for()
    page.get_by_label("Order").select_option("Oldest first")
    page.wait_for_url("**order=asc**")
    tab.until(f"document.querySelector('.tile')?.dataset.id === '{library[18]}'")
    page.reload()
    page.get_by_text("5 photos", exact=True).wait_for()
    assert page.get_by_label("From", exact=True).input_value() == "2024-07-01"
    page.get_by_label("Without tags").check()
    page.get_by_text("No photo fits this filter.").wait_for()


def test_uploads(tab: Tab, client: httpx.Client, library: list[str]) -> None:
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    page.get_by_label("Files to add").set_input_files(
        [
            file("new.jpg", package_image("t1.jpg")),
            file("again.jpg", picture(0)),
            file("film.mp4", b"\0\0\0\x18ftypmp42" + bytes(200), "video/mp4"),
            file("broken.jpg", picture(77)[:900]),
        ]
    )
    panel = page.get_by_role("region", name="Uploads")
    panel.get_by_text("Upload finished, 1 added, 1 already there, 1 not supported, 1 failed").wait_for()
    lines = {line.split("\n")[0]: line for line in panel.locator("li").all_inner_texts()}
    assert "Added" in lines["new.jpg"] and "Already in the library" in lines["again.jpg"]
    assert "video" in lines["film.mp4"] and "damaged" in lines["broken.jpg"]
    tab.check_accessible()
    tab.shot("upload")
    page.get_by_role("link", name="new.jpg").wait_for()
    # And gone again.
    page.get_by_role("button", name="Close the list of uploads").click()
    page.get_by_role("link", name="new.jpg").click()
    tab.until("document.querySelector('.lightbox-image:not(.under)').naturalWidth > 0")
    page.get_by_text("No faces are known in this photo.").wait_for()
    page.get_by_role("button", name="Erase this photo").click()
    page.get_by_role("dialog", name="Erase this photo?").get_by_role("button", name="Erase").click()
    page.get_by_text("new.jpg was erased.").wait_for()
    page.get_by_role("link", name="new.jpg").wait_for(state="detached")


def test_files_that_are_dropped(tab: Tab, client: httpx.Client, library: list[str]) -> None:
    page = tab.sign_in()
    page.locator(".tile").first.wait_for()
    numbers = list(picture(200))
    page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", {type: "image/jpeg"}));
            for (const name of ["dragover", "drop"]) {
                document.querySelector("main").dispatchEvent(new DragEvent(name, {dataTransfer: transfer, bubbles: true}));
            }
        }""",
        numbers,
    )
    page.get_by_role("link", name="dropped.jpg").locator("img[src]").wait_for()
    (found,) = [photo for photo in client.get(PHOTOS).json()["items"] if photo["file_name"] == "dropped.jpg"]
    client.delete(f"{PHOTOS}/{found['id']}")


def test_on_a_phone_in_the_dark(open_tab: OpenTab, library: list[str]) -> None:
    tab = open_tab(width=390, height=800, color_scheme="dark", has_touch=True, is_mobile=True)
    page = tab.sign_in()
    page.locator(".tile img[src]").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor") == "rgb(16, 19, 24)"
    tab.check_accessible()
    tab.shot("photos-phone")
    page.get_by_role("button", name="Use light colours").click()
    assert page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor") == "rgb(246, 247, 249)"
    tab.check_accessible()


def test_over_plain_http_by_another_name(open_tab: OpenTab, library: list[str]) -> None:
    tab = open_tab(host=PLAIN_HOST)
    tab.expected.append("Cross-Origin-Opener-Policy")
    page = tab.sign_in(f"/photos/{library[7]}")
    assert page.evaluate("isSecureContext") is False
    page.get_by_label("Add a tag").fill("plain")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove the tag plain").click()
    page.get_by_role("button", name="Remove the tag plain").wait_for(state="detached")
    page.keyboard.press("Escape")
    page.get_by_label("Files to add").set_input_files([file("same.jpg", picture(0))])
    page.get_by_text("1 already there").wait_for()


_STAND = """
async ([width, descending]) => {
    const {Timeline} = await import(document.querySelector("script[type=module]").src.replace("main.js", "photos/timeline.js"));
    let seed = 7;
    const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
    const photos = Array.from({length: 700}, (_, place) => {
        // Dates fall, but for clocks that disagree by a day.
        const hours = (descending ? -place : place) * 9 + random() * 24;
        const taken = new Date(Date.UTC(2025, 5, 15) + hours * 3600e3).toISOString();
        return {taken_at: taken, taken_local: null, width_px: 100 + Math.floor(random() * 4000), height_px: 100 + Math.floor(random() * 4000)};
    });
    const measures = {width, rowHeight: 190, gap: 4, heading: 52, descending};
    const whole = new Timeline(measures), parts = new Timeline(measures);
    whole.append(photos);
    for (let place = 0; place < photos.length; place += 37) parts.append(photos.slice(place, place + 37));
    const rows = (timeline) => timeline.rows.map(({top, height, first, count, lefts, widths, section}) => ({top, height, first, count, lefts, widths, month: section.key}));
    return {whole: rows(whole), parts: rows(parts), heights: [whole.height, parts.height], months: whole.sections.map((one) => one.key)};
}
"""


@pytest.mark.parametrize("width", [320, 1280, 2501])
@pytest.mark.parametrize("descending", [True, False])
def test_where_photos_stand(tab: Tab, width: int, descending: bool) -> None:
    """However they arrive: each once, in order, none over another, rows as wide as the page, each month once."""
    page = tab.sign_in("/system")
    found = page.evaluate(_STAND, [width, descending])
    assert found["whole"] == found["parts"] and found["heights"][0] == found["heights"][1]
    assert found["months"] == sorted(set(found["months"]), reverse=descending) and len(found["months"]) > 5
    below, expected = 0, 0
    for row, following in zip(found["whole"], [*found["whole"][1:], None], strict=True):
        assert row["first"] == expected and row["top"] >= below
        expected += row["count"]
        below = row["top"] + row["height"]
        edges = [left + wide for left, wide in zip(row["lefts"], row["widths"], strict=True)]
        assert all(edge < left for edge, left in zip(edges, row["lefts"][1:], strict=False)) and edges[-1] <= width
        if following is not None and following["month"] == row["month"]:
            assert edges[-1] == width
    assert expected == 700 and below <= found["heights"][0]
