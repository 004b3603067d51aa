"""What an import reads: folders and CSVs as people really have them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from serve_app.errors import ConfigurationError
from serve_app.imports import import_sources
from serve_app.imports.import_sources import CsvSource, FolderSource, Picture, Skipped, open_source, read_picture

JPEG = b"\xff\xd8\xff\xe0" + b"x" * 400


def put(path: Path, data: bytes = JPEG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pictures(entries: list[Picture | Skipped]) -> dict[str, str]:
    return {one.shown: str(one.person.external_id) for one in entries if isinstance(one, Picture)}


def skipped(entries: list[Picture | Skipped]) -> dict[str, tuple[str, bool]]:
    return {one.shown: (one.code, one.harmless) for one in entries if isinstance(one, Skipped)}


def test_a_folder_a_person(tmp_path: Path) -> None:
    for name in ("anna/1.jpg", "anna/2024/summer/2.jpg", "Bob Müller/x.png", "empty/.keep", ".git/a.jpg", "anna/.DS_Store"):
        put(tmp_path / name)
    put(tmp_path / "lost.jpg")
    put(tmp_path / "README.md", b"# Photos")
    found = list(FolderSource(tmp_path).entries())
    assert pictures(found) == {"anna/1.jpg": "anna", "anna/2024/summer/2.jpg": "anna", "Bob Müller/x.png": "Bob Müller"}
    assert {one.person.name for one in found if isinstance(one, Picture)} == {"anna", "Bob Müller"}
    assert skipped(found) == {
        ".git": ("hidden", True),
        "README.md": ("not_a_picture", True),
        "anna/.DS_Store": ("hidden", True),
        "empty/.keep": ("hidden", True),
        "lost.jpg": ("no_person", False),
    }
    assert list(FolderSource(tmp_path).entries()) == found


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    root = tmp_path / "source"
    put(root / "anna" / "1.jpg")
    put(tmp_path / "elsewhere" / "2.jpg")
    (root / "anna" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "anna" / "self").symlink_to(root / "anna")
    (root / "anna" / "root").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root / "anna")
    (root / "anna" / "broken.jpg").symlink_to(root / "nothing.jpg")
    (root / "bob").symlink_to(root / "bob")
    found = list(FolderSource(root).entries())
    assert pictures(found) == {"anna/1.jpg": "anna", "anna/more/2.jpg": "anna", "anna/broken.jpg": "anna"}
    assert skipped(found) == {
        "anna/self": ("link_loop", True),
        "anna/root": ("link_loop", True),
        "anna/more/back": ("link_loop", True),
        "bob": ("not_a_picture", True),
    }
    broken = next(one for one in found if isinstance(one, Picture) and one.shown == "anna/broken.jpg")
    unread = read_picture(broken)
    assert isinstance(unread, Skipped) and unread.code == "unreadable" and not unread.harmless


def test_folders_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    descriptor = os.open(put(tmp_path / "anna" / "1.jpg").parent, os.O_RDONLY)
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=descriptor)
            below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        assert pictures(list(FolderSource(tmp_path).entries())) == {"anna/1.jpg": "anna"}
    finally:
        os.close(descriptor)
        # pytest itself removes folders by recursion.
        subprocess.run(["rm", "-rf", str(tmp_path / "anna")], check=True)


def test_names_that_cannot_be_ids_are_told_file_by_file(tmp_path: Path) -> None:
    put(tmp_path / "tab\there" / "1.jpg")
    put(tmp_path / ("x" * 201) / "2.jpg")
    put(tmp_path / os.fsdecode(b"caf\xe9") / "3.jpg")
    found = list(FolderSource(tmp_path).entries())
    assert pictures(found) == {}
    assert {code for code, harmless in skipped(found).values() if not harmless} == {"invalid_person"}
    assert {name.rpartition("/")[2] for name in skipped(found)} == {"1.jpg", "2.jpg", "3.jpg"}
    for one in found:
        assert one.shown.encode()


@pytest.mark.parametrize(
    ("data", "code", "harmless"),
    [(b"", "not_a_picture", False), (b"hello", "not_a_picture", True), (b"%PDF-1.7" + b"x" * 500, "not_a_picture", True)],
)
def test_what_is_no_picture_is_not_read(tmp_path: Path, data: bytes, code: str, harmless: bool) -> None:
    put(tmp_path / "anna" / "1.jpg", data)
    picture = next(FolderSource(tmp_path).entries())
    assert isinstance(picture, Picture)
    found = read_picture(picture)
    assert isinstance(found, Skipped) and (found.code, found.harmless) == (code, harmless)
    assert found.external_id == "anna"


def test_a_picture_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "anna" / "1.jpg")
    picture = next(FolderSource(tmp_path).entries())
    assert isinstance(picture, Picture) and read_picture(picture) == JPEG
    monkeypatch.setattr(import_sources, "MAX_FILE_BYTES", 100)
    found = read_picture(picture)
    assert isinstance(found, Skipped) and found.code == "image_too_large" and not found.harmless


def test_pipes_and_devices_hold_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "anna").mkdir()
    os.mkfifo(tmp_path / "anna" / "pipe.jpg")
    (tmp_path / "anna" / "zero.jpg").symlink_to("/dev/zero")
    for picture in FolderSource(tmp_path).entries():
        assert isinstance(picture, Picture)
        found = read_picture(picture)
        assert isinstance(found, Skipped) and found.code == "unreadable"


CSV = """file,external_id,name,taken_at,metadata,note
1.jpg,e-1,Anna Müller,2024-08-01,"{""team"": ""x""}",ignored
sub/2.jpg, e-2 ,,,,
,e-3,,,,
3.jpg,,,,,
4.jpg,e-4,,yesterday,,
5.jpg,e-5,,,{broken,
6.jpg,e-6,,,[1],

7.jpg,e-7
"""


def test_a_csv(tmp_path: Path) -> None:
    path = put(tmp_path / "people.csv", b"\xef\xbb\xbf" + CSV.encode())
    found = list(CsvSource(path).entries())
    assert pictures(found) == {"1.jpg": "e-1", "sub/2.jpg": "e-2", "7.jpg": "e-7"}
    first = found[0]
    assert isinstance(first, Picture) and first.path == tmp_path / "1.jpg"
    assert first.person.name == "Anna Müller" and first.person.metadata == {"team": "x"}
    assert first.person.taken_at is not None and first.person.taken_at.isoformat() == "2024-08-01T00:00:00+00:00"
    assert skipped(found) == dict.fromkeys(("people.csv:4", "3.jpg", "4.jpg", "5.jpg", "6.jpg"), ("invalid_row", False))
    assert all("Line" in one.detail or "names no file" in one.detail for one in found if isinstance(one, Skipped))
    assert list(CsvSource(path).entries()) == found


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_column_names(tmp_path: Path, separator: str) -> None:
    lines = [["File ", "PERSON", "Name"], ["a, b.jpg", "p1", "N"], [str(tmp_path / "abs.jpg"), "p2", ""]]
    path = put(tmp_path / "people.csv", "\r\n".join(separator.join(line) for line in lines).encode())
    found = list(CsvSource(path).entries())
    assert pictures(found) == {"a, b.jpg": "p1", str(tmp_path / "abs.jpg"): "p2"}
    assert [one.path for one in found if isinstance(one, Picture)] == [tmp_path / "a, b.jpg", tmp_path / "abs.jpg"]


def test_a_broken_row_does_not_end_it(tmp_path: Path) -> None:
    rows = b"file,person\na\0b.jpg,x\n" + b"c.jpg," + b"y" * 200_000 + b"\nd\xff.jpg,z\ne.jpg,caf\xe9\nf.jpg,last\n"
    found = list(CsvSource(put(tmp_path / "people.csv", rows)).entries())
    assert [one.person.external_id for one in found if isinstance(one, Picture)] == ["z", "last"]
    assert len([one for one in found if isinstance(one, Skipped) and one.code == "invalid_row"]) == 3


@pytest.mark.parametrize("text", ["", "\n\n", "name,file\na,b\n", "file;name\n", "just text\n"])
def test_a_csv_without_its_columns_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="columns"):
        open_source(put(tmp_path / "people.csv", text.encode()))


def test_other_sources_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", put(tmp_path / "a.jpg"), tmp_path / "no.csv"):
        with pytest.raises(ConfigurationError, match="neither a folder"):
            open_source(path)
    assert isinstance(open_source(tmp_path), FolderSource)
