"""Rewrites must not change what a model computes: checked against onnx's own reference evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deployments.models import graphs


def quantised_model() -> onnx.ModelProto:
    """A convolution whose weights are int8 in blocks along axis 1, reshaped, listed among the inputs; then a PReLU."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-128, 127, (4, 18), dtype=np.int8)
    initializers = [
        numpy_helper.from_array(weights, "w_q"),
        numpy_helper.from_array(rng.random((4, 2), dtype=np.float32), "w_scale"),
        numpy_helper.from_array(rng.integers(-5, 5, (4, 2), dtype=np.int8), "w_zero"),
        numpy_helper.from_array(np.array([4, 2, 3, 3]), "w_shape"),
        numpy_helper.from_array(rng.normal(size=(4, 1, 1)).astype(np.float32), "slope"),
        numpy_helper.from_array(np.array([1, -1, 4]), "out_shape"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w_flat"], axis=1, block_size=9),
        helper.make_node("Reshape", ["w_flat", "w_shape"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("PRelu", ["c", "slope"], ["p"]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "out_shape"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 128, 128]),
        helper.make_tensor_value_info("w_q", TensorProto.INT8, [4, 18]),
        helper.make_tensor_value_info("stray", TensorProto.FLOAT, [1]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 128 * 128, 4])
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    result: np.ndarray = found
    return result


def test_folding_keeps_the_arithmetic_and_opens_the_dimensions() -> None:
    model = quantised_model()
    x = np.random.default_rng(1).normal(size=(1, 2, 128, 128)).astype(np.float32)
    (expected,) = list(ReferenceEvaluator(model).run(None, {"x": x}))
    graphs.fold(model)
    folded = graphs.serialize(model)
    assert [value.name for value in model.graph.input] == ["x"]
    assert "DequantizeLinear" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(folded, x), np.asarray(expected, dtype=np.float32), rtol=1e-3, atol=1e-2)
    batch = np.random.default_rng(2).normal(size=(3, 2, 96, 64)).astype(np.float32)
    answer = run(folded, batch)
    assert answer.shape == (3, 96 * 64, 4)
    np.testing.assert_allclose(answer[1:2], run(folded, batch[1:2]), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("slopes", [(-1.5, 0.25), (0.0, 1.0), (-0.5, 1.75), (3.0, 2.0)])
def test_prelu_is_decomposed_for_any_slopes(slopes: tuple[float, float]) -> None:
    nodes = [helper.make_node("PRelu", ["x", "s"], ["y"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 8, 8]) for name in ("x", "y")]
    slope = numpy_helper.from_array(np.array(slopes, np.float32).reshape(2, 1, 1), "s")
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [slope])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    x = np.random.default_rng(3).normal(size=(3, 2, 8, 8)).astype(np.float32)
    graphs.decompose_prelu(model)
    assert "PRelu" not in {node.op_type for node in model.graph.node}
    expected = np.where(x > 0, x, x * np.array(slopes, np.float32).reshape(1, 2, 1, 1))
    np.testing.assert_allclose(run(graphs.serialize(model), x), expected, rtol=1e-5, atol=1e-6)


def test_prelu_behind_a_convolution_is_decomposed() -> None:
    model = quantised_model()
    graphs.fold(model)
    x = np.random.default_rng(3).normal(size=(2, 2, 64, 64)).astype(np.float32)
    before = run(graphs.serialize(model), x)
    graphs.decompose_prelu(model)
    assert "PRelu" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(graphs.serialize(model), x), before, rtol=1e-3, atol=1e-2)


def test_a_shared_scalar_slope_is_left_alone() -> None:
    nodes = [helper.make_node("PRelu", ["x", "s"], ["y"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    slope = numpy_helper.from_array(np.array([0.5], np.float32), "s")
    model = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], [slope]))
    graphs.decompose_prelu(model)
    assert [node.op_type for node in model.graph.node] == ["PRelu"]


def test_scalars_stay_scalars() -> None:
    """Concat of shapes, and much else, wants them so."""
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["row"], axis=0),
        helper.make_node("PRelu", ["row", "slope"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 5])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4, 5])]
    initializers = [
        numpy_helper.from_array(np.array(1), "first"),
        numpy_helper.from_array(np.array([0.5], np.float32), "slope"),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    x = np.random.default_rng(4).normal(size=(2, 3, 4, 5)).astype(np.float32)
    before = run(graphs.serialize(model), x)
    graphs.decompose_prelu(model)
    np.testing.assert_array_equal(run(graphs.serialize(model), x), before)


def test_serialising_twice_gives_the_same_bytes() -> None:
    first, second = quantised_model(), quantised_model()
    graphs.fold(first)
    graphs.fold(second)
    assert graphs.serialize(first) == graphs.serialize(second)


@pytest.mark.parametrize("axis", [0, 1])
def test_dequantising_along_an_axis_without_blocks(axis: int) -> None:
    values = np.arange(6, dtype=np.int8).reshape(2, 3)
    scale = np.arange(1, values.shape[axis] + 1, dtype=np.float32)
    zero = np.ones(values.shape[axis], dtype=np.int8)
    initializers = [numpy_helper.from_array(a, n) for a, n in ((values, "q"), (scale, "s"), (zero, "z"))]
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.zeros((2, 3), np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    graphs._fold_constants(model.graph, constants)
    np.testing.assert_array_equal(constants["w"], expected)
