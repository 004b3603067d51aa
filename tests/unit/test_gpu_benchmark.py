"""benchmarks/gpu.py on a CPU: what it measures, proposes and refuses. And that a batch size of the profile reaches the model."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

from benchmarks import gpu
from benchmarks.gpu import Rate, kernels, main, measure, proposed_batch_size
from deployments.batching import BatchConfig, Batcher
from deployments.models.session import Device, audit_device, create_session
from serve_app.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A graph of two operators over (N, 3, H, W)."""
    shape: list[str | int | None] = ["n", 3, "h", "w"]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    nodes = [onnx.helper.make_node("Sin", ["x"], ["z"]), onnx.helper.make_node("Sigmoid", ["z"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "tiny", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    return path


def rates(*medians: float) -> list[Rate]:
    return [Rate(2**power, median, median, median) for power, median in enumerate(medians)]


@pytest.mark.parametrize(
    ("medians", "size"), [((100, 300, 960, 1000), 4), ((100, 100, 100), 1), ((100, 300, 949, 1000), 8), ((100, 90), 1)]
)
def test_the_smallest_batch_that_is_nearly_the_best(medians: tuple[float, ...], size: int) -> None:
    assert proposed_batch_size(rates(*medians)) == size


def test_rates_of_a_model(tiny: Path) -> None:
    session = create_session(str(tiny), Device.CPU, 1)
    batches: list[int] = []

    def call(size: int) -> Sequence[object]:
        batches.append(size)
        return session.run(None, {"x": np.zeros((size, 3, 32, 32), np.float32)})

    found = measure({"tiny": call}, (1, 4), rounds=3)
    assert [rate.batch for rate in found["tiny"]] == [1, 4] and batches == [1, 4] * 4
    assert all(0 < rate.low <= rate.median <= rate.high for rate in found["tiny"])


def test_where_the_operators_ran(tiny: Path) -> None:
    assert kernels(tiny, Device.CPU, 16) == {"CPUExecutionProvider": 2}


def test_the_cpu_is_measured_with_the_real_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert main(["--device", "cpu", "--sizes", "1", "2", "--rounds", "2", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| embed, cpu |" in printed and "| detect, cpu |" in printed and "on CPUExecutionProvider" in printed
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert [(one["model"], one["device"]) for one in document["measured"]] == [("embed", "cpu"), ("detect", "cpu")]
    for one in document["measured"]:
        assert [rate["batch"] for rate in one["rates"]] == [1, 2] and one["proposed_batch_size"] in (1, 2)
        assert all(0.1 < rate["median"] < 100_000 for rate in one["rates"])
    assert (tmp_path / "gpu.svg").read_text().startswith("<svg") and (tmp_path / "gpu.md").read_text() in printed


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"CUDAExecutionProvider|found no such device"):
        audit_device(Device.CUDA)
    assert main(["--output", str(tmp_path)]) == 2
    assert "Nothing was measured" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there may be a GPU")
def test_a_gpu_is_asked_by_a_process_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one goes no further than to look what is installed; what the other says is told."""
    monkeypatch.setattr("deployments.models.session.providers", lambda _: [])
    monkeypatch.setattr("deployments.models.session.create_session", None)
    with pytest.raises(ConfigurationError, match=r"'cuda' needs ONNX Runtime's CUDAExecutionProvider"):
        audit_device(Device.CUDA)


def test_a_model_that_none_of_the_device_ran_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime does it where CUDA's libraries are missing: the provider is asked for, and the CPU runs."""
    asked: list[Device] = []

    def unheeded(device: Device) -> list[str]:
        asked.append(device)
        return ["CPUExecutionProvider"] if len(asked) == 1 else ["CUDAExecutionProvider"]

    monkeypatch.setattr(gpu, "providers", unheeded)
    with pytest.raises(ConfigurationError, match="asked to run on cuda and ran on CPUExecutionProvider"):
        kernels(tiny, Device.CUDA, 16)


async def test_batch_sizes_of_the_gpu_profile_reach_the_model(tiny: Path) -> None:
    """What the profile's user_config and device say is what one run of the model gets, when more than that waits."""
    (application,) = yaml.safe_load((ROOT / "config/serve_gpu.yaml").read_text())["applications"]
    device = Device(application["args"]["device"])
    session = create_session(str(tiny), Device.CPU, 1)
    for deployment in application["deployments"]:
        if deployment["name"] not in ("Detection", "Embedding"):
            continue
        config = BatchConfig.model_validate(deployment["user_config"])
        wanted = config.max_batch_size or device.batch_size
        # A batch is complete when the one before it ends: so much must be let in.
        assert wanted > 1 and deployment["max_ongoing_requests"] >= 2 * wanted
        seen: list[int] = []

        def run_batch(items: Sequence[float], seen: list[int] = seen) -> list[float]:
            (out,) = session.run(None, {"x": np.zeros((len(items), 3, 64, 64), np.float32)})
            seen.append(len(out))
            return list(items)

        batcher: Batcher[float, float] = Batcher(run_batch, config, default_batch_size=device.batch_size)
        await asyncio.gather(*(batcher.submit(float(one)) for one in range(4 * wanted)))
        assert max(seen) == wanted and sum(seen) == 4 * wanted
