"""Shell commands of a Markdown document, as a reader would type them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SHELL = {"sh", "bash", "console", "shell"}
_FENCE = re.compile(r"^```(?P<language>\w*)\s*$")
_HEADING = re.compile(r"^#+ (?P<title>.+)$")
_PROMPT = re.compile(r"^[a-z]*\$ +(?P<command>.*)$")
_COMMENT = re.compile(r"\s+#\s.*$")


@dataclass(frozen=True, slots=True)
class Command:
    """`shown`: the lines of output that the document gives below it."""

    text: str
    shown: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """One line without comments, by which tables name it."""
        lines = (_COMMENT.sub("", line).removesuffix("\\").strip() for line in self.text.splitlines())
        return " ".join(line for line in lines if line)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of commands. `line`: of the fence, from 1."""

    document: str
    heading: str
    line: int
    commands: tuple[Command, ...]

    def __str__(self) -> str:
        return f"{self.document}:{self.line} {self.heading}"


def blocks_of(path: Path) -> list[Block]:
    """All shell blocks, in order."""
    found: list[Block] = []
    heading, opened, inside, shell = "", 0, False, False
    body: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and not inside:
            inside, opened, shell, body = True, number, fence["language"] in SHELL, []
        elif fence:
            inside = False
            if shell:
                found.append(Block(path.name, heading, opened, commands_of(body)))
        elif inside:
            body.append(line)
        elif title := _HEADING.match(line):
            heading = title["title"]
    return found


def commands_of(lines: list[str]) -> tuple[Command, ...]:
    """With prompts (`$`, `head$`): what follows a prompt is a command, other lines are output. Without: all are commands. A line
    that ends with a backslash or a pipe goes on."""
    prompts = any(_PROMPT.match(line) for line in lines)
    found: list[tuple[list[str], list[str]]] = []
    goes_on = False
    for line in lines:
        prompt = _PROMPT.match(line)
        if goes_on:
            found[-1][0].append(line)
        elif prompt:
            found.append(([prompt["command"]], []))
        elif prompts:
            if found:
                found[-1][1].append(line)
            continue
        elif line.strip() and not line.lstrip().startswith("#"):
            found.append(([line], []))
        else:
            continue
        goes_on = line.rstrip().endswith(("\\", "|"))
    return tuple(Command("\n".join(text), tuple(shown)) for text, shown in found)
