from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deployments.models.evaluation import VerificationReport, describe, read_pairs
from serve_app.errors import ConfigurationError
from serve_app.faces import OperatingPoint

REPORT = VerificationReport(
    np.array([0.9, 0.5, 0.2, 0.4, 0.1, 0.0], dtype=np.float32), np.array([True, True, True, False, False, False]), 8, 1
)


def test_rates_by_hand() -> None:
    assert REPORT.far(0.36) == pytest.approx(1 / 3) and REPORT.frr(0.36) == pytest.approx(1 / 3)
    assert REPORT.accuracy(0.36) == pytest.approx(4 / 6)
    assert REPORT.far(0.41) == 0 and REPORT.frr(0.2) == 0


def test_the_threshold_at_a_rate_keeps_the_rate() -> None:
    for far in (0.0, 0.34, 0.67):
        assert REPORT.far(REPORT.threshold_at_far(far)) <= far


def test_a_report_names_the_operating_point() -> None:
    lines = describe(REPORT, OperatingPoint("m", "d", 0.36, 0.3, None, None))
    assert "6 pairs (3 of one person) of 8 photos, 1 without" in lines[0] and "threshold 0.36" in lines[1]


def test_pairs_and_identities(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").touch()
    (tmp_path / "pairs.csv").write_text("file_a,file_b,same\na.jpg,b.jpg,1\na.jpg,c.jpg,0\n")
    assert [pair.same for pair in read_pairs(tmp_path / "pairs.csv")] == [True, False]
    (tmp_path / "people.csv").write_text("file,identity\na.jpg,x\nb.jpg,x\nc.jpg,y\nd.jpg,\n")
    pairs = read_pairs(tmp_path / "people.csv")
    assert [(pair.a.name, pair.b.name, pair.same) for pair in pairs] == [
        ("a.jpg", "b.jpg", True), ("a.jpg", "c.jpg", False), ("b.jpg", "c.jpg", False),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["x,y\n1,2\n", None])
def test_other_files_are_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "pairs.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match="columns"):
        read_pairs(path)
