"""What breaks, and what becomes of requests and data then, on real processes:

    uv run python -m benchmarks.faults
    uv run python -m benchmarks.faults "Postgres killed" "disk full"

Each scenario runs on a whole `kinlens up` in a temporary folder while clients upload, enrol, search, verify and read. In the
end everything that was acknowledged is read back, bytes too, and `kinlens db check` compares rows and indexes. Exit status 1
when something acknowledged is missing, or a recovery took longer than the bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from itertools import groupby
from pathlib import Path

from benchmarks.faulting.outcome import HEAD, Outcome, judge, settled
from benchmarks.faulting.scenarios import MIX, SCENARIOS, Scenario
from benchmarks.faulting.stages import Skipped, Stage, stage
from benchmarks.instance import Instance
from benchmarks.mixed import Load, lost

_QUIET_S = 4.0
_PATIENCE_S = 90.0
_WHOLE_S = 90.0
_DEPLOYMENTS = ("Ingress", "Detection", "Embedding", "Analysis", "Indexing")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def play(scenario: Scenario, place: Stage, load: Load) -> Outcome:
    """One fault under load; returns when all is well again, or after a minute and a half."""
    outcome = Outcome(scenario.name)
    load.answers.clear()
    before = load.book.items
    async with load.going():
        await asyncio.sleep(_QUIET_S)
        if bad := [one for one in load.answers if not one.good]:
            say(f"  before anything was broken: {bad[:3]}")
        begun = time.monotonic()
        await scenario.act(place, load)
        over = time.monotonic()
        while not settled(load.answers, list(MIX), over, time.monotonic()):
            if time.monotonic() > over + _PATIENCE_S:
                say("  not all is well again")
                break
            await asyncio.sleep(0.5)
        judge(outcome, list(load.answers), begun, over)
    outcome.acknowledged = load.book.items - before
    outcome.load = os.getloadavg()[0]
    return outcome


async def whole(instance: Instance) -> None:
    """Waits until every deployment has a replica again, two where it should."""
    deadline = time.monotonic() + _WHOLE_S
    least = {name: 2 if name in ("Detection", "Embedding") else 1 for name in _DEPLOYMENTS}
    while any(len(instance.replicas(name)) < count for name, count in least.items()):
        if time.monotonic() > deadline:
            raise RuntimeError("a replica did not come back")
        await asyncio.sleep(0.5)


async def on_stage(place: Stage, scenarios: list[Scenario]) -> list[Outcome]:
    load = Load(place.instance, MIX)
    await load.prepare()
    outcomes = []
    for scenario in scenarios:
        await whole(place.instance)
        say(f"{scenario.name} ...")
        outcome = await play(scenario, place, load)
        # Everything of the scenarios before, too.
        outcome.lost = await lost(load)
        say(outcome.row())
        for name in outcome.lost[:5]:
            say(f"  lost: {name}")
        outcomes.append(outcome)
    for command in (("db", "check"), ("gc",)):
        done = await asyncio.to_thread(place.instance.kinlens, *command)
        say(f"kinlens {' '.join(command)}: exit status {done.returncode}")
        if done.returncode:
            say(done.stdout + done.stderr)
            outcomes[-1].lost.append(f"kinlens {' '.join(command)} complains")
    return outcomes


def run(scenarios: list[Scenario]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for kind, group in groupby(scenarios, key=lambda one: one.kind):
        its = list(group)
        try:
            with stage(kind) as place:
                outcomes += asyncio.run(on_stage(place, its))
        except Skipped as reason:
            outcomes += [Outcome(one.name, skipped=str(reason)) for one in its]
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(one.name for one in SCENARIOS)}")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/faults.json"))
    options = parser.parse_args()
    known = {one.name: one for one in SCENARIOS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"there is no scenario {unknown[0]!r}; there are {', '.join(known)}")
    outcomes = run([one for one in SCENARIOS if not options.names or one.name in options.names])
    print(HEAD)
    for outcome in outcomes:
        print(outcome.row())
    loads = [one.load for one in outcomes if one.skipped is None]
    if loads:
        print(f"\nThe machine's own load meanwhile: {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores.")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([one.json() for one in outcomes], indent=1) + "\n", encoding="utf-8")
    if not all(one.passed for one in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
