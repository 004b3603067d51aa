"""Sizing, the profiles of config/, and `kinlens size`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import config
from config.settings import Settings
from deployments.models.session import Device, check_device
from serve_app.cli import app
from serve_app.commands.size import proposed_config
from serve_app.errors import ConfigurationError
from serve_app.service import DEPLOYMENTS, Address, load_config
from serve_app.sizing import FULL, Costs, Load, plan

FOLDER = Path(config.__file__).parent
PROFILES = [
    FOLDER.parent / "serve_config.yaml",
    FOLDER / "serve_cpu_cluster.yaml",
    FOLDER / "serve_gpu.yaml",
    FOLDER / "serve_small.yaml",
]
HERE = Address("127.0.0.1", 8000)


def test_the_example_of_the_documents() -> None:
    """60 pictures a second at 40 and 20 ms."""
    found = plan(Costs(40, 20, 2), Load(60))
    assert (round(found["Detection"].busy, 2), found["Detection"].min_replicas) == (3.0, 5)
    assert (round(found["Embedding"].busy, 2), found["Embedding"].min_replicas) == (1.5, 3)
    assert found["Ingress"].min_replicas == 2 and found["Analysis"].busy == 0
    assert found.busy_cores == pytest.approx(4.86) and found.capacity(Load(60)) == pytest.approx(100)


@given(
    st.builds(Costs, *[st.floats(0.01, 1000)] * 3),
    st.builds(Load, st.floats(0.01, 10_000), st.floats(0, 100), st.floats(0, 100)),
)
def test_there_is_room_for_the_load(costs: Costs, load: Load) -> None:
    found = plan(costs, load)
    for part in found.parts:
        assert part.busy <= part.min_replicas * FULL * (1 + 1e-9) and 1 <= part.min_replicas <= part.max_replicas
    assert found.capacity(load) >= load.images_per_s / FULL * (1 - 1e-9)
    twice = plan(costs, Load(load.images_per_s * 2, load.faces, load.analyzed))
    assert all(two.min_replicas >= one.min_replicas for one, two in zip(found.parts, twice.parts, strict=True))


@pytest.mark.parametrize(
    ("costs", "load"),
    [
        (Costs(0, 1, 1), Load(1)),
        (Costs(1, float("nan"), 1), Load(1)),
        (Costs(1, 1, 1), Load(0)),
        (Costs(1, 1, 1), Load(float("inf"))),
        (Costs(1, 1, 1), Load(1, faces=-1)),
        (Costs(1, 1, 1), Load(1, analyzed=float("nan"))),
    ],
)
def test_what_is_no_load(costs: Costs, load: Load) -> None:
    with pytest.raises(ValueError):
        plan(costs, load)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_a_profile_is_valid_and_names_every_deployment_that_scales(path: Path) -> None:
    schema = load_config(path, HERE)
    (application,) = schema.applications
    assert {one.name for one in application.deployments} == {*DEPLOYMENTS} - {"Semantic"}
    for one in application.deployments:
        assert one.ray_actor_options is not None and one.backpressure_config, one.name


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_nobody_notices_when_replicas_are_replaced(path: Path) -> None:
    (application,) = load_config(path, HERE).applications
    for one in application.deployments:
        if one.name != "Indexing":
            assert isinstance(one.max_surge_percent, int) and one.max_surge_percent > 0, one.name
            assert isinstance(one.graceful_shutdown_timeout_s, float), one.name
            assert one.graceful_shutdown_timeout_s > Settings.model_fields["worker_timeout"].default, one.name


@pytest.mark.parametrize("path", [PROFILES[0], PROFILES[3]], ids=lambda path: path.name)
def test_a_small_machine_has_room_for_a_new_replica_beside_the_old(path: Path) -> None:
    (application,) = yaml.safe_load(path.read_text())["applications"]
    most = 0.0
    for one in application["deployments"]:
        replicas = one["num_replicas"] if "num_replicas" in one else one["autoscaling_config"]["max_replicas"]
        more = math.ceil(replicas * one.get("max_surge_percent", 0) / 100)
        most += (replicas + more) * one["ray_actor_options"]["num_cpus"]
    assert most <= 2


def test_the_cluster_profile_fits_the_machines_that_it_names() -> None:
    (application,) = yaml.safe_load(PROFILES[1].read_text())["applications"]
    most = sum(
        one["ray_actor_options"]["num_cpus"] * one["autoscaling_config"]["max_replicas"] for one in application["deployments"]
    )
    assert "3 of 8 cores" in PROFILES[1].read_text() and most <= 3 * 8


def test_the_gpu_profile_fits_one_gpu_and_asks_for_it() -> None:
    (application,) = yaml.safe_load(PROFILES[2].read_text())["applications"]
    assert application["args"]["device"] == "cuda"
    shares = [
        one["ray_actor_options"].get("num_gpus", 0) * one.get("autoscaling_config", {}).get("max_replicas", 0)
        for one in application["deployments"]
    ]
    assert 0 < sum(shares) <= 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_proposal_is_a_valid_config(tmp_path: Path, device: str) -> None:
    path = tmp_path / "serve.yaml"
    proposal = plan(Costs(12, 15, 2), Load(500, 2, 1))
    path.write_text(yaml.safe_dump(proposed_config(proposal, device, "buffalo_l")))
    (application,) = load_config(path, HERE).applications
    assert application.args["model_pack"] == "buffalo_l"
    (embedding,) = (one for one in application.deployments if one.name == "Embedding")
    assert isinstance(embedding.autoscaling_config, dict)
    assert embedding.autoscaling_config["min_replicas"] == proposal["Embedding"].min_replicas == 27


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    path = tmp_path / "serve.yaml"
    command = ["size", "--images-per-s", "100", "--faces", "2", "--analyzed", "1", "--cores", "4", "--output", str(path)]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "decode, detect and align a picture" in done.output and "with 4 cores a machine" in done.output
    assert path.read_text().startswith('# Proposed by kinlens size for {"images_per_s": 100.0, "faces": 2.0')
    load_config(path, HERE)
    written = path.read_text()
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, ConfigurationError) and "not overwritten" in str(again.exception)
    assert path.read_text() == written


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "cpu or gpu"),
        (["--device", "gpu"], "CUDAExecutionProvider"),
        (["--picture", "/nonexistent.jpg"], "cannot be read"),
        (["--pack", "nonsense"], "nonsense"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    done = CliRunner().invoke(app, ["size", "--images-per-s", "1", *options])
    assert isinstance(done.exception, ConfigurationError) and said in str(done.exception)


class Placed:
    """A session that says where it runs."""

    def __init__(self, *found: str) -> None:
        self._found = list(found)

    def get_providers(self) -> list[str]:
        return self._found


def test_a_model_that_silently_runs_on_the_cpu_is_refused() -> None:
    check_device(Placed("CPUExecutionProvider"), Device.CPU)  # type: ignore[arg-type]
    check_device(Placed("CUDAExecutionProvider", "CPUExecutionProvider"), Device.CUDA)  # type: ignore[arg-type]
    for found in (["CPUExecutionProvider"], []):
        with pytest.raises(ConfigurationError, match="found no such device, or not its libraries"):
            check_device(Placed(*found), Device.CUDA)  # type: ignore[arg-type]
