"""Rewrites of ONNX graphs that change how fast ONNX Runtime runs them, or whether it runs them at all; never what they
compute.

`fold` opens the block-quantised OpenCV zoo models: as distributed they hold int8 weights behind `DequantizeLinear` nodes, some
of them over one-dimensional biases, which ONNX Runtime refuses; they fix the batch to 1 and the picture to 640 x 640,
and list their weights among the graph's inputs. Folding computes every constant once, in float32, and opens the
dimensions.

`decompose_prelu` takes a CPU's slowest operator out of the recognizers: see there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

VERSION = 3
"""Raised when a result here changes, so that cached results are made again."""

Constants = dict[str, npt.NDArray[np.generic]]


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


def serialize(model: onnx.ModelProto) -> bytes:
    """Checked and serialised; deterministic for one version of onnx."""
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def fold(model: onnx.ModelProto) -> None:
    """In place: float32 constants, dynamic batch, height and width, the picture as the only input."""
    graph = model.graph
    constants = _constants(graph)
    _fold_constants(graph, constants)
    _free_batch(graph, constants)
    used = {name for node in graph.node for name in node.input}
    # Older exports list weights among the inputs, under names that quantisation has left behind as well.
    inputs = [value for value in graph.input if value.name in used and value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    _set_constants(graph, constants)
    _open_dimensions(graph)


def decompose_prelu(model: onnx.ModelProto) -> None:
    """In place: PRelu(x) = s x + Relu((1 - s) x), or s x + (1 - s) Relu(x) where a slope s is above 1; both products as
    depthwise 1 x 1 convolutions.

    ONNX Runtime's CPU PRelu is scalar code outside its blocked tensor layout, so each one also converts there and back: 15
    of SFace's 28 ms. Convolutions, Relu and Add stay inside, and it computes the Relu and the Add of the first form with its
    convolutions. 28.9 -> 13 ms a face, the outputs within 1e-6 (docs/performance.md).
    """
    graph = model.graph
    constants = _constants(graph)
    nodes = []
    for node in graph.node:
        slope = constants.get(node.input[1]) if node.op_type == "PRelu" else None
        # Only slopes a channel, of pictures: (C, 1, 1).
        if slope is None or slope.shape[-2:] != (1, 1):
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        slopes = slope.astype(np.float32).reshape(-1, 1, 1, 1)
        channels, between, positive = len(slopes), f"{y}_between", f"{y}_positive"
        constants[f"{y}_slope"], constants[f"{y}_rest"] = slopes, 1 - slopes
        if slopes.max() <= 1:
            nodes += [_depthwise(x, f"{y}_rest", between, channels), helper.make_node("Relu", [between], [positive])]
        else:
            nodes += [helper.make_node("Relu", [x], [between]), _depthwise(between, f"{y}_rest", positive, channels)]
        nodes += [
            _depthwise(x, f"{y}_slope", f"{y}_linear", channels),
            helper.make_node("Add", [f"{y}_linear", positive], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    _set_constants(graph, constants)


def _depthwise(x: str, weights: str, y: str, channels: int) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weights], [y], group=channels, kernel_shape=[1, 1])


def _constants(graph: onnx.GraphProto) -> Constants:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _set_constants(graph: onnx.GraphProto, constants: Constants) -> None:
    """The constants that a node still uses, and only those."""
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(
        # Not ascontiguousarray, which makes vectors of scalars.
        numpy_helper.from_array(np.asarray(array, order="C"), name)
        for name, array in constants.items()
        if name in used
    )


def _fold_constants(graph: onnx.GraphProto, constants: Constants) -> None:
    """Replaces DequantizeLinear and Reshape nodes over constants by their results."""
    kept = []
    for node in graph.node:
        known = all(name in constants for name in node.input)
        if known and node.op_type == "DequantizeLinear":
            constants[node.output[0]] = _dequantize(node, [constants[name] for name in node.input])
        elif known and node.op_type == "Reshape":
            values, shape = (constants[name] for name in node.input)
            constants[node.output[0]] = values.reshape([int(side) for side in shape.tolist()])
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _dequantize(node: onnx.NodeProto, inputs: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
    """y = (x - zero_point) * scale, by blocks along an axis (ONNX operator DequantizeLinear, opset 21)."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    values, scale = inputs[0].astype(np.float32), inputs[1].astype(np.float32)
    zero = inputs[2].astype(np.float32) if len(inputs) > 2 else np.zeros_like(scale)
    if block:
        length = values.shape[axis]
        scale = np.repeat(scale, block, axis=axis).take(range(length), axis=axis)
        zero = np.repeat(zero, block, axis=axis).take(range(length), axis=axis)
    elif scale.ndim == 1 and values.ndim > 1:
        sides = [-1 if side == axis else 1 for side in range(values.ndim)]
        scale, zero = scale.reshape(sides), zero.reshape(sides)
    return np.asarray((values - zero) * scale, dtype=np.float32)


def _free_batch(graph: onnx.GraphProto, constants: Constants) -> None:
    """Reshapes to [1, -1, C] pin the batch to 1; a 0 there copies it from the input instead."""
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = constants[node.input[1]].copy()
            if len(shape) == 3 and shape[0] == 1 and shape[1] == -1:
                shape[0] = 0
                constants[node.input[1]] = shape


def _open_dimensions(graph: onnx.GraphProto) -> None:
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if dims[2].dim_value > 112:
            dims[2].dim_param, dims[3].dim_param = "height", "width"
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if len(dims) == 3:
            dims[1].dim_param = f"anchors_{value.name}"
    del graph.value_info[:]
