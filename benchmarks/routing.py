"""What the router of the model deployments does for the tail, beside Serve's own.

    uv run python -m benchmarks.routing --pack FOLDER

Two whole instances answer the same picture in turns, first alone on the machine, then beside a process that takes one core
when it can: replicas that share it get slow. Loopback only. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import yaml

from benchmarks.client import Load, closed_loop
from benchmarks.faces import package_image, spread
from benchmarks.instance import ROOT, Instance, running
from benchmarks.load import form_request

_PATH = "/api/v1/face/extract-embedding?face=all"
_ROUTERS = {"Serve's": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter", "ours": None}
_ROUTED = ("Detection", "Embedding")


def profile(folder: Path, router: str | None) -> Path:
    """serve_config.yaml with `router` before its models; None: the one that they come with."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    for deployment in config["applications"][0]["deployments"]:
        if router is not None and deployment["name"] in _ROUTED:
            deployment["request_router_config"] = {"request_router_class": router}
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextmanager
def neighbour() -> Iterator[None]:
    """Something else that is busy on the first core."""
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def turn(instance: Instance, request: bytes, clients: int, seconds: float) -> Load:
    """After two seconds that do not count: long enough to learn who is slow."""
    asyncio.run(closed_loop(instance.port, [request], clients, 2))
    return asyncio.run(closed_loop(instance.port, [request], clients, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="a folder of InsightFace models")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    pack, request = str(options.pack.resolve()), form_request(_PATH, package_image("t1.jpg"))
    loads: dict[tuple[str, str], list[Load]] = defaultdict(list)
    with ExitStack() as stack:
        services: dict[str, Instance] = {}
        for name, router in _ROUTERS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kinlens-routing-")))
            folder.chmod(0o711)
            services[name] = stack.enter_context(running(folder, config=profile(folder, router), MODEL_PACK=pack))
        for case in ("alone", "one core shared"):
            for number in range(options.rounds):
                with neighbour() if case != "alone" else nullcontext():
                    for name in list(services)[:: 1 if number % 2 else -1]:
                        loads[case, name].append(turn(services[name], request, options.clients, options.seconds))
    print(f"{options.clients} clients, {options.rounds} rounds of {options.seconds:g} s, median (range)\n")
    print("| | router | images/s | p50 ms | p95 ms | p99 ms | p99, ours / Serve's |\n|---|---|---|---|---|---|---|")
    for (case, name), found in loads.items():
        ratios = [
            ours.percentile_ms(0.99) / its.percentile_ms(0.99)
            for ours, its in zip(loads[case, "ours"], loads[case, "Serve's"], strict=True)
        ]
        figures = [
            spread([one.per_second for one in found], 1), spread([one.median_ms for one in found], 0),
            spread([one.percentile_ms(0.95) for one in found], 0), spread([one.percentile_ms(0.99) for one in found], 0),
            spread(ratios, 2) if name == "ours" else "",
        ]  # fmt: skip
        print(f"| {case} | {name} | {' | '.join(figures)} |")
    statuses = sum((load.statuses for found in loads.values() for load in found), Counter())
    print(f"\nAnswers by status: {dict(statuses)}. Load of the machine at the end: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
