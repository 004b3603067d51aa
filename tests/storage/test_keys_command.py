"""`kinlens keys`, as an operator types it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.cli import main
from tests.storage.conftest import StoredWorld

Kinlens = Callable[..., int]


@pytest.fixture
def kinlens(database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kinlens:
    """Runs a command on the test's own database; its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_dsn)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["kinlens", "keys", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


async def test_a_key_is_made_rotated_listed_and_revoked_beside_the_service(
    kinlens: Kinlens, stored: StoredWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    async def status(token: str) -> int:
        return (await stored.client.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})).status_code

    async def told(*arguments: str) -> str:
        # A command has a loop of its own.
        assert await asyncio.to_thread(kinlens, *arguments) == 0
        return capsys.readouterr().out.strip()

    token = await told("create", "Reception", "--scope", "read", "--collection", "a", "--expires-days", "3")
    assert re.fullmatch(r"kl_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", token)
    key_id = token.split("_")[1]
    assert await status(token) == 200
    listed = await told("list")
    assert f"{key_id}  Reception: active; read; a; never used; until " in listed and token not in listed
    rotated = await told("rotate", key_id, "--overlap-hours", "0")
    assert rotated != token and rotated.split("_")[1] == key_id
    assert await status(rotated) == 200 and await status(token) == 401
    assert "revoked" in await told("revoke", key_id)
    assert await asyncio.to_thread(kinlens, "rotate", key_id) == 2 and "no key" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("create", "x"), ("create", "", "--scope", "read"), ("create", "a\x1b[2J", "--scope", "read"),
                                       ("create", "x", "--scope", "root"), ("create", "x", "--scope", "read", "--collection", "../a"),
                                       ("revoke", "000000000000"), ("revoke", "x\x00"), ("rotate", "x", "--overlap-hours", "-1")])  # fmt: skip
def test_what_makes_no_sense_is_a_message(
    kinlens: Kinlens, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert kinlens(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err and "\x1b[2J" not in told.err
