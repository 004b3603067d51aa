"""What FTP servers write of their files, and what is made of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serve_app.imports.ftp_listing import (
    Entry,
    Facts,
    Kind,
    bad_name,
    moment,
    parse_list,
    parse_mlsd,
    parse_nlst,
    shown,
    text_of,
    wired,
)
from serve_app.text.photo_names import MAX_FOLDER_LENGTH, folder_of


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (
            "modify=20240501103012.123;perm=r;size=1873264;type=file;unique=8g12; IMG 2041.jpg",
            Entry("IMG 2041.jpg", Kind.FILE, Facts(1873264, "20240501103012.123"), "8g12"),
        ),
        ("Type=dir;Modify=20240501103012;UNIX.mode=0755; 2024", Entry("2024", Kind.FOLDER, Facts(None, "20240501103012"))),
        ("type=OS.unix=slink:/etc;size=4; l", Entry("l", Kind.LINK, Facts(4))),
        ("type=OS.unix=symlink; l", Entry("l", Kind.LINK)),
        ("type=OS.unix=chr-13/29; tty", Entry("tty", Kind.OTHER)),
        ("type=cdir; .", None),
        ("type=pdir; ..", None),
        ("type=file;size=-1;modify=nonsense;  two spaces", Entry(" two spaces", Kind.FILE)),
        ("type=file;size=99999999999999999999; x", Entry("x", Kind.FILE)),
    ],
)
def test_mlsd(line: str, entry: Entry | None) -> None:
    assert parse_mlsd(line) == entry


@pytest.mark.parametrize("line", ["", "no facts at all", "type=file;nospace", "\0"])
def test_what_is_no_line_of_mlsd(line: str) -> None:
    with pytest.raises(ValueError, match="MLSD"):
        parse_mlsd(line)


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("-rw-r--r--   1 anna users  1873264 May  1 12:30 IMG 2041.jpg", Entry("IMG 2041.jpg", Kind.FILE, Facts(1873264))),
        ("-rw-r--r--   1 0 0 5 May 01  2019 old", Entry("old", Kind.FILE, Facts(5))),
        ("-rw-r--r--. 1 anna users 5 2024-05-01 12:30 iso", Entry("iso", Kind.FILE, Facts(5))),
        ("-rw-r--r-- 1 5 May 01  2019 no group", None),
        ("drwxr-xr-x+  2 anna users     4096 May  1 12:30 Fotos", Entry("Fotos", Kind.FOLDER)),
        ("drwxrwsr-t   2 anna             4096 1 May 12:30 Fotos", Entry("Fotos", Kind.FOLDER)),
        ("lrwxrwxrwx   1 a b 7 May  1 12:30 link -> /etc/x", Entry("link", Kind.LINK)),
        ("crw-rw-rw-   1 root root 1, 3 May  1 12:30 null", Entry("null", Kind.OTHER)),
        ("05-01-24  12:30PM       <DIR>          Meine Fotos", Entry("Meine Fotos", Kind.FOLDER)),
        ("05-01-2024  12:30              1873264 IMG.jpg", Entry("IMG.jpg", Kind.FILE, Facts(1873264))),
        ("total 12", None),
        ("", None),
        ("drwxr-xr-x 2 a b 4096 May  1 12:30 ..", None),
        ("-rw-r--r-- 1 a b 5 May  1 12:30 \xc3\xa4\xa0x", Entry("\xc3\xa4\xa0x", Kind.FILE, Facts(5))),
    ],
)
def test_list(line: str, entry: Entry | None) -> None:
    if "no group" in line:
        with pytest.raises(ValueError, match="LIST"):
            parse_list(line)
        return
    assert parse_list(line) == entry


def test_a_line_of_list_made_to_take_long() -> None:
    with pytest.raises(ValueError, match="LIST"):
        parse_list("-rw-r--r-- 1 " + "1 " * 4000 + "x")


def test_nlst() -> None:
    assert parse_nlst("a b.jpg", "/x") == Entry("a b.jpg", Kind.OTHER)
    assert parse_nlst("/x/y/a.jpg", "/x/y") == Entry("a.jpg", Kind.OTHER)
    assert parse_nlst("./a.jpg", "/x") == Entry("a.jpg", Kind.OTHER)
    assert parse_nlst("..", "/x") is None and parse_nlst("", "/x") is None
    other = parse_nlst("/etc/passwd", "/x")
    assert other is not None and bad_name(other.name) is not None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\rb", "a\nDELE x", "\0", "\x1b[2J", "\x7f"])
def test_names_that_are_not_asked_for(name: str) -> None:
    assert bad_name(name) is not None


@pytest.mark.parametrize("name", ["a", "-la", " x ", "...", "\xc3\xa4", "a;b", "%00", "a\\b"])
def test_names_that_are(name: str) -> None:
    assert bad_name(name) is None


def test_names_come_back_as_they_were() -> None:
    assert text_of(wired("Müller 日本")) == "Müller 日本"
    assert text_of("M\xfcller") == "Müller"  # Latin-1 on the wire
    assert shown("a\x1b[2J\x9b") == "a\\x1b[2J\\x9b"
    with pytest.raises(ValueError, match="control"):
        wired("a\r\nDELE b")


def test_dates() -> None:
    assert moment("20240229103012.5") == datetime(2024, 2, 29, 10, 30, 12, tzinfo=UTC)
    assert moment("20230229103012") is None and moment(None) is None


@pytest.mark.parametrize(
    ("parts", "folder"),
    [
        (["a", " b "], "a/b"),
        ([], ""),
        (["..", "."], "_/_"),
        (["a/b\\c"], "a_b_c"),
        (["x\ny\u202e"], "x_y_"),
        (["e\u0301"], "\u00e9"),
        (["a", "", "b"], "a/_/b"),
    ],
)
def test_folders_of_the_library(parts: list[str], folder: str) -> None:
    assert folder_of(parts) == folder


def test_a_long_folder_is_cut() -> None:
    assert len(folder_of(["\u0958" * 300] * 3)) <= MAX_FOLDER_LENGTH
    assert len(folder_of(["x" * 300] * 3)) == MAX_FOLDER_LENGTH
