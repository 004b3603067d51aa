"""Compare on real photos: what the page says is what the API says."""

from __future__ import annotations

import csv
import math
import re

import httpx
import pytest

from tests import data
from tests.browser.conftest import Tab, file

PAIRS = 3
"""Of the same person, and as many of two."""


def pairs() -> list[tuple[str, str, bool]]:
    path = data.PHOTOS / "pairs.csv"
    if not path.is_file():
        pytest.skip("the photos are not here (KINLENS_TEST_DATA)")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [(row["file_a"], row["file_b"], row["same"] == "1") for row in csv.DictReader(stream)]
    return [row for same in (True, False) for row in [one for one in rows if one[2] is same][:PAIRS]]


def test_the_scale_says_what_the_api_says(tab: Tab, client: httpx.Client) -> None:
    point = client.get("/api/v1/models").json()["loaded"]
    match, suggest = point["thresholds"]["match"], point["thresholds"]["suggest"]
    page = tab.sign_in("/compare")
    right = 0
    for first, second, same in pairs():
        photos = [data.read(name.removeprefix("dev/")) for name in (first, second)]
        answer = client.post(
            "/api/v1/compare/compare-faces", files={"image_a": ("a.jpg", photos[0]), "image_b": ("b.jpg", photos[1])}
        )
        assert answer.status_code == 200, answer.text
        similarity = answer.json()["similarity"]
        for label, photo in zip(("First photo", "Second photo"), photos, strict=True):
            page.get_by_label(label).set_input_files([file(f"{label}.jpg", photo)])
            page.locator(".choice", has=page.get_by_label(label)).get_by_text(re.compile(r"^\d+ faces?$")).wait_for()
        page.get_by_text(re.compile(r"\d+ pairs? of faces")).wait_for()
        labels = [one.get_attribute("aria-label") or "" for one in page.locator(".pair svg.scale").all()]
        decision = "Same person" if similarity >= match else "Perhaps the same" if similarity >= suggest else "Not the same"
        shown = [one for one in labels if one.startswith(f"Similarity {math.floor(similarity * 1000) / 1000:.3f}")]
        assert shown and decision in shown[0], (similarity, labels)
        # The marker stands on the side of the threshold that the words say.
        right += (similarity >= match) is same
    assert right >= 2 * PAIRS - 1
    words = page.locator(".worth").inner_text()
    accuracy = point["accuracy"]
    for rate in (accuracy["far"], accuracy["frr"]):
        said = [
            int(count.replace(",", "")) / int(among.replace(",", ""))
            for count, among in re.findall(r"([\d,]+) in ([\d,]+)", words)
        ]
        assert any(one == pytest.approx(rate, rel=0.2) for one in said), (rate, words)
    tab.check_accessible()
    tab.shot("compare-photos")
