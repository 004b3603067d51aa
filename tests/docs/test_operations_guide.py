"""The commands of docs/operations.md and README.md, run as they stand there, in order, against a service that the guide's own
commands started."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks_of
from tests.docs.conftest import GUIDE, started
from tests.docs.elsewhere import ELSEWHERE, Serves
from tests.docs.world import World

STOPPED = {"Backup and restore": "kinlens restore monday.backup --force", "Going back": "git switch --detach v0.1.0"}
"""Blocks, by heading and first command, that the guide wants run with the service stopped. All others are run beside it."""


LARGER = {"kinlens db check", "kinlens size --images-per-s 60"}
"""Their output in the guide is that of a larger collection, or put together more tightly."""


def _stopped(block: Block) -> bool:
    return STOPPED.get(block.heading) == block.commands[0].key


def _serves(block: Block) -> bool:
    return any(isinstance(ELSEWHERE.get(command.key), Serves) for command in block.commands)


BESIDE = [block for block in GUIDE if not _stopped(block) and not _serves(block)]


@pytest.fixture(scope="module")
def stopped(world: World) -> World:
    world.stop()
    return world


def test_what_is_not_run_is_still_in_the_guide() -> None:
    keys = {command.key for block in GUIDE for command in block.commands}
    assert sorted(set(ELSEWHERE) - keys) == []
    assert {block.heading: block.commands[0].key for block in GUIDE if _stopped(block)} == STOPPED


def test_kinlens_up(running: str) -> None:
    assert "\nready" in running


@pytest.mark.parametrize("block", BESIDE, ids=str)
def test_beside_the_service(world: World, running: str, block: Block) -> None:
    outputs = world.run([block], ELSEWHERE)
    for command in block.commands:
        if command.key in outputs and command.key not in LARGER:
            assert unlike(command.shown, outputs[command.key]) == [], f"the output is:\n{outputs[command.key]}"


@pytest.mark.parametrize("block", [block for block in GUIDE if _stopped(block)], ids=str)
def test_while_it_is_stopped(stopped: World, block: Block) -> None:
    stopped.run([block], ELSEWHERE)


def test_serve_run(stopped: World) -> None:
    """And what was restored is there."""
    started(stopped, "serve run serve_config.yaml")
    done = stopped.bash('curl -fsS -H "Authorization: Bearer $API_KEY" $KINLENS/api/v1/collections/staff/persons')
    assert done.returncode == 0 and '"tom"' in done.stdout, done.stdout


def unlike(shown: tuple[str, ...], output: str) -> list[str]:
    """Lines that the guide shows and nothing that was printed is like, whatever the numbers, ids and dates are."""
    printed = {shape(line) for line in output.splitlines()}
    return [line for line in shown if line.strip() not in ("", "...") and shape(line) not in printed]


def shape(line: str) -> str:
    line = re.sub(r"\bkl_[\w-]+", "KEY", line)
    line = re.sub(r"\b[0-9a-f]{12}\b", "ID", line)
    return re.sub(r"\d+(?:[.,:-]\d+)*", "N", line).strip()


def test_shapes() -> None:
    assert unlike(("3 enrolled in 9.4 s", "..."), "x\n1,204 enrolled in 12 s\n") == []
    assert unlike(("3 enrolled in 9.4 s",), "3 refused in 9.4 s") == ["3 enrolled in 9.4 s"]


def test_a_command_is_found_as_it_is_typed(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# Page\n```console\n$ one --a \\\n    --b   # why\nsaid\nhead$ two\n```\n## Other\n```yaml\nx: 1\n```\n```sh\n# note\nthree |\n four\n```\n"
    )
    first, second = blocks_of(path)
    assert [(one.key, one.shown) for one in first.commands] == [("one --a --b", ("said",)), ("two", ())]
    assert (second.heading, [one.key for one in second.commands]) == ("Other", ["three | four"])
