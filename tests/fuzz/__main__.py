"""`python -m tests.fuzz images` and `python -m tests.fuzz api`: see docs/testing.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz import images


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = commands.add_parser("images", help="damaged pictures of all formats, read as the service reads them")
    pictures.add_argument("--files", type=int, default=50_000)
    pictures.add_argument(
        "--start", type=int, default=0, help="number of the first one: `--start N --files 1` is one file again"
    )
    pictures.add_argument("--workers", type=int, default=2)
    pictures.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for what was found")
    requests = commands.add_parser("api", help="every operation of the OpenAPI document, against the real service")
    requests.add_argument("--requests", type=int, default=20_000)
    for command in (pictures, requests):
        command.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.command == "api":
        # Everything there is, which readers of pictures do not need when they start.
        from tests.fuzz import api

        found = api.run_long(given.requests, given.seed)
        print(api.tell(found))
        return 1 if found.failures else 0
    with tempfile.TemporaryDirectory() as cache:
        report = images.run(given.files, given.seed, given.workers, Path(cache), given.keep, given.start)
    print(images.tell(report))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
