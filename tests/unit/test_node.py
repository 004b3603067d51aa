"""`kinlens node`: what Ray is started with on a machine of a cluster."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import Settings
from serve_app.environment import EDGE_TOKEN, RAY_ENVIRONMENT
from serve_app.errors import ConfigurationError
from serve_app.node import check_shared, node_environment, ray_command, ray_token, run_directory

ROOT = Path(__file__).resolve().parents[2]
SHARED = {
    "API_KEY": "0123456789abcdef",
    "DATABASE_URL": "postgresql://a:b@10.0.0.9/kinlens",
    "MINIO_ENDPOINT": "10.0.0.9:9000",
}


@pytest.mark.parametrize("missing", SHARED)
def test_what_machines_must_share_is_asked_for(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in SHARED.items():
        monkeypatch.setenv(name, value)
    check_shared(Settings())
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigurationError, match=f"Set {missing},"):
        check_shared(Settings())


def test_the_head_makes_the_token_once_and_for_its_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"\.ray/auth_token"):
        ray_token({}, make=False)
    made = ray_token({}, make=True)
    assert len(made) == 64 and ray_token({}, make=True) == made == ray_token({}, make=False)
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_token_is_looked_for_where_ray_does(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ConfigurationError, match="token"):
        ray_token({"RAY_AUTH_TOKEN_PATH": str(path)}, make=True)
    path.write_text(" \n")
    with pytest.raises(ConfigurationError, match="empty"):
        ray_token({"RAY_AUTH_TOKEN_PATH": str(path)}, make=True)
    path.write_text("of-a-file\n")
    assert ray_token({"RAY_AUTH_TOKEN_PATH": str(path)}, make=False) == "of-a-file"
    assert ray_token({"RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_TOKEN": "given"}, make=False) == "given"


def test_machines_agree_on_who_may_tell_a_client_s_address(tmp_path: Path) -> None:
    here = node_environment({EDGE_TOKEN: "ab" * 16}, "token", tmp_path)
    there = node_environment({}, "token", tmp_path)
    # Not one from outside, and not Ray's own, which it does not give away.
    assert here[EDGE_TOKEN] == there[EDGE_TOKEN] != "ab" * 16
    assert set(here[EDGE_TOKEN]) <= set("0123456789abcdef") and "token" not in here[EDGE_TOKEN]
    assert node_environment({}, "another", tmp_path)[EDGE_TOKEN] != here[EDGE_TOKEN]


def test_the_environment_is_that_of_every_instance_but_reachable(tmp_path: Path) -> None:
    found = node_environment({"RAY_SERVE_HAPROXY_NBTHREAD": "4", "API_KEY": "k"}, "token", tmp_path)
    assert found.items() >= (RAY_ENVIRONMENT | {"RAY_SERVE_HAPROXY_NBTHREAD": "4", "API_KEY": "k"}).items()
    # With it Ray would be on loopback.
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in found
    assert found["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(tmp_path / "haproxy") and os.access(tmp_path / "haproxy", os.X_OK)


def test_somebody_else_s_run_directory_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = run_directory()
    assert run_directory() == path and path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    with pytest.raises(ConfigurationError, match="this user alone"):
        run_directory()
    path.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="this user alone"):
        run_directory()


def test_a_held_folder_is_locked_until_the_program_in_its_place_ends(tmp_path: Path) -> None:
    """As systemd-tmpfiles asks: an exclusive lock, at once."""
    becomes_another = (
        "import os, sys; from pathlib import Path; from serve_app.environment import hold; hold(Path(sys.argv[1]));"
        "os.execv('/bin/sh', ['sh', '-c', 'echo there; read line'])"
    )
    command = [sys.executable, "-c", becomes_another, str(tmp_path)]
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.communicate("\n")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_options_of_ray_come_last(tmp_path: Path) -> None:
    begun, joined = ray_command(None, None, ["--port=7000"]), ray_command("10.0.0.1:6379", "10.0.0.2", ["--num-cpus", "3"])
    assert "--head" in begun and begun[-1] == "--port=7000"
    assert "--address=10.0.0.1:6379" in joined and "--node-ip-address=10.0.0.2" in joined and "--head" not in joined
    assert joined[-2:] == ["--num-cpus", "3"]


@pytest.mark.parametrize("arguments", [[], ["--head", "--address", "10.0.0.1:6379"], ["--address="], ["--address=10.0.0.1"]])
def test_it_is_the_head_or_a_member(arguments: list[str], tmp_path: Path) -> None:
    done = kinlens(arguments, tmp_path)
    assert done.returncode == 2 and "--address HOST:PORT" in done.stderr


def test_it_becomes_ray(tmp_path: Path) -> None:
    """Up to the point where Ray itself takes over: it is asked for its help instead of being started."""
    done = kinlens(["--head", "--", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--node-ip-address" in done.stdout


def kinlens(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from serve_app.cli import main; main()", "node", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), **SHARED},
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
