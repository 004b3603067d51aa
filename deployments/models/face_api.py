"""face-api's expression network, from its own files to ONNX.

The architecture is FaceExpressionNet of face-api.js (Vincent Mühler; kept up as @vladmandic/face-api; both MIT): four dense
blocks of separable convolutions, average pooling, one linear layer. Its weights come as a TensorFlow.js manifest, which says
what lies where, and one shard of bytes, most of them quantised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper
from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError

from deployments.models import graphs
from serve_app.errors import ConfigurationError
from serve_app.faces import FloatArray

SIDE_PX = 112
CLASSES = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
"""In the order of the outputs, as face-api.js names them."""

_MEAN_RGB = (122.782, 117.001, 104.298)
_BLOCK_CHANNELS = (32, 64, 128, 256)
_OPSET = 17
_IR_VERSION = 8

Weights = Mapping[str, FloatArray]


class _Quantization(BaseModel):
    dtype: Literal["uint8", "uint16"]
    scale: float
    min: float


class _Weight(BaseModel):
    name: str
    shape: tuple[NonNegativeInt, ...]
    dtype: Literal["float32"]
    quantization: _Quantization | None = None


class _Group(BaseModel):
    weights: tuple[_Weight, ...]


def convert(manifest: bytes, shard: bytes) -> bytes:
    """A serialised ONNX model: (N, 3, 112, 112) float32 RGB in 0 ... 255 to (N, 7) probabilities of `CLASSES`.

    The normalisation is part of it. Raises ConfigurationError when the two files are not the network's.
    """
    weights = read_weights(manifest, shard)
    expected = layout()
    wrong = sorted(name for name in expected.keys() | weights.keys() if _shape(weights, name) != expected.get(name))
    if wrong:
        raise ConfigurationError(
            f"These are not the weights of face-api's expression network: {wrong[0]} is missing, unknown or of another shape."
        )
    return _Graph(weights).build()


def layout() -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of the shard. Filters are HWIO; depthwise ones HWC1."""
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for block, width in enumerate(_BLOCK_CHANNELS):
        for index in range(4):
            prefix = f"dense{block}/conv{index}"
            if block == index == 0:
                shapes[f"{prefix}/filters"] = (3, 3, channels, width)
            else:
                shapes[f"{prefix}/depthwise_filter"] = (3, 3, channels, 1)
                shapes[f"{prefix}/pointwise_filter"] = (1, 1, channels, width)
            shapes[f"{prefix}/bias"] = (width,)
            channels = width
    return shapes | {"fc/weights": (channels, len(CLASSES)), "fc/bias": (len(CLASSES),)}


def read_weights(manifest: bytes, shard: bytes) -> dict[str, FloatArray]:
    """The weights by name, dequantised. Raises ConfigurationError when manifest and shard do not fit each other."""
    try:
        (group,) = TypeAdapter(tuple[_Group]).validate_json(manifest)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]["msg"]
        raise ConfigurationError(f"This is no manifest of TensorFlow.js weights: {first}.") from error
    entries = group.weights
    types = [np.dtype(entry.quantization.dtype if entry.quantization else entry.dtype).newbyteorder("<") for entry in entries]
    counts = [int(np.prod(entry.shape, dtype=np.int64)) for entry in entries]
    described = sum(count * dtype.itemsize for count, dtype in zip(counts, types, strict=True))
    if described != len(shard):
        raise ConfigurationError(f"The manifest describes {described} bytes of weights; the shard has {len(shard)}.")
    weights: dict[str, FloatArray] = {}
    start = 0
    for entry, dtype, count in zip(entries, types, counts, strict=True):
        values = np.frombuffer(shard, dtype, count, start).astype(np.float32)
        start += count * dtype.itemsize
        if entry.quantization:
            values = values * np.float32(entry.quantization.scale) + np.float32(entry.quantization.min)
        weights[entry.name] = values.reshape(entry.shape)
    return weights


def _shape(weights: Weights, name: str) -> tuple[int, ...] | None:
    return weights[name].shape if name in weights else None


class _Graph:
    """Nodes and constants as they are added; every method returns the name of its output."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def build(self) -> bytes:
        mean = self._constant("mean", np.asarray(_MEAN_RGB, dtype=np.float32).reshape(1, 3, 1, 1))
        centred = self._add("Sub", ["images", mean])
        x = self._add("Div", [centred, self._constant("range", np.asarray([255], dtype=np.float32))])
        for block in range(len(_BLOCK_CHANNELS)):
            x = self._dense_block(x, f"dense{block}")
        pooled = self._add("AveragePool", [x], kernel_shape=[7, 7], strides=[2, 2])
        x = self._add("Flatten", [pooled])
        x = self._add("Gemm", [x, self._weight("fc/weights"), self._weight("fc/bias")])
        self._nodes.append(helper.make_node("Softmax", [x], ["probabilities"], axis=1))
        graph = helper.make_graph(
            self._nodes,
            "face_api_expression",
            [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, SIDE_PX, SIDE_PX])],
            [helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", len(CLASSES)])],
            self._constants,
        )
        opset = helper.make_opsetid("", _OPSET)
        return graphs.serialize(helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION))

    def _dense_block(self, x: str, prefix: str) -> str:
        """Halves height and width; each convolution sees the sum of all before it."""
        if f"{prefix}/conv0/filters" in self._weights:
            first = self._convolution(x, f"{prefix}/conv0/filters", f"{prefix}/conv0/bias", stride=2)
        else:
            first = self._separable(x, f"{prefix}/conv0", stride=2)
        total = activated = self._add("Relu", [first])
        for index in (1, 2, 3):
            total = self._add("Add", [total, self._separable(activated, f"{prefix}/conv{index}")])
            activated = self._add("Relu", [total])
        return activated

    def _separable(self, x: str, prefix: str, stride: int = 1) -> str:
        filters = self._weights[f"{prefix}/depthwise_filter"].transpose(2, 3, 0, 1)
        name = self._constant(f"{prefix}/depthwise_filter", filters)
        depthwise = self._add(
            "Conv", [x, name], strides=[stride, stride], auto_pad="SAME_UPPER", group=filters.shape[0], kernel_shape=[3, 3]
        )
        return self._convolution(depthwise, f"{prefix}/pointwise_filter", f"{prefix}/bias")

    def _convolution(self, x: str, filters: str, bias: str, stride: int = 1) -> str:
        name = self._constant(filters, self._weights[filters].transpose(3, 2, 0, 1))
        return self._add("Conv", [x, name, self._weight(bias)], strides=[stride, stride], auto_pad="SAME_UPPER")

    def _add(self, operator: str, inputs: Sequence[str], **attributes: int | str | list[int]) -> str:
        output = f"{operator.lower()}{len(self._nodes)}"
        node = helper.make_node(operator, list(inputs), [output])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self._nodes.append(node)
        return output

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _constant(self, name: str, value: FloatArray) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))
        return name
