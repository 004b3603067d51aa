"""One instance for all documents: started, stopped and started again by commands of the guide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docs.blocks import blocks_of
from tests.docs.world import ROOT, World

GUIDE = [block for name in ("README.md", "docs/operations.md") for block in blocks_of(ROOT / name)]


def started(world: World, serving: str, says: str = "") -> str:
    """The output of what serves now. `serving`: a command of the guide, which is run with those that stand before it."""
    (block, *_) = [one for one in GUIDE if any(command.key == serving for command in one.commands)]
    world.start("\n".join(command.text for command in block.commands), says)
    return world.log.read_text(errors="replace")


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    found = World(tmp_path_factory.mktemp("guide"))
    try:
        found.prepare()
        yield found
    finally:
        found.close()


@pytest.fixture(scope="package")
def running(world: World) -> str:
    return started(world, "kinlens up", "\nready")
