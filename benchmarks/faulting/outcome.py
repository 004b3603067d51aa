"""What a scenario came to: errors, what was lost, how long it took until all was well again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from benchmarks.mixed import GOOD, Answer

BAR_S = 15.0
HEAD = (
    "| scenario | requests | errors by code | connections lost | acknowledged | lost | recovery s | slowest answer s |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(slots=True)
class Outcome:
    """`recovery_s` by kind of request; `skipped`: why it was not tried. `load`: of the machine, average of a minute."""

    name: str
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    disconnected: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    recovery_s: dict[str, float] = field(default_factory=dict)
    slowest_s: float = 0.0
    load: float = 0.0
    skipped: str | None = None

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.recovery_s.items(), key=lambda one: one[1], default=("", 0.0))

    @property
    def passed(self) -> bool:
        return not self.lost and self.worst[1] <= BAR_S

    def row(self) -> str:
        if self.skipped is not None:
            return f"| {self.name} | skipped: {self.skipped} | | | | | | |"
        kind, recovery_s = self.worst
        errors = ", ".join(f"{count} x {code}" for code, count in self.errors.most_common()) or "none"
        shown = f"{recovery_s:.1f} ({kind})" if recovery_s else "0"
        cells = (self.requests, errors, self.disconnected, self.acknowledged, len(self.lost), shown, f"{self.slowest_s:.1f}")
        return f"| {self.name} | {' | '.join(map(str, cells))} |"

    def json(self) -> dict[str, object]:
        return asdict(self) | {"errors": dict(self.errors)}


def judge(outcome: Outcome, answers: Sequence[Answer], begun: float, over: float) -> None:
    """Fills in what `answers` tell. `begun`, `over`: when the fault came and when it was taken away, monotonic seconds."""
    outcome.requests = len(answers)
    outcome.errors = Counter(
        one.outcome for one in answers if one.outcome != GOOD and not one.outcome.startswith(("connection", "timeout"))
    )
    outcome.disconnected = sum(one.outcome.startswith(("connection", "timeout")) for one in answers)
    outcome.slowest_s = max((one.ended - one.begun for one in answers if one.kind != "index"), default=0.0)
    for kind in sorted({one.kind for one in answers}):
        its = [one for one in answers if one.kind == kind and one.ended >= begun]
        outcome.recovery_s[kind] = pause_s(its, begun, over) if kind == "index" else recovery_s(its, over)


def recovery_s(answers: Sequence[Answer], over: float) -> float:
    """From the first failing answer to the first of the good ones that no failing one follows; of an outage that lasts, what
    of this lies behind its end. Infinite where there was none."""
    failed = [one.ended for one in answers if not one.good]
    if not failed:
        return 0.0
    good = [one.ended for one in answers if one.good and one.ended > max(failed)]
    if not good:
        return math.inf
    return max(0.0, min(good) - max(min(failed), over))


def pause_s(answers: Sequence[Answer], begun: float, over: float) -> float:
    """The longest time without any good answer, where some failed: a photo is late as well because others stand before it,
    when all is well again."""
    if all(one.good for one in answers):
        return 0.0
    times = [begun, *sorted(one.ended for one in answers if one.good)]
    if len(times) == 1:
        return math.inf
    return max(max(0.0, later - max(earlier, over)) for earlier, later in pairwise(times))


def settled(answers: Sequence[Answer], kinds: Sequence[str], over: float, now: float, calm_s: float = 6.0) -> bool:
    """Every kind has had three good answers, begun since the fault was over and since its last failure, and that is a while
    ago."""
    for kind in kinds:
        its = [one for one in answers if one.kind == kind]
        since = max([over, *(one.ended for one in its if not one.good)])
        if now - since < calm_s or sum(one.good and one.begun >= since for one in its) < 3:
            return False
    return True
