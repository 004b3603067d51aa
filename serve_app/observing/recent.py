"""The last minutes of a process, in slots of ten seconds: how many requests, how fast, where their time went."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from serve_app.observing.stages import Stage

SLOT_S = 10
KEPT_S = 900

BOUNDS_S = tuple(0.001 * 1.25**step for step in range(52))
"""Upper bounds of latencies: 1 ms to 87 s, each a quarter above the one before; so far off may a percentile be."""


@dataclass(slots=True)
class Slot:
    """`at`: seconds since the epoch at its beginning, a multiple of SLOT_S. `latencies`: requests by bucket of BOUNDS_S, one
    more for what is above. `stages`: seconds of all requests together. `failed`: answered 500 and above; `refused`: 429 and
    503, the latter of which are among `failed`."""

    at: int
    count: int = 0
    failed: int = 0
    refused: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    stages: dict[Stage, float] = field(default_factory=dict)

    def add(self, status: int, seconds: float, stages: Mapping[Stage, float]) -> None:
        self.count += 1
        self.failed += status >= 500
        self.refused += status in (429, 503)
        self.latencies[bisect_left(BOUNDS_S, seconds)] += 1
        for which, spent_s in stages.items():
            self.stages[which] = self.stages.get(which, 0.0) + spent_s

    def merge(self, other: Slot) -> None:
        """Adds what another process, or another time, says."""
        self.count += other.count
        self.failed += other.failed
        self.refused += other.refused
        self.latencies = [one + more for one, more in zip(self.latencies, other.latencies, strict=True)]
        for which, spent_s in other.stages.items():
            self.stages[which] = self.stages.get(which, 0.0) + spent_s

    def percentile_s(self, share: float) -> float | None:
        """The latency that `share` of the requests did not exceed, by the bounds of its bucket; None without requests."""
        if not self.count:
            return None
        wanted, seen = math.ceil(share * self.count), 0
        for bucket, count in enumerate(self.latencies):
            if count and seen + count >= wanted:
                low = BOUNDS_S[bucket - 1] if bucket else 0.0
                high = BOUNDS_S[bucket] if bucket < len(BOUNDS_S) else BOUNDS_S[-1]
                return low + (high - low) * (wanted - seen) / count
            seen += count
        return None


class Recent:
    """Slots of the last KEPT_S seconds. By the clock of the machine, so that those of several processes can be added up."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}

    def add(self, status: int, seconds: float, stages: Mapping[Stage, float]) -> None:
        at = int(time.time()) // SLOT_S * SLOT_S
        slot = self._slots.get(at)
        if slot is None:
            # Once in ten seconds. A clock that was set back leaves slots of the future behind: they go too.
            self._slots = {key: kept for key, kept in self._slots.items() if at - KEPT_S < key <= at}
            slot = self._slots[at] = Slot(at)
        slot.add(status, seconds, stages)

    def slots(self) -> list[Slot]:
        """Oldest first; slots without requests are left out."""
        now = time.time()
        return [slot for at, slot in sorted(self._slots.items()) if now - KEPT_S < at <= now]


def merged(processes: Iterable[Iterable[Slot]]) -> list[Slot]:
    """The slots of several processes as those of one, oldest first."""
    found: dict[int, Slot] = {}
    for slots in processes:
        for slot in slots:
            found.setdefault(slot.at, Slot(slot.at)).merge(slot)
    return [found[at] for at in sorted(found)]


def summed(slots: Iterable[Slot], since: float) -> Slot:
    """All slots that end after `since` as one."""
    total = Slot(int(since))
    for slot in slots:
        if slot.at + SLOT_S > since:
            total.merge(slot)
    return total
