"""How many replicas a load takes: arithmetic on measured milliseconds. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

MODEL_FACTOR = 1.25
"""What a model takes in a replica, its call included, for each ms it takes alone (docs/performance.md, CPU by process)."""
INGRESS_MS = 6.0
"""CPU of HAProxy and the ingress for a request of one picture, there too."""
FULL = 0.7
"""Share of its time that a replica should be busy at the load that is planned for: above, queues grow long."""
SPARE = 1.5
"""How far replicas may grow beyond that load."""
NEVER_LESS_THAN = 2
"""Replicas of whatever must not pause when one dies."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of one replica's time, at the batch size it will run with. `detect_ms`: a picture, decoding and aligning
    included. `embed_ms`, `analyze_ms`: a face."""

    detect_ms: float
    embed_ms: float
    analyze_ms: float


@dataclass(frozen=True, slots=True)
class Load:
    """`faces`: embedded a picture; `analyzed`: faces of a picture whose attributes are asked for."""

    images_per_s: float
    faces: float = 1.0
    analyzed: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One deployment. `busy`: replicas' worth of work at the load; it starts with `min_replicas` and may grow."""

    name: str
    busy: float
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True)
class Plan:
    parts: tuple[Part, ...]

    def __getitem__(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    @property
    def busy_cores(self) -> float:
        """Cores that are busy at the load, where each replica is one."""
        return sum(part.busy for part in self.parts)

    def capacity(self, load: Load) -> float:
        """Pictures a second at which the first deployment, with the replicas it starts with, has no time left."""
        return min(load.images_per_s * part.min_replicas / part.busy for part in self.parts if part.busy)


def plan(costs: Costs, load: Load) -> Plan:
    """Raises ValueError for a load or costs that are not positive numbers."""
    numbers = (load.images_per_s, costs.detect_ms, costs.embed_ms, costs.analyze_ms)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError("A load and what a picture and a face cost are above 0.")
    if not all(math.isfinite(number) and number >= 0 for number in (load.faces, load.analyzed)):
        raise ValueError("Faces a picture are 0 or more.")
    of_a_picture = (
        ("Ingress", INGRESS_MS),
        ("Detection", costs.detect_ms * MODEL_FACTOR),
        ("Embedding", costs.embed_ms * MODEL_FACTOR * load.faces),
        ("Analysis", costs.analyze_ms * MODEL_FACTOR * load.analyzed),
    )
    return Plan(tuple(_part(name, load.images_per_s * ms / 1000) for name, ms in of_a_picture))


def _part(name: str, busy: float) -> Part:
    least = 1 if name == "Analysis" else NEVER_LESS_THAN
    needed = max(least, math.ceil(busy / FULL))
    return Part(name, busy, needed, max(needed, math.ceil(busy / FULL * SPARE)))
