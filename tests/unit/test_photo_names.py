from __future__ import annotations

import pytest

from serve_app.text import photo_names


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("IMG_1.jpg", "IMG_1.jpg"),
        ("/home/anna/Fotos/IMG_1.jpg", "IMG_1.jpg"),
        ("C:\\Fotos\\IMG_1.jpg", "IMG_1.jpg"),
        ("../../etc/passwd", "passwd"),
        ("folder/", "folder"),
        ("  a b.jpg ", "a b.jpg"),
        ("Zu\u0308rich.jpg", "Z\u00fcrich.jpg"),
        ("a\x00b\nc\ud800.jpg", "abc.jpg"),
        ("photo\u202egnp.exe", "photognp.exe"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467.jpg", "\U0001f468\u200d\U0001f469\u200d\U0001f467.jpg"),
        ("", None),
        (None, None),
        ("..", None),
        ("\x00", None),
        ("x" * 300 + ".jpeg", "x" * 250 + ".jpeg"),
        ("x" * 300, "x" * 255),
        ("x." + "y" * 300, "x." + "y" * 253),
    ],
)
def test_file_names_keep_their_last_part_and_are_never_refused(given: str | None, kept: str | None) -> None:
    assert photo_names.file_name(given) == kept


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("/", ""),
        ("Italy/Rome", "Italy/Rome"),
        ("/Italy//Rome/ ", "Italy/Rome"),
        ("Italy\\Rome", "Italy/Rome"),
        (" Italy / Rome ", "Italy/Rome"),
        ("Zu\u0308rich", "Z\u00fcrich"),
    ],
)
def test_folders_have_one_spelling(given: str, kept: str) -> None:
    assert photo_names.folder(given) == kept


@pytest.mark.parametrize("given", ["a/../b", "..", "./a", "a\x00", "a\nb", "\ud800", "x" * 501, "a\u2028b"])
def test_folders_that_are_none(given: str) -> None:
    with pytest.raises(ValueError):
        photo_names.folder(given)


def test_tags() -> None:
    assert photo_names.tag(" Zu\u0308rich ") == "Z\u00fcrich"
    assert photo_names.tag("x" * 100) == "x" * 100
    for wrong in ("", "  ", "x" * 101, "a\x00", "a\tb", "\ud800"):
        with pytest.raises(ValueError):
            photo_names.tag(wrong)
