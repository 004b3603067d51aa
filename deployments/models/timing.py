"""What a picture and a face cost on this machine: the models of the deployments, timed alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deployments.models.attribute_packs import AnalysisLocation, resolve_analysis
from deployments.models.engine import AnalysisEngine, AnalysisRequest, DetectionEngine, DetectionRequest, EmbeddingEngine
from deployments.models.loading import load_attribute_models, load_detector, load_recognizer
from deployments.models.packs import resolve
from deployments.models.session import Device
from deployments.process import tune_process
from serve_app.errors import ConfigurationError, ImageError
from serve_app.faces import Chips, DetectionOptions, Detections
from serve_app.imaging.images import ImageLimits
from serve_app.sizing import Costs

_BATCHES = {Device.CPU: (1,), Device.CUDA: (1, 2, 4, 8, 16, 32)}
_GAIN = 0.9
"""A larger batch must save a tenth an item: it makes each of its items wait for all."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds an item at `batch`, over the rounds."""

    batch: int
    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Of `faces` faces in the picture that was timed. `analyze`: None where no attribute model is there."""

    faces: int
    detect: Timed
    embed: Timed
    analyze: Timed | None

    @property
    def costs(self) -> Costs:
        """Analysis without models costs next to nothing; sizing asks for a number."""
        return Costs(self.detect.median_ms, self.embed.median_ms, self.analyze.median_ms if self.analyze else 0.1)


def time_models(location: AnalysisLocation, image: bytes, limits: ImageLimits, rounds: int = 15) -> Timings:
    """With one thread a model, as replicas run them. CPU time on a CPU, so that a neighbour's load does not count; elapsed
    time on a GPU, at the batch size that pays.

    Raises ConfigurationError for a picture that cannot be read or has no face, and what loading models raises.
    """
    tune_process()
    pack, device = resolve(location.pack), location.pack.device
    detection = DetectionEngine(load_detector(pack, device, 1), limits, pack.spec.detector.threshold)
    embedding = EmbeddingEngine(load_recognizer(pack, device, 1))
    attributes = resolve_analysis(location, pack)
    analysis = AnalysisEngine(load_attribute_models(location, attributes.assignment, 1))
    chips = tuple({model.chip for model in attributes.models})
    (found,) = detection.run([DetectionRequest(image, DetectionOptions(chips=chips))])
    if isinstance(found, ImageError):
        raise ConfigurationError(f"The picture to measure with cannot be read: {found}")
    if not len(found.crops):
        raise ConfigurationError("The picture to measure with has no face.")
    asked = tuple((attribute, model.name) for model in attributes.models for attribute in model.attributes)
    request = DetectionRequest(image, DetectionOptions(crops=1))
    calls: dict[str, Callable[[int], object]] = {
        "detect": lambda count: detection.run([request] * count),
        "embed": lambda count: embedding.run([np.repeat(found.crops[:1], count, axis=0)]),
        "analyze": lambda count: analysis.run([AnalysisRequest(_repeated(found, count), asked)]),
    }
    measured = {name: _best(call, device, rounds) for name, call in calls.items() if name != "analyze" or asked}
    return Timings(len(found.crops), measured["detect"], measured["embed"], measured.get("analyze"))


def _repeated(found: Detections, count: int) -> Chips:
    return {spec: np.repeat(chips[:1], count, axis=0) for spec, chips in found.chips.items()}


def _best(call: Callable[[int], object], device: Device, rounds: int) -> Timed:
    """The smallest batch that none larger beats by a tenth."""
    best: Timed | None = None
    for batch in _BATCHES[device]:
        timed = _time(call, batch, device, rounds)
        if best is None or timed.median_ms < best.median_ms * _GAIN:
            best = timed
    assert best is not None
    return best


def _time(call: Callable[[int], object], batch: int, device: Device, rounds: int) -> Timed:
    clock = time.process_time if device is Device.CPU else time.perf_counter
    call(batch)
    taken = []
    for _ in range(rounds):
        begun = clock()
        call(batch)
        taken.append((clock() - begun) / batch * 1e3)
    return Timed(batch, statistics.median(taken), min(taken), max(taken))
