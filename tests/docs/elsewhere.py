"""Commands of the guide that are not simply run, each with its reason and what is checked instead. A command that is not named
here is run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
import typer.core
import yaml

from config.settings import Settings

if TYPE_CHECKING:
    from tests.docs.world import World

ROOT = Path(__file__).resolve().parents[2]
Check = Callable[["World", str], None]


@dataclass(frozen=True, slots=True)
class NotRun:
    """`check` raises AssertionError for a command that is wrong."""

    reason: str
    check: Check


@dataclass(frozen=True, slots=True)
class Fails:
    """Run, and here it must end with this exit code and say this. `says`: a part of its output."""

    reason: str
    code: int
    says: str


@dataclass(frozen=True, slots=True)
class Serves:
    """Run in the background until it answers, by the test of that name."""

    test: str


# --- checks in place of a run -------------------------------------------------------------------------------------------


def kinlens_parses(command: str, *, whole: bool = True) -> None:
    """A `kinlens` command line is understood: the command, its options, the types of their values. Not `whole`: what a sentence
    names, where required values may be left out."""
    from serve_app.cli import app

    words = shlex.split(command, comments=True)
    node = typer.main.get_command(app)
    name = words.pop(0)
    assert name == "kinlens", command
    while isinstance(node, typer.core.TyperGroup) and (whole or words):
        assert words and words[0] in node.commands, f"{command}: no such command"
        name = words.pop(0)
        node = node.commands[name]
    if whole:  # raises a usage error for what it does not know
        node.make_context(name, words)
        return
    known = {option for parameter in node.params for option in parameter.opts}
    unknown = {word for word in words if word.startswith("--")} - known - {"--help"}
    assert not unknown, f"{command}: no such option: {unknown}"


def understood(_: World, command: str) -> None:
    kinlens_parses(command)


def model_is_known(_: World, command: str) -> None:
    """`kinlens models pull NAME`: a name that the configuration has."""
    from deployments.models.attribute_packs import attribute_model_specs
    from deployments.models.packs import pack_specs
    from deployments.models.semantic_packs import semantic_specs

    kinlens_parses(command)
    name = shlex.split(command, comments=True)[-1]
    assert name in {*pack_specs(), *attribute_model_specs(), *semantic_specs()}, name


_DOCKER = {
    "build": {"--tag", "--build-arg"},
    "run": {"--detach", "--name", "--init", "--shm-size", "--publish", "--volume", "--env", "--gpus"},
    "exec": set[str](),
    "cp": set[str](),
    "restart": set[str](),
    "compose": {"--detach", "--build"},
}
"""Options that the guide uses, as Docker's reference has them."""


def docker_is_right(world: World, command: str) -> None:
    """What it names is in the Dockerfile and compose.yaml; a Kinlens command within it is understood. Where Docker's client is
    installed, it reads compose.yaml."""
    words = shlex.split(command)
    assert words.pop(0) == "docker"
    verb = words.pop(0)
    options = {word for word in words if word.startswith("--")}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    if verb == "exec":
        inside = " ".join(words[1:])
        assert words[0] == "kinlens", command
        if words[1] == "kinlens":
            model_is_known(world, inside) if "models pull" in inside else kinlens_parses(inside)
        else:
            assert words[1] in {"cat", "mkdir"} and all(word.startswith(("-", "/data")) for word in words[2:]), command
        return
    assert options <= _DOCKER[verb], f"{command}: {options - _DOCKER[verb]}"
    if verb == "build":
        for argument in re.findall(r"--build-arg (\w+)=", command):
            assert re.search(rf"^ARG {argument}\b", dockerfile, flags=re.MULTILINE), argument
    elif verb == "run":
        assert re.search(r"--volume kinlens:/data\b", command) and re.search(r"^VOLUME /data$", dockerfile, flags=re.MULTILINE)
        assert ":8000:8000" in command and re.search(r"^EXPOSE 8000$", dockerfile, flags=re.MULTILINE)
    elif verb == "compose":
        compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
        assert {"kinlens", "postgres", "minio"} == set(compose["services"])
        secrets = ("API_KEY", "POSTGRES_PASSWORD", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")
        if world.bash("command -v docker && docker compose version").returncode == 0:
            env = "".join(f"{name}=0123456789abcdef\n" for name in secrets)
            (world.folder / "compose.env").write_text(env)
            done = world.bash("cp compose.env .env; docker compose config --quiet; code=$?; rm .env; exit $code")
            assert done.returncode == 0, done.stdout


def options_exist(world: World, command: str) -> None:
    """Every long option is in the program's own help."""
    words = shlex.split(command.removeprefix('eval "$(kinlens env)" && '), comments=True)
    verbs = [word for word in words if not word.startswith("-")][: 3 if words[:2] == ["uv", "pip"] else 2]
    done = world.bash(f"{shlex.join(verbs)} --help")
    assert done.returncode == 0, done.stdout
    options = [word for word in words if word.startswith("--")]
    if words[0] == "uv":  # of all its commands, and in no help of theirs
        assert world.bash("uv --preview-features sbom-export --version").returncode == 0
        options = [option for option in options if option != "--preview-features"]
    for option in options:
        assert option in done.stdout, f"{command}: {shlex.join(verbs)} knows no {option}"


def unit_is_right(world: World, command: str) -> None:
    """`systemctl ... kinlens`: the unit of the guide names what is there. Where systemd is installed, it reads it."""
    assert shlex.split(command)[-1] == "kinlens"
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (unit,) = re.findall(r"^```ini\n(\[Unit\].*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (start,) = re.findall(r"^ExecStart=/opt/kinlens/.venv/bin/(.*)$", unit, flags=re.MULTILINE)
    kinlens_parses(start)
    known = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"(\w+)=", *re.findall(r"^Environment=(.*)$", unit, flags=re.MULTILINE))) <= known
    if world.bash("command -v systemd-analyze").returncode == 0:
        here = unit.replace("/opt/kinlens/.venv/bin", str(Path(sys.executable).parent)).replace("User=kinlens\n", "")
        path = world.folder / "kinlens.service"
        path.write_text(here.replace("/opt/kinlens", str(world.folder)))
        done = world.bash(f"systemd-analyze verify --recursive-errors=no {path}")
        assert done.returncode == 0 and "kinlens.service" not in done.stdout, done.stdout


DOCKER = NotRun("needs a Docker daemon", docker_is_right)
INTERNET = NotRun("loads models from the internet", model_is_known)
PACKAGES = NotRun("installs gigabytes, or changes the environment of the tests", options_exist)
SYSTEMD = NotRun("needs systemd as the first process", unit_is_right)
CLUSTER = NotRun("needs machines; tests/serve/test_cluster.py has some", options_exist)
NODE = NotRun("needs machines; tests/serve/test_cluster.py has some", understood)

ELSEWHERE: dict[str, NotRun | Fails | Serves] = {
    "kinlens up": Serves("test_kinlens_up"),
    "serve run serve_config.yaml": Serves("test_serve_run"),
    "pip install uv": PACKAGES,
    "pip install uv && uv run kinlens up": PACKAGES,
    "pip install uv && uv run pytest": PACKAGES,
    "source .venv/bin/activate": NotRun("the environment of the tests is active", lambda *_: None),
    "systemctl enable --now kinlens": SYSTEMD,
    "systemctl status kinlens": SYSTEMD,
    "docker build --tag kinlens .": DOCKER,
    "docker run --detach --name kinlens --init --shm-size 256m --publish 127.0.0.1:8000:8000 --volume kinlens:/data kinlens": DOCKER,
    "docker exec kinlens cat /data/api_key": DOCKER,
    "docker exec kinlens mkdir -p /data/insightface": DOCKER,
    "docker cp ~/.insightface/face-api kinlens:/data/insightface/": DOCKER,
    "docker restart kinlens": DOCKER,
    'docker build --tag kinlens --build-arg EXTRAS="deepface" .': DOCKER,
    "docker exec kinlens kinlens models pull deepface_race": DOCKER,
    "docker compose up --detach --build": DOCKER,
    "kinlens models pull faceapi_emotion": INTERNET,
    "kinlens models pull buffalo_sc": INTERNET,
    "kinlens models pull clip_vit_b32": INTERNET,
    "kinlens models pull deepface_race": INTERNET,
    "uv pip uninstall onnxruntime": PACKAGES,
    'uv pip install "onnxruntime-gpu[cuda,cudnn]"': PACKAGES,
    "uv audit --locked --preview-features audit-command": NotRun("asks osv.dev; CI runs it", options_exist),
    "kinlens up --config config/serve_gpu.yaml": Fails("there is no GPU", 2, "CUDAExecutionProvider"),
    "kinlens import photos/ --collection staff --create --report report.csv": Fails("one is too small", 1, "1 enrolled"),
    "kinlens index --source /srv/photos --failures failed.jsonl": NotRun(
        "starts a Ray of its own; tests/serve/test_bulk.py runs it", understood
    ),
    "kinlens size --images-per-s 60 --faces 2 --analyzed 2 --picture typical.jpg --output serve_60.yaml": NotRun(
        "takes long; tests/unit/test_sizing.py runs it", understood
    ),
    """curl -X POST -H "Authorization: Bearer $API_KEY" -H "Content-Type: application/json" -d '{}' $KINLENS/api/v1/index/embeddings""": Fails(
        "no image-text model comes with Kinlens", 22, "model_unavailable"
    ),
    "kinlens switch-model library --pack buffalo_l": Fails("the other pack is not here", 2, "already"),
    "python -m benchmarks.gpu": Fails("there is no GPU", 2, "Nothing was measured"),
    "kinlens node --head": NODE,
    "kinlens node --address HEAD:6379": NODE,
    "kinlens node --head --redis-password=PASSWORD": NODE,
    "serve deploy config/serve_cpu_cluster.yaml": CLUSTER,
    "kubectl apply -k deploy/kuberay": NotRun("needs Kubernetes; tests/unit/test_kuberay.py builds it", lambda *_: None),
}
