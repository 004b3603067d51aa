"""Detectors on OpenCV's DNN module: the same outputs as ONNX Runtime's, from any thread, and only where it is right and faster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deployments.models import winograd
from deployments.models.session import Runner, session_options
from deployments.models.winograd import WinogradNetwork, faster_runner

FloatTensor = npt.NDArray[np.float32]


def dense_model(operator: str = "Relu", batched: bool = False) -> onnx.ModelProto:
    """Two dense 3 x 3 convolutions, scores a cell, and a strided copy of the first: as detectors end. Any height and width."""
    rng = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(rng.normal(size=(24, 3, 3, 3)).astype(np.float32) / 5, "w1"),
        numpy_helper.from_array(rng.normal(size=(2, 24, 3, 3)).astype(np.float32) / 15, "w2"),
        numpy_helper.from_array(np.array([0, -1, 1] if batched else [-1, 1]), "rows"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node(operator, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["d", "rows"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("MaxPool", ["b"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    batch: int | str = "batch" if batched else 1
    graph = helper.make_graph(
        nodes,
        "detector",
        # Older exports list weights among the inputs.
        [
            helper.make_tensor_value_info("w1", TensorProto.FLOAT, [24, 3, 3, 3]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, "height", "width"]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, "cells", 2] if batched else ["cells", 2]),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [batch, 24, "rows", "columns"]),
        ],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def reference(model: onnx.ModelProto) -> Runner:
    session: Runner = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    return session


def noise(seed: int, *shape: int) -> FloatTensor:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "detector.onnx")
    return folder / "detector.onnx"


def assert_equal(found: list[FloatTensor], expected: list[FloatTensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", [None, ["pooled", "scores"], ["scores"]])
@pytest.mark.parametrize("height_width", [(64, 64), (128, 96)])
def test_outputs_are_those_of_onnx_runtime(names: list[str] | None, height_width: tuple[int, int]) -> None:
    model = dense_model()
    x = noise(1, 1, 3, *height_width)
    assert_equal(WinogradNetwork(model, 1).run(names, {"x": x}), reference(model).run(names, {"x": x}))


def test_pictures_of_a_batch_are_answered_in_order() -> None:
    model = dense_model(batched=True)
    x = noise(1, 3, 3, 64, 64)
    assert_equal(WinogradNetwork(model, 1).run(None, {"x": x}), reference(model).run(None, {"x": x}))


def test_outputs_stay_what_they_were_after_the_next_pass() -> None:
    network = WinogradNetwork(dense_model(), 1)
    first = network.run(None, {"x": noise(1, 1, 3, 64, 64)})
    copies = [output.copy() for output in first]
    network.run(None, {"x": noise(2, 1, 3, 64, 64)})
    for output, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(output, copy)


def test_threads_do_not_disturb_each_other() -> None:
    model = dense_model()
    network, expected = WinogradNetwork(model, 1), reference(model)
    pictures = [noise(seed, 1, 3, 96 + 32 * (seed % 2), 96) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda x: network.run(None, {"x": x}), pictures))
    for outputs, x in zip(found, pictures, strict=True):
        assert_equal(outputs, expected.run(None, {"x": x}))


def runs_faster(winner: type[object]) -> Callable[[Runner, dict[str, FloatTensor]], float]:
    return lambda runner, feed: 1.0 if isinstance(runner, winner) else 2.0


def test_the_faster_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense_model()
    path, session = saved(model, tmp_path), reference(model)
    monkeypatch.setattr(winograd, "_pass_s", runs_faster(WinogradNetwork))
    assert isinstance(faster_runner(path, session, [64, 96], 1), WinogradNetwork)
    monkeypatch.setattr(winograd, "_pass_s", runs_faster(onnxruntime.InferenceSession))
    assert faster_runner(path, session, [64, 96], 1) is session


def test_a_pass_takes_time() -> None:
    assert 0 < winograd._pass_s(reference(dense_model()), {"x": noise(1, 1, 3, 64, 64)}) < 10


def test_one_that_answers_differently_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_pass_s", runs_faster(WinogradNetwork))
    other = reference(dense_model("Abs"))
    assert faster_runner(saved(dense_model(), tmp_path), other, [64], 1) is other


def test_a_model_that_opencv_cannot_run_stays_on_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator it does not know, in a domain of ONNX Runtime's own."""
    monkeypatch.setattr(winograd, "_pass_s", runs_faster(WinogradNetwork))
    model = dense_model()
    model.graph.node[1].CopyFrom(helper.make_node("BiasSplitGelu", ["a", "b"], ["y"], domain="com.microsoft"))
    session = reference(dense_model())
    assert faster_runner(saved(model, tmp_path), session, [64], 1) is session
