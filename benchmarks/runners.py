"""A detector on ONNX Runtime and on OpenCV's Winograd convolutions: uv run python -m benchmarks.runners MODEL.onnx ...

One process a core computes at once, as replicas do: what one does to the caches, another feels. Both take turns within a
round. Prints the CPU milliseconds a picture of 640 x 640, and how far the outputs are apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from benchmarks.faces import spread
from deployments.models.session import Runner, session_options
from deployments.models.winograd import WinogradNetwork
from deployments.process import tune_process

_SIDE_PX = 640
_ONNX_RUNTIME, _WINOGRAD = "ONNX Runtime", "Winograd"
_Feed = dict[str, npt.NDArray[np.float32]]


def runners(model: Path) -> tuple[dict[str, Runner], _Feed]:
    session = onnxruntime.InferenceSession(str(model), session_options(1), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(0).uniform(-1, 1, (1, 3, _SIDE_PX, _SIDE_PX)).astype(np.float32)
    both: dict[str, Runner] = {_ONNX_RUNTIME: session, _WINOGRAD: WinogradNetwork(onnx.load(model), 1)}
    return both, {session.get_inputs()[0].name: noise}


def difference(both: dict[str, Runner], feed: _Feed) -> float:
    """The largest of any output."""
    ours, theirs = (both[name].run(None, feed) for name in (_WINOGRAD, _ONNX_RUNTIME))
    return max(float(np.abs(mine - other).max()) for mine, other in zip(ours, theirs, strict=True))


def work(model: Path, orders: Connection) -> None:
    """Answers (runner, seconds) with the CPU milliseconds a picture, until None comes."""
    tune_process()
    both, feed = runners(model)
    orders.send(difference(both, feed))
    while (order := orders.recv()) is not None:
        name, seconds = order
        passes, cpu_s, until = 0, time.thread_time(), time.monotonic() + seconds
        while time.monotonic() < until:
            both[name].run(None, feed)
            passes += 1
        orders.send((time.thread_time() - cpu_s) / passes * 1e3)


def measure(model: Path, processes: int, rounds: int, seconds: float) -> tuple[dict[str, list[float]], float]:
    """Milliseconds a picture of each runner, a round each; and the difference of their outputs."""
    context = multiprocessing.get_context("spawn")
    workers, orders = [], []
    for _ in range(processes):
        mine, its = context.Pipe()
        workers.append(context.Process(target=work, args=(model, its)))
        workers[-1].start()
        orders.append(mine)
    apart = max(float(order.recv()) for order in orders)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name in (_ONNX_RUNTIME, _WINOGRAD):
            for order in orders:
                order.send((name, seconds))
            times[name].append(statistics.fmean(float(order.recv()) for order in orders))
    for order, worker in zip(orders, workers, strict=True):
        order.send(None)
        worker.join()
    return times, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    print(f"CPU ms a picture, {options.rounds} rounds of {options.seconds:g} s, median (range)\n")
    print("| model | processes | ONNX Runtime | Winograd | ratio | outputs differ by |\n|---|---|---|---|---|---|")
    for model in options.models:
        for processes in dict.fromkeys((1, cores)):
            times, apart = measure(model, processes, options.rounds, options.seconds)
            ratios = [ours / theirs for ours, theirs in zip(times[_WINOGRAD], times[_ONNX_RUNTIME], strict=True)]
            row = (model.stem, processes, spread(times[_ONNX_RUNTIME], 1), spread(times[_WINOGRAD], 1), spread(ratios))
            print(f"| {' | '.join(map(str, row))} | {apart:.0e} |")


if __name__ == "__main__":
    main()
