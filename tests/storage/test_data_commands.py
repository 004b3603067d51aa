"""The commands for what is stored, as an operator types them: what they print, and their exit codes."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from config.settings import Settings
from serve_app.cli import main
from serve_app.commands.imports import service_of
from serve_app.errors import ConfigurationError
from serve_app.keys import load_or_create_api_key
from tests.storage.conftest import execute

Kinlens = Callable[..., int]
MODEL = "sface_2021dec"


@pytest.fixture
def kinlens(database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kinlens:
    """Runs a command on the test's own database and folder; its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_dsn)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    for name in ("API_KEY", "MINIO_ENDPOINT", "KINLENS_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["kinlens", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "v.npz", embeddings=rng.standard_normal((30, 128)), persons=np.arange(30) // 3)
    return tmp_path / "v.npz"


def test_vectors_are_imported_checked_backed_up_and_restored(
    kinlens: Kinlens, vectors: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert kinlens("db", "upgrade") == 0
    assert kinlens("db", "check") == 0 and "no collections" in capsys.readouterr().out
    assert kinlens("import", str(vectors), "--collection", "people", "--model", MODEL) == 2
    assert "--create" in capsys.readouterr().err
    assert kinlens("import", str(vectors), "--collection", "people", "--model", MODEL, "--create", "--report", "r.csv") == 0
    assert "10 persons with 30 faces" in capsys.readouterr().out
    assert kinlens("import", str(vectors), "--collection", "people", "--model", MODEL, "--report", "r.csv") == 0
    assert "10 persons were there already" in capsys.readouterr().out
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 11
    assert kinlens("db", "check", "--sample", "5") == 0
    assert "30 faces" in capsys.readouterr().out
    assert kinlens("backup", "k.tar") == 0 and "10 persons" in capsys.readouterr().out
    assert kinlens("restore", "k.tar") == 2 and "--force" in capsys.readouterr().err
    assert kinlens("restore", "k.tar", "--force") == 0 and "30 faces" in capsys.readouterr().out
    assert kinlens("db", "check", "--collection", "people") == 0
    assert kinlens("gc") == 0


def test_what_is_wrong_is_exit_code_1(
    kinlens: Kinlens, vectors: Path, capsys: pytest.CaptureFixture[str], database_dsn: str
) -> None:
    assert kinlens("import", str(vectors), "--collection", "people", "--model", MODEL, "--create") == 0
    key = urlsplit(database_dsn).path.removeprefix("/test_").partition("_")[0]
    asyncio.run(execute(database_dsn, f"DELETE FROM embeddings_m1_c{key}"))
    asyncio.run(
        execute(
            database_dsn,
            "UPDATE faces SET crop_key = 'collections/1/crops/aa/' || id WHERE id IN (SELECT min(id::text)::uuid FROM faces)",
        )
    )
    assert kinlens("db", "check") == 1
    assert "30 faces have no embedding" in capsys.readouterr().out
    assert kinlens("gc") == 1 and "1 rows name an object" in capsys.readouterr().err
    assert kinlens("backup", "k.tar") == 1 and "1 pictures or crops are missing" in capsys.readouterr().err


def test_gc_deletes_only_when_told_and_not_most_of_everything(
    kinlens: Kinlens, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    orphan = tmp_path / "data" / "objects" / "collections" / "1" / "originals" / "aa" / "0123"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x")
    os.utime(orphan, (time.time() - 90_000,) * 2)
    assert kinlens("gc") == 0 and "--delete would delete" in capsys.readouterr().err and orphan.exists()
    assert kinlens("gc", "--grace-hours", "0") == 2
    assert kinlens("gc", "--delete") == 2 and "is this their database" in capsys.readouterr().err and orphan.exists()
    assert kinlens("gc", "--delete", "--force") == 0 and not orphan.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("db", "check", "--collection", "none"), "no collection 'none'"),
        (("restore", "nothing.tar"), "cannot be read"),
        (("backup", "no/such/folder.tar"), "cannot be written"),
        (("import", "nothing", "--collection", "people"), "neither a folder"),
        (("import", ".", "--collection", "No Such"), "lower case"),
        (("import", ".", "--collection", "a", "--url", "localhost:8000"), "--url"),
        (("import", ".", "--collection", "a", "--url", "http://kinlens.example.org"), "Which key"),
        (("import", ".", "--collection", "a", "--report", "no/such/r.csv"), "--report"),
        (("import", "v.npz", "--collection", "a"), "--model"),
        (("import", "v.npz", "--collection", "a", "--model", "unheard", "--create"), "unheard"),
    ],
)
def test_mistakes_are_a_message_and_exit_code_2(
    kinlens: Kinlens, vectors: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert kinlens(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_service_that_does_not_answer_is_exit_code_1(
    kinlens: Kinlens, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    url = "http://127.0.0.1:9"
    assert kinlens("import", "photos", "--collection", "a", "--url", url, "--give-up-after", "1") == 1
    assert "No answer" in capsys.readouterr().err


def test_this_machines_key_goes_to_this_machine_only(tmp_path: Path) -> None:
    settings = Settings.model_validate({"api_key": None, "data_dir": tmp_path, "host": "0.0.0.0", "port": 8123})
    key = load_or_create_api_key(settings).value
    assert service_of(settings, None, None) == ("http://127.0.0.1:8123", key)
    assert service_of(settings, "http://localhost:1/", None) == ("http://localhost:1", key)
    assert service_of(settings, "https://k.example.org", "given") == ("https://k.example.org", "given")
    with pytest.raises(ConfigurationError):
        service_of(settings, "https://k.example.org", None)
    given = Settings.model_validate({"api_key": "k" * 20, "data_dir": tmp_path})
    assert service_of(given, "https://k.example.org", None)[1] == "k" * 20
