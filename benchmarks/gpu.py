"""What a GPU does, beside this machine's CPU: uv run --no-sync python -m benchmarks.gpu

Faces a second (embedding) and pictures a second (detection, of decoded pictures) by batch size, of the models alone, loaded as
replicas load them. Devices and batch sizes take turns within a round, so that noise hits all of them. It proposes
max_batch_size: the smallest that does 95 % of the best. Without a GPU that ONNX Runtime can use it ends with exit code 2;
--device cpu measures the CPU only. docs/operations.md (GPU) says which packages it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.faces import package_image
from benchmarks.plot import lines
from config.settings import Settings
from deployments.models.loading import load_detector, load_recognizer
from deployments.models.packs import Pack, PackLocation, resolve
from deployments.models.session import Device, audit_device, providers, session_options
from deployments.process import tune_process
from serve_app.errors import ConfigurationError
from serve_app.imaging.images import ImageLimits, align, decode

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
ENOUGH = 0.95
"""Of the best rate: a larger batch makes each of its items wait for all, which the last twentieth is not worth."""
_FACE_PX, _PICTURE_PX = 112, 640
Call = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Rate:
    """Items a second of one batch size over the rounds."""

    batch: int
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on one device. `kernels`: how many operators of its graph ran where, by ONNX Runtime's own account."""

    model: str
    device: Device
    kernels: Mapping[str, int]
    rates: tuple[Rate, ...]

    @property
    def proposed(self) -> int:
        return proposed_batch_size(self.rates)


def proposed_batch_size(rates: Sequence[Rate]) -> int:
    """The smallest with at least 95 % of the best median."""
    best = max(rate.median for rate in rates)
    return min(rate.batch for rate in rates if rate.median >= ENOUGH * best)


def measure(calls: Mapping[str, Call], sizes: Sequence[int], rounds: int) -> dict[str, tuple[Rate, ...]]:
    """`calls`: run a batch of so many items, which is done when they return. The first run of each size is not counted: a GPU
    chooses its algorithms then."""
    rates: dict[tuple[str, int], list[float]] = {(name, size): [] for size in sizes for name in calls}
    for name, size in rates:
        calls[name](size)
    for _ in range(rounds):
        for (name, size), found in rates.items():
            begun = time.perf_counter()
            calls[name](size)
            found.append(size / (time.perf_counter() - begun))
    return {
        name: tuple(Rate(size, statistics.median(of), min(of), max(of)) for size in sizes for of in [rates[name, size]])
        for name in calls
    }


def kernels(model: Path, device: Device, side_px: int) -> dict[str, int]:
    """Operators by the provider that ran them, in one run on one item. A graph on a GPU may have some that only the CPU knows:
    each of them copies there and back. Where not one ran on `device`, that is a ConfigurationError."""
    options = session_options(1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "run"))
        session = onnxruntime.InferenceSession(str(model), sess_options=options, providers=providers(device))
        feeds = {}
        for entry in session.get_inputs():
            wanted = (1, 3, side_px, side_px)
            shape = [own if isinstance(own, int) else dim for own, dim in zip(entry.shape, wanted, strict=True)]
            feeds[entry.name] = np.zeros(shape, np.float32)
        session.run(None, feeds)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found = Counter(event["args"]["provider"] for event in events if event.get("args", {}).get("provider"))
    if not found[providers(device)[0]]:
        raise ConfigurationError(
            f"{model.name} was asked to run on {device.value} and ran on {', '.join(found) or 'nothing'}."
        )
    return dict(found)


def gpu_memory_mib() -> int | None:
    """In use on the first GPU, by everybody; None without nvidia-smi."""
    text = _nvidia_smi("memory.used")
    return int(text) if text is not None and text.isdigit() else None


def _nvidia_smi(field: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def calls_of(pack: Pack, device: Device, threads: int, most: int) -> dict[str, Call]:
    """`embed` and `detect`, loaded as replicas load them: with the audit that they run on `device`."""
    image = decode(package_image("t1.jpg"), ImageLimits(1 << 24, 1 << 24)).pixels
    threshold = pack.spec.detector.threshold
    detector, recognizer = load_detector(pack, device, threads), load_recognizer(pack, device, threads)
    crops = np.repeat(align(image, detector.detect([image], [threshold])[0].landmarks)[:1], most, axis=0)
    return {
        "embed": lambda size: recognizer.embed(crops[:size]),
        "detect": lambda size: detector.detect([image] * size, [threshold] * size),
    }


def run(pack_name: str, devices: Sequence[Device], sizes: Sequence[int], rounds: int, threads: int) -> list[Measured]:
    """Raises ConfigurationError when one of the devices is not to be had."""
    for device in devices:
        audit_device(device)
    settings = Settings()
    calls: dict[str, Call] = {}
    where: dict[str, tuple[str, Device, dict[str, int]]] = {}
    for device in devices:
        pack = resolve(PackLocation(pack_name, settings.model_root, settings.data_dir / "models", device=device))
        files = {"embed": (pack.recognizer_path, _FACE_PX), "detect": (pack.detector_path, _PICTURE_PX)}
        for model, call in calls_of(pack, device, threads, max(sizes)).items():
            name = f"{model}, {device.value}"
            calls[name] = call
            where[name] = (model, device, kernels(files[model][0], device, files[model][1]))
    found = measure(calls, sizes, rounds)
    return [Measured(*where[name], rates) for name, rates in found.items()]


def markdown(title: str, found: Sequence[Measured], memory: tuple[int | None, int | None]) -> str:
    """`memory`: MiB of the GPU before and after."""
    sizes = [rate.batch for rate in found[0].rates]
    rows = [
        f"## {title}\n",
        "Items a second, median (range): faces for `embed`, decoded pictures for `detect`.\n",
        "| | " + " | ".join(f"batch {size}" for size in sizes) + " | max_batch_size |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for one in found:
        cells = [f"{rate.median:,.0f} ({rate.low:,.0f}-{rate.high:,.0f})" for rate in one.rates]
        rows.append(f"| {one.model}, {one.device.value} | {' | '.join(cells)} | {one.proposed} |")
    rows.append("")
    for one in found:
        ran = ", ".join(f"{count} on {provider}" for provider, count in one.kernels.items())
        rows.append(f"- {one.model}, {one.device.value}: operators of its graph: {ran}")
    if None not in memory:
        rows.append(f"- GPU memory in use: {memory[0]:,} MiB before, {memory[1]:,} MiB with all of it loaded")
    return "\n".join(rows) + "\n"


def positive(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError(text)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="opencv")
    parser.add_argument("--device", type=Device, choices=list(Device), help="only this one; default: CUDA beside the CPU")
    parser.add_argument("--sizes", type=positive, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--threads", type=positive, default=1, help="of each model on the CPU; replicas have 1")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder for gpu.md, .json and .svg")
    options = parser.parse_args(arguments)
    devices = [options.device] if options.device else [Device.CUDA, Device.CPU]
    tune_process()
    before = gpu_memory_mib()
    try:
        found = run(options.pack, devices, options.sizes, options.rounds, options.threads)
    except ConfigurationError as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        if Device.CUDA in devices:
            print("--device cpu measures the CPU.", file=sys.stderr)
        return 2
    gpu = _nvidia_smi("name") if Device.CUDA in devices else None
    machine = f"{gpu or 'no GPU'}, {options.threads} of {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}"
    title = f"{options.pack} on {machine}"
    memory = (before, gpu_memory_mib()) if gpu else (None, None)
    text = markdown(title, found, memory)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu.md").write_text(text, encoding="utf-8")
    document = {
        "title": title,
        "rounds": options.rounds,
        "gpu_memory_mib": memory,
        "measured": [asdict(one) | {"proposed_batch_size": one.proposed} for one in found],
    }
    (options.output / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    series = {f"{one.model}, {one.device.value}": [(rate.batch, rate.median) for rate in one.rates] for one in found}
    (options.output / "gpu.svg").write_text(lines(title, "batch size", "items/s", series), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
