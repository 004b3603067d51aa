"""Networks of dense 3 x 3 convolutions on a CPU, run by OpenCV's DNN module.

Its convolutions of that kind are Winograd's (Lavin & Gray 2016, arXiv:1509.09308): a fifth of the multiplications, in float32.
ONNX Runtime has none, and on AVX-512 it rounds 24 channels up to 32. SCRFD-2.5G takes a fifth to a third less time, with
outputs within 2e-5 (docs/performance.md). With networks of depthwise and 1 x 1 convolutions ONNX Runtime is the faster one.
Which one is, is measured when a model is loaded.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx

from deployments.models.session import Runner

FloatTensor = npt.NDArray[np.float32]

_MAX_DIFFERENCE = 1e-3
"""Of any output, in strides (boxes, landmarks) or probability: a hundredth of a pixel."""

_TIMED_PASSES = 3


class WinogradNetwork:
    """`model` on OpenCV's DNN module, a picture a pass. Safe to call from several threads: passes at one time have networks of
    their own, which are kept, by the shape of the input.

    `intra_op_threads` are OpenCV's, and so of the whole process.
    """

    def __init__(self, model: onnx.ModelProto, intra_op_threads: int) -> None:
        self._model = model
        self._idle: dict[tuple[int, ...], list[cv2.dnn.Net]] = defaultdict(list)
        cv2.setNumThreads(intra_op_threads)

    def run(self, output_names: list[str] | None, input_feed: dict[str, FloatTensor]) -> list[FloatTensor]:
        """Outputs by name, all of them in the model's order for None. Raises cv2.error where OpenCV cannot run the model."""
        (blob,) = input_feed.values()
        names = output_names or [value.name for value in self._model.graph.output]
        idle = self._idle[1, *blob.shape[1:]]
        try:
            network = idle.pop()
        except IndexError:
            network = self._read((1, *blob.shape[1:]))
        passes = []
        for index in range(len(blob)):
            network.setInput(blob[index : index + 1])
            # What comes out is the network's own memory, which the next pass overwrites.
            passes.append([np.array(output, dtype=np.float32) for output in network.forward(names)])
        idle.append(network)
        return passes[0] if len(passes) == 1 else [np.concatenate(outputs) for outputs in zip(*passes, strict=True)]

    def _read(self, shape: tuple[int, ...]) -> cv2.dnn.Net:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        # OpenCV computes the arithmetic of shapes when it reads the model, and so has to know them.
        for dim, length in zip(_picture(model.graph).type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = length
        # OpenCV 5 heeds the engine only of a file. Its new one has no Winograd convolutions.
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(model.SerializeToString())
            file.flush()
            network = cv2.dnn.readNetFromONNX(file.name, engine=cv2.dnn.ENGINE_CLASSIC)
        network.enableWinograd(True)
        return network


def _picture(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """The input; older exports list weights among them."""
    weights = {tensor.name for tensor in graph.initializer}
    picture: onnx.ValueInfoProto = next(value for value in graph.input if value.name not in weights)
    return picture


def faster_runner(path: Path, session: Runner, sides_px: Sequence[int], intra_op_threads: int) -> Runner:
    """Runs the detector at `path` on this CPU: a WinogradNetwork where that is faster here and agrees with `session`, else
    `session`."""
    model = onnx.load(path)
    name = _picture(model.graph).name
    network = WinogradNetwork(model, intra_op_threads)
    noise = [np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(np.float32) for side in sides_px]
    if not all(_agree(network, session, {name: canvas}) for canvas in noise):
        return session
    largest = {name: max(noise, key=np.size)}
    ours_s, theirs_s = _pass_s(network, largest), _pass_s(session, largest)
    return network if ours_s < theirs_s else session


def _agree(network: Runner, session: Runner, feed: dict[str, FloatTensor]) -> bool:
    """Whether the outputs differ by rounding only. Both have run once then."""
    try:
        found = network.run(None, feed)
    except cv2.error:
        return False
    return all(
        mine.shape == theirs.shape and float(np.abs(mine - theirs).max(initial=0)) <= _MAX_DIFFERENCE
        for mine, theirs in zip(found, session.run(None, feed), strict=True)
    )


def _pass_s(runner: Runner, feed: dict[str, FloatTensor]) -> float:
    """The best of a few: of this thread's CPU, so that what else the machine does counts little."""
    best = math.inf
    for _ in range(_TIMED_PASSES):
        begun = time.thread_time()
        runner.run(None, feed)
        best = min(best, time.thread_time() - begun)
    return best
