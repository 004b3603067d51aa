"""What batching is worth: milliseconds an item by batch size and threads: uv run python -m benchmarks.batching

Bare models on real crops; the batch sizes take turns within a round, so that noise hits all of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from config.settings import Settings
from deployments.models.detector import FaceDetector
from deployments.models.loading import load_detector, load_recognizer
from deployments.models.packs import PackLocation, resolve
from deployments.models.recognizer import Recognizer
from deployments.models.session import Device
from deployments.process import tune_process
from serve_app.faces import Crops, RGBImage
from serve_app.imaging.images import ImageLimits, align, decode

SIZES = (1, 2, 4, 8, 16)


def measure(call: Callable[[int], object], rounds: int) -> dict[int, list[float]]:
    """Wall milliseconds an item, by batch size."""
    times: dict[int, list[float]] = defaultdict(list)
    for size in SIZES:
        call(size)
    for _ in range(rounds):
        for size in SIZES:
            begun = time.perf_counter()
            call(size)
            times[size].append((time.perf_counter() - begun) / size * 1e3)
    return times


def _detect(detector: FaceDetector, image: RGBImage, threshold: float, size: int) -> object:
    return detector.detect([image] * size, [threshold] * size)


def _embed(recognizer: Recognizer, crops: Crops, size: int) -> object:
    return recognizer.embed(crops[:size])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="opencv")
    parser.add_argument("--device", type=Device, default=Device.CPU)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/batching.json"))
    options = parser.parse_args()
    tune_process()
    settings = Settings()
    pack = resolve(PackLocation(options.pack, settings.model_root, settings.data_dir / "models", device=options.device))
    from benchmarks.faces import package_image

    threshold = pack.spec.detector.threshold
    image = decode(package_image("t1.jpg"), ImageLimits(1 << 24, 1 << 24)).pixels
    results: dict[str, dict[int, list[float]]] = {}
    print(f"## {options.pack} on {options.device.value}: ms an item, median (range)\n")
    print("| | " + " | ".join(f"batch {size}" for size in SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    for threads in options.threads:
        detector = load_detector(pack, options.device, threads)
        recognizer = load_recognizer(pack, options.device, threads)
        crops = np.repeat(align(image, detector.detect([image], [threshold])[0].landmarks)[:1], max(SIZES), axis=0)
        calls = {
            "detect": functools.partial(_detect, detector, image, threshold),
            "embed": functools.partial(_embed, recognizer, crops),
        }
        for name, call in calls.items():
            label = f"{name}, {threads} thread{'s' * (threads > 1)}"
            times = measure(call, options.rounds)
            results[label] = times
            cells = [f"{statistics.median(v):.1f} ({min(v):.1f}-{max(v):.1f})" for v in times.values()]
            print(f"| {label} | {' | '.join(cells)} |")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
